"""Results in the formats of other programs.

- ``formats``: the choice between the formats; ``ply``, ``cif``, ``mrc``, ``relion``: one format each
- ``decode``: maps and models at points of the latent space of a search for heterogeneity
"""
