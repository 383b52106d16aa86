"""Ab initio: poses from none on simulations, beside the true ones, and on images in which there is nothing to find.

A run is right if most images lie within 15° of their true pose, after one rotation of all and over both hands, modulo
the particle's own symmetry. No wrong run may be called converged. Rows of earlier runs stay on the page, so that any
set, seed or part can be added later; `--again NAME` makes the rows of a set anew.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abinitio_products import TEXT as _PRODUCTS_TEXT
from abinitio_products import product_rows
from abinitio_sets import (
    HARD,
    IGG,
    IGNORED,
    LADDER,
    QUICK,
    SETS,
    built,
    foreign_sets,
    moments_left,
    shows_particle,
    traps,
)
from common import SHARED, Case, ProcessorTimes, Report, arguments, mean_fsc, reconstructed, simulated, truth_and_mask
from emsplat.abinitio import alignment
from emsplat.abinitio.run import AbInitio, ab_initio
from emsplat.errors import InputError
from emsplat.fourier import maps
from emsplat.io import read_particles
from emsplat.particles.table import Particles
from emsplat.reconstruction.reconstruct import Reconstruction
from emsplat.settings import AbInitioSettings
from emsplat.validation.correlation import fsc, resolution_at
from emsplat.validation.validate import C_AT_RESOLUTION, FIRST_SHELL

_RIGHT_IN_DEGREES = 15.0
_MOMENTS_OF_RIGHT_POSES = 0.3
_MIRROR = np.diag([1.0, 1.0, -1.0])

_TEXT = """`error`, `p90`: median and 90th percentile of the angles to the true poses of images that show a particle;
`near`: share of them within 15°; `F`: mean FSC of the final map with the truth in the true mask, aligned over both
hands, beside `F true`, that of the same job with the true poses; `claimed` and `true`: resolution in Å that a converged
run states, and that at which the mean of its half maps correlates with the truth by a half; `ms`: processor time of one
core an image, everything included; `doubts`: the criteria that are not met."""
_FOREIGN_TEXT = """Noise-free projections of cryoDRGN's tests. `moments`: what the poses that were found leave of the
images' second moments, of their standard deviation; `given`: the same of the poses that come with the images. It is 0
for right poses and 1 for any others; a run is right if it is at most 0.3. `error`, `p90`, `near`: from given poses."""
_TRAPS_TEXT = """Images that hold no map, or not the one that the table promises. Right answers: `failed`, `uncertain`,
or refused. `seconds`: processor time."""
_CRITERIA_TEXT = """The values of the verdict's criteria in these runs, beside whether they are right.
docs/abinitio.md explains the criteria and says from which values on a run has converged."""
_STAGES_TEXT = """Processor time in ms an image, by stage, of the runs above. `search`: both halves from random poses,
and their comparison; `search again`: on the refined maps; the others are those of `emsplat reconstruct` with local
refinement, summed over the rounds."""


# --- how right the poses are ------------------------------------------------------------------------------------------


def pose_errors(
    found: NDArray[np.float64], true: NDArray[np.float64], symmetry: NDArray[np.float64]
) -> tuple[NDArray[np.float64], bool]:
    """(n,) degrees after one rotation of all, over both hands and modulo the symmetry; and whether it is mirrored."""
    answers = []
    for mirrored in (False, True):
        posed = _MIRROR @ found @ _MIRROR if mirrored else found
        frames = np.swapaxes(true, 1, 2) @ posed
        tried = frames[np.random.default_rng(0).choice(len(true), min(60, len(true)), replace=False)]
        frame = max(tried, key=lambda f: np.mean(_distances(posed, true, f, symmetry)[0] < _RIGHT_IN_DEGREES))
        for _ in range(5):
            errors, mates = _distances(posed, true, frame, symmetry)
            near = errors < np.clip(np.median(errors), 8.0, _RIGHT_IN_DEGREES)
            sums = np.einsum("nji,njk->ik", (true @ symmetry[mates])[near], posed[near])
            u, _, v = np.linalg.svd(sums)
            frame = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
        answers.append((_distances(posed, true, frame, symmetry)[0], mirrored))
    return max(answers, key=lambda answer: float(np.mean(answer[0] < _RIGHT_IN_DEGREES)))


def _distances(posed, true, frame, symmetry):
    errors = np.array([_angles(posed, true @ operator @ frame) for operator in symmetry])
    return errors.min(axis=0), errors.argmin(axis=0)


def _angles(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.rad2deg(np.arccos(np.clip((np.einsum("nij,nij->n", a, b) - 1) / 2, -1, 1)))


def map_quality(found: Reconstruction, star: Path) -> tuple[float, float]:
    """F of a map of any hand and frame, and the true resolution in Å of the mean of its halves in its own mask.

    The truth is brought to the map, so that the map is judged as it is.
    """
    truth, mask = aligned_truth(found.map, star)
    mean = 0.5 * (found.half_maps[0] + found.half_maps[1])
    v = found.validation
    curve = fsc(mean, truth, found.mask)
    resolution = resolution_at(curve, v.frequency, C_AT_RESOLUTION, FIRST_SHELL) or v.nyquist
    return mean_fsc(found.map, truth, mask), float(resolution)


def aligned_truth(volume: NDArray[np.float32], star: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The true map and its mask, brought to a map of any hand and frame."""
    truth, mask = truth_and_mask(star)
    box = min(len(truth), 48)
    coarse = alignment.align(*(maps.fourier_resize(v, box) for v in (volume, truth)), n_rings=14)
    coarse = replace(coarse, shift=coarse.shift * (len(truth) / box))
    fine = alignment.align_near(volume, coarse.applied(truth), len(truth) // 3)
    truth, mask = (fine.applied(coarse.applied(v)) for v in (truth, mask))
    return truth, np.clip(mask, 0, 1)


# --- runs -------------------------------------------------------------------------------------------------------------


def judged(found: AbInitio, true: NDArray[np.float64], symmetry: NDArray[np.float64]) -> dict[str, Any]:
    """The verdict of a run, beside the errors of its poses; true: (n, 3, 3)."""
    posed = found.reconstruction.particles.rotations()
    errors, _ = pose_errors(posed, true, symmetry)
    near = float(np.mean(errors < _RIGHT_IN_DEGREES))
    return {
        "verdict": found.status,
        "right": near > 0.5,
        "error (°)": float(np.median(errors)),
        "p90 (°)": float(np.percentile(errors, 90)),
        "near": near,
        "doubts": "; ".join(f"{c.name} {c.value:.2g}" for c in found.verdict.criteria if c.status != "converged")
        or None,
    }


def one_run(
    case: Case, symmetry: str, seed: int, work: Path, with_truth: bool, threads: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Rows of a set, of its times and of its criteria.

    The search does not see the poses of the table, which serve to judge it.
    """
    star = simulated(built(case, work), work, seed)
    true = read_particles(star)
    hidden = replace(true, half_set=np.zeros(len(true), dtype=np.int8))
    times = ProcessorTimes()
    start = time.process_time()
    found = ab_initio(hidden, AbInitioSettings(symmetry=symmetry, seed=seed, threads=threads), times)
    seconds = time.process_time() - start
    symmetries = alignment.own_rotations(maps.fourier_resize(truth_and_mask(star)[0], 28), 12)
    shown = shows_particle(star, len(true))
    everything = found.reconstruction
    only = replace(
        found, reconstruction=replace(everything, particles=everything.particles.select(np.flatnonzero(shown)))
    )
    row = judged(only, true.rotations()[shown], symmetries)
    doubts = row.pop("doubts")
    quality, resolution = map_quality(everything, star) if row["right"] else (None, None)
    given = None
    if with_truth and row["right"]:
        from_true, _ = reconstructed(hidden, symmetry=symmetry, seed=seed, threads=threads)
        given, _ = map_quality(from_true, star)
    head = {"set": case.name, "seed": seed, "images": len(true)}
    row = head | row | {
        "claimed (Å)": _claimed(everything) if found.status == "converged" else None,
        "true (Å)": resolution,
        "F": quality,
        "F true": given,
        "ms": 1e3 * seconds / len(true),
        "doubts": doubts,
    }  # fmt: skip
    stages = {name: 1e3 * s / len(true) for name, s in times.processor_seconds.items()}
    of_stages = head | {"box": true.box_size} | {name: stages.pop(name, 0.0) for name in _SHOWN_STAGES}
    print(f"  evidence: {json.dumps(found.summary())}", flush=True)
    values = {criterion.name: criterion.value for criterion in found.verdict.criteria}
    of_verdict = head | {"right": row["right"]} | {name: values.get(name) for name in _CRITERIA}
    return row, of_stages | {"others": sum(stages.values())}, of_verdict


def _claimed(found: Reconstruction) -> float | str | None:
    """The resolution in Å as a run states it."""
    v = found.validation
    return f"better than {v.resolution:.4g}" if v.resolution_kind == "better_than" else v.resolution


_SHOWN_STAGES = ("preview", "polar images", "search", "search again")
_CRITERIA = (
    "information", "correlation", "poses", "mates", "top_posterior", "map_power", "generalisation", "likeness",
    "particles", "views", "recovery", "measurable", "ctf", "contrast", "settled", "symmetry",
)  # fmt: skip


def trap_row(name: str, particles: Particles, seed: int, threads: int, **more: Any) -> tuple[dict[str, Any], Any]:
    """The verdict of the program on images, and why; and the run itself, unless the images were refused."""
    start = time.process_time()
    found = None
    row: dict[str, Any] = {"set": name, "seed": seed, "images": len(particles)}
    try:
        found = ab_initio(particles, AbInitioSettings(seed=seed, threads=threads, **more), ProcessorTimes())
        failed = [f"{c.name} {c.value:.2g}" for c in found.verdict.criteria if c.status != "converged"]
        row |= {"verdict": found.status, "why": ", ".join(failed) or None}
    except InputError as error:
        row |= {"verdict": "refused", "why": str(error).partition(": ")[2][:90]}
    return row | {"seconds": time.process_time() - start}, found


class Page:
    """The report, to which rows are added unless they are already there."""

    def __init__(self, report: Report, again: tuple[str, ...], revision: str) -> None:
        self.report, self.again, self.revision = report, again, revision

    def wants(self, heading: str, *which: Any) -> bool:
        """Whether there is no row of this name, seed and number of images yet, or it is to be made anew."""
        rows = self.report.tables.get(heading, [])
        return which[0] in self.again or all(self._which(row) != which for row in rows)

    def add(self, heading: str, row: dict[str, Any], text: str) -> None:
        """Add a row with the program's revision, in place of an older one of the same set, seed and size."""
        self.report.take_up()
        rows = [old for old in self.report.tables.get(heading, []) if self._which(old) != self._which(row)]
        self.report.table(heading, [*rows, row | {"revision": self.revision}], text)

    @staticmethod
    def _which(row: dict[str, Any]) -> tuple[Any, ...]:
        """Name, seed and number of images of a row."""
        return tuple(row.values())[:3]


def simulations(page: Page, part: str, sets: list[tuple[Case, str]], args: Any) -> None:
    """Rows of a part that consists of simulations, seed by seed."""
    for seed in range(args.seeds):
        for case, symmetry in sets:
            if page.wants(part, case.name, seed, case.settings.n_images):
                row, of_stages, of_verdict = one_run(case, symmetry, seed, args.work, bool(args.truth), args.threads)
                page.add("stages", of_stages, _STAGES_TEXT)
                page.add("criteria", of_verdict, _CRITERIA_TEXT)
                page.add(part, row, _TEXT)


def foreign(page: Page, args: Any) -> None:
    """Rows of the sets made by others."""
    for name, particles in foreign_sets().items():
        for seed in range(args.seeds):
            if name.startswith(args.only) and page.wants("foreign", name, seed, len(particles)):
                row, found = trap_row(name, particles, seed, args.threads)
                none = {"right": False, "error (°)": None, "p90 (°)": None, "near": None}
                row |= none if found is None else judged(found, particles.rotations(), np.eye(3)[None])
                row.pop("doubts", None)
                row |= {"moments": None, "given": moments_left(particles, particles.rotations())}
                if found is not None:
                    row["moments"] = moments_left(particles, found.reconstruction.particles.rotations())
                    row["right"] = row["moments"] <= _MOMENTS_OF_RIGHT_POSES
                page.add("foreign", row, _FOREIGN_TEXT)


def null_rows(page: Page, args: Any) -> None:
    """Rows of the traps, and of real images that hold too little."""
    star = simulated(QUICK if args.quick else IGG, args.work)
    sets = traps(star, args.work, 240 if args.quick else args.images or 1500)
    tilts = SHARED / "real" / "ribosome-tilts" / "particles.star"
    if tilts.exists() and not args.quick:
        sets["real tilts of 40 ribosomes"] = read_particles(tilts)
    for seed in range(args.seeds):
        for name, particles in sets.items():
            if name.startswith(args.only) and page.wants("traps", name, seed, len(particles)):
                row, _ = trap_row(name, particles, seed, args.threads, no_ctf=name == IGNORED)
                page.add("traps", row, _TRAPS_TEXT)


def main() -> None:
    args = arguments(
        __doc__,
        seeds=(1, "runs of each set"),
        part=("products,sets,hard,traps,foreign,ladder", "which parts, with commas between"),
        only=("", "the sets whose names begin so, with semicolons between"),
        images=(0, "number of images of each set in place of its own"),
        again=("", "sets whose rows are made anew, with semicolons between"),
        truth=(1, "1: also reconstruct with the true poses"),
        threads=(2, "of each run"),
    )
    args.only = tuple(args.only.split(";"))
    report = Report("abinitio", "Poses from none", args, keep=not args.quick)
    page = Page(report, tuple(args.again.split(";")), report.environment["emsplat"].rpartition(" ")[2])
    groups = {"sets": SETS, "ladder": LADDER, "hard": HARD}
    parts = args.part.split(",")
    if args.quick:
        groups, parts, args.seeds = {"sets": [(QUICK, "C1")]}, ["products", "sets", "traps"], 1
    for part in parts:
        if part == "products":
            report.table("products", product_rows(), _PRODUCTS_TEXT)
        elif part == "traps":
            null_rows(page, args)
        elif part == "foreign":
            foreign(page, args)
        else:
            sets = [(case, symmetry) for case, symmetry in groups[part] if case.name.startswith(args.only)]
            if args.images:
                sets = [(replace(c, settings=replace(c.settings, n_images=args.images)), group) for c, group in sets]
            simulations(page, part, sets, args)


if __name__ == "__main__":
    main()
