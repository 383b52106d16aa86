"""The main job with --solver images: the same map, the same honesty, and going on after an end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emsplat import fit_images
from emsplat.checkpoint import Checkpoints
from emsplat.cli import main
from emsplat.correlation import fsc
from emsplat.fit_images import Schedule
from emsplat.io import read_map, read_particles
from emsplat.reconstruction import Reconstruction, reconstruct
from emsplat.reporting import Reporter
from emsplat.settings import ReconstructSettings

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
    assert np.abs(one.c_map - two.c_map)[measured].mean() < 0.02


def test_noise_is_not_measurable_by_images(simulated: Path) -> None:
    """Nor are shuffled poses, which are noise to each other."""
    particles = read_particles(simulated / "particles.star")
    order = np.random.default_rng(0).permutation(len(particles))
    shuffled = replace(particles, euler_angles_in_degrees=particles.euler_angles_in_degrees[order])
    validation = reconstruct(shuffled, FEW).validation
    assert validation.resolution_kind == "not_measurable"


def test_an_ended_run_goes_on(simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same map, in the same folder, and with nothing left beside it; not with other settings."""
    command = ["reconstruct", str(simulated / "particles.star"), "-o", str(tmp_path / "run"), "--solver", "images"]
    command += ["--n-gaussians", "300", "--max-resolution", "14", "--mask-diameter", "140", "--seed", "3"]
    short = Schedule(round=8, max_rounds=3, anneal_rounds=2, anneal_epochs=1)
    monkeypatch.setattr(fit_images, "Schedule", lambda: short)
    saved, save = [0], Checkpoints.save

    def until_ended(self: Checkpoints, *arguments: object) -> None:
        save(self, *arguments)  # type: ignore[arg-type]
        saved[0] += 1
        if saved[0] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", until_ended)
        assert main(command) != 0
    assert main(command) == 2  # would replace what can be gone on with
    assert main([*command, "--resume", "--isotropic"]) == 2
    assert main([*command, "--resume"]) == 0
    result = read_map(tmp_path / "run" / "map.mrc").values
    whole = reconstruct(simulated / "particles.star", FEW).map
    assert np.linalg.norm(result - whole) < 1e-4 * np.linalg.norm(whole)
    assert not (tmp_path / "run" / "checkpoints").exists()
