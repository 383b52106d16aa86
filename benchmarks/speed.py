"""The time of the whole job beside that of RELION's three maps, and how every stage scales.

Serial means that RELION makes its maps one after the other. Side by side means that it makes the map of all images on
one core and the two halves, one after the other, on the other core.
"""

from __future__ import annotations

import json
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from cases import MANY, QUICK, resized
from common import Case, Report, arguments, reconstructed, simulated
from emsplat.io import read_particles
from programs import GB, has_relion, run_emsplat, run_relion

_SIDE_BY_SIDE, _SERIAL = 0.50, 0.27  # of RELION's three maps, that the whole job may take

_TEXT = f"""Median of the repeats, each of which runs all programs in turn. RELION's insertion is the time between its
announcements "Back-projecting" and "Starting the reconstruction". **Required: the whole job in at most
{_SIDE_BY_SIDE:.2f} of the time of RELION's three maps side by side and {_SERIAL:.2f} of it one after the other, the
pass in at most half of RELION's insertion.** The job is `emsplat reconstruct` in a process of its own: imports, both
halves, fit, validation, figures, with numba's cache filled."""

_JIT_TEXT = "The same small job twice, with an empty cache of compiled kernels and with a full one."


def job(star: Path, work: Path, cache: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Run the command once; return what it took, and its own summary."""
    output = work / "speed-run"
    shutil.rmtree(output, ignore_errors=True)
    took = run_emsplat(star, output, environ={"NUMBA_CACHE_DIR": str(cache)})
    summary = json.loads((output / "summary.json").read_text())
    return {"seconds": took.seconds, "cpu": took.cpu_seconds, "peak": took.peak_bytes}, summary


def relion_job(star: Path) -> dict[str, float]:
    """RELION's three maps: each by itself, then two at a time."""
    runs = [run_relion(star, subset) for subset in (None, 1, 2)]
    start = perf_counter()
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(run_relion, star), pool.submit(lambda: [run_relion(star, n) for n in (1, 2)])]
        for other in others:
            other.result()
    return {
        "all": runs[0].seconds,
        "half 1": runs[1].seconds,
        "half 2": runs[2].seconds,
        "serial": sum(run.seconds for run in runs),
        "side by side": perf_counter() - start,
        "insertion": runs[0].insertion_seconds,
        "peak": max(run.peak_bytes for run in runs),
    }


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def against_relion(case: Case, args: Any, report: Report) -> None:
    """The first three tables."""
    star, cache = simulated(case, args.work), args.work / "numba-cache"
    small = simulated(QUICK, args.work)
    shutil.rmtree(cache, ignore_errors=True)
    cold, warm = (job(small, args.work, cache)[0]["seconds"] for _ in range(2))
    report.table(
        "First call", [{"empty cache, s": cold, "full cache, s": warm, "compilation, s": cold - warm}], _JIT_TEXT
    )
    ours, stages, theirs = [], [], []
    for _ in range(args.repeats):
        took, summary = job(star, args.work, cache)
        ours.append(took)
        stages.append(summary["seconds"])
        if has_relion():
            theirs.append(relion_job(star))
        _report_job(case, ours, stages, theirs, report)


def _report_job(
    case: Case,
    ours: list[dict[str, float]],
    stages: list[dict[str, float]],
    theirs: list[dict[str, float]],
    report: Report,
) -> None:
    """The second and the third table, from the repeats so far."""
    mine, stage = medians(ours), medians(stages)
    rows = [
        _program("emsplat, whole job", mine["seconds"], 1.0, peak=mine["peak"] / GB),
        _program("emsplat, pass", stage["pass"]),
    ]
    if theirs:
        rival = medians(theirs)
        bounds = {"serial": _SERIAL, "side by side": _SIDE_BY_SIDE}
        for name in ("all", "half 1", "half 2", "serial", "side by side"):
            peak = rival["peak"] / GB if name == "all" else None
            rows.append(_program(f"RELION, {name}", rival[name], mine["seconds"] / rival[name], bounds.get(name), peak))
        ratio = stage["pass"] / rival["insertion"]
        rows.append(_program("RELION, insertion of all (ratio: of our pass)", rival["insertion"], ratio, 0.5))
    report.extra["repeats"] = {"ours": ours, "stages": stages, "RELION": theirs}
    report.table(f"{case.name}: the job", rows, _TEXT)
    outside = mine["seconds"] - sum(stage.values())
    rows = [{"stage": name, "seconds": seconds} for name, seconds in stage.items()]
    report.table("Stages of the job", [*rows, {"stage": "start and imports", "seconds": outside}])


def _program(
    name: str, seconds: float, ratio: float | None = None, bound: float | None = None, peak: float | None = None
) -> dict[str, Any]:
    """One row of the table of programs; the ratio is our time over this one."""
    met = None if bound is None or ratio is None else ratio <= bound
    return {"program": name, "seconds": seconds, "ratio ours / this": ratio, "bound": bound, "met": met,
            "peak, GB": peak}  # fmt: skip


def _row(facts: dict[str, Any], source: Any, **settings: Any) -> dict[str, Any]:
    """The facts and the seconds by stage of one run in this process."""
    result, seconds = reconstructed(source, **settings)
    steps = [half.n_steps for half in result.halves]
    counts = [len(half.gaussians) for half in result.halves]
    names = ("read", "preview", "pass", "inversion", "fit", "validation")
    return (
        facts
        | {f"{name}, s": seconds[name] for name in names}
        | {
            "Gaussians a half": int(np.mean(counts)),
            "steps a half": int(np.mean(steps)),
            "ms a step": 1000 * seconds["fit"] / sum(steps),
            "pass, ms an image": 1000 * seconds["pass"] / result.n_images,
        }
    )


def scaling(case: Case, args: Any, report: Report) -> None:
    """How stages grow with images, box and Gaussians."""
    table = read_particles(simulated(case, args.work))
    reconstructed(table.select(np.arange(100)), n_gaussians=200)  # compiles
    images = (100, 200) if args.quick else (1000, 3000, 10_000)
    boxes = (32, 40) if args.quick else (64, 96, 128)
    counts = (200, 400) if args.quick else (4000, 8000, 16_000, 32_000)
    rows: list[dict[str, Any]] = []
    for n in images:
        rows.append(_row({"images": n}, table.select(np.arange(n))))
        report.table("Images", rows, f"{case.name}; Gaussians automatic.")
    rows = []
    for box_size in boxes:
        star = simulated(resized(case, box_size, 100 if args.quick else 2000), args.work)
        rows.append(_row({"box": box_size}, star))
        report.table("Box", rows, f"{100 if args.quick else 2000} images, the same edge in Å; Gaussians automatic.")
    rows = []
    for n in counts:
        rows.append(_row({"asked for": n}, table.select(np.arange(images[1])), n_gaussians=n))
        report.table("Gaussians", rows, f"{images[1]:,} images.")


def main() -> None:
    args = arguments(
        __doc__,
        repeats=(5, "runs of every program"),
        images=(10_000, "images of the job"),
        scaling=(1, "0: without how stages scale"),
        scaling_only=(0, "1: only how stages scale, into scaling.md"),
    )
    args.repeats = 1 if args.quick else args.repeats
    many = Case(f"7PBL, 128², {args.images:,} images", MANY.model, replace(MANY.settings, n_images=args.images))
    case = QUICK if args.quick else many
    if args.scaling_only:
        scaling(case, args, Report("scaling", "How the stages scale", args))
        return
    report = Report("speed", "Speed", args)
    against_relion(case, args, report)
    if args.scaling:
        scaling(case, args, report)


if __name__ == "__main__":
    main()
