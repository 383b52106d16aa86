"""Simulated particle images: an atomic model or a map → a folder with a star, its stack, the truth and a mask."""

from emsplat.settings import SimulationSettings
from emsplat.simulation.run import simulate
from emsplat.simulation.truth import bundled_model, molecular_map, soft_mask

__all__ = ["SimulationSettings", "bundled_model", "molecular_map", "simulate", "soft_mask"]
