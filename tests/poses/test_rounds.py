"""Rounds of refinement: halves that stay apart, an end, and maps that get better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.conventions import rotation_matrices
from emsplat.fit.by_images import Schedule
from emsplat.imaging.likelihood import Recorded
from emsplat.io import read_map, read_particles, read_star
from emsplat.outputs.reconstruction import write_run
from emsplat.particles.table import Particles
from emsplat.poses.refine import RefineSettings, changed
from emsplat.poses.rounds import check_refinable, refine_settings, refined
from emsplat.reconstruction import reconstruct as reconstruction
from emsplat.reconstruction.reconstruct import Reconstruction, reconstruct
from emsplat.reconstruction.solution import Solution
from emsplat.reconstruction.tuning import Tuning
from emsplat.runtime.checkpoint import Checkpoints, Pace, State
from emsplat.runtime.context import Task
from emsplat.runtime.reporting import Reporter
from emsplat.settings import REFINABLE, ReconstructSettings
from emsplat.validation.correlation import fsc
from misaligned import (
    BOX,
    DIAMETER,
    LIMIT,
    PIXEL_SIZE,
    RANGES,
    drawn,
    errors,
    particles_of,
    recorded,
    rms,
)
from phantom import ImagesInMemory, lopsided_map

# The rounds


def solution_of(volumes: list[NDArray[np.float32]], limit: int = LIMIT) -> SimpleNamespace:
    """Half maps of which all is known."""
    n = BOX // 2
    frequency = np.arange(1, n + 1) / (BOX * PIXEL_SIZE)
    validation = SimpleNamespace(gain=np.ones(n), gaussian_half=np.ones(n), limit_shell=limit, frequency=frequency)
    return SimpleNamespace(halves=[SimpleNamespace(map=volume) for volume in volumes], validation=validation)


def test_halves_do_not_know_of_each_other() -> None:
    n = 80
    true = particles_of(n)
    images, noise = recorded(true, snr=0.5)
    wrong = replace(changed(true, drawn(n, REFINABLE)), half_set=np.repeat([1, 2], n // 2).astype(np.int8))
    others = images.images.copy()
    others[n // 2 :] = others[n // 2 :][::-1]
    settings = RefineSettings(REFINABLE, *RANGES, most_rounds=1)  # they end together
    results = []
    for source, second in ((images.images, 1), (others, -1)):
        solution = solution_of([lopsided_map(BOX), second * lopsided_map(BOX)])
        results.append(
            refined(Recorded(wrong, ImagesInMemory(source), noise), lambda _, s=solution: s, settings, DIAMETER)
        )
    first, second = (result[2].changes for result in results)
    np.testing.assert_array_equal(first[: n // 2], second[: n // 2])
    assert rms(first[n // 2 :] - second[n // 2 :]) > 0.1
    for half in (slice(n // 2), slice(n // 2, n)):
        assert np.mean(1 + first[half, 5]) == pytest.approx(1)


def test_rounds_end_when_there_is_no_more_to_gain() -> None:
    n = 60
    true = replace(particles_of(n), half_set=(1 + np.arange(n) % 2).astype(np.int8))
    images, noise = recorded(true, snr=1.0)
    reporter, solved = Reporter(), []
    wrong = changed(true, drawn(n, ("shifts",)))
    solution = solution_of([lopsided_map(BOX)] * 2)

    def solve(particles: Particles) -> SimpleNamespace:
        solved.append(particles)
        return solution

    settings = RefineSettings(("shifts",), *RANGES)
    particles, last, result = refined(
        Recorded(wrong, images, noise), solve, settings, DIAMETER, Task(reporter=reporter)
    )
    assert last is solution
    assert particles is solved[-1]
    assert len(solved) == 1 + len(result.gains) == 3
    assert result.gains[1] < 0.1 * result.gains[0]
    assert any("10°" in line and "15 Å" in line for line in reporter.log)
    summary = result.summary(true.half_set)
    expected = [rms(errors(particles, wrong)["shifts"][true.half_set == half]) for half in (1, 2)]
    assert summary["rms_changes_of_halves"]["shifts_in_angstroms"] == pytest.approx(expected, rel=1e-3)


def test_nothing_measurable_nothing_moved() -> None:
    true = replace(particles_of(20), half_set=(1 + np.arange(20) % 2).astype(np.int8))
    images, noise = recorded(true, snr=1.0)
    solution, reporter = solution_of([lopsided_map(BOX)] * 2, limit=0), Reporter()
    settings = RefineSettings(("poses",), *RANGES)
    task = Task(reporter=reporter)
    particles, _, result = refined(Recorded(true, images, noise), lambda p: solution, settings, DIAMETER, task)
    assert particles is true
    assert result.gains == ()
    assert np.all(result.changes == 0)
    assert len(reporter.warnings) == 1


# What may be asked


def test_the_range_without_one_is_the_rims() -> None:
    settings = refine_settings(ReconstructSettings(refine="poses, shifts"), 100.0)
    assert settings.quantities == ("poses", "shifts")
    assert settings.range_in_angstroms == pytest.approx(50 * np.deg2rad(settings.range_in_degrees))
    given = refine_settings(ReconstructSettings(refine="defocus", refine_range=(3.0, 4.0)), 100.0)
    assert (given.range_in_degrees, given.range_in_angstroms) == (3.0, 4.0)


@pytest.mark.parametrize(
    ("asked", "culprits"),
    [
        ({"refine": "pose"}, ("--refine pose", "poses,shifts,contrast,defocus")),
        ({"refine": "poses,poses"}, ("--refine poses,poses",)),
        ({"refine": ""}, ("--refine",)),
        ({"refine": "poses", "refine_range": (0.0, 5.0)}, ("--refine-range 0 5",)),
        ({"refine": "poses", "refine_range": (180.0, 5.0)}, ("--refine-range 180 5",)),
        ({"refine": "poses", "refine_range": (5.0, 0.0)}, ("--refine-range 5 0",)),
        ({"refine": "poses", "refine_range": (float("nan"), 5.0)}, ("--refine-range nan",)),
        ({"refine_range": (5.0, 5.0)}, ("--refine-range",)),
    ],
)
def test_what_cannot_be_refined(asked: dict, culprits: tuple[str, ...], refuses: Callable) -> None:
    with refuses(*culprits):
        ReconstructSettings(**asked)


@pytest.mark.parametrize("fixed", ["contrast", "defocus"])
def test_premultiplied_images_keep_their_ctf(fixed: str, refuses: Callable) -> None:
    particles = particles_of(4, premultiplied=True)
    check_refinable(particles, ReconstructSettings(refine="poses,shifts"))
    with refuses(f"--refine poses,{fixed}", "premultiplied"):
        check_refinable(particles, ReconstructSettings(refine=f"poses,{fixed}"))
    only_others = particles.select(np.array([0, 2]))
    check_refinable(only_others, ReconstructSettings(refine=f"poses,{fixed}"))


# From images to the map


@pytest.fixture(scope="module")
def perturbed(simulated: Path) -> tuple[Particles, Particles]:
    """The true particles, and the same turned by 3° and moved by 1.5 pixels (root mean square)."""
    true = read_particles(simulated / "particles.star")
    rng, changes = np.random.default_rng(0), np.zeros((len(true), 7))
    changes[:, :3] = np.deg2rad(3) / np.sqrt(3) * rng.normal(size=(len(true), 3))
    changes[:, 3:5] = 1.5 * true.pixel_size_in_angstroms / np.sqrt(2) * rng.normal(size=(len(true), 2))
    return true, changed(true, changes)


@pytest.fixture(scope="module")
def put_right(perturbed: tuple[Particles, Particles]) -> Reconstruction:
    return reconstruct(perturbed[1], ReconstructSettings(refine="poses,shifts", seed=3, threads=2))


def agreement(r: Reconstruction, folder: Path) -> float:
    """Mean FSC of the average map with the truth, in the true mask."""
    truth, mask = (read_map(folder / f"{name}.mrc").values for name in ("truth", "mask"))
    return float(fsc(0.5 * (r.halves[0].map + r.halves[1].map), truth, mask).mean())


def test_images_and_map_get_better(
    perturbed: tuple[Particles, Particles], put_right: Reconstruction, simulated: Path
) -> None:
    true, wrong = perturbed
    before, after = errors(wrong, true), errors(put_right.particles, true)
    assert np.median(after["poses"]) < 0.9 * np.median(before["poses"])
    assert np.median(after["shifts"]) < 0.4 * np.median(before["shifts"])
    blurred = reconstruct(wrong, ReconstructSettings(seed=3, threads=2))
    assert agreement(put_right, simulated) > agreement(blurred, simulated) + 0.2
    assert put_right.validation.limit_shell > blurred.validation.limit_shell
    assert not put_right.poses_shared


def test_the_resolution_stays_honest(put_right: Reconstruction, simulated: Path) -> None:
    v = put_right.validation
    truth = read_map(simulated / "truth.mrc").values
    true = fsc(0.5 * (put_right.half_maps[0] + put_right.half_maps[1]), truth, put_right.mask)
    measured = np.arange(len(true)) < v.limit_shell
    assert v.limit_shell > 12
    error = np.abs(v.c_map - true)[measured]
    assert np.all(error <= np.maximum(0.03, 2.5 * v.c_map_se[measured]))


def test_true_poses_lose_nothing(
    perturbed: tuple[Particles, Particles],
    reconstructed: tuple[Reconstruction, Reporter],
    simulated: Path,
) -> None:
    true, _ = perturbed
    settings = ReconstructSettings(refine="poses,shifts", seed=3, threads=2)
    again = reconstruct(true, settings, tuning=Tuning(refinement_rounds=2))
    assert agreement(again, simulated) > agreement(reconstructed[0], simulated) - 0.01
    moved = errors(again.particles, true)
    assert rms(moved["poses"]) < 1.0
    assert rms(moved["shifts"]) < 0.1 * true.pixel_size_in_angstroms


def test_shuffled_poses_stay_and_measure_nothing(perturbed: tuple[Particles, Particles]) -> None:
    true, _ = perturbed
    order = np.random.default_rng(0).permutation(len(true))
    shuffled = replace(true, euler_angles_in_degrees=true.euler_angles_in_degrees[order])
    reporter = Reporter()
    result = reconstruct(shuffled, ReconstructSettings(refine="poses,shifts"), reporter)
    assert result.validation.resolution_kind == "not_measurable"
    assert result.refinement is not None
    assert np.all(result.refinement.changes == 0)
    np.testing.assert_array_equal(result.particles.euler_angles_in_degrees, shuffled.euler_angles_in_degrees)
    assert any("nothing is measurable" in warning for warning in reporter.warnings)


def test_refined_all_the_same_it_measures_nothing(
    perturbed: tuple[Particles, Particles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told that all is measurable, every quantity of images with each other's poses follows the map of its own half."""
    true, _ = perturbed
    order = np.random.default_rng(1).permutation(len(true))
    shuffled = replace(true, euler_angles_in_degrees=true.euler_angles_in_degrees[order])
    latest: list[object] = []

    def told(solution: Solution) -> Solution:
        latest.append(solution)
        v = solution.validation
        return replace(solution, validation=replace(v, limit_shell=12, gain=np.ones_like(v.gain)))

    def forced(recorded: Recorded, solve: Callable, *rest: object) -> tuple:
        particles, _, refinement = refined(recorded, lambda p: told(solve(p)), *rest)  # type: ignore[arg-type]
        return particles, latest[-1], refinement

    monkeypatch.setattr(reconstruction, "refined", forced)
    result = reconstruct(shuffled, ReconstructSettings(refine=",".join(REFINABLE), n_fits=1))
    assert result.refinement is not None
    assert rms(result.refinement.moved()["poses_in_degrees"]) > 0.5
    assert result.validation.resolution_kind == "not_measurable"


def test_the_run_folder_has_the_particles(put_right: Reconstruction, simulated: Path, tmp_path: Path) -> None:
    reporter = Reporter()
    summary = write_run(tmp_path / "run", put_right, reporter)
    table = read_star(tmp_path / "run" / "particles.star")["particles"]
    source = read_star(simulated / "particles.star")["particles"]
    angles = np.stack([table.floats(f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")], axis=1)
    np.testing.assert_allclose(rotation_matrices(angles), put_right.particles.rotations(), atol=1e-6)
    assert table.column("rlnImageName") == source.column("rlnImageName")
    assert table.column("rlnDefocusU") == source.column("rlnDefocusU")
    assert (tmp_path / "run" / "figures" / "refinement.png").stat().st_size > 1000
    assert summary["refinement"]["rms_changes_of_halves"].keys() == {"poses_in_degrees", "shifts_in_angstroms"}
    assert any("particles.star" in line for line in reporter.log)
    again = read_particles(tmp_path / "run" / "particles.star", datadir=simulated)  # as the log says
    np.testing.assert_allclose(again.origin_in_angstroms, put_right.particles.origin_in_angstroms, atol=1e-5)


# With the other solver


# Settings of a job by images that takes seconds.
SHORT = ReconstructSettings(
    solver="images", refine=",".join(REFINABLE), n_gaussians=300, max_resolution=14.0, mask_diameter=140.0
)
SOON = Tuning(refinement_rounds=1, schedule_by_images=Schedule(round=8, max_rounds=3, anneal_rounds=2, anneal_epochs=1))


@pytest.fixture(scope="module")
def by_images(perturbed: tuple[Particles, Particles]) -> Reconstruction:
    return reconstruct(perturbed[1], SHORT, tuning=SOON)


def test_gaussians_fitted_to_images_refine_them(
    perturbed: tuple[Particles, Particles], by_images: Reconstruction, simulated: Path
) -> None:
    true, wrong = perturbed
    before, after = errors(wrong, true), errors(by_images.particles, true)
    assert np.median(after["shifts"]) < 0.6 * np.median(before["shifts"])
    assert np.median(after["poses"]) < np.median(before["poses"])
    blurred = reconstruct(wrong, replace(SHORT, refine=None), tuning=SOON)
    assert agreement(by_images, simulated) > agreement(blurred, simulated) + 0.01  # within 14 Å


def test_an_ended_refinement_goes_on(
    perturbed: tuple[Particles, Particles],
    by_images: Reconstruction,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ended in the fit to refined images, it comes to the same map and the same images."""
    saves, save = [0], Checkpoints.save
    enough = 2 * 5 + 3  # of both halves' rounds, and some of the refined images

    def until_ended(self: Checkpoints, name: str, state: State) -> bool:
        written = save(self, name, state)
        saves[0] += name.startswith("fit")
        if saves[0] == enough:
            raise KeyboardInterrupt
        return written

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", until_ended)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(perturbed[1], SHORT, checkpoints=Checkpoints(tmp_path, pace=Pace(0, 0)), tuning=SOON)
    again = reconstruct(perturbed[1], SHORT, checkpoints=Checkpoints(tmp_path, resume=True), tuning=SOON)
    assert again.refinement is not None
    assert by_images.refinement is not None
    np.testing.assert_array_equal(again.refinement.changes, by_images.refinement.changes)
    assert np.linalg.norm(again.map - by_images.map) < 1e-4 * np.linalg.norm(by_images.map)
