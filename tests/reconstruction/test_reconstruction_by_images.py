"""The main job with --solver images: the same map and the same honesty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emsplat.io import read_map, read_particles
from emsplat.reconstruction.reconstruct import Reconstruction, reconstruct
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings
from emsplat.validation.correlation import fsc

Run = tuple[Reconstruction, Reporter]
FEW = ReconstructSettings(solver="images", n_gaussians=300, max_resolution=14.0, mask_diameter=140.0, seed=3, threads=2)


def average(r: Reconstruction) -> np.ndarray:
    return 0.5 * (r.halves[0].map + r.halves[1].map)


def test_both_solvers_reach_the_same(reconstructed: Run, simulated: Path) -> None:
    by_statistics, _ = reconstructed
    by_images = reconstruct(simulated / "particles.star", replace(by_statistics.settings, solver="images"))
    truth = read_map(simulated / "truth.mrc").values
    true = [fsc(average(r), truth, by_statistics.mask).mean() for r in (by_statistics, by_images)]
    assert true[1] > true[0] - 0.01
    one, two = by_statistics.validation, by_images.validation
    assert two.limit_shell == one.limit_shell  # the raw maps are the same
    assert two.resolution == pytest.approx(one.resolution, rel=0.05)
    measured = slice(0, one.limit_shell)
    assert np.abs(one.c_gaussians - two.c_gaussians)[measured].mean() < 0.02


def test_noise_is_not_measurable_by_images(simulated: Path) -> None:
    """Nor are shuffled poses, which are noise to each other."""
    particles = read_particles(simulated / "particles.star")
    order = np.random.default_rng(0).permutation(len(particles))
    shuffled = replace(particles, euler_angles_in_degrees=particles.euler_angles_in_degrees[order])
    validation = reconstruct(shuffled, FEW).validation
    assert validation.resolution_kind == "not_measurable"
