"""Poses and a map from images without poses: RELION's stochastic gradient descent, cryoDRGN's `abinit`, and emsplat.

python benchmarks/abinitio_others.py --work WORK --cryodrgn VENV/bin/cryodrgn --minutes 20

A program whose output is there already does not run again.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abinitio import aligned_truth, pose_errors
from abinitio_sets import IGG, QUICK, RUVB
from common import Case, Report, arguments, mean_fsc, simulated, truth_and_mask
from emsplat.abinitio import alignment
from emsplat.fourier import maps
from emsplat.io import read_particles
from emsplat.io.mrc import read_map
from emsplat.validation.correlation import fsc, resolution_at
from others import ONE_THREAD, RELION_ITERATIONS, RELION_SGD, CryoDRGN, last_epoch, relion_sgd, without_poses
from programs import Measured, run_emsplat

_NEAR_IN_DEGREES = 15.0
_COARSE_IN_ANGSTROMS = 15.0  # the finest that RELION's stochastic gradient descent looks at
_TABLE = "Images without poses"
_TEXT = f"""The simulations of abinitio.md, seed 0, given to each program without their poses. `error`, `p90`: median
and 90th percentile of the angles to the true poses, after one rotation of all and over both hands; `near`: share of
them within 15°. `F`: mean FSC of the program's own map with the truth in the true mask, over all shells to Nyquist,
aligned over both hands; `F, 15 Å`: over the shells to 15 Å, RELION's own limit here; `0.5`: resolution in Å at which
this FSC first falls below a half. `reached`: how far the program had come when its processor time was over, or
`the end`. Each program ran in processes of one thread, other work beside it; `CPU s` is everything that it did, `wall
s` includes the time in which it was made to wait, and `peak` is its largest resident memory.

RELION got images normalised by `relion_preprocess`, a circle of nine tenths of the box, and the options that its window
for initial models writes by itself:

    relion_refine {RELION_SGD}

cryoDRGN's `abinit --zdim 0 --no-amp` has its own settings except for those in the row. `--explicit-volume` replaces
its neural network by a voxel array, which makes its search affordable without a card. emsplat has its own settings;
it goes on to local refinement and to a map by half sets, which the other two leave to another job."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """The poses and the map that a program found, and what it took."""

    program: str
    reached: str  # "the end", or how far it had come
    rotations: NDArray[np.float64] | None  # (n, 3, 3) in the order of the images; None: it had not come to poses
    map: NDArray[np.float32] | None
    took: Measured


def by_emsplat(star: Path) -> Found:
    """`emsplat abinitio`."""
    output = star.parent / "emsplat-abinitio"
    images = without_poses(star, star.parent / "without_poses.star", "particles.mrcs")
    took = run_emsplat(images, output, "--threads", 1, job="abinitio", environ=ONE_THREAD)
    table = read_particles(output / "particles.star", datadir=star.parent)
    return Found("emsplat abinitio", "the end", table.rotations(), read_map(output / "map.mrc").values, took)


def by_relion(star: Path, limit: int) -> Found:
    """RELION's `relion_refine --denovo_3dref --sgd`."""
    folder, took = relion_sgd(star, limit)
    last = last_epoch(folder, "run_it*_data.star")
    name = "relion_refine --denovo_3dref --sgd"
    if not last or last[0] == 0:
        return Found(name, "no iteration was written", None, None, took)
    number, path = last
    table = read_particles(path, datadir=folder.parent)
    order = np.argsort([int(image.split("@")[0]) for image in table.ids.tolist()])
    reached = "the end" if number == RELION_ITERATIONS else f"iteration {number} of {RELION_ITERATIONS}"
    volume = read_map(path.with_name(path.name.replace("_data.star", "_class001.mrc"))).values
    return Found(name, reached, table.select(order).rotations(), volume, took)


def by_cryodrgn(program: Path, star: Path, box_size: int, epochs: int, limit: int, *options: str) -> Found:
    """cryoDRGN's `abinit`."""
    folder, took = CryoDRGN(program, star, box_size).abinit(limit, "-n", epochs, *options)
    name = " ".join(["cryodrgn abinit", *options])
    last = last_epoch(folder, "reconstruct.*.mrc")
    if not last:
        return Found(name, "not the end of the first epoch", None, None, took)
    number, path = last
    posed = path.with_name(f"pose.{number}.pkl")
    rotations = None
    if number > 0 and posed.exists():
        with posed.open("rb") as file:
            rotations = np.asarray(pickle.load(file)[0], dtype=np.float64)  # of a program that this one has run
    reached = "the end" if number == epochs else f"epoch {number} of {epochs}"
    return Found(name, reached, rotations, read_map(path).values, took)


def row_of(case: Case, star: Path, found: Found) -> Row:
    """How right poses and map are, and what they cost."""
    row: Row = {"set": case.name, "images": case.settings.n_images, "program": found.program, "reached": found.reached}
    row |= {"error (°)": None, "p90 (°)": None, "near": None, "F": None, "F, 15 Å": None, "0.5 (Å)": None}
    if found.rotations is not None:
        symmetries = alignment.own_rotations(maps.fourier_resize(truth_and_mask(star)[0], 28), 12)
        errors, _ = pose_errors(found.rotations, read_particles(star).rotations(), symmetries)
        row |= {"error (°)": float(np.median(errors)), "p90 (°)": float(np.percentile(errors, 90))}
        row["near"] = float(np.mean(errors < _NEAR_IN_DEGREES))
    if found.map is not None:
        truth, mask = aligned_truth(found.map, star)
        curve = np.nan_to_num(fsc(found.map, truth, mask))
        frequency = np.arange(1, len(curve) + 1) / (len(truth) * case.settings.pixel_size_in_angstroms)
        coarse = frequency <= 1 / _COARSE_IN_ANGSTROMS
        row |= {"F": mean_fsc(found.map, truth, mask), "F, 15 Å": float(curve[coarse].mean())}
        row["0.5 (Å)"] = resolution_at(curve, frequency, 0.5) or float(1 / frequency[-1])
    took = found.took
    return row | {"CPU s": took.cpu_seconds, "wall s": took.seconds, "peak, MB": took.peak_bytes / 1e6}


def rows_of_set(case: Case, args: Any) -> Iterator[Row]:
    """A row for each program that is there."""
    star, limit = simulated(case, args.work), 30 if args.quick else 60 * args.minutes
    if "emsplat" in args.programs:
        yield row_of(case, star, by_emsplat(star))
    if "relion" in args.programs and shutil.which("relion_refine"):
        yield row_of(case, star, by_relion(star, limit))
    if args.cryodrgn:
        program, box = Path(os.path.abspath(args.cryodrgn)), case.settings.box_size
        for name in [name for name in ("network", "voxels") if name in args.programs]:
            own = ["--explicit-volume"] if name == "voxels" else []
            yield row_of(case, star, by_cryodrgn(program, star, box, args.epochs, limit, *own))


def main() -> None:
    args = arguments(
        __doc__,
        cryodrgn=("", "cryoDRGN's program; without it, its rows are left out"),
        only=("", "sets by name, separated by semicolons; without it, all"),
        programs=("emsplat,relion,voxels", "which: emsplat, relion, and cryoDRGN with voxels or its network"),
        epochs=(30, "epochs of cryoDRGN's abinit"),
        minutes=(0, "of processor time after which another program is ended; 0: it runs to its end"),
    )
    report = Report("abinitio-others", "Images without poses in other programs", args, keep=True)
    for case in [QUICK] if args.quick else [IGG, RUVB]:
        if case.name not in (args.only.split(";") if args.only else [case.name]):
            continue
        for row in rows_of_set(case, args):
            this = (row["set"], row["program"])
            kept = [old for old in report.tables.get(_TABLE, []) if (old["set"], old["program"]) != this]
            report.table(_TABLE, [*kept, row], _TEXT)


if __name__ == "__main__":
    main()
