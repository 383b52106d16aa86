"""Pictures that are saved beside the numbers.

- ``reconstruction``: curves, slices, projections, viewing directions and losses of a run
- ``local_resolution``, ``refinement``, ``abinitio``: the pictures of those three stages
- ``uncertainty``: slices of the standard error of the map
"""
