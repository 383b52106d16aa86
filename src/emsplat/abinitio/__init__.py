"""From particle images without poses to poses, a map, and whether to believe them.

- ``look``: the noise, the diameter and the contrast that images show without poses
- ``scales``: rings, grids, batches and iterations, found from the data
- ``grids``: directions, turns and shifts to search over; ``polar``: images on polar grids of Fourier space
- ``volume``: a small map: its slices, their insertion, its solution
- ``search``: the E-step on a grid as batched matrix products, and its adjoint; ``softmax``: scores to posteriors
- ``stochastic``: the first stage, from random poses to a coarse map; ``full``: the second, all images on finer grids
- ``alignment``: two maps brought together by rotation, shift and hand; ``symmetric``: under an imposed symmetry
- ``modes``: where the turns between two sets of poses gather; ``imitation``: what a right map's images would show
- ``halves``: two independent searches, and how far they agree; ``verdict``: whether to believe them
- ``transfer``: whether the CTFs belong to their images
- ``refinement``: global search on refined maps; ``run``: the job from top to bottom
"""
