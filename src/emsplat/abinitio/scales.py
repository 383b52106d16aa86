"""The numbers of rings, grid points, images in a batch and iterations of the stages, found from the data.

The angular step of a grid and the finest ring belong together: half a step must not turn the phase at the particle's
rim by much more than a radian. The information of an image, in nats, determines the number of images in a batch and the
number of batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.abinitio import grids
from emsplat.abinitio.full import FullSettings
from emsplat.abinitio.stochastic import StochasticSettings

_COARSE_STEP = 15.0  # degrees, without symmetry
_COARSE_PHASE, _FINE_PHASE = 7.5, 11.0  # rings times the particle's diameter (a share of the box) at that step
LEAST_RINGS = 4  # with fewer, no search is made
_FEWEST_RINGS, _MOST_RINGS = 6, 30  # of a stage, unless the images or the user allow fewer
_RICH, _POOR = 50.0, 12.0  # nats per image: between these, less information means larger batches and more of them
_LEAST_BATCH, _LARGEST_BATCH = 200, 500
_ITERATIONS, _MOST_ITERATIONS = 100, 250


@dataclass(frozen=True)
class Scales:
    """Grids of both stages for one data set."""

    coarse_step: float  # degrees
    coarse_rings: int
    fine_rings: int


def scales_of(diameter: float, order: int, box_size: int, max_ring: float) -> Scales:
    """Grids for a particle of this diameter (a share of the box) and a point group of this order.

    Args:
        box_size: D; max_ring: the finest ring that may be used, in units of 1/D, at least `LEAST_RINGS`.
    """
    # An imposed symmetry leaves fewer directions, so the same number of poses makes a finer grid.
    step = _COARSE_STEP * order ** (-1 / 3)
    finest = int(min(_MOST_RINGS, box_size // 2 - 2, max_ring))
    coarse, fine = (
        int(np.clip(round(phase * _COARSE_STEP / (step * diameter)), _FEWEST_RINGS, max(finest, _FEWEST_RINGS)))
        for phase in (_COARSE_PHASE, _FINE_PHASE)
    )
    return Scales(step, min(coarse, finest), min(fine, finest))


def information(rings: NDArray[np.float64], power: NDArray[np.float32], signal: NDArray[np.float64]) -> float:
    """Information in nats per image: the mean log-likelihood ratio of the true projection, ``½ Σ 2πr c² S``."""
    return float(0.5 * (2 * np.pi * rings * power.mean(axis=0, dtype=np.float64) * signal).sum())


def stochastic_settings(scales: Scales, order: int, nats: float, n_images: int, box_size: int) -> StochasticSettings:
    """Settings of the first stage for n images with this information each."""
    scarce = np.clip(_RICH / max(nats, 1e-3), 1, _RICH / _POOR)
    batch = int(min(np.clip(_LEAST_BATCH * scarce, _LEAST_BATCH, _LARGEST_BATCH), max(n_images // 3, 1)))
    iterations = int(np.clip(_ITERATIONS * np.sqrt(scarce), _ITERATIONS, _MOST_ITERATIONS))
    return StochasticSettings(
        n_directions=grids.number_of_directions(scales.coarse_step, order),
        n_turns=2 * round(180 / scales.coarse_step),
        shift_step=box_size / (3.2 * scales.coarse_rings),
        batch=batch,
        iterations=iterations,
    )


def full_settings(scales: Scales, order: int, box_size: int) -> FullSettings:
    """Settings of the second stage."""
    directions = grids.number_of_directions(scales.coarse_step, order)
    turns = 2 * round(180 / scales.coarse_step)
    return FullSettings(
        coarse_rings=scales.coarse_rings,
        coarse_directions=directions,
        coarse_turns=turns,
        fine_directions=4 * directions,
        fine_turns=2 * turns,
        coarse_shift=box_size / (4.2 * scales.coarse_rings),
        fine_shift=box_size / (5.7 * scales.fine_rings),
    )
