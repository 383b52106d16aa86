"""One process of one thread beside two of them on the same images: the rate of the pass, and the same map."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cases import QUICK, RUVB
from common import Report, arguments, simulated
from emsplat.correlation import fsc
from emsplat.io.mrc import read_map
from programs import measured

_LEAST_RATIO, _LEAST_FSC = 1.7, 0.9999

_TEXT = f"""Medians of runs that take turns. A rate is images over the seconds of the pass, its transforms in the end
included, by the first rank's clock. Few Gaussians: the fit is not what is measured. **Required: a ratio of at least
{_LEAST_RATIO}; between the maps an FSC above {_LEAST_FSC} in every shell.**"""


def run(star: Path, output: Path, ranks: int) -> dict[str, Any]:
    """The summary of one run."""
    shutil.rmtree(output, ignore_errors=True)
    command: list[object] = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "-m"]
    command += ["emsplat", "reconstruct", star, "-o", output, "--threads", 1, "--n-gaussians", 500, "--n-fits", 1]
    measured([*command, "--quiet"], output.parent)
    return json.loads((output / "summary.json").read_text())


def least_fsc(one: Path, two: Path) -> float:
    """Over the shells of all maps of two runs."""
    names = ("map.mrc", "map_half1.mrc", "map_half2.mrc", "raw_half1.mrc", "raw_half2.mrc")
    pairs = ([read_map(folder / name).values for folder in (one, two)] for name in names)
    return min(float(fsc(a, b, np.ones_like(a)).min()) for a, b in pairs)


def main() -> None:
    args = arguments(__doc__, repeats=(3, "runs of each"))
    report = Report("ranks", "Ranks", args)
    case = QUICK if args.quick else RUVB
    star = simulated(case, args.work)
    folders = {ranks: args.work / f"ranks-{ranks}" for ranks in (1, 2)}
    run(star, folders[1], 1)  # whatever has to be compiled
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(args.repeats):
        for ranks, folder in folders.items():
            found[ranks].append(run(star, folder, ranks))
        rates = {ranks: statistics.median(s["images_per_second"] for s in runs) for ranks, runs in found.items()}
        rows = [
            {
                "processes of one thread": ranks,
                "images/s in the pass": rate,
                "ratio": rate / rates[1],
                "peak of the first, GB": statistics.median(s["peak_memory_in_bytes"] for s in found[ranks]) / 1e9,
                "least FSC with one": least_fsc(folders[1], folders[ranks]),
            }
            for ranks, rate in rates.items()
        ]
        report.table(f"{case.name}, {case.settings.n_images:,} images", rows, _TEXT)


if __name__ == "__main__":
    main()
