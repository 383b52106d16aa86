"""Grids and Fourier space: operations on any volumes and images.

- ``maps``: shells, radial filters, masks, sharpening and resampling of volumes
- ``transforms``: transforms of many images; each has the same bits in whatever company it is transformed
- ``background``: the plane that is subtracted from an image
- ``cropping``: conversion of images to other box sizes
- ``window``: the Kaiser–Bessel window between a grid and points off it
- ``slices``: central slices of a volume; ``insertion``, ``insertion_gpu``: back-projection of slices into a volume
"""
