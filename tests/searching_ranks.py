"""The search for poses of images of two particles and of noise, shared with the other ranks.

As a program, it does so on the rank that its environment says, together with the others.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

import blobs
from emsplat.abinitio import halves
from emsplat.abinitio.full import FullSettings
from emsplat.abinitio.halves import Search
from emsplat.abinitio.polar import PolarGrid
from emsplat.abinitio.stochastic import StageSettings, StochasticSettings
from emsplat.runtime.ranks import World, joined
from emsplat.runtime.threads import threads

GRID, N = PolarGrid.of(6, 0.7), 90


def search(world: World, path: Path) -> None:
    """Search as this rank of the world, and save what it found."""
    rng = np.random.default_rng(1)
    signal = blobs.signal_power(GRID, rng)
    rotations, centres = Rotation.random(N, random_state=rng).as_matrix(), rng.normal(size=(N, 2))
    images = blobs.images_of(GRID, rotations, centres, 100 / (2 * np.pi * GRID.radii * signal).sum(), rng)
    fine = StageSettings(blobs.BOX, 0.7, signal, np.eye(3)[None], 3.0, 1.5, 2, world)
    settings = Search(
        replace(fine, signal=signal[:5]),
        fine,
        StochasticSettings(48, 12, 1.0, batch=30, iterations=8),
        FullSettings(5, 48, 12, 96, 24, 1.0, 0.5, fewest_rounds=2, most_rounds=2),
    )
    with threads(1):
        found = halves.start(images, settings, np.random.default_rng(2))
    poses = {name: getattr(found.found, name) for name in ("rotations", "centres", "classes", "junk", "evidence")}
    np.savez(path, map=found.map, evidence_of_batches=found.first.evidence, **poses)


if __name__ == "__main__":
    with joined() as this:
        search(this, Path(sys.argv[1]) / f"rank{this.rank}.npz")
