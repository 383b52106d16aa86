"""Whether c_map is true: the estimate of a run beside the real correlation with the truth, and data without signal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cases import ANTIBODY, BETAGAL, MSBA, QUICK, QUICK_ODD, QUICK_UNEVEN, RUVB, RUVB_SMALL, UNEVEN, resized
from common import SHARED, Case, Report, arguments, reconstructed, simulated, truth_and_mask
from emsplat.errors import InputError
from emsplat.figures.reconstruction import figure_fsc
from emsplat.io import read_particles
from emsplat.io.mrc import StackWriter
from emsplat.outputs.reconstruction import resolution_text
from emsplat.outputs.reconstruction import verdict as verdict_of
from emsplat.particles.table import Particles
from emsplat.validation.correlation import fsc, resolution_at
from emsplat.validation.validate import C_AT_RESOLUTION, FIRST_SHELL

_TEXT = """Error: c_map minus the FSC of the average of the two half maps with the truth, both under
the run's own mask, in every shell up to the limit of measurability. **Required: |error| ≤ max(0.03, 2 c_map_se) in
every shell, on average ≤ 0.01, and a measured resolution within 5 % of the true one** (where the true correlation
crosses 0.5; "better_than" must not be finer than the true one). The error's square mean over c_map_se's says whether
the standard errors are right (1)."""

_NULL_TEXT = """Images without a particle, or with the poses of other images. **Required: not_measurable, always.**
"naive" is what the classical 0.143 would read off the FSC of the Gaussian half maps."""


def judge(case: Case, work: Path, figures: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """One row of the table, and the curves behind it."""
    star = simulated(case, work)
    truth, _ = truth_and_mask(star)
    result, _ = reconstructed(star)
    v = result.validation
    true = fsc(0.5 * (result.half_maps[0] + result.half_maps[1]), truth, result.mask)
    figures.mkdir(parents=True, exist_ok=True)
    title = f"{case.name}: {resolution_text(verdict_of(result))}"
    figure_fsc(v, figures / f"honesty-{_slug(case.name)}.png", true, title)
    inside = slice(0, v.limit_shell)
    error, se = (v.c_map - true)[inside], v.c_map_se[inside]
    outside = ~(np.abs(error) <= np.fmax(0.03, 2 * se))  # no value is outside, too
    true_resolution = resolution_at(true, v.frequency, C_AT_RESOLUTION, FIRST_SHELL) or v.nyquist
    reported = v.resolution
    relative = abs(reported / true_resolution - 1) if reported else None
    right = {
        "measured": relative is not None and relative <= 0.05,
        "better_than": reported is not None and true_resolution <= 1.05 * reported,
        "not_measurable": False,
    }[v.resolution_kind]
    row = {
        "case": case.name,
        "images": case.settings.n_images,
        "SNR": case.settings.snr,
        "shells judged": f"{v.limit_shell} of {len(v.frequency)}",
        "shells outside": int(outside.sum()),
        "max error": float(np.abs(error).max(initial=0)),
        "at shell": int(np.abs(error).argmax()) + 1 if len(error) else 0,
        "mean error": float(np.abs(error).mean()) if len(error) else None,
        "rms error / se": float(np.sqrt(np.mean(error**2) / np.nanmean(se**2))) if len(error) else None,
        "kind": v.resolution_kind,
        "reported, Å": reported,
        "true, Å": true_resolution,
        "difference, %": 100 * relative if relative is not None else None,
        "bounds met": bool(not outside.any() and len(error) and np.abs(error).mean() <= 0.01),
        "resolution met": bool(right),
    }
    return row, {"true": true, "c_map": v.c_map, "c_map_se": v.c_map_se, "gaussian_half": v.gaussian_half}


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in name.lower()).split())


def shuffled(table: Particles, seed: int) -> Particles:
    """The table in which every image has the pose of another one."""
    order = np.random.default_rng(seed).permutation(len(table))
    return replace(table, euler_angles_in_degrees=table.euler_angles_in_degrees[order])


def noise_alone(table: Particles, work: Path, seed: int) -> Particles:
    """The table with images of white noise in place of its own; the stack is overwritten each time."""
    stack = work / "noise.mrcs"
    rng = np.random.default_rng(seed)
    with StackWriter(stack, table.box_size, table.pixel_size_in_angstroms) as writer:
        for start in range(0, len(table), 200):
            count = min(200, len(table) - start)
            writer.append(rng.standard_normal((count, table.box_size, table.box_size), dtype=np.float32))
    first = np.zeros(len(table), dtype=np.int32)
    return replace(table, stacks=(stack,), stack=first, section=np.arange(len(table)))


def verdict(name: str, kind: str, seed: int, table: Particles) -> dict[str, Any]:
    """One row of the table of nulls."""
    row = {"images of": name, "null": kind, "seed": seed, "images": len(table)}
    try:
        v = reconstructed(table, seed=seed)[0].validation
    except InputError as error:
        return row | {
            "verdict": f"refused: {error}",
            "reported, Å": None,
            "naive, Å": None,
            "right": False,
        }
    naive = resolution_at(v.gaussian_half, v.frequency, 0.143) or v.nyquist
    return row | {
        "verdict": v.resolution_kind,
        "reported, Å": v.resolution,
        "naive, Å": naive,
        "right": v.resolution_kind == "not_measurable",
    }


def main() -> None:
    args = arguments(__doc__, noise_seeds=(5, "noise-only runs of each set"), shuffles=(3, "shuffled runs of each set"))
    args.noise_seeds, args.shuffles = (1, 1) if args.quick else (args.noise_seeds, args.shuffles)
    cases = (QUICK, QUICK_ODD, QUICK_UNEVEN) if args.quick else (RUVB, BETAGAL, UNEVEN, MSBA, ANTIBODY, RUVB_SMALL)
    report = Report("honesty", "Honesty: can the resolution be believed?", args)
    rows = []
    for case in cases:
        row, curves = judge(case, args.work, args.results / "figures")
        rows.append(row)
        report.extra.setdefault("curves", {})[case.name] = curves
        report.table("c_map and the truth", rows, _TEXT)

    null_cases = (QUICK,) if args.quick else (resized(RUVB, 128, 2000), RUVB_SMALL)
    sets = {case.name: simulated(case, args.work) for case in null_cases}
    nulls: list[dict[str, Any]] = []
    for name, star in sets.items():
        table = read_particles(star)
        for seed in range(args.noise_seeds):
            nulls.append(verdict(name, "noise alone", seed, noise_alone(table, args.work, seed)))
            report.table("Nulls", nulls, _NULL_TEXT)
    sets["ribosome-tilts (real)"] = SHARED / "real" / "ribosome-tilts" / "particles.star"
    for name, star in sets.items():
        table = read_particles(star)
        for seed in range(args.shuffles):
            nulls.append(verdict(name, "shuffled poses", seed, shuffled(table, seed)))
            report.table("Nulls", nulls, _NULL_TEXT)


if __name__ == "__main__":
    main()
