"""What the search would show if a map were correct: imitated images of the map, whose poses are searched for.

Imitated images have the CTFs, the noise and the shifts of real images, and known poses. If the map is correct, real
images that did not contribute to it are as likely under it as the imitated ones; an image of something else is less
likely. If not even the poses of the imitated images are found, no search could tell that the map is correct.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from emsplat.abinitio import full, volume
from emsplat.abinitio.modes import modes_of
from emsplat.abinitio.polar import PolarImages
from emsplat.abinitio.stochastic import StageSettings

NEAR_IN_DEGREES = 15.0  # poses that agree to within this count as the same pose


@dataclass(frozen=True)
class Imitation:
    """The results for the imitated images, with which those of real images are compared."""

    evidence: float  # mean log-likelihood of an image, less that of no particle
    top: float  # mean largest posterior
    recovered: float  # share of the images whose pose is found to within 15°, or on a mate that is found as often
    median_error_in_degrees: float


def imitate(
    like: PolarImages,
    map_: NDArray[np.float32],
    centres: NDArray[np.float64],
    stage: StageSettings,
    settings: full.FullSettings,
    rng: np.random.Generator,
) -> Imitation:
    """Search for imitated images of a map, one for each of some real ones.

    Args:
        like: real images, whose CTFs and noise the imitated images have.
        centres: (n, 2) x, y of the particles in them, in pixels.
    """
    n = len(like)
    rotations = Rotation.random(n, random_state=rng).as_matrix()
    off = rng.uniform(-0.5, 0.5, (n, 2)) * settings.fine_shift  # no particle lies on the grid of shifts
    imitated = images_of(like, map_, rotations, centres + off, stage.box_size, rng)
    found = full.round_of(imitated, map_, centres.copy(), stage, settings, rng)
    errors = distances_in_degrees(found.rotations, rotations, stage.symmetry)
    # A symmetry that is not imposed makes mates that no search can tell apart.
    mates = modes_of(rotations, found.rotations, stage.symmetry)
    return Imitation(
        float(found.evidence.mean()),
        float(found.top.mean()),
        max(float((errors < NEAR_IN_DEGREES).mean()), mates.even),
        float(np.median(errors)),
    )


def images_of(
    like: PolarImages,
    map_: NDArray[np.float32],
    rotations: NDArray[np.float64],
    centres: NDArray[np.float64],
    box_size: int,
    rng: np.random.Generator,
) -> PolarImages:
    """Images of a map in these poses, with the CTFs and noise of other images.

    The noise of a ring of 2πr independent Fourier pixels is put on Q independent angles of the half circle. With a
    variance of c² Q/(πr) each, it disturbs every score as much as the noise of the pixels does.
    """
    grid = like.grid
    clean = volume.slices(map_, grid, rotations)
    phases = np.einsum("rqc,nc->nrq", -2 * np.pi * grid.points / box_size, centres)
    power = like.power[:, :, None]
    noise = (rng.normal(size=clean.shape) + 1j * rng.normal(size=clean.shape)) / np.sqrt(2)
    amplitude = np.sqrt(power * (grid.n_angles / (np.pi * grid.radii))[:, None])
    return PolarImages(grid, (power * clean * np.exp(1j * phases) + amplitude * noise).astype(np.complex64), like.power)


def distances_in_degrees(
    found: NDArray[np.float64], true: NDArray[np.float64], symmetry: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) angles between rotations (n, 3, 3), each the smallest over the operators of the group."""
    traces = np.max([np.einsum("nij,nij->n", found, true @ operator) for operator in symmetry], axis=0)
    return np.rad2deg(np.arccos(np.clip((traces - 1) / 2, -1, 1)))
