"""Pictures that are saved beside the numbers.

- ``reconstruction``: curves, slices, projections, viewing directions and losses of a run
- ``local_resolution``, ``refinement``, ``abinitio``: of those three stages
"""
