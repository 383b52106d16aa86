"""Simulated particle images: atomic models or maps → a folder with a star, its stack, the truth and a mask.

- ``run``: the whole job; ``acquisition``: the pose, shift and CTF of each image
- ``atoms``: the electrostatic potential of an atomic model; ``truth``: the true map and its mask
- ``conformations``: the states of a particle and their populations; ``labels``: what each image shows
"""

from emsplat.settings import SimulationSettings
from emsplat.simulation.run import simulate
from emsplat.simulation.truth import bundled_model, molecular_map, soft_mask

__all__ = ["SimulationSettings", "bundled_model", "molecular_map", "simulate", "soft_mask"]
