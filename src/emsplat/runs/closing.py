"""A finished run in words: its verdict, and the table that is printed at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from emsplat.runs.run_folder import RunFolder
from emsplat.runtime.text_curve import text_curve
from emsplat.settings import MODEL_NAMES, ModelKind
from emsplat.validation.validate import FIRST_SHELL, Validation

Summary = dict[str, Any]  # what summary.json holds


def search_status(summary: Summary) -> str:
    """The status of the search that found the poses; converged if they were given."""
    status: str = (summary.get("ab_initio") or {}).get("status", "converged")
    return status


def resolution_text(summary: Summary) -> str:
    """The verdict in one line, with the curve that it comes from."""
    kind, resolution = summary["resolution_kind"], summary["resolution"]
    status = search_status(summary)
    if status != "converged":
        return f"not claimed, because the search for poses {'failed' if status == 'failed' else f'is {status}'}"
    if kind == "not_measurable" and summary["measurable_limit"]:
        return f"not measurable: c_map is below 0.5 from shell {FIRST_SHELL} on"
    if kind == "not_measurable":
        return "not measurable: the direct inversions of the halves share no significant signal"
    if kind == "better_than":
        text = f"better than {resolution:.2f} Å, the limit of measurability (c_map is above 0.5 up to there)"
    else:
        text = f"{resolution:.2f} Å (c_map = 0.5, measured)"
    text += "" if summary.get("has_ctf", True) else ", CTF taken as 1"
    return text + (", upper bound: poses shared" if summary["poses_shared"] else "")


def closing_rows(summary: Summary, folder: Path) -> list[tuple[str, str | Path]]:
    """Name and value of each line of the table that closes a run."""
    stages = sorted(summary["seconds"].items(), key=lambda item: -item[1])
    limit = summary["measurable_limit"]
    files = RunFolder(folder)
    rows: list[tuple[str, str | Path]] = [("resolution", resolution_text(summary))]
    if "true_resolution" in summary:
        rows.append(("true resolution", true_resolution_text(summary["true_resolution"])))
    if search_status(summary) == "converged":
        rows.append(("measurable to", f"{limit:.2f} Å (Nyquist {summary['nyquist']:.2f} Å)" if limit else "no shell"))
    return [
        *rows,
        *([("mask", str(summary["mask"]))] if summary.get("mask") else []),
        ("images", f"{summary['n_images']:,} of {summary['n_particles']:,} particles"),
        model_row(summary),
        (
            "time",
            f"{sum(summary['seconds'].values()):.1f} s{' since the run was resumed' if summary['resumed'] else ''}: "
            + ", ".join(f"{n} {t:.1f}" for n, t in stages if t >= 0.05),
        ),
        *([("accumulation", f"{rate:,.0f} images/s")] if (rate := summary["images_per_second"]) else []),
        ("peak memory", f"{summary['peak_memory_in_bytes'] / 1e9:.2f} GB"),
        ("map", files.map()),
        ("report", files.report),
        ("figures", files.figures),
    ]


def model_row(summary: Summary) -> tuple[str, str]:
    """What was fitted, and how much of it."""
    kind: ModelKind = summary.get("model", "gaussians")
    unit = "" if kind == "gaussians" else " parameters"
    first, second = summary["n_gaussians_of_halves" if kind == "gaussians" else "n_parameters_of_halves"]
    return MODEL_NAMES[kind], f"{first:,}{unit} in half 1, {second:,}{unit} in half 2"


def closing_curve(validation: Validation) -> list[str]:
    """The curve c_map in characters, up to the limit of measurability, and an empty line; empty without a limit."""
    known = validation.shells <= validation.limit_shell
    if not known.any():
        return []
    name = "c_map, the correlation of the map with the truth"
    return [*text_curve(name, validation.frequency, np.where(known, validation.c_map, np.nan)), ""]


def true_resolution_text(resolution: float | None) -> str:
    """The true resolution of a simulation, in words."""
    if resolution is None:
        return "better than Nyquist (FSC of the map with the truth is above 0.5)"
    return f"{resolution:.2f} Å (FSC of the map with the truth = 0.5, same mask)"
