"""Densification: remove Gaussians that carry almost nothing, and split those that the loss pulls at hardest.

A Gaussian whose centre is pulled hard by the gradient `T∗V − b` stands for more than one Gaussian can show. It is split
into two of half the mass, which leaves the map almost as it was. This is the criterion of 3D Gaussian splatting
(Kerbl et al. 2023). Adding Gaussians where the gradient is most negative did harm when it was measured, because they
add mass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emsplat.models.parameters import Parameters, concatenate
from emsplat.splat import rotation_of_quaternions


@dataclass(frozen=True)
class DensificationSchedule:
    """The schedule of the rounds of densification, in steps."""

    every: int = 12  # steps between two rounds
    first: int = 24  # the step of the first round
    until_share: float = 0.75  # no round after this share of the steps before annealing

    def is_due(self, step: int, anneal_from: int) -> bool:
        """Whether a round follows this step."""
        since = step - self.first
        return since >= 0 and since % self.every == 0 and step < self.until_share * anneal_from


@dataclass(frozen=True)
class Densification:
    """How much one round changes."""

    prune_below: float = 0.03  # Gaussians of less than this share of the median mass are removed
    grow: float = 0.35  # a round adds at most this share of the present number


def densified(
    parameters: Parameters, gradients: Tensor, target: int, settings: Densification, rng: np.random.Generator
) -> tuple[Tensor, Parameters]:
    """Carry out one round: prune, then split towards the target number.

    Args:
        gradients: (K,) recent size of the loss's gradient by each centre.
    Returns:
        (K,) mask of the Gaussians that stay, and the Gaussians that are added.
    """
    masses = parameters.log_masses.detach().exp()
    keep = masses > settings.prune_below * masses.median()
    n_kept = int(keep.sum())
    growth = max(0, min(target - n_kept, math.ceil(settings.grow * len(parameters)), n_kept))
    # The change of the loss if the centre moved by one σ.
    pulls = gradients * parameters.log_scales.detach().mean(dim=1).exp()
    parents = torch.topk(torch.where(keep, pulls, -torch.ones_like(masses)), growth).indices
    halves = _split(parameters.rows(parents), rng)
    keep[parents] = False
    return keep, halves


def _split(parents: Parameters, rng: np.random.Generator) -> Parameters:
    """Two Gaussians for each one, with half the mass, moved apart along the longest axis; mean and variance are kept.

    Two copies in one place would give exactly the same map, but they would get the same gradients and never separate.
    Isotropic Gaussians are moved apart along a random axis and keep the mean, but the variance along that axis only.
    """
    rows = torch.arange(len(parents), device=parents.centres.device)
    log_scales = parents.log_scales.clone()
    if log_scales.shape[1] == 3:
        longest = log_scales.argmax(dim=1)
        axis = rotation_of_quaternions(parents.quaternions)[rows, :, longest]
    else:
        longest = torch.zeros_like(rows)
        axis = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(len(rows), 3))).to(log_scales), dim=1)
    # Variance along the axis: σ² = (0.5 σ)² + shrunk², so shrunk = sqrt(3)/2 σ.
    offset = 0.5 * torch.exp(log_scales[rows, longest])[:, None] * axis
    log_scales[rows, longest] += math.log(math.sqrt(3) / 2)
    halves = [
        Parameters(parents.centres + sign * offset, log_scales, parents.quaternions, parents.log_masses - math.log(2))
        for sign in (1, -1)
    ]
    return concatenate(*halves)


def sample_centres(weight: NDArray, number: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(number, 3) x, y, z in voxels from the centre (voxel d//2), drawn in proportion to the weight and jittered."""
    values = weight.ravel().astype(np.float64)
    total = np.cumsum(values)
    if number == 0 or total[-1] <= 0:
        return np.empty((0, 3), dtype=np.float32)
    # One draw per equal share of the weight spreads the centres more evenly than independent draws.
    drawn = (np.arange(number) + rng.random(number)) / number * total[-1]
    picks = np.minimum(np.searchsorted(total, drawn, side="right"), total.size - 1)
    zyx = np.stack(np.unravel_index(picks, weight.shape), axis=1) - weight.shape[0] // 2
    jitter = rng.uniform(-0.5, 0.5, (number, 3))
    # Along x the draw itself gives the position in the voxel. Weights that differ by rounding then move a centre only
    # slightly and not to another voxel; a fit that started elsewhere would end elsewhere.
    jitter[:, 2] = np.clip((drawn - total[picks]) / np.maximum(values[picks], 1e-300) + 0.5, -0.5, 0.5)
    return (zyx + jitter)[:, ::-1].astype(np.float32)


def round_gaussians(
    centres: NDArray[np.float32], log_scale: float, log_mass: float, scales_per_gaussian: int
) -> Parameters:
    """Equal spheres at these centres."""
    n = len(centres)
    quaternions = torch.zeros(n, 4)
    quaternions[:, 0] = 1
    return Parameters(
        torch.from_numpy(np.ascontiguousarray(centres)),
        torch.full((n, scales_per_gaussian), log_scale),
        quaternions,
        torch.full((n,), log_mass),
    )
