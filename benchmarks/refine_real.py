"""Local refinement of real images: do the direct inversions, which no prior has touched, agree better than before?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import SHARED, Report, arguments, reconstructed
from emsplat.io import read_particles
from emsplat.validation.correlation import fsc
from emsplat.validation.validate import FIRST_SHELL

_TEXT = f"""1,430 images of 40 ribosomes, 32², 12 Å/px, with the poses and half sets of their file, before and after
`--refine poses,shifts`. Mean FSC of the raw half maps from shell {FIRST_SHELL} to Nyquist, in the whole box and in the
mask of the map before, and mean c_map up to the limit before. "moved": root mean square change of the images. The seed
is of the fits."""


def masked(run: Any, mask: NDArray[np.float32]) -> NDArray[np.float64]:
    return fsc(run.halves[0].raw, run.halves[1].raw, mask)


def summary(run: Any, mask: NDArray[np.float32], limit: int) -> dict[str, Any]:
    fine, v = slice(FIRST_SHELL - 1, None), run.validation
    moved = run.refinement.moved() if run.refinement else {}
    return {
        "raw, unmasked": float(np.nanmean(v.raw_half_unmasked[fine])),
        "raw, masked": float(np.nanmean(masked(run, mask)[fine])),
        "c_map": float(np.nanmean(v.c_map[FIRST_SHELL - 1 : limit])),
        "kind": v.resolution_kind,
        "Å": v.resolution,
    } | {
        f"moved, {unit}": float(np.sqrt(np.mean(moved[name] ** 2))) if name in moved else None
        for name, unit in (("poses_in_degrees", "°"), ("shifts_in_angstroms", "Å"))
    }  # fmt: skip


def by_shell(seed: int, runs: dict[str, Any], mask: NDArray[np.float32]) -> list[dict[str, Any]]:
    frequency = runs["before"].validation.frequency
    curves = {f"raw unmasked, {name}": run.validation.raw_half_unmasked for name, run in runs.items()}
    curves |= {f"raw masked, {name}": masked(run, mask) for name, run in runs.items()}
    return [
        {"seed": seed, "shell": i + 1, "Å": float(1 / f)} | {name: float(curve[i]) for name, curve in curves.items()}
        for i, f in enumerate(frequency)
    ]


def main() -> None:
    args = arguments(__doc__, seeds=(3, "of the fits"))
    report = Report("refine_real", "Local refinement of real images", args)
    table = read_particles(SHARED / "real" / "ribosome-tilts" / "particles.star")
    if args.quick:
        names = np.unique(table.particle)
        table = table.select(np.isin(table.particle, names[:12]))
    rows: list[dict[str, Any]] = []
    shells: list[dict[str, Any]] = []
    for seed in range(1 if args.quick else args.seeds):
        runs = {"before": reconstructed(table, seed=seed)[0]}
        runs["after"] = reconstructed(table, seed=seed, refine="poses,shifts")[0]
        mask, limit = runs["before"].mask, max(runs["before"].validation.limit_shell, FIRST_SHELL)
        rows += [{"seed": seed, "refined": name, **summary(run, mask, limit)} for name, run in runs.items()]
        shells += by_shell(seed, runs, mask)
        report.table("Before and after", rows, _TEXT)
        report.table("By shell", shells)


if __name__ == "__main__":
    main()
