"""Tests that latents do not encode how an image was taken; each result is printed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.heterogeneity.latents import Latents
from emsplat.heterogeneity.observations import shared_latents
from emsplat.particles.table import Particles

_WORTH_A_WARNING = 0.05  # share of a latent's variance
_SURE = 4.0  # standard deviations above chance
_FEWEST_IN_A_GROUP = 4.0  # mean number of images of a micrograph below which micrographs are not compared


@dataclass(frozen=True)
class Explained:
    """The share of the variance of that latent which is explained best, corrected for chance."""

    share: float  # R², less what as many random predictors explain
    error: float  # standard deviation by chance, of a latent of which nothing is explained


@dataclass(frozen=True)
class Leak:
    """The share of the latents' variance explained by a quantity unrelated to the particle's state."""

    what: str
    r_squared: float  # R² of the best linear prediction, of the latent that is explained best
    error: float  # standard deviation of R² by chance
    meaning: str

    @property
    def is_worrying(self) -> bool:
        return self.r_squared > max(_WORTH_A_WARNING, _SURE * self.error)


def leaks(table: Particles, latents: Latents) -> tuple[Leak, ...]:
    """The share of the latents' variance that viewing direction, defocus, contrast, micrograph and shift explain."""
    chosen = latents.junk < 0.5
    if chosen.sum() < 50 or latents.count == 0:
        return ()
    z = latents.mean[chosen]
    view = table.rotations()[chosen, 2]  # the line of sight
    x, y, w = view.T
    harmonics = np.stack([x, y, w, x * y, y * w, x * w, x * x - y * y, 3 * w * w - 1], axis=1)
    defocus = 0.5 * (table.defocus_u_in_angstroms + table.defocus_v_in_angstroms)[chosen]
    defocus = (defocus - defocus.mean()) / max(float(defocus.std()), 1e-9)
    tests: list[tuple[str, NDArray[np.float64], str]] = [
        ("viewing direction", harmonics, "the same state looks different from some sides, or views are unevenly posed"),
        ("defocus", np.stack([defocus, defocus**2], axis=1), "the CTF of some images is wrong"),
        ("contrast", latents.contrast[chosen, None], "thicker ice, or partial occupancy, passes for motion"),
        ("shift", table.origin_in_angstroms[chosen], "the particle's centre passes for motion"),
    ]
    found = [_leak(what, explained(values, z), meaning) for what, values, meaning in tests]
    stack = table.stack[chosen]
    n_latents = len(np.unique(shared_latents(table)[chosen]))
    if 1 < len(np.unique(stack)) < n_latents / _FEWEST_IN_A_GROUP:
        found.append(_leak("micrograph", explained_by_groups(stack, z), "something of a micrograph passes for motion"))
    return tuple(found)


def _leak(what: str, found: Explained, meaning: str) -> Leak:
    return Leak(what, found.share, found.error, meaning)


def explained(predictors: NDArray[np.float64], z: NDArray[np.float64]) -> Explained:
    """How much of a column of z, (n, K), a linear prediction from (n, p) predictors explains."""
    scale = predictors.std(axis=0)
    varies = scale > 1e-9 * np.abs(predictors).max(axis=0)
    used = (predictors - predictors.mean(axis=0))[:, varies] / scale[varies]
    total = z - z.mean(axis=0)
    if used.shape[1] == 0:
        return Explained(0.0, 0.0)
    residual = total - used @ np.linalg.lstsq(used, total, rcond=None)[0]
    return _corrected(1 - (residual**2).sum(axis=0) / np.maximum((total**2).sum(axis=0), 1e-30), len(z), used.shape[1])


def explained_by_groups(group: NDArray[np.int32], z: NDArray[np.float64]) -> Explained:
    """How much of a column of z, (n, K), the groups' means explain."""
    names, inverse = np.unique(group, return_inverse=True)
    counts = np.bincount(inverse)
    total = z - z.mean(axis=0)
    means = np.stack([np.bincount(inverse, column) / counts for column in total.T], axis=1)
    share = (counts[:, None] * means**2).sum(axis=0) / np.maximum((total**2).sum(axis=0), 1e-30)
    return _corrected(share, len(z), len(names) - 1)


def _corrected(share: NDArray[np.float64], n: int, p: int) -> Explained:
    """The largest of some shares R², by n images and p predictors; chance gives R² a beta distribution."""
    free = max(n - p - 1, 1)
    best = float(share.max())
    return Explained(1 - (1 - best) * (n - 1) / free, float(np.sqrt(2 * p / (free * (n + 1)))))
