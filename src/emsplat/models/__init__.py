"""What is fitted: sets of Gaussians.

- ``gaussians``: the model as it is stored, merged and put on a grid
- ``parameters``: the same as the leaves of a fit, and Adam
- ``densification``: Gaussians that carry nothing are removed, those that the loss pulls at hardest are split
"""
