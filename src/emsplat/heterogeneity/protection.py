"""Tests that latents do not encode how an image was taken; each result is printed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.heterogeneity.latents import Latents
from emsplat.particles.table import Particles

_WORTH_A_WARNING = 0.05  # share of a latent's variance
_MOST_GROUPS = 2000


@dataclass(frozen=True)
class Leak:
    """The share of the latents' variance explained by a quantity unrelated to the particle's state."""

    what: str
    r_squared: float  # R² of the best linear prediction, averaged over the latents and corrected for chance
    meaning: str

    @property
    def is_worrying(self) -> bool:
        return self.r_squared > _WORTH_A_WARNING


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
    tests: list[tuple[str, NDArray[np.float64], str]] = [
        ("viewing direction", harmonics, "the same state looks different from some sides, or views are unevenly posed"),
        ("defocus", np.stack([defocus, defocus**2], axis=1), "the CTF of some images is wrong"),
        ("contrast", latents.contrast[chosen, None], "thicker ice, or partial occupancy, passes for motion"),
        ("shift", table.origin_in_angstroms[chosen], "the particle's centre passes for motion"),
    ]
    found = [Leak(what, r_squared(values, z), meaning) for what, values, meaning in tests]
    stack = table.stack[chosen]
    if 1 < len(np.unique(stack)) < min(_MOST_GROUPS, len(z) // 4):
        found.append(Leak("micrograph", _between_groups(stack, z), "something of a micrograph passes for motion"))
    return tuple(found)


def r_squared(predictors: NDArray[np.float64], z: NDArray[np.float64]) -> float:
    """Mean share of the columns' variance that a linear prediction explains, corrected for the number of predictors."""
    scale = predictors.std(axis=0)
    used = (predictors - predictors.mean(axis=0))[:, scale > 0] / scale[scale > 0]
    n, p = len(z), used.shape[1]
    total = z - z.mean(axis=0)
    if p == 0:
        return 0.0
    residual = total - used @ np.linalg.lstsq(used, total, rcond=None)[0]
    share = 1 - (residual**2).sum(axis=0) / np.maximum((total**2).sum(axis=0), 1e-30)
    return float(np.mean(1 - (1 - share) * (n - 1) / (n - p - 1)))


def _between_groups(group: NDArray[np.int32], z: NDArray[np.float64]) -> float:
    names, inverse = np.unique(group, return_inverse=True)
    counts = np.bincount(inverse)
    total = z - z.mean(axis=0)
    means = np.stack([np.bincount(inverse, column) / counts for column in total.T], axis=1)
    share = (counts[:, None] * means**2).sum(axis=0) / np.maximum((total**2).sum(axis=0), 1e-30)
    n, p = len(z), len(names) - 1
    return float(np.mean(1 - (1 - share) * (n - 1) / (n - p - 1)))
