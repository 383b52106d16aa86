"""One process with one thread beside several on the same images: the rate of the accumulation, and the same map."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cases import QUICK, RUVB, RUVB_SMALL
from common import Case, Report, arguments, simulated
from emsplat.io.mrc import read_map
from emsplat.validation.correlation import fsc
from programs import measured

_LEAST_RATIO, _LEAST_FSC = 1.7, 0.9999

_TEXT = f"""Medians of runs that take turns, each rank with one thread. A rate is images over the seconds of the pass,
its transforms in the end included, by the first rank's clock; more ranks than the machine has cores say nothing of
speed. Few Gaussians: the fit is not what is measured. **Required: of two ranks a ratio of at least {_LEAST_RATIO} with
the statistics; up to four ranks an FSC above {_LEAST_FSC} in every shell of all maps, and the same bits.**"""


def run(star: Path, output: Path, ranks: int, options: tuple[object, ...]) -> dict[str, Any]:
    """The summary of one run."""
    shutil.rmtree(output, ignore_errors=True)
    command: list[object] = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "-m"]
    command += ["emsplat", "reconstruct", star, "-o", output, "--threads", 1, "--n-gaussians", 500, "--n-fits", 1]
    measured([*command, *options, "--quiet"], output.parent)
    return json.loads((output / "summary.json").read_text())


def compared(one: Path, other: Path) -> tuple[float, bool]:
    """The smallest FSC over the shells of all maps of two runs, and whether all bits are the same."""
    names = ("map.mrc", "map_half1.mrc", "map_half2.mrc", "raw_half1.mrc", "raw_half2.mrc")
    pairs = [[read_map(folder / name).values for folder in (one, other)] for name in names]
    least = min(float(fsc(a, b, np.ones_like(a)).min()) for a, b in pairs)
    return least, all(np.array_equal(a, b) for a, b in pairs)


def table(report: Report, case: Case, work: Path, solver: str, sizes: tuple[int, ...], repeats: int) -> None:
    """The rows of one solver by numbers of ranks, compared with the first of them."""
    star = simulated(case, work)
    folders = {ranks: work / f"ranks-{solver}-{ranks}" for ranks in sizes}
    options = ("--solver", solver)
    run(star, folders[1], 1, options)  # whatever has to be compiled
    found: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in sizes}
    for _ in range(repeats):
        for ranks, folder in folders.items():
            found[ranks].append(run(star, folder, ranks, options))
        rates = {ranks: statistics.median(s["images_per_second"] for s in runs) for ranks, runs in found.items()}
        rows = []
        for ranks, rate in rates.items():
            least, same = compared(folders[1], folders[ranks])
            rows.append(
                {
                    "ranks": ranks,
                    "images/s in the pass": rate,
                    "ratio": rate / rates[1],
                    "seconds of the fit": statistics.median(s["seconds"]["fit"] for s in found[ranks]),
                    "peak of the first, GB": statistics.median(s["peak_memory_in_bytes"] for s in found[ranks]) / 1e9,
                    "least FSC with one": least,
                    "the same bits": same,
                }
            )
        report.table(f"By {solver}: {case.name}, {case.settings.n_images:,} images", rows, _TEXT)


def main() -> None:
    args = arguments(__doc__, repeats=(3, "runs of each"))
    report = Report("ranks", "Ranks", args)
    table(report, QUICK if args.quick else RUVB, args.work, "statistics", (1, 2, 3, 4, 6), args.repeats)
    table(report, QUICK if args.quick else RUVB_SMALL, args.work, "images", (1, 2, 4), 1)


if __name__ == "__main__":
    main()
