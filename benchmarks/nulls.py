"""Data without signal, noise and shuffled poses, through both solvers and the refinement of everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from cases import QUICK, RUVB_SMALL
from common import SHARED, Report, arguments, reconstructed, simulated
from emsplat.imaging.likelihood import Recorded
from emsplat.io import read_particles
from emsplat.particles.table import Particles
from emsplat.poses.rounds import Refinement, refined
from emsplat.reconstruction import reconstruct as reconstruction
from emsplat.validation.correlation import resolution_at
from honesty import noise_alone, shuffled

_ALL = "poses,shifts,contrast,defocus"
_JOBS: dict[str, dict[str, Any]] = {
    "statistics": {},
    "statistics, refined": {"refine": _ALL},
    "images": {"solver": "images"},
    "images, refined": {"solver": "images", "refine": _ALL},
}

_TEXT = f"""Runs by verdict. "refined" is `--refine {_ALL}` (of the premultiplied ribosomes poses and shifts): where
nothing is measurable, it leaves the images as they are. "refined all the same" overrules that: every image is refined
against its half's map of nothing, up to half of Nyquist, for up to four rounds. "moved": the root mean square turn it
gave them. "raw" is the largest FSC of the raw half maps within the mask, from shell 6 to half of Nyquist, and
"Gaussians" the same of the Gaussian half maps: the largest of all runs. **Required: not_measurable, always.**"""


def all_the_same(job: dict[str, Any]) -> Callable[[Particles], tuple[Any, Any]]:
    """Let refinement believe that everything is measurable up to half of Nyquist."""

    def forced(recorded: Recorded, solve: Callable[[Particles], Any], *rest: Any) -> Any:
        latest: list[Any] = []

        def solved(particles: Particles) -> Any:
            latest[:] = [solve(particles)]
            v = latest[0].validation
            limit = max(v.limit_shell, len(v.frequency) // 2)
            return replace(latest[0], validation=replace(v, limit_shell=limit, gain=np.ones_like(v.gain)))

        particles, _, refinement = refined(recorded, solved, *rest)
        return particles, latest[0], refinement

    def run(particles: Particles) -> tuple[Any, Any]:
        reconstruction.refined = forced
        try:
            return reconstructed(particles, **job)
        finally:
            reconstruction.refined = refined

    return run


def judged(name: str, null: str, job: str, runs: list[Any]) -> dict[str, Any]:
    """One row: what the runs of several seeds claim."""
    kinds = [run.validation.resolution_kind for run in runs]
    high = [slice(5, len(run.validation.frequency) // 2) for run in runs]
    naive = [resolution_at(r.validation.gaussian_half, r.validation.frequency, 0.143) for r in runs]
    return {
        "images of": name,
        "null": null,
        "job": job,
        "runs": len(runs),
        "not measurable": kinds.count("not_measurable"),
        "moved, °": max(_turned(run.refinement) for run in runs),
        "raw": max(float(np.nanmax(r.validation.raw_half_masked[s])) for r, s in zip(runs, high, strict=True)),
        "Gaussians": max(float(np.nanmax(r.validation.gaussian_half[s])) for r, s in zip(runs, high, strict=True)),
        "naive 0.143, Å": min(n or r.validation.nyquist for n, r in zip(naive, runs, strict=True)),
        "right": kinds.count("not_measurable") == len(runs),
    }


def _turned(refinement: Refinement | None) -> float:
    return float(np.rad2deg(np.sqrt((refinement.changes[:, :3] ** 2).sum(axis=1).mean()))) if refinement else 0.0


def main() -> None:
    args = arguments(__doc__, seeds=(5, "runs of each kind"))
    args.seeds = 1 if args.quick else args.seeds
    case = QUICK if args.quick else RUVB_SMALL
    report = Report("nulls", "Nothing from nothing", args)
    table = read_particles(simulated(case, args.work))
    tilts = read_particles(SHARED / "real" / "ribosome-tilts" / "particles.star")
    sets = {
        (case.name, "noise alone"): lambda seed: noise_alone(table, args.work, seed),
        (case.name, "shuffled poses"): lambda seed: shuffled(table, seed),
        ("ribosome tilts (real)", "shuffled poses"): lambda seed: shuffled(tilts, seed),
    }
    rows: list[dict[str, Any]] = []
    for (name, null), made in sets.items():
        fixed = {"refine": "poses,shifts"} if "real" in name else {}
        jobs = {label: job | (fixed if "refine" in job else {}) for label, job in _JOBS.items()}
        ways: dict[str, Callable[[Particles], tuple[Any, Any]]] = {
            label: lambda particles, job=job: reconstructed(particles, **job)  # type: ignore[misc]
            for label, job in jobs.items()
        }
        ways["statistics, refined all the same"] = all_the_same(jobs["statistics, refined"])
        for label, way in ways.items():
            runs = [way(made(seed))[0] for seed in range(args.seeds)]
            rows.append(judged(name, null, label, runs))
            report.table("Nulls", rows, _TEXT)


if __name__ == "__main__":
    main()
