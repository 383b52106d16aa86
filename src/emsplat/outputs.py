"""A run folder: everything a reconstruction leaves on the disk, written whole or not at all."""

from __future__ import annotations

import json
import platform
import resource
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import emsplat
from emsplat import figures
from emsplat.fit import FitHistory
from emsplat.io.folders import check_folder, filling
from emsplat.io.mrc import write_map
from emsplat.reconstruction import Reconstruction
from emsplat.reporting import Reporter
from emsplat.validation import FIRST_SHELL, write_fsc_csv

SUMMARY, LOG = "summary.json", "run.log"
MAPS = ("map.mrc", "map_half1.mrc", "map_half2.mrc", "raw_half1.mrc", "raw_half2.mrc", "mask.mrc")
GAUSSIANS = ("gaussians.safetensors", "gaussians_half1.safetensors", "gaussians_half2.safetensors")
_FILES = (*MAPS, *GAUSSIANS, "fsc.csv", SUMMARY, "config.json", LOG)
_LIBRARIES = ("numpy", "scipy", "torch", "numba")

Summary = dict[str, Any]


def check_output(folder: Path, overwrite: bool = False) -> None:
    """InputError where a run could not be written to `folder`: better said before the work than after it."""
    check_folder(folder, _FILES, overwrite, "run")


def write_run(
    folder: Path | str,
    reconstruction: Reconstruction,
    reporter: Reporter | None = None,
    *,
    overwrite: bool = False,
    truth: NDArray[np.float64] | None = None,
    **facts: object,
) -> Summary:
    """Writes maps, Gaussians, curves, figures, settings, log and summary; an old run stays until all are complete.

    Args:
        reporter: the one that was given to `reconstruct`: its log and its times are written too.
        truth: (D//2,) the map's correlation with a known truth, drawn beside the estimate.
        facts: more entries for the summary.
    Returns:
        What summary.json holds.
    """
    folder, reporter = Path(folder), reporter or reconstruction.reporter
    check_output(folder, overwrite)
    with filling(folder, last=SUMMARY) as staging:
        with reporter.stage("writing"):
            _write_maps(staging, reconstruction)
            _write_gaussians(staging, reconstruction)
            write_fsc_csv(staging / "fsc.csv", reconstruction.validation)
            _write_json(staging / "config.json", configuration(reconstruction))
        with reporter.stage("figures"):
            draw_figures(staging / "figures", reconstruction, truth)
        summary = summarise(reconstruction, reporter) | facts
        _write_json(staging / SUMMARY, summary)
        log = [*reporter.log, "", *(f"{name}: {text}" for name, text in closing_rows(summary, folder))]
        (staging / LOG).write_text("\n".join(log) + "\n", encoding="utf-8")
    return summary


def _write_maps(folder: Path, r: Reconstruction) -> None:
    first, second = r.halves
    volumes = (r.map, first.map, second.map, first.raw, second.raw, r.mask)
    for name, volume in zip(MAPS, volumes, strict=True):
        write_map(folder / name, volume, r.pixel_size_in_angstroms)


def _write_gaussians(folder: Path, r: Reconstruction) -> None:
    box = {
        "box_size": str(len(r.map)),
        "pixel_size_in_angstroms": f"{r.pixel_size_in_angstroms:.6g}",
        "symmetry": r.settings.symmetry,
    }
    models = (r.gaussians, *(half.gaussians for half in r.halves))
    for name, model in zip(GAUSSIANS, models, strict=True):
        model.save(folder / name, **box)


def draw_figures(folder: Path, r: Reconstruction, truth: NDArray[np.float64] | None = None) -> None:
    """The five pictures of a run, into a new folder."""
    folder.mkdir()
    raw = 0.5 * (r.halves[0].raw + r.halves[1].raw)
    histories = [half.history for half in r.halves]
    steps = [np.arange(len(history.losses)) for history in histories]
    figures.figure_fsc(r.validation, folder / "fsc.png", truth, f"resolution: {resolution_text(verdict(r))}")
    figures.figure_slices(r.map, folder / "slices.png", r.pixel_size_in_angstroms, raw)
    figures.figure_projections(r.map, folder / "projections.png", r.pixel_size_in_angstroms, raw)
    figures.figure_orientations(r.particles.euler_angles_in_degrees, folder / "orientations.png")
    figures.figure_loss(steps, [h.losses for h in histories], [_held_out(h) for h in histories], folder / "loss.png")


def _held_out(history: FitHistory) -> NDArray[np.float64] | None:
    """The loss on unseen images at every step between the first check and the last."""
    if not history.checks:
        return None
    at, losses = zip(*history.checks, strict=True)
    return np.interp(np.arange(len(history.losses)), at, losses, left=np.nan, right=np.nan)


def configuration(r: Reconstruction) -> dict[str, Any]:
    """Every setting, and what was found from the data where a setting was left out."""
    return {
        "particles": str(Path(r.particles.source).absolute()),
        "settings": asdict(r.settings),
        "found": {
            "pixel_size_in_angstroms": r.pixel_size_in_angstroms,
            "box_size": len(r.map),
            "diameter_in_angstroms": r.preview.diameter_in_angstroms,
            "n_gaussians_of_halves": [len(half.gaussians) for half in r.halves],
            "fit_steps_of_halves": [len(half.history.losses) for half in r.halves],
        },
    }


def verdict(r: Reconstruction) -> Summary:
    """The part of the summary that `resolution_text` puts into words."""
    v = r.validation
    return {
        "resolution": v.resolution,
        "resolution_kind": v.resolution_kind,
        "poses_shared": r.poses_shared,
        "measurable_limit": float(1 / v.frequency[v.limit_shell - 1]) if v.limit_shell else None,
        "nyquist": v.nyquist,
    }


def summarise(r: Reconstruction, reporter: Reporter) -> Summary:
    """What summary.json holds; lengths in Å, times in seconds, memory in bytes."""
    seconds = r.seconds | reporter.seconds
    return {
        **verdict(r),
        "n_images": r.n_images,
        "n_particles": len(np.unique(r.particles.particle)),
        "n_gaussians": len(r.gaussians),
        "n_gaussians_of_halves": [len(half.gaussians) for half in r.halves],
        "box_size": len(r.map),
        "pixel_size": r.pixel_size_in_angstroms,
        "symmetry": r.settings.symmetry,
        "b_factor": r.b_factor,
        "seconds": {stage: round(time, 3) for stage, time in seconds.items()},
        "images_per_second": round(r.n_images / seconds["pass"], 1) if seconds.get("pass") else None,
        "peak_memory_in_bytes": peak_memory_in_bytes(),
        "seed": r.settings.seed,
        "warnings": reporter.warnings,
        "versions": versions(),
    }


def peak_memory_in_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


def versions() -> dict[str, str]:
    """Of everything that could change a number."""
    found = {"emsplat": emsplat.__version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def closing_rows(summary: Summary, folder: Path) -> list[tuple[str, str]]:
    """What the user wants to know at the end: name and value of each line of the closing table."""
    stages = sorted(summary["seconds"].items(), key=lambda item: -item[1])
    limit = summary["measurable_limit"]
    first, second = summary["n_gaussians_of_halves"]
    rows = [("resolution", resolution_text(summary))]
    if "true_resolution" in summary:
        rows.append(("true resolution", _true_resolution_text(summary["true_resolution"])))
    return [
        *rows,
        ("measurable to", f"{limit:.2f} Å (Nyquist {summary['nyquist']:.2f} Å)" if limit else "no shell"),
        ("images", f"{summary['n_images']:,} of {summary['n_particles']:,} particles"),
        ("Gaussians", f"{first:,} + {second:,}, one set a half"),
        (
            "time",
            f"{sum(summary['seconds'].values()):.1f} s: " + ", ".join(f"{n} {t:.1f}" for n, t in stages if t >= 0.05),
        ),
        ("pass", f"{summary['images_per_second']:,.0f} images/s"),
        ("peak memory", f"{summary['peak_memory_in_bytes'] / 1e9:.2f} GB"),
        ("map", str(folder / "map.mrc")),
        ("figures", str(folder / "figures")),
    ]


def resolution_text(summary: Summary) -> str:
    """The verdict in one line, its curve and its kind named."""
    kind, resolution = summary["resolution_kind"], summary["resolution"]
    if kind == "not_measurable" and summary["measurable_limit"]:
        return f"not measurable: c_map is below 0.5 from shell {FIRST_SHELL} on"
    if kind == "not_measurable":
        return "not measurable: the raw half maps share no significant signal"
    if kind == "better_than":
        text = f"better than {resolution:.2f} Å, the limit of measurability (c_map is above 0.5 up to there)"
    else:
        text = f"{resolution:.2f} Å (c_map = 0.5, measured)"
    return text + (", upper bound: poses shared" if summary["poses_shared"] else "")


def _true_resolution_text(resolution: float | None) -> str:
    if resolution is None:
        return "better than Nyquist (FSC of the map with the truth is above 0.5)"
    return f"{resolution:.2f} Å (FSC of the map with the truth = 0.5, same mask)"
