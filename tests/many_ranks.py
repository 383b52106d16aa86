"""What jobs make of images, in many blocks and few rounds; as a program, on the rank it is started as."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from emsplat.fit import by_images as fit_images
from emsplat.fit.by_images import Schedule
from emsplat.poses import refine
from emsplat.reconstruction import job
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.runtime.ranks import World, joined
from emsplat.settings import ReconstructSettings

BLOCK_BYTES = 30 * 4 * 32**2  # of 30 images
JOBS = {"statistics": {"refine": "poses,contrast"}, "images": {"solver": "images"}}


def in_small_blocks() -> AbstractContextManager[Any]:
    """While it lasts, few images are accumulated in many blocks."""
    settings_of = job.accumulation_settings

    def with_blocks(*what: Any) -> Any:
        return replace(settings_of(*what), block_bytes=BLOCK_BYTES)

    return mock.patch.object(job, "accumulation_settings", with_blocks)


def make(star: Path, folder: Path, world: World, threads: int) -> None:
    """A file a job, on the first rank."""
    short = Schedule(round=4, max_rounds=2, anneal_rounds=2, anneal_epochs=1)
    with (
        in_small_blocks(),
        mock.patch.object(refine, "_LARGEST_BLOCK", 25),
        mock.patch.object(refine, "_FEWEST_IN_BLOCK", 25),
        mock.patch.object(fit_images, "Schedule", lambda: short),
    ):
        for name, options in JOBS.items():
            settings = ReconstructSettings(n_gaussians=60, n_fits=1, max_resolution=14.0, threads=threads, **options)  # type: ignore[arg-type]
            made = reconstruct(star, settings, world=world)
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
