"""Latents and maps of states from posed images: cryoDRGN's `train_vae`, recovar, and emsplat.

python benchmarks/heterogeneity_others.py --work WORK --small 1 --cryodrgn VENV/bin/cryodrgn --recovar VENV/bin/recovar

A program whose output is there already does not run again.
"""

from __future__ import annotations

import csv
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import Report, arguments
from emsplat.io import read_particles
from emsplat.io.mrc import read_map
from heterogeneity import UNITS
from heterogeneity_scores import error_of_regression, score
from heterogeneity_sets import QUICK, SETS, SMALL, Set, coordinates, simulated, states_of, truths_of
from others import ONE_THREAD, RECOVAR, CryoDRGN, Recovar, last_epoch
from programs import Measured, run_emsplat

_SEED = 1
_SETS = [f"{name} {box}²" for box in (48, 64) for name in ("hinge circle", "8 compositions")]
_TABLE = "Posed images of several conformations"
_TEXT = f"""Sets of heterogeneity.md, seed 1, with their true poses. `score`: mean FSC over shells 1 to D/2 − 1, in the
mask of all conformations, of the map that a program decodes at an image's latents with that image's true map, over
`maps` images. `latents`: the error of a quadratic regression on one half's latents among the other half's images: the
median in degrees on a circle, or the share of wrong conformations. `reached`: how far a program had come when its
processor time was over, or `the end`. Each program ran in processes of one thread, other work beside it; `CPU s` is
everything up to the latents, `a map` the processor time to decode one, `wall s` includes the time in which it was made
to wait, and `peak` is its largest resident memory.

`train_vae` ran in single precision with its own settings except for those in the row: the number of latents and the
width of all layers of both networks (1,024 by default, which needs a card). recovar's `pipeline` ran with
`{RECOVAR}`; its maps are those of `compute_state`. Both learn from all images at once. emsplat keeps
the two halves of the images apart, chooses the number of latents by itself, and has its own settings."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """The latents and the maps that a program found, and what it took."""

    program: str
    reached: str
    latents: NDArray[np.float64] | None  # (N, K); None: it had not come to them
    maps: list[Path]  # at the latents of the images that are scored; one for all if there are no latents
    took: Measured
    decoding: Measured | None


def by_emsplat(star: Path, images: NDArray[np.int64]) -> Found:
    """`emsplat heterogeneity`."""
    output = star.parent / "emsplat-heterogeneity"
    took = run_emsplat(star, output, "--threads", 1, job="heterogeneity", environ=ONE_THREAD)
    name = "emsplat heterogeneity"
    with (output / "latents.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [column for column in rows[0] if column[0] == "z" and column[1:].isdigit()]
    if not columns:
        return Found(name, "the end", None, [output / "consensus" / "map.mrc"], took, None)
    latents = np.array([[float(row[column]) for column in columns] for row in rows])
    (star.parent / "scored.txt").write_text("".join(f"{rows[i]['id']}\n" for i in images))
    maps = star.parent / "emsplat-decoded"
    decoding = run_emsplat(output, maps, "--particles", star.parent / "scored.txt", job="decode", environ=ONE_THREAD)
    return Found(f"{name}, K = {len(columns)}", "the end", latents, sorted(maps.glob("*.mrc")), took, decoding)


def by_cryodrgn(star: Path, images: NDArray[np.int64], args: Any, box_size: int, late: bool) -> Found:
    """cryoDRGN's `train_vae`, as it is at the end, or in the middle."""
    drgn = CryoDRGN(Path(os.path.abspath(args.cryodrgn)), star, box_size)
    folder, took = drgn.train_vae(args.width, args.epochs, args.z, 60 * args.minutes)
    name = f"cryodrgn train_vae, z = {args.z}, {args.width} wide"
    last = last_epoch(folder, "z.*.pkl")
    if not last:
        return Found(name, "not the end of the first epoch", None, [], took, None)
    number = last[0] if late else last[0] // 2
    share = number / last[0]
    took = Measured(share * took.seconds, share * took.cpu_seconds, took.peak_bytes)
    with (folder / f"z.{number}.pkl").open("rb") as file:
        latents = np.asarray(pickle.load(file), dtype=np.float64)  # of a program that this one has run
    points = _points(folder.parent / "scored.txt", latents[images])
    maps, decoding = drgn.decode(folder / f"weights.{number}.pkl", points)
    reached = "the end" if number == args.epochs else f"epoch {number} of {args.epochs}"
    return Found(name, reached, latents, maps, took, decoding)


def by_recovar(star: Path, images: NDArray[np.int64], args: Any) -> Found:
    """recovar's `pipeline` and `compute_state`."""
    recovar = Recovar(Path(os.path.abspath(args.recovar)), star)
    results, took = recovar.pipeline(args.z, 60 * args.minutes)
    path = results / "model" / f"zdim_{args.z}" / "latent_coords.npy"
    if not path.exists():
        return Found(f"recovar, z = {args.z}", "not the latents", None, [], took, None)
    latents = np.load(path).astype(np.float64)
    maps, decoding = recovar.decode(results, _points(results.parent / "scored.txt", latents[images]))
    return Found(f"recovar, z = {args.z}", "the end", latents, maps, took, decoding)


def _points(path: Path, latents: NDArray[np.float64]) -> Path:
    """Write rows of latents for the programs that decode them."""
    np.savetxt(path, latents)
    return path


def row_of(one: Set, star: Path, images: NDArray[np.int64], found: Found) -> Row:
    """How right latents and maps are, and what they cost."""
    labels, truths = states_of(star), truths_of(star)
    mask = read_map(star.with_name("mask.mrc")).values
    row: Row = {"set": one.name, "images": one.n_images, "program": found.program, "reached": found.reached}
    row |= {"score": None, "maps": 0, "latents": None}
    if found.maps:
        paths = found.maps if found.latents is not None else found.maps * len(images)
        assert len(paths) == len(images)
        pairs = zip(paths, images.tolist(), strict=True)
        row["score"] = f"{np.mean([score(read_map(path).values, truths[labels[i]], mask) for path, i in pairs]):.3f}"
        row["maps"] = len(images)
    if found.latents is not None:
        half = read_particles(star).half_set
        error = error_of_regression(one, found.latents, half, labels, coordinates(one, truths))
        row["latents"] = f"{error:.1f}{UNITS[one.kind]}"
    row |= {"CPU s": round(found.took.cpu_seconds), "a map": None}
    if found.decoding is not None:
        row["a map"] = f"{found.decoding.cpu_seconds / len(images):.2f}"
    return row | {"wall s": round(found.took.seconds), "peak, MB": round(found.took.peak_bytes / 1e6)}


def rows_of_set(one: Set, args: Any) -> Iterator[Row]:
    """A row for each program that is there."""
    star = simulated(one, args.work, _SEED)
    images = np.unique(np.linspace(0, one.n_images - 1, min(one.n_images, args.maps)).astype(int))
    if args.emsplat:
        yield row_of(one, star, images, by_emsplat(star, images))
    if args.cryodrgn:
        for late in (False, True):
            yield row_of(one, star, images, by_cryodrgn(star, images, args, one.box_size, late))
    if args.recovar:
        yield row_of(one, star, images, by_recovar(star, images, args))


def main() -> None:
    args = arguments(
        __doc__,
        cryodrgn=("", "cryoDRGN's program; without it, its rows are left out"),
        recovar=("", "recovar's program; without it, its row is left out"),
        emsplat=(1, "0: leave emsplat's row as it is"),
        only=(";".join(_SETS), "sets by name, with semicolons between"),
        small=(0, "1: smaller sets"),
        z=(4, "latents of the other programs"),
        width=(128, "width of the layers of train_vae"),
        epochs=(20, "epochs of train_vae"),
        minutes=(0, "of processor time after which another program is ended; 0: it runs to its end"),
        maps=(36, "images whose maps are decoded and scored"),
    )
    report = Report("heterogeneity-others", "Heterogeneity in other programs", args, keep=True)
    for one in QUICK if args.quick else SMALL if args.small else SETS:
        if not args.quick and one.name not in args.only.split(";"):
            continue
        for row in rows_of_set(one, args):
            which = ("set", "program", "reached")
            rows = report.tables.get(_TABLE, [])
            rows = [old for old in rows if [old[name] for name in which] != [row[name] for name in which]]
            report.table(_TABLE, [*rows, row], _TEXT)


if __name__ == "__main__":
    main()
