"""Real images end to end: ribosome tilts with their poses and with shuffled ones, and sets too small to measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common import SHARED, Report, arguments, reconstructed
from emsplat.errors import InputError
from emsplat.figures.reconstruction import figure_fsc, figure_projections, figure_slices
from emsplat.io import read_particles
from emsplat.outputs.reconstruction import resolution_text
from emsplat.outputs.reconstruction import verdict as verdict_of
from emsplat.validation.validate import FIRST_SHELL
from honesty import shuffled

_TILTS = "ribosome-tilts/particles.star"
_OTHERS = {
    # Its star gives no usable pixel size. The mean image, too, shows a white particle.
    "ribosome-sta": ("ribosome-sta/sta_testing_bin8.star", 14.56, "runs"),
    # Halves of three ribosomes each correlate too little to be sure of the sign, so that a warning must do.
    "ribosome-sta --invert": ("ribosome-sta/sta_testing_bin8.star", 14.56, "warned"),
    "spa-17": ("spa-17/sample_relion_data.star", None, "not_measurable"),
    "relion31-5": ("relion31-5/relion31.star", None, "not_measurable"),
}

_TEXT = f"""1,430 images of 40 ribosomes, 32², 12 Å/px, premultiplied. `raw` is the FSC of the raw halves within the
mask, `gaussian` that of the Gaussian halves, c_map the honest correlation; "shuffled": the mean over seeds of the same
with every image given the pose of another one. Nulls are high before shell {FIRST_SHELL}: particles are round."""


def tilts(args: Any, report: Report) -> None:
    """The curves, with true and with shuffled poses."""
    table = read_particles(SHARED / "real" / _TILTS)
    if args.quick:
        names = np.unique(table.particle)
        table = table.select(np.isin(table.particle, names[:12]))
    result, seconds = reconstructed(table)
    figures = args.results / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    pixel_size = result.pixel_size_in_angstroms
    raw = 0.5 * (result.halves[0].raw + result.halves[1].raw)
    figure_fsc(result.validation, figures / "real-fsc.png", title=f"ribosomes: {resolution_text(verdict_of(result))}")
    figure_slices(result.map, figures / "real-slices.png", pixel_size, raw)
    figure_projections(result.map, figures / "real-projections.png", pixel_size, raw)
    nulls = [reconstructed(shuffled(table, seed), seed=seed)[0] for seed in range(args.shuffles)]
    title = f"shuffled poses: {resolution_text(verdict_of(nulls[0]))}"
    figure_fsc(nulls[0].validation, figures / "real-fsc-shuffled.png", title=title)
    verdicts = [_verdict("true", result, seconds)]
    verdicts += [_verdict(f"shuffled, seed {seed}", null) for seed, null in enumerate(nulls)]
    report.table("Ribosome tilts: verdicts", verdicts)
    v, shuffles = result.validation, [null.validation for null in nulls]
    rows = []
    for i, shell in enumerate(v.shells):
        rows.append({
            "shell": shell,
            "Å": float(1 / v.frequency[i]),
            "raw": v.raw_half_masked[i],
            "gaussian": v.gaussian_half[i],
            "c_map": v.c_map[i],
            "± se": v.c_map_se[i],
            "raw, shuffled": float(np.mean([s.raw_half_masked[i] for s in shuffles])),
            "gaussian, shuffled": float(np.mean([s.gaussian_half[i] for s in shuffles])),
            "measurable": bool(shell <= v.limit_shell),
        })  # fmt: skip
    report.table("Ribosome tilts: curves", rows, _TEXT)


def _verdict(poses: str, result: Any, seconds: dict[str, float] | None = None) -> dict[str, Any]:
    v = result.validation
    beyond = slice(FIRST_SHELL - 1, None)
    return {
        "poses": poses,
        "images": result.n_images,
        "Gaussians a half": int(np.mean([len(half.gaussians) for half in result.halves])),
        "verdict": v.resolution_kind,
        "resolution, Å": v.resolution,
        f"mean raw FSC from shell {FIRST_SHELL}": float(np.nanmean(v.raw_half_masked[beyond])),
        f"mean Gaussian FSC from shell {FIRST_SHELL}": float(np.nanmean(v.gaussian_half[beyond])),
        "seconds": sum(seconds.values()) if seconds else None,
    }


def other(name: str, path: Path, pixel_size: float | None, expected: str) -> dict[str, Any]:
    """The verdict on a small set."""
    row = {"set": name, "images": None, "box": None}
    try:
        table = read_particles(path, pixel_size_in_angstroms=pixel_size)
        row |= {"images": len(table), "box": table.box_size}
        warnings: list[str] = []
        result, seconds = reconstructed(table, warnings, invert="--invert" in name)
    except InputError as error:
        text = str(error).replace(str(SHARED), "shared/data")
        met = expected == "warned" and "--invert" in text
        return row | {"verdict": f"refused: {text}", "warned": None, "resolution, Å": None, "seconds": None,
                      "as expected": met}  # fmt: skip
    kind = result.validation.resolution_kind
    warned = any("--invert" in text for text in warnings)
    return row | {
        "verdict": kind,
        "warned": "of the contrast" if warned else "",
        "resolution, Å": result.validation.resolution,
        "seconds": sum(seconds.values()),
        "as expected": expected in (kind, "runs") or (expected == "warned" and warned and kind == "not_measurable"),
    }


def main() -> None:
    args = arguments(__doc__, shuffles=(3, "seeds of the shuffled poses"))
    args.shuffles = 1 if args.quick else args.shuffles
    report = Report("real", "Real images", args)
    tilts(args, report)
    rows: list[dict[str, Any]] = []
    for name, (path, pixel_size, expected) in _OTHERS.items():
        rows.append(other(name, SHARED / "real" / path, pixel_size, expected))
        report.table("Small sets", rows)


if __name__ == "__main__":
    main()
