"""Writes the files of a check: a picture, all numbers, and the list of odd images."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emsplat.check.figure import draw_check
from emsplat.check.oddities import odd_list
from emsplat.check.run import Check, Inversion
from emsplat.runtime.folders import check_folder, filling
from emsplat.runtime.reporting import Reporter
from emsplat.validation.correlation import Curve
from emsplat.versions import __version__

PICTURE, NUMBERS, ODD = "check.png", "check.json", "odd.csv"
_NAMED = 1000  # largest number of ids of odd images that are written


def check_output(folder: Path, overwrite: bool) -> None:
    """InputError if a check could not be written to `folder`, which the user wants to know before the work."""
    check_folder(folder, (PICTURE, NUMBERS, ODD), overwrite, "check")


def write_check(folder: Path, result: Check, reporter: Reporter) -> None:
    """Write the picture, the numbers and the list into `folder`, all or none."""
    with filling(folder, last=NUMBERS) as staging, reporter.stage("picture"):
        draw_check(result, staging / PICTURE)
        _write_odd(result, staging / ODD)
        text = json.dumps(_without_nan(numbers(result, reporter)), indent=2, ensure_ascii=False, default=str)
        (staging / NUMBERS).write_text(text + "\n", encoding="utf-8")


def _write_odd(result: Check, path: Path) -> None:
    """Write the images that are unusable or unlike the others, as a list that --drop reads; it may have no rows."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "reason"))
        writer.writerows(odd_list(result.statistics, result.odd, result.particles))


def numbers(result: Check, reporter: Reporter) -> dict[str, Any]:
    """The contents of check.json, with lengths in Å, angles in degrees and times in seconds."""
    statistics, thon = result.statistics, result.thon
    return {
        "particles": str(result.particles.source.absolute()),
        "settings": asdict(result.settings),
        "findings": [asdict(finding) for finding in result.findings],
        "facts": asdict(result.facts),
        "coverage": asdict(result.coverage),
        "images": {
            "looked_at": len(statistics.rows),
            "unusable": list(statistics.unusable[:_NAMED]),
            "odd": [str(name) for name in result.particles.ids[result.odd.rows[:_NAMED]]],
        },
        "ctf": None
        if thon is None
        else {
            "significance": thon.significance,
            "best_significance": thon.best_significance,
            "best_scale_of_pixel_size": thon.best_scale,
            "share_of_power_vanishing_at_zeros": thon.vanishing,
            "curve": {name: getattr(thon, name).tolist() for name in ("phase", "observed", "expected")},
        },
        "map": None if result.inversion is None else _map_numbers(result.inversion),
        "seconds": {stage: round(time, 3) for stage, time in reporter.seconds.items()},
        "version": __version__,
    }


def _map_numbers(inversion: Inversion) -> dict[str, Any]:
    quick, agreement = inversion.quick, inversion.agreement
    box_size = len(quick.map)
    return {
        "n_images": len(agreement.own),
        "box_size": box_size,
        "pixel_size": quick.pixel_size,
        "half_correlation": quick.correlation,
        "skewness": quick.skewness,
        "diameter": quick.diameter,
        "centre_of_mass": quick.centre,
        "poses": {
            "share_of_other_poses_beaten": agreement.rank,
            "significance": agreement.significance,
            "matched_filter_own": float(agreement.own.mean()),
            "matched_filter_others": float(agreement.others.mean()),
        },
        "frequency": [shell / (box_size * quick.pixel_size) for shell in range(1, box_size // 2 + 1)],
        "half_fsc": _listed(quick.half_fsc),
        "half_fsc_shuffled": [_listed(curve) for curve in inversion.shuffled_fsc],
        "other_readings": [
            {"name": r.alternative.name, "gain": r.gain, "significance": r.significance} for r in inversion.readings
        ],
    }


def _listed(curve: Curve) -> list[float]:
    return [round(float(value), 4) for value in curve]


def _without_nan(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
