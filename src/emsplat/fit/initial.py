"""The Gaussians that a fit begins with, drawn from the low-resolution inversion of the images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects, gaussian_filter

from emsplat.errors import InputError
from emsplat.fit.by_statistics_gpu import loss_on
from emsplat.models.densification import round_gaussians, sample_centres
from emsplat.models.gaussian_model import GaussianModel, GaussianSettings
from emsplat.runtime.devices import CPU
from emsplat.statistics.loss import cube
from emsplat.statistics.sufficient import Statistics

_START_PER_WIDEST = 0.6  # initial σ in units of the largest σ that is allowed
_BLUR = 1.0  # pixels; smoothing of the inversion that centres are drawn from


def initial_gaussians(
    statistics: Statistics,
    mask: NDArray[np.float32],
    extent: int,
    settings: GaussianSettings,
    seed: int,
    symmetry: NDArray[np.float64] | None = None,
    device: torch.device = CPU,
) -> GaussianModel:
    """The one set of `initial_sets` with this seed."""
    return initial_sets(statistics, mask, extent, settings, [seed], symmetry, device)[0]


def initial_sets(
    statistics: Statistics,
    mask: NDArray[np.float32],
    extent: int,
    settings: GaussianSettings,
    seeds: Sequence[int],
    symmetry: NDArray[np.float64] | None = None,
    device: torch.device = CPU,
) -> list[GaussianModel]:
    """For each seed, equal spheres drawn from the smoothed inversion, with the mass that fits the images best.

    Args:
        mask: (D, D, D) soft mask of the particle; centres are drawn within it.
        extent: edge of the cube, in voxels, in which the Gaussians live.
        seeds: one for each set.
        symmetry: (m, 3, 3) operators; one m-th of the Gaussians is drawn, and the operators replicate it.
        device: where the Gaussians are stored and their mass is found.
    Raises:
        InputError: the inversion has no positive density to draw from.
    """
    middle = cube(statistics.box_size, extent)
    mask = mask[middle]
    smooth = _smoothed(statistics.raw_map()[middle], mask)
    # Everywhere in the mask there is a little weight, because weak parts of the inversion must not be left empty.
    weight = np.maximum(smooth - 0.1 * smooth.max(), 0) + 0.02 * smooth.max() * (mask > 0.5)
    operators = np.eye(3)[None] if symmetry is None else symmetry
    loss = loss_on(device, statistics, extent)
    models = []
    for seed in seeds:
        model = _spheres(weight, extent, settings, seed, operators, device)
        model.parameters.log_masses += math.log(max(loss.best_mass(model.density()), 1e-12))
        models.append(model)
    return models


def _smoothed(inversion: NDArray[np.float32], mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """The smoothed inversion times the mask, computed only in the box that holds the mask and its surroundings."""
    smooth = np.zeros_like(mask)
    bounds = find_objects((mask > 0).astype(np.int8))
    if bounds:
        margin = math.ceil(4 * _BLUR)  # as far as the filter reaches
        near = tuple(slice(max(one.start - margin, 0), one.stop + margin) for one in bounds[0])
        smooth[near] = gaussian_filter(inversion[near], _BLUR) * mask[near]
    return smooth


def _spheres(
    weight: NDArray[np.float32],
    extent: int,
    settings: GaussianSettings,
    seed: int,
    operators: NDArray[np.float64],
    device: torch.device,
) -> GaussianModel:
    """Spheres of mass 1 about centres drawn in proportion to a weight, (d, d, d), and repeated by the operators."""
    log_scale = math.log(max(_START_PER_WIDEST * settings.max_scale, 1.0))
    number = max(1, settings.n_gaussians // len(operators))
    centres = sample_centres(weight, number, np.random.default_rng(seed))
    centres = np.einsum("gij,kj->gki", operators, centres).reshape(-1, 3).astype(np.float32)
    if len(centres) == 0:
        raise InputError(
            "the inversion shows no positive density within the particle's sphere; check --invert and --mask-diameter"
        )
    parameters = round_gaussians(centres, log_scale, 0.0, 1 if settings.isotropic else 3)
    return GaussianModel(parameters.map(lambda _, tensor: tensor.to(device)), extent, settings)
