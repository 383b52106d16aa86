"""How the same images fare in cryoDRGN's neural network and back-projection, in RELION, and in emsplat.

python benchmarks/fields_others.py --work WORK --cryodrgn VENV/bin/cryodrgn
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import Case, Report, arguments, mean_fsc, simulated, truth_and_mask
from emsplat.io.mrc import read_map
from fields import sets
from others import ONE_THREAD, CryoDRGN
from programs import has_relion, run_emsplat, run_relion

Row = dict[str, Any]

_TABLE, _EPOCHS = "All images of a set", "After each epoch"
_TEXT = """All images of the sets of fields.md, with their true poses. F is the mean FSC of the map with the truth
within the true mask, over all shells to Nyquist; "error left" is 1 − F over that of RELION's map. Each program ran in
a process of its own with one thread; "CPU s" is everything it did, "peak" its largest resident memory. `train_nn` is
cryoDRGN's coordinate network in Fourier space with its own settings except for the width of its layers, which the row
names (1,024 by default, which needs a card), and single precision. Its map is the last epoch's."""
_EPOCHS_TEXT = """The map of `train_nn` after each of its epochs, and that of emsplat for comparison. The seconds are
those of the whole run, shared equally among the epochs."""


def rows_of_set(case: Case, star: Path, drgn: CryoDRGN | None, width: int, epochs: int) -> Iterator[tuple[Row, list]]:
    """A row for each program, and F after each of its epochs where it has any."""
    truth, mask = truth_and_mask(star)
    facts: Row = {"set": case.name, "images": case.settings.n_images, "SNR": case.settings.snr}

    def f_of(path: Path) -> float:
        return mean_fsc(_read(path), truth, mask)

    def row(program: str, f: float, took: Any) -> Row:
        left = (1 - f) / (1 - relion)
        cost = {"CPU s": took.cpu_seconds, "peak, MB": took.peak_bytes / 1e6}
        return facts | {"program": program, "F": f, "error left": left} | cost

    inverted = run_relion(star)
    relion = f_of(inverted.map)
    yield row("relion_reconstruct", relion, inverted), []
    output = star.parent / "emsplat"
    took = run_emsplat(star, output, "--threads", 1, environ=ONE_THREAD)
    f = f_of(output / "map.mrc")
    yield row("emsplat reconstruct", f, took), [(took.cpu_seconds, f)]
    if drgn:
        for algorithm in ("flip", "mul"):
            path, took = drgn.back_project(algorithm)
            yield row(f"backproject_voxel, {algorithm}", f_of(path), took), []
        maps, took = drgn.train_nn(width, epochs)
        after = [(took.cpu_seconds * (n + 1) / epochs, f_of(path)) for n, path in enumerate(maps)]
        yield row(f"train_nn, {width} wide, {epochs} epochs", after[-1][1], took), after


def _read(path: Path) -> NDArray[np.float32]:
    return read_map(path).values


def main() -> None:
    args = arguments(
        __doc__,
        cryodrgn=("", "cryoDRGN's program; without it, its rows are left out"),
        only=("", "sets by name, separated by semicolons; without it, all"),
        width=(256, "width of the layers of train_nn"),
        epochs=(20, "epochs of train_nn"),
    )
    if not has_relion():
        raise SystemExit("relion_reconstruct is not installed; its error is what the others are measured by.")
    report = Report("fields-others", "The same images in other programs", args, keep=True)
    even = [case for case in sets(args.quick) if case.settings.box_size % 2 == 0]  # both programs need even boxes
    for case in even:
        if case.name not in (args.only.split(";") if args.only else [case.name]):
            continue
        star = simulated(case, args.work)
        drgn = CryoDRGN(Path(os.path.abspath(args.cryodrgn)), star, case.settings.box_size) if args.cryodrgn else None
        _forget(report, case.name)
        for row, after in rows_of_set(case, star, drgn, args.width, args.epochs):
            report.table(_TABLE, [*report.tables.get(_TABLE, []), row], _TEXT)
            epochs = [
                {"set": case.name, "program": row["program"], "epoch": n or None, "CPU s": seconds, "F": f}
                for n, (seconds, f) in enumerate(after, 0 if len(after) == 1 else 1)
            ]
            if epochs:
                report.table(_EPOCHS, [*report.tables.get(_EPOCHS, []), *epochs], _EPOCHS_TEXT)


def _forget(report: Report, name: str) -> None:
    """Drop the rows of a set that is about to run again."""
    for heading, rows in report.tables.items():
        report.tables[heading] = [row for row in rows if row["set"] != name]


if __name__ == "__main__":
    main()
