"""Bins of latent space: the images near each point, and their statistics.

Landmarks are spread over the latents of both halves. An image has a share in each landmark at which its latent may lie.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from emsplat.heterogeneity.fit_decoder import Bin
from emsplat.particles.batches import Images
from emsplat.particles.parts import HELD_OUT, TRAINING, Part, PartWeights
from emsplat.particles.table import Particles
from emsplat.runtime.context import Task
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.statistics.distributed import accumulate_shared
from emsplat.statistics.loss import QuadraticLoss

LEAST_WEIGHT = 0.02  # shares below this are dropped
_BANDWIDTH = 1.5
_SAMPLE = 20_000  # number of latents from which landmarks are found
# Period of a bin's convolution by the edge of its cube. The decoders of eight compositions (4,000 images of 48², a cube
# of 45 voxels) took 5.6 s of processor time with the exact period of 90 voxels, and 3.0 s with 60. Both placed 3.2 % of
# the other half's images in a wrong composition.
_PERIOD = 1.25
_FEWEST = 20.0  # number of images below which a bin is left out


def landmarks(latents: NDArray[np.float64], count: int, seed: int) -> NDArray[np.float64]:
    """(G, K) centres of k-means that are nearest to any latent; G is at most the count."""
    rng = np.random.default_rng(seed)
    if len(latents) > _SAMPLE:
        latents = latents[rng.choice(len(latents), _SAMPLE, replace=False)]
    centres, nearest = kmeans2(latents, min(count, len(latents)), minit="++", seed=rng, iter=30)
    return centres[np.bincount(nearest, minlength=len(centres)) > 0]


def shares(
    mean: NDArray[np.float64], covariance: NDArray[np.float64], centres: NDArray[np.float64]
) -> NDArray[np.float32]:
    """(n, G) share of each image in each landmark, in the metric of its posterior covariance; rows add up to 1."""
    out = np.empty((len(mean), len(centres)), dtype=np.float32)
    for first in range(0, len(mean), 4096):
        here = slice(first, first + 4096)
        apart = centres - mean[here, None]
        distance = (np.linalg.solve(covariance[here], apart.transpose(0, 2, 1)) * apart.transpose(0, 2, 1)).sum(axis=1)
        distance -= distance.min(axis=1, keepdims=True)
        out[here] = sparse(np.exp(-0.5 * distance / _BANDWIDTH**2))
    return out


def sparse(weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """The rows without their smallest entries, normalised to a sum of 1."""
    weights = weights / weights.sum(axis=1, keepdims=True)
    weights = np.where(weights < LEAST_WEIGHT, 0, weights)
    return (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)).astype(np.float32)


def period_of_bins(extent: int) -> int:
    """Period in voxels of the convolution of a bin's loss, for a cube of this edge."""
    return scipy.fft.next_fast_len(math.ceil(_PERIOD * extent), real=True)


def fill_bins(
    particles: Particles,
    images: Images,
    half: int,
    weights: NDArray[np.float32],
    places: NDArray[np.float64],
    split: PartWeights,
    settings: AccumulationSettings,
    extent: int,
    task: Task,
) -> list[Bin]:
    """The bins of one half, without those that hold too few images, on the rank that owns the half; none on others.

    Of the statistics of a bin only the loss is kept, so that few of them are in memory at a time.

    Args:
        weights: (N, G) share of every image in every bin; places: (G, K) mean latent of the half's images in each.
        split: the training and the held-out images of both halves.
        extent: edge in voxels of the Gaussians' cube.
        task: its ranks read the images together.
    """
    chosen = np.where((particles.half_set == half)[:, None], weights, 0)
    sums = _sums(split.with_states(chosen, LEAST_WEIGHT / 2))
    numbers = [
        g
        for g in range(weights.shape[1])
        if sums[Part(half, TRAINING, g)] > _FEWEST and sums[Part(half, HELD_OUT, g)] > _FEWEST / 5
    ]
    total = sum(sums[Part(half, s, g)] for g in numbers for s in (TRAINING, HELD_OUT))
    table = split.with_states(np.where(np.isin(np.arange(weights.shape[1]), numbers), chosen, 0), LEAST_WEIGHT / 2)
    losses: dict[Part, QuadraticLoss] = {}
    owners = dict.fromkeys(table.parts, task.world.owner(half))
    for group in accumulate_shared(particles, images, table, settings, owners, task):
        for part in list(group):
            statistics = group.pop(part)
            if part.half == half and part.state in numbers:
                losses[part] = QuadraticLoss(statistics, extent, period_of_bins(extent))
    bins = []
    for g in numbers if losses else ():
        training, held_out = (Part(half, s, g) for s in (TRAINING, HELD_OUT))
        weight = sums[training] + sums[held_out]
        bins.append(Bin(places[g], weight / total, weight, losses[training], losses[held_out], sums[held_out] / weight))
    return bins


def _sums(table: PartWeights) -> dict[Part, float]:
    """The sum of the images' weights in each part."""
    return dict(zip(table.parts, table.sums_of_weights().tolist(), strict=True))
