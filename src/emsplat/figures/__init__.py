"""Pictures that are saved beside the numbers.

- ``reconstruction``: curves, slices, projections, viewing directions and losses of a run
- ``local_resolution``, ``refinement``, ``abinitio``, ``heterogeneity``: the pictures of those stages and jobs
- ``uncertainty``: slices of the standard error of the map
"""
