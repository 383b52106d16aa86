"""The particle table and its division into parts and batches.

- ``table``: one row per image, with its pose, optics and half set
- ``poses``: rotations and shifts, with which all computation is done
- ``parts``: half sets, held-out images and soft states, and what every image weighs in each of them
- ``batches``: mini-batches in a random order, read in the order of the disk
- ``coverage``: how evenly the viewing directions cover Fourier space
- ``agreement``: whether all ranks hold the same table
"""
