"""Grids and Fourier space: what holds for any volume or image, whatever it shows.

- ``maps``: shells, radial filters, masks, sharpening and resampling of volumes
- ``transforms``: many images at once, each to the same bits whatever its company
- ``cropping``: other box sizes for images
- ``window``: the Kaiser–Bessel window between a grid and points off it
- ``slices``: central slices of a volume; ``insertion``, ``insertion_gpu``: back-projection, slices into a volume
"""
