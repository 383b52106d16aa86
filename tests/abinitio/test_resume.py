"""A search that is ended at any stage, and resumed, comes to the same as one that is not; so do data on the disk."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emsplat.abinitio import alternation, job, polar, unsymmetric
from emsplat.abinitio.full import FullSettings
from emsplat.abinitio.run import AbInitio, ab_initio, job_of, searched
from emsplat.abinitio.samples import StoredSamples
from emsplat.abinitio.scales import Scales
from emsplat.abinitio.stochastic import StochasticSettings
from emsplat.abinitio.verdict import Verdict
from emsplat.errors import InputError
from emsplat.io import read_particles
from emsplat.io.cache import CachedImages
from emsplat.io.images import ImageSource
from emsplat.particles.table import Particles
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.runtime.checkpoint import NO_CHECKPOINTS, Checkpoints, State
from emsplat.runtime.ranks import World
from emsplat.runtime.reporting import Reporter
from emsplat.settings import AbInitioSettings, ReconstructSettings
from emsplat.simulation import SimulationSettings, bundled_model, simulate
from ended import ended_after
from small_work import always, small_work

FEW = AbInitioSettings(max_resolution=20.0, starts=1, threads=1, device="cpu")


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = SimulationSettings(n_images=160, box_size=32, pixel_size_in_angstroms=7.0, snr=0.3, seed=1)
    return simulate(bundled_model(), tmp_path_factory.mktemp("images"), settings)


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarse grids, few rounds, and a first verdict that lets the search go on to the end."""

    def stochastic(scales: Scales, order: int, nats: float, n_images: int, box_size: int) -> StochasticSettings:
        return StochasticSettings(48, 12, 2.0, batch=40, iterations=9)

    def full(scales: Scales, order: int, box_size: int) -> FullSettings:
        return FullSettings(min(5, scales.coarse_rings), 48, 12, 96, 24, 1.5, 0.8, fewest_rounds=2, most_rounds=3)

    def few_steps(table: Particles, settings: ReconstructSettings, *arguments: Any, **named: Any) -> Any:
        little = replace(settings, n_gaussians=60, n_fits=1)
        tuning = replace(small_work(accumulated=100, refined=80), refinement_rounds=1)
        return reconstruct(table, little, *arguments, **named | {"tuning": tuning})

    monkeypatch.setattr(job, "stochastic_settings", stochastic)
    monkeypatch.setattr(job, "full_settings", full)
    monkeypatch.setattr(alternation, "full_settings", full)
    monkeypatch.setattr(alternation, "reconstruct", few_steps)
    monkeypatch.setattr(alternation, "_MOST_SEARCHES", 1)
    monkeypatch.setattr(Verdict, "status", property(lambda self: "uncertain"))


def equal(one: AbInitio, other: AbInitio) -> None:
    np.testing.assert_array_equal(one.reconstruction.map, other.reconstruction.map)
    np.testing.assert_array_equal(one.certainty, other.certainty)
    for name in ("euler_angles_in_degrees", "origin_in_angstroms"):
        np.testing.assert_array_equal(*(getattr(r.reconstruction.particles, name) for r in (one, other)))
    for a, b in zip(one.starts, other.starts, strict=True):
        np.testing.assert_array_equal(a.map, b.map)
        assert (a.first, a.second) == (b.first, b.second)
        assert len(a.pictures) == len(b.pictures)
    assert one.summary() == other.summary()


def test_the_same_as_if_never_ended(star: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ab_initio(star, FEW)
    assert len(whole.moved) == 1
    logs: list[str] = []

    def work() -> AbInitio:
        reporter = Reporter()
        checkpoints = Checkpoints(tmp_path / "checkpoints", True, reporter=reporter, pace=always())
        try:
            return ab_initio(star, FEW, reporter, checkpoints)
        finally:
            logs.append("\n".join(reporter.log))

    ends = [(2, "half1-start1"), (1, "half2-start1"), (1, "search"), (1, "refinement"), (1, "poses")]
    for number, name in ends:
        ended_after(number, name, monkeypatch, work)
    # All samples lie on the disk now, in blocks of their own.
    monkeypatch.setattr(polar, "MOST_IN_MEMORY", 0)
    equal(work(), whole)
    for (_, name), log in zip(ends, logs[1:], strict=True):
        assert f"resuming from {name}.safetensors" in log, name
    assert "search" in {path.stem for path in (tmp_path / "checkpoints").glob("*")}
    assert not (tmp_path / "checkpoints" / "refinement1").exists()


def test_another_job_is_not_resumed(star: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(settings: AbInitioSettings) -> AbInitio:
        return ab_initio(star, settings, checkpoints=Checkpoints(tmp_path / "checkpoints", True, pace=always()))

    ended_after(1, "half1-start1", monkeypatch, lambda: work(FEW))
    with pytest.raises(InputError, match="symmetry C1 there, C2 here"):
        work(AbInitioSettings(max_resolution=20.0, starts=1, threads=1, device="cpu", symmetry="C2"))


def test_samples_on_the_disk_and_cached_images_are_the_same(
    star: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, grid, rows = read_particles(star), polar.PolarGrid.of(6, 0.7), np.arange(3, 90)
    noise = np.ones((1, 17))
    with ImageSource(table) as images, CachedImages(images, 24, tmp_path / "cache", None, Reporter()) as small:
        (in_memory, spectra), (of_cache, of_cached) = (
            polar.read_polar(table, source, rows, noise, grid, 28.0) for source in (images, small)
        )
        monkeypatch.setattr(polar, "MOST_IN_MEMORY", 0)
        stored, _ = polar.read_polar(table, images, rows, noise, grid, 28.0, folder=tmp_path)
    some = np.array([5, 80, 2])
    assert isinstance(stored.signal, StoredSamples) and len(stored) == len(rows)
    np.testing.assert_array_equal(stored.select(some).signal, in_memory.signal[some])
    np.testing.assert_array_equal(stored.coarser(4).select(some).signal, in_memory.coarser(4).signal[some])
    assert np.linalg.norm(of_cache.signal - in_memory.signal) < 2e-3 * np.linalg.norm(in_memory.signal)
    assert of_cached.image_power == pytest.approx(spectra.image_power, rel=1e-3)


def test_the_weight_of_the_images_is_kept(star: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_MOST_NATS", 30.0)
    weights, two = [], replace(FEW, starts=2)
    for _ in range(2):
        checkpoints = Checkpoints(tmp_path / "checkpoints", True, pace=always())
        with job_of(star, two, Reporter(), checkpoints, World()) as begun:
            found = searched(begun)
            weights.append(begun.weight)
    assert weights[0] == weights[1] < 1
    assert all(start.map.ndim == start.inversion.ndim == 3 for start in found.starts)


def test_images_without_a_particle_weigh_less_from_the_first_start_on(tmp_path: Path) -> None:
    settings = SimulationSettings(n_images=160, box_size=32, pixel_size_in_angstroms=7.0, snr=0.3, seed=1, junk=0.4)
    star = simulate(bundled_model(), tmp_path, settings)
    with (tmp_path / "labels.csv").open() as file:
        kinds = np.array([row["junk"] for row in csv.DictReader(file)])
    with job_of(star, FEW, Reporter(), NO_CHECKPOINTS, World()) as begun:
        junk, of_half = searched(begun).starts[0].found.junk, kinds[begun.rows[0]]
    assert junk[of_half == "empty"].mean() > 0.5 and junk[of_half == ""].mean() < 0.01


def test_a_symmetry_is_doubted_if_images_are_likelier_without_it(star: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with job_of(star, replace(FEW, symmetry="C2"), Reporter(), NO_CHECKPOINTS, World()) as begun:
        found = searched(begun)
        agreement, first = found.agreement, found.starts[0]
        assert agreement is not None
        free = replace(first, map=first.map[None], inversion=first.inversion[None], pictures=[])
        monkeypatch.setattr(unsymmetric, "start", lambda images, search, *_: free)
        for without, status in ((0.98, "converged"), (1.03, "uncertain"), (3.0, "failed")):
            likelier = replace(agreement, other_evidence=without * agreement.other_evidence)
            monkeypatch.setattr(unsymmetric, "compare", lambda *_, likelier=likelier: likelier)
            assert unsymmetric.symmetry_holds(begun, found.starts, agreement).status == status


def test_a_class_of_other_particles_is_not_resumed(star: Path, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", True, pace=always())
    with job_of(star, FEW, Reporter(), checkpoints, World()) as begun:
        begun.part(np.arange(90), "class1").context.checkpoints.save("poses", State({"a": torch.zeros(3)}))
        assert begun.part(np.arange(90), "class1").context.checkpoints.load("poses") is not None
        with pytest.raises(InputError, match="belongs to another run: particles"):
            begun.part(np.arange(100), "class1")
