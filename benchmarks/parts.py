"""What weights and several parts of each image cost in the accumulation, by processor seconds in alternating runs."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from common import Report, arguments
from emsplat.particles.parts import Part, PartWeights
from emsplat.settings import SimulationSettings
from emsplat.simulation.acquisition import acquire
from emsplat.statistics.accumulate import AccumulationSettings, accumulate
from emsplat.statistics.loss import fitting_period

_PARTS, _EACH = 4, 3  # parts of the table; parts of an image of which it has several
_MOST_FOR_WEIGHTS = 1.1  # times as long
_TEXT = f"""Noise in place of images, one thread, {_PARTS} parts. "per image" is what doubling the number of images
adds, so that the grids, which are transformed once, do not count; the median of alternating runs. "one part" is the
case of half sets, "weights" the same with stored weights of 1, "{_EACH} parts" has {_EACH} of the {_PARTS} parts for
every image.
**Required: weights ≤ {_MOST_FOR_WEIGHTS} × one part; {_EACH} parts ≤ {_EACH} × one part.**"""


class Noise:
    """A stand-in for an ImageSource that returns the same few images over and over."""

    def __init__(self, box_size: int) -> None:
        self.box_size = box_size
        self.images = np.random.default_rng(0).standard_normal((400, box_size, box_size), dtype=np.float32)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.images[rows % len(self.images)]

    def read_into(self, rows: NDArray[np.int64], images: NDArray[np.float32]) -> None:
        images[:] = self.read(rows)


def tables(n: int) -> dict[str, PartWeights]:
    """The ways in which n images belong to the parts."""
    rng = np.random.default_rng(1)
    parts = [Part(state=number) for number in range(_PARTS)]
    numbers = rng.integers(_PARTS, size=n)
    weights = np.zeros((n, _PARTS))
    chosen = np.argsort(rng.random((n, _PARTS)), axis=1)[:, :_EACH]
    np.put_along_axis(weights, chosen, rng.dirichlet(np.ones(_EACH), n), axis=1)
    return {
        "one part": PartWeights.one_part_each(parts, numbers),
        "weights": PartWeights.from_dense(parts, np.eye(_PARTS)[numbers]),
        f"{_EACH} parts": PartWeights.from_dense(parts, weights),
    }


def rows_of(box_size: int, n: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each table of n images."""
    settings = SimulationSettings(n_images=2 * n, box_size=box_size, pixel_size_in_angstroms=2.0)
    whole, images = acquire(settings, Path("noise.star"), Path("noise.mrcs")), Noise(box_size)
    few = whole.select(np.arange(n))
    accumulation = AccumulationSettings(
        box_size, fitting_period(round(0.8 * box_size)), np.ones((1, box_size // 2 + 1)), np.eye(3)[None]
    )
    small, large = tables(n), tables(2 * n)
    seconds: dict[str, list[float]] = {name: [] for name in small}
    for turn in range(repeats + 1):
        for name in list(small)[:: 1 if turn % 2 else -1]:
            spent = []
            for particles, parts in ((few, small[name]), (whole, large[name])):
                start = time.process_time()
                accumulate(particles, images, parts, accumulation)
                spent.append(time.process_time() - start)
            if turn:  # the first one compiles
                seconds[name].append((spent[1] - spent[0]) / n)
    base = statistics.median(seconds["one part"])
    limits = {"one part": 1.0, "weights": _MOST_FOR_WEIGHTS, f"{_EACH} parts": float(_EACH)}
    return [
        {
            "box": box_size,
            "images": n,
            "table": name,
            "ms per image": 1e3 * statistics.median(found),
            "of one part": statistics.median(found) / base,
            "required": statistics.median(found) / base <= limits[name],
        }
        for name, found in seconds.items()
    ]


def main() -> None:
    args = arguments(__doc__)
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    report = Report("parts", "Parts and weights", args)
    rows: list[dict[str, Any]] = []
    for box_size, n in ((32, 400),) if args.quick else ((64, 3000), (128, 1000)):
        rows += rows_of(box_size, n, repeats=2 if args.quick else 7)
        report.table("Accumulation", rows, _TEXT)


if __name__ == "__main__":
    main()
