"""Simulated particle images: atomic models or maps → a folder with a star, its stack, the truth and a mask.

atoms: the potential of an atomic model. truth: the true map, from atoms or from a map, and its mask.
conformations: the states of a particle and their populations. labels: what each image shows.
acquisition: poses, shifts and CTFs. run: the whole job.
"""

from emsplat.settings import SimulationSettings
from emsplat.simulation.run import simulate
from emsplat.simulation.truth import bundled_model, molecular_map, soft_mask

__all__ = ["SimulationSettings", "bundled_model", "molecular_map", "simulate", "soft_mask"]
