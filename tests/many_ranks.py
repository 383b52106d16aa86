"""What several kinds of job make of images, in many blocks and few rounds.

As a program, it does so on the rank that its environment says, together with the other ranks.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from emsplat.io import read_particles
from emsplat.io.images import ImageSource
from emsplat.particles.parts import Kind, PartWeights
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.runtime.context import Task
from emsplat.runtime.ranks import World, joined
from emsplat.settings import ReconstructSettings
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.statistics.distributed import accumulate_shared
from phantom import together
from small_work import small_work

BLOCK = 30  # images that are accumulated at once
PARTS = "parts"  # soft parts of the images, in several groups
JOBS = {"statistics": {"refine": "poses,contrast"}, "images": {"solver": "images"}}


def make_parts(star: Path, folder: Path, world: World) -> None:
    """The statistics of twelve parts, three of which an image belongs to, owned by all ranks in turn."""
    table = read_particles(star)
    states = np.random.default_rng(0).dirichlet(np.full(3, 0.5), len(table))
    parts = PartWeights.half_sets(table, seed=0).with_states(states, threshold=0.05, weights_of_b=states - 0.2)
    settings = AccumulationSettings(32, 40, np.ones((1, 17)), np.eye(3)[None], block_bytes=BLOCK * 4 * 32**2)
    of_pair = sum(settings.bytes_of(kind) for kind in Kind)
    settings = replace(settings, grid_bytes=5 * of_pair)
    owners = {part: number % world.size for number, part in enumerate(parts.parts)}
    with ImageSource(table) as images:
        found = together(accumulate_shared(table, images, parts, settings, owners, Task(world)))
    assert set(found) == {part for part in owners if owners[part] == world.rank}
    whole = [world.broadcast(found.get(part), owners[part]) for part in parts.parts]
    if world.is_first:
        arrays = {f"{part.label}-{what}": getattr(s, what) for part, s in zip(parts.parts, whole, strict=True)
                  for what in ("backprojection", "kernel", "sum_of_weights", "n_images")}  # fmt: skip
        np.savez(folder / f"{PARTS}.npz", **arrays)  # type: ignore[arg-type]


def make(star: Path, folder: Path, world: World, threads: int) -> None:
    """A file a job, on the first rank."""
    make_parts(star, folder, world)
    tuning = small_work(accumulated=BLOCK, refined=25)
    for name, options in JOBS.items():
        settings = ReconstructSettings(n_gaussians=60, n_fits=1, max_resolution=14.0, threads=threads, **options)  # type: ignore[arg-type]
        made = reconstruct(star, settings, world=world, tuning=tuning)
        if world.is_first:
            arrays = {"map": made.map, "centres": made.gaussians.centres.numpy()}
            for number, half in enumerate(made.halves, 1):
                arrays |= {f"raw{number}": half.raw, f"map{number}": half.map}
            if made.refinement:
                arrays["changes"] = made.refinement.changes
            np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    with joined() as this:
        make(Path(sys.argv[1]), Path(sys.argv[2]), this, threads=1)
