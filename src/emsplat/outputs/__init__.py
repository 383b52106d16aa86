"""What a finished job leaves on the disk, written whole or not at all.

- ``reconstruction``: maps, Gaussians, curves, figures, settings, log and summary of a reconstruction
- ``evidence``: the arrays that its report needs besides
"""
