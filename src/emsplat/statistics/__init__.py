"""What all images say about the map: the sufficient statistics b and T, and the loss they make.

- ``preview``: a first look at a sample: noise, diameter and contrast
- ``accumulate``, ``accumulate_gpu``: one pass over the images fills b and T
- ``schedule``: which rank does what of it; ``distributed``: the pass, shared by the ranks
- ``loss``: ½⟨V, T∗V⟩ − ⟨b, V⟩ and its gradient
"""
