"""The main job: particle images with poses → Gaussians, maps, and how far they can be trusted.

- ``reconstruct``: the job from the table to the result; read it first
- ``solution``: accumulation, fits and validation of both halves; ``halves``: the fits of one half
- ``given_mask``: the mask that the user gives
- ``working_grid``: the box and the cube that the work is done on; ``device``: the device of an accumulation
- ``job``: what all stages are given; ``identity``: which runs may resume each other; ``tuning``: sizes and limits
"""
