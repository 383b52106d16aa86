"""Fits of a density model to a half set.

- ``by_statistics``: full-batch minimisation of the quadratic loss; ``by_statistics_gpu``: its step as a CUDA graph
- ``by_images``: the classical way of splatting, one batch of images after another
- ``initial``: the Gaussians that a fit begins with
- ``fields``: the neural field that a fit begins with, for comparison with the Gaussians
- ``state``: all that a fit is resumed from, and its history
- ``count``: how many Gaussians a half's images support
"""
