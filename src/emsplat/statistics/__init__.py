"""Everything the images say about the map: the sufficient statistics b and T, and the loss they define.

- ``preview``: a first look at a sample: noise, diameter and contrast
- ``sufficient``: b and T of a part of the images, and their direct inversion
- ``accumulate``, ``accumulate_gpu``: read the images once and fill b and T of any number of parts
- ``schedule``: how the work is divided among ranks; ``distributed``: the accumulation, shared by the ranks
- ``loss``: ½⟨V, T∗V⟩ − ⟨b, V⟩ and its gradient
"""
