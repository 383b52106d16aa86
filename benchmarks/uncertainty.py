"""Whether uncertainty.mrc is true: how many voxels lie within one and two standard errors of the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cases import ANTIBODY, QUICK, QUICK_ODD, RUVB
from common import Case, Report, arguments, reconstructed, simulated, truth_and_mask
from emsplat.figures.uncertainty import figure_uncertainty
from emsplat.fourier import maps
from emsplat.settings import SimulationSettings

_SMALL = SimulationSettings(n_images=2000, box_size=60, pixel_size_in_angstroms=4.0, snr=0.05, noise="coloured")
CASES = (
    Case("8BK7, 60² at 4 Å", "8bk7.cif.gz", _SMALL),
    Case("8TSQ, 51² at 3.1 Å", "8tsq.cif.gz", replace(_SMALL, box_size=51, pixel_size_in_angstroms=3.1, n_images=1500)),
    Case("8TSO, 56² at 3 Å", "8tso.cif.gz", replace(_SMALL, box_size=56, pixel_size_in_angstroms=3.0, n_images=4000)),
    Case(
        "7A4M assembly, 64² at 3.2 Å", "7a4m.cif.gz",
        replace(_SMALL, box_size=64, pixel_size_in_angstroms=3.2, n_images=3000, snr=0.03, assembly="1"),
    ),
)  # fmt: skip
LARGE = (RUVB, ANTIBODY)

_TEXT = """Voxels in which the run's own mask is at least ½. The truth is cut at the last shell of the map, which has no
finer detail. **Required: 68 ± 6 % within one standard error, 95 ± 3 % within two.** "best quarter" and "poorest
quarter" are the quarters of the particle with the smallest and the largest standard errors: each should hold 68 %, too.
"rms error / s.e." is the root mean square of all errors over their standard errors. "bias share" is the share of the
variance that is not noise."""


def judge(case: Case, work: Path, figures: Path) -> dict[str, Any]:
    """One row of the table."""
    star = simulated(case, work)
    truth, _ = truth_and_mask(star)
    result, _ = reconstructed(star)
    particle = result.mask >= 0.5
    last = result.validation.last_shell
    errors = result.standard_error[particle]
    off = np.abs(result.map - maps.radial_filter(truth, np.ones(last + 1)))[particle] / errors
    low, high = np.quantile(errors, (0.25, 0.75))
    noise = 0.25 * np.square(result.half_maps[0] - result.half_maps[1])[particle]
    figures.mkdir(parents=True, exist_ok=True)
    name = "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in case.name.lower()).split())
    picture = figures / f"uncertainty-{name}.png"
    figure_uncertainty(result.standard_error, result.map, result.mask, picture, result.pixel_size_in_angstroms)
    one, two = 100 * float(np.mean(off <= 1)), 100 * float(np.mean(off <= 2))
    return {
        "case": case.name,
        "images": case.settings.n_images,
        "SNR": case.settings.snr,
        "within one, %": one,
        "within two, %": two,
        "best quarter, %": 100 * float(np.mean(off[errors <= low] <= 1)),
        "poorest quarter, %": 100 * float(np.mean(off[errors >= high] <= 1)),
        "rms error / s.e.": float(np.sqrt(np.mean(np.square(off)))),
        "bias share": float(1 - noise.mean() / np.square(errors).mean()),
        "s.e. / spread of the map": float(np.sqrt(np.mean(np.square(errors))) / result.map[particle].std()),
        "bounds met": abs(one - 68) <= 6 and abs(two - 95) <= 3,
    }


def main() -> None:
    args = arguments(__doc__, large=(0, "1: the two large sets as well"))
    cases = (QUICK, QUICK_ODD) if args.quick else CASES + (LARGE if args.large else ())
    report = Report("uncertainty", "Uncertainty: the standard error of the map", args)
    rows: list[dict[str, Any]] = []
    for case in cases:
        rows.append(judge(case, args.work, args.results / "figures"))
        report.table("Coverage of the truth", rows, _TEXT)


if __name__ == "__main__":
    main()
