"""Settings of simulations that take a moment."""

from __future__ import annotations

from dataclasses import replace

from emsplat.simulation import SimulationSettings

SMALL = SimulationSettings(n_images=24, box_size=48, pixel_size_in_angstroms=3.0, snr=0.1, seed=3)
TINY = replace(SMALL, box_size=32, pixel_size_in_angstroms=4.0, b_factor_in_square_angstroms=60.0)  # for `one_chain`
