"""The job that finds poses and a map from particle images without poses, and decides whether to believe them.

- ``look``: the noise, the diameter and the sign of the contrast, which images show even without poses
- ``scales``: rings, grids, batches and iterations, found from the data
- ``grids``: directions, turns and shifts to search over; ``polar``: images on polar grids of Fourier space
- ``samples``: the samples of many images on a disk; ``shares``: the images divided among ranks
- ``volume``: the slices of a small map, their insertion, and the map that solves for them
- ``search``: E-step and M-step on a grid as batched matrix products; ``softmax``: posteriors from scores,
  and ``softmax_gpu`` on a graphics card
- ``stochastic``: the first stage, from random poses to a coarse map; ``full``: the second stage, on finer grids;
  ``centring``: a look at all shifts
- ``growing``: the map while it grows, for a viewer
- ``alignment``: alignment of two maps by rotation, shift and hand; ``symmetric``: the same under an imposed symmetry;
  ``axes``: the axes of a point group in a map that was found without it
- ``modes``: where the turns between two sets of poses gather; ``imitation``: what images of a correct map would show
- ``halves``: two independent searches, and how far they agree; ``verdict``: whether to believe them
- ``transfer``: whether the CTFs belong to their images; ``unsymmetric``: whether they have the symmetry imposed
- ``refinement``: a global search on a refined map; ``alternation``: local refinement and global search in turn
- ``ending``: how far the refined halves agree
- ``job``: the table and the images that all stages share; ``run``: the whole job
- ``classes``: which classes of the two halves belong together; ``run_classes``: the whole job with several classes
"""
