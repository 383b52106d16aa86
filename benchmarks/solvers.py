"""The two solvers on the same images: the same map, the same c_map, and the ratio of their times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cases import QUICK, RUVB, resized
from common import Case, Report, arguments, mean_fsc, reconstructed, simulated, truth_and_mask
from emsplat.validation.correlation import fsc, resolution_at
from emsplat.validation.validate import FIRST_SHELL

_LEAST_FSC, _MOST_C_MAP, _MOST_F = 0.99, 0.02, 0.01

_TEXT = f"""F is the FSC of the unweighted average of the half maps with the truth, as in quality.md; "to" is the
resolution at which it falls to 0.5. Up to there the averages are compared with that of the statistics solver, shell by
shell: FSC between the two maps, difference of their c_map. "other seed" is the statistics solver once more: how far two
starting points lead apart; "one fit" of each half, as the images solver has, in place of the average of two.
**Required: F within {_MOST_F}; FSC ≥ {_LEAST_FSC} and c_map within {_MOST_C_MAP}.** Times are those of
the fits of both halves; everything else is the same."""


def compare(case: Case, work: Path, seed: int) -> list[dict[str, Any]]:
    """The rows of the solver to compare with, of the same with another seed, and of the other solver."""
    star = simulated(case, work, seed)
    truth, mask = truth_and_mask(star)
    runs = {
        "statistics": reconstructed(star, seed=seed),
        "statistics, other seed": reconstructed(star, seed=seed + 1),
        "statistics, one fit": reconstructed(star, seed=seed, n_fits=1),
        "images": reconstructed(star, seed=seed, solver="images"),
    }
    base, base_seconds = runs["statistics"]
    base_f = mean_fsc(average(base), truth, mask)
    frequency = base.validation.frequency
    resolution = resolution_at(fsc(average(base), truth, mask), frequency, 0.5, FIRST_SHELL)
    reached = frequency <= (1 / resolution if resolution else np.inf)
    rows = []
    for name, (result, seconds) in runs.items():
        between = fsc(average(base), average(result), mask)[reached]
        off = np.abs(base.validation.c_gaussians - result.validation.c_gaussians)[reached]
        f = mean_fsc(average(result), truth, mask)
        rows.append({
            "case": f"{case.name}, {case.settings.n_images:,} images, SNR {case.settings.snr:g}",
            "solver": name,
            "F": f,
            "to, Å": resolution,
            "least FSC": float(between.min()),
            "mean FSC": float(between.mean()),
            "c_map off by": float(np.nanmax(off)),
            "on average": float(np.nanmean(off)),
            "F required": f > base_f - _MOST_F,
            "FSC and c_map": bool(between.min() >= _LEAST_FSC and np.nanmax(off) <= _MOST_C_MAP),
            "Gaussians": len(result.gaussians),
            "steps a half": int(np.mean([half.n_steps for half in result.halves])),
            "fit, s": seconds["fit"],
            "ratio": seconds["fit"] / base_seconds["fit"],
        })  # fmt: skip
    return rows


def average(result: Any) -> np.ndarray:
    return 0.5 * (result.halves[0].map + result.halves[1].map)


def main() -> None:
    args = arguments(__doc__, seeds=(1, "simulations of each case"))
    cases = (QUICK,) if args.quick else (RUVB, resized(RUVB, 64, 2000))
    report = Report("solvers", "The two solvers", args)
    rows: list[dict[str, Any]] = []
    for case in cases:
        for seed in range(args.seeds):
            rows += compare(case, args.work, seed)
            report.table("Statistics against images", rows, _TEXT)


if __name__ == "__main__":
    main()
