"""The quality for many numbers of Gaussians, which the automatic number is based on."""

from __future__ import annotations

from typing import Any

import numpy as np

from cases import ANTIBODY, BETAGAL, COUNT_CORNERS, MSBA, QUICK, RUVB
from common import Case, Report, arguments, mean_fsc, reconstructed, simulated, truth_and_mask
from emsplat.io import read_particles
from emsplat.reconstruction.halves import fits_of_half
from emsplat.settings import ReconstructSettings

_TEXT = """F as in quality.md. Counts are asked for of a fit and kept by a half, which is the average of its fits.
"automatic" is what the program chooses by itself; "lost" is how far its average lies
below the best of the ladder, as a share of 1 − F of the best."""

_CORNERS_TEXT = """Whether another number of Gaussians would pay where images are very many, very noisy or very clean.
"F average" is that of the Gaussians alone, "F map" that of the map, in which the direct inversion takes part. "error
left" is 1 − F of the map over that of the automatic number. **A search for the number would pay if another number left
less than 0.97 of the error.**"""


def rung(star: Any, truth: np.ndarray, mask: np.ndarray, count: int | None) -> dict[str, Any]:
    """One run with this many Gaussians in a fit; None lets the program choose."""
    result, seconds = reconstructed(read_particles(star), n_gaussians=count)
    volumes = [half.map for half in result.halves]
    kept = int(np.mean([len(half.gaussians) for half in result.halves]))
    return {
        "asked for": "automatic" if count is None else count,
        "kept": kept,
        "F half": float(np.mean([mean_fsc(v, truth, mask) for v in volumes])),
        "F average": mean_fsc(0.5 * (volumes[0] + volumes[1]), truth, mask),
        "F map": mean_fsc(result.map, truth, mask),
        "steps a half": int(np.mean([half.n_steps for half in result.halves])),
        "fit, s a half": seconds["fit"] / 2,
        "unseen loss": float(
            np.mean([min(loss for _, loss in h.history.checks) for h in result.halves if h.history.checks] or [np.nan])
        ),
    }


def climb(case: Case, args: Any, report: Report, counts: list[int]) -> dict[str, Any]:
    """The ladder of one case; returns its line of the summary."""
    star = simulated(case, args.work)
    truth, mask = truth_and_mask(star)
    rows: list[dict[str, Any]] = []
    heading = f"{case.name}, {case.settings.n_images:,} images, SNR {case.settings.snr:g}"
    for count in [None, *counts]:
        rows.append(rung(star, truth, mask, count))
        best = max(row["F average"] for row in rows)
        marked = [row | {"best": "◀" if row["F average"] == best else ""} for row in rows]
        report.table(heading, marked)
    automatic, best_row = rows[0], max(rows, key=lambda row: row["F average"])
    return {
        "case": heading,
        "automatic": automatic["kept"],
        "F average": automatic["F average"],
        "best": best_row["kept"],
        "F average of the best": best_row["F average"],
        "lost": (best_row["F average"] - automatic["F average"]) / (1 - best_row["F average"]),
        "seconds / those of the best": automatic["fit, s a half"] / best_row["fit, s a half"],
    }


def corners(args: Any) -> None:
    """Multiples of the automatic number, for sets at the ends of what is met."""
    report = Report("ladder-corners", "How many Gaussians: very many, very noisy and very clean images", args)
    rows: list[dict[str, Any]] = []
    for case in (QUICK,) if args.quick else COUNT_CORNERS:
        star = simulated(case, args.work)
        truth, mask = truth_and_mask(star)
        automatic = rung(star, truth, mask, None)
        of_a_fit = automatic["kept"] // fits_of_half(ReconstructSettings())
        found = {1.0: automatic} | {x: rung(star, truth, mask, int(x * of_a_fit)) for x in (0.5, 2.0, 4.0)}
        for multiple in sorted(found):
            of_one = found[multiple]
            rows.append(
                {"case": case.name, "images": case.settings.n_images, "SNR": case.settings.snr}
                | {"of the automatic number": multiple, "Gaussians a half": of_one["kept"]}
                | {name: of_one[name] for name in ("F average", "F map", "fit, s a half")}
                | {"error left": (1 - of_one["F map"]) / (1 - automatic["F map"])}
            )
        report.table("Corners", rows, _CORNERS_TEXT)


def main() -> None:
    args = arguments(__doc__, part=("ladders", "ladders, or corners: multiples of the automatic number at the ends"))
    if args.part == "corners":
        corners(args)
        return
    cases = (QUICK,) if args.quick else (RUVB, BETAGAL, MSBA, ANTIBODY)
    counts = [100, 200, 400] if args.quick else [2000 * 2**i for i in range(6)]
    report = Report("ladder", "How many Gaussians", args)
    summary: list[dict[str, Any]] = []
    for case in cases:
        summary.append(climb(case, args, report, counts))
        report.table("The automatic rule", summary, _TEXT)


if __name__ == "__main__":
    main()
