"""The particle table and its division into parts and batches.

- ``table``: one row per image, with its pose, optics and half set
- ``poses``: rotations and shifts, in which all computation is done
- ``parts``: the half sets, and the images within each that are held out of its fit
- ``batches``: mini-batches in a random order, read in the order of the disk
- ``coverage``: how evenly the viewing directions cover Fourier space
- ``agreement``: whether all ranks hold the same table
"""
