"""Local refinement of poses and shifts that are wrong by known amounts, against the halves' own maps and the true map.

The first shows what a user gets, the second what the same steps reach with a perfect map.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cases import QUICK, RUVB_SMALL, resized
from common import Report, arguments, mean_fsc, reconstructed, simulated, truth_and_mask
from emsplat.imaging.likelihood import Recorded
from emsplat.io import ImageSource, read_particles
from emsplat.particles.table import Particles
from emsplat.poses.refine import RefineSettings, changed, reference, refine_half
from emsplat.runtime.threads import threads
from emsplat.statistics.preview import look_at_sample
from emsplat.validation.correlation import fsc

_DEGREES, _PIXELS = 3.0, 1.5  # root mean square

_TEXT = """Angles off by 3°, shifts by 1.5 pixels (root mean square). `angle`, `shift`: median errors against the
truth, less what all images of a half share; `F`: mean FSC of the averaged map with the truth within the true mask;
`worst`: largest |c_map − truth| from shell 6 to the limit of measurability; `ms`: of all rounds, an image. "against
the true map": the same steps, to the same limit, with no map to be found."""

_TIME_TEXT = """One round against the true map, all shells but the last two; milliseconds of processor time of one core
an image, reading it included."""


def perturbed(particles: Particles, seed: int) -> Particles:
    """The particles, turned and shifted at random."""
    rng, changes = np.random.default_rng(seed), np.zeros((len(particles), 7))
    changes[:, :3] = np.deg2rad(_DEGREES) / np.sqrt(3) * rng.normal(size=(len(particles), 3))
    shift = _PIXELS * particles.pixel_size_in_angstroms / np.sqrt(2)
    changes[:, 3:5] = shift * rng.normal(size=(len(particles), 2))
    return changed(particles, changes)


def errors(particles: Particles, true: Particles) -> dict[str, float]:
    """The median errors, without the turn and the shift that all images of a half share with its map."""
    turns, shifts = np.empty(len(true)), np.empty((len(true), 2))
    for half in np.unique(true.half_set):
        rows = true.half_set == half
        exact = true.rotations()[rows]
        relative = Rotation.from_matrix(exact.transpose(0, 2, 1) @ particles.rotations()[rows])
        turns[rows] = (relative * relative.mean().inv()).magnitude()
        moved = (true.origin_in_angstroms - particles.origin_in_angstroms)[rows]
        seen = exact[:, :2].reshape(-1, 3)
        common = np.linalg.lstsq(seen, moved.ravel(), rcond=None)[0]
        shifts[rows] = moved - (seen @ common).reshape(-1, 2)
    return {
        "angle (°)": float(np.median(np.rad2deg(turns))),
        "shift (px)": float(np.median(np.linalg.norm(shifts, axis=1))) / true.pixel_size_in_angstroms,
    }


def against_the_truth(
    wrong: Particles, result: Any, truth: NDArray[np.float32], settings: RefineSettings
) -> tuple[Particles, float]:
    """The errors after the same refinement against the true map, and its seconds."""
    changes = np.zeros((len(wrong), 7))
    diameter = result.preview.diameter_in_angstroms or 0.85 * len(truth) * wrong.pixel_size_in_angstroms
    against = reference(truth, np.ones(len(truth) // 2), result.validation.limit_shell, diameter)
    start = time.perf_counter()
    with ImageSource(wrong) as images:
        for _ in result.refinement.gains:
            recorded = Recorded(wrong, images, result.preview.noise)
            refine_half(recorded, changes, np.arange(len(wrong)), against, settings)
    return changed(wrong, changes), time.perf_counter() - start


def time_row(star: Path, n: int) -> dict[str, Any]:
    """The time of one round of a few images on one thread, after compilation."""
    particles = read_particles(star)
    truth, _ = truth_and_mask(star)
    rows, d = np.arange(min(n, len(particles))), particles.box_size
    settings = RefineSettings(("poses", "shifts"), 10.0, 10.0)
    against = reference(truth, np.ones(d // 2), d // 2 - 2, 0.7 * d * particles.pixel_size_in_angstroms)
    with ImageSource(particles) as images, threads(1):
        recorded = Recorded(particles, images, look_at_sample(particles, images, np.eye(3)[None], 0).noise)
        for _ in range(2):
            start = time.process_time()
            refine_half(recorded, np.zeros((len(particles), 7)), rows, against, settings)
            seconds = time.process_time() - start
    return {"box": d, "images": len(rows), "processor ms an image and round": 1e3 * seconds / len(rows)}


def main() -> None:
    args = arguments(
        __doc__, box_size=(64, "pixels"), images=(1000, "number"), seed=(0, "of what is wrong"),
        time_only=(0, "1: nothing but the time of a round"),
    )  # fmt: skip
    if args.time_only:
        report = Report("refine_time", "Local refinement: time", args)
        cases = (QUICK,) if args.quick else [resized(RUVB_SMALL, d, 500) for d in (64, 96, 128)]
        report.table("Time", [time_row(simulated(case, args.work), 500) for case in cases], _TIME_TEXT)
        return
    report = Report("refine", "Local refinement", args)
    case = QUICK if args.quick else resized(RUVB_SMALL, args.box_size, args.images)
    case = replace(case, settings=replace(case.settings, snr=0.05))
    star = simulated(case, args.work)
    true = read_particles(star)
    wrong = perturbed(true, args.seed)
    truth, mask = truth_and_mask(star)
    rows: list[dict[str, Any]] = []

    def row(name: str, particles: Particles, result: Any = None, seconds: float | None = None) -> None:
        rows.append({"poses": name, **errors(particles, true), "F": None, "worst": None})
        rows[-1] |= {"limit (Å)": None, "ms": None}
        if seconds is not None:
            rows[-1]["ms"] = 1e3 * seconds / len(true)
        if result is not None:
            v, average = result.validation, 0.5 * (result.half_maps[0] + result.half_maps[1])
            measured = slice(5, v.limit_shell)
            rows[-1]["F"] = mean_fsc(average, truth, mask)
            if v.limit_shell > 5:
                worst = np.abs(v.c_map - fsc(average, truth, result.mask))[measured].max()
                rows[-1] |= {"worst": float(worst), "limit (Å)": float(1 / v.frequency[v.limit_shell - 1])}
        report.table(case.name, rows, _TEXT)

    for name, particles in (("true", true), ("wrong", wrong)):
        row(name, particles, reconstructed(particles)[0])
    for name, particles in (("wrong, refined", wrong), ("true, refined", true)):
        result, seconds = reconstructed(particles, refine="poses,shifts")
        row(name, result.particles, result, seconds.get("refinement"))
        if particles is wrong and result.refinement.gains:
            best, seconds = against_the_truth(wrong, result, truth, result.refinement.settings)
            row("wrong, against the true map", best, seconds=seconds)


if __name__ == "__main__":
    main()
