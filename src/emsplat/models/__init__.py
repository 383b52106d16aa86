"""The models that are fitted: density models, of which the set of Gaussians is one.

- ``density_model``: what a fit needs of anything that has a density
- ``gaussian_model``: the set of Gaussians as such a model; ``parameters``: its leaves, in pixels
- ``neural_field``: a small network as such a model, for comparison; ``encodings``: what it is given of a point
- ``densification``: removes Gaussians that carry almost nothing, and splits those that the loss pulls at hardest
- ``optimiser``: Adam
- ``gaussians``: the Gaussians in Å, as they are stored, merged and put on a grid
"""
