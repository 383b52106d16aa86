"""Simulated particle images: an atomic model or a map → a folder with a star, its stack, the truth and a mask.

- ``run``: the loop over the images; ``acquisition``: the pose, shift and CTF of each image
- ``atoms``: the electrostatic potential of an atomic model; ``truth``: the true map and its mask
"""

from emsplat.settings import SimulationSettings
from emsplat.simulation.run import simulate
from emsplat.simulation.truth import bundled_model, molecular_map, soft_mask

__all__ = ["SimulationSettings", "bundled_model", "molecular_map", "simulate", "soft_mask"]
