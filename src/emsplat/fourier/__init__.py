"""Grids and Fourier space: operations on volumes and images, whatever they show.

- ``maps``: shells, radial filters, masks, sharpening and resampling of volumes
- ``transforms``: transforms of many images, with the same bits for each whatever it is transformed together with
- ``background``: the plane that is subtracted from an image
- ``cropping``: images in other box sizes
- ``window``: the Kaiser–Bessel window between a grid and points off it
- ``slices``: central slices of a volume; ``insertion``, ``insertion_gpu``: back-projection, slices into a volume
"""
