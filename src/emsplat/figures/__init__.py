"""Pictures that are saved beside the numbers.

- ``reconstruction``: curves, slices, projections, viewing directions and losses of a run
- ``local_resolution``, ``refinement``: the figures of those two stages
- ``uncertainty``: slices of the standard error of the map
"""
