"""Results in the formats of other programs.

- ``formats``: the choice between the formats; ``ply``, ``cif``, ``mrc``, ``relion``: one format each
"""
