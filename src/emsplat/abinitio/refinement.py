"""Global search of all images on refined maps. Local refinement cannot replace it, because it never leaves a basin.

Each image is compared with its own half's map in all poses and at all shifts on a grid, to the frequency at which the
halves agree. If the best pose is far from the present one and more likely, the image moves there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from emsplat.abinitio import full, volume
from emsplat.abinitio.centring import recentred
from emsplat.abinitio.imitation import NEAR_IN_DEGREES, distances_in_degrees
from emsplat.abinitio.polar import PolarImages
from emsplat.abinitio.stochastic import StageSettings

_AT_ONCE = 512


def likelihoods(
    images: PolarImages,
    map_: NDArray[np.float32],
    rotations: NDArray[np.float64],
    centres: NDArray[np.float64],
    box_size: int,
    inner: int = 0,
) -> NDArray[np.float32]:
    """(n,) log-likelihoods of images in given poses, less that of no particle.

    Args:
        rotations: (n, 3, 3); centres: (n, 2) x, y in pixels; inner: number of first rings that are left out.
    """
    grid = images.grid
    per_ring = np.pi * grid.radii / grid.n_angles
    out = np.empty(len(images), np.float32)
    for rows in np.array_split(np.arange(len(images)), max(1, -(-len(images) // _AT_ONCE))):
        clean = volume.slices(map_, grid, rotations[rows])
        phases = np.einsum("rqc,nc->nrq", 2 * np.pi * grid.points / box_size, centres[rows])
        overlap = (clean.conj() * images.signal[rows] * np.exp(1j * phases)).real.sum(axis=2)
        power = (clean.real**2 + clean.imag**2).sum(axis=2) * images.power[rows]
        out[rows] = ((2 * overlap - power) * per_ring)[:, inner:].sum(axis=1)
    return out


def search_again(
    images: PolarImages,
    map_: NDArray[np.float32],
    rotations: NDArray[np.float64],
    centres: NDArray[np.float64],
    stage: StageSettings,
    settings: full.FullSettings,
    rng: np.random.Generator,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[NDArray[np.bool_], full.Found]:
    """(n,) mask of the images with a more likely pose far from their present one, and the results of the search.

    Args:
        rotations: (n, 3, 3), centres: (n, 2) x, y in pixels of the present poses.
    """
    present = likelihoods(images, map_, rotations, centres, stage.box_size)
    likely, _ = recentred(images, map_, centres, stage, settings, rng)
    found = full.round_of(images, map_, likely, stage, settings, rng, advance=advance)
    at_found = likelihoods(images, map_, found.rotations, found.centres, stage.box_size)
    far = distances_in_degrees(found.rotations, rotations, stage.symmetry) > NEAR_IN_DEGREES
    return far & (at_found > present), found
