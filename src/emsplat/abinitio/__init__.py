"""From particle images without poses to poses, a map, and whether to believe them.

Rooms, in the order the data flows:
- `grids`: directions, turns and shifts to search over
- `polar`: images on polar grids of Fourier space
- `volume`: a small map: slices of it, the insertion of slices, the solution
- `softmax`: scores to posteriors, in place
- `search`: the E-step on a grid as batched matrix products, and its adjoint
- `stochastic`: the first stage, from random poses to a coarse map
- `full`: the second stage, all images on finer grids
- `alignment`: two maps brought together by rotation, shift and hand
"""
