"""Poses, shifts, contrast and defocus of each image, refined against the map of its own half.

- ``refine``: Gauss–Newton steps for a block of images; ``refine_kernels``: the numba kernel under them
- ``rounds``: refinement and fit in turn, until a round gains little
"""
