"""The accumulation, and the whole job with it, on a card or by Triton's interpreter, against the processor's.

``tests/statistics/test_accumulate_gpu.py`` runs this file in a process of its own, because TRITON_INTERPRET must be set
before Triton is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from direct_sums import direct_gradient, gradient_of, one_set, two_kinds
from emsplat.fit.by_statistics import FitSettings
from emsplat.fourier import insertion_gpu
from emsplat.fourier.cropping import fourier_cropped
from emsplat.fourier.insertion_gpu import DeviceGrid
from emsplat.particles.parts import Kind, Part, PartWeights
from emsplat.particles.table import Particles
from emsplat.reconstruction import halves
from emsplat.reconstruction import reconstruct as reconstruction
from emsplat.runtime import devices
from emsplat.settings import ReconstructSettings
from emsplat.simulation import SimulationSettings, bundled_model, simulate
from emsplat.statistics.accumulate import AccumulationSettings, GridId, accumulate, grids_of, statistics_of
from emsplat.statistics.accumulate_gpu import Block, Prepared, Weighting, filled_on_device
from emsplat.statistics.sufficient import Statistics
from emsplat.symmetry import symmetry_operators
from emsplat.validation.correlation import fsc
from phantom import ImagesInMemory, accumulated, imagined_particles, numbered_parts

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CARD = torch.device("cpu" if INTERPRETED else "cuda", 0)  # with a number, "cpu" differs from the device `CPU`
Refuses = Callable[..., AbstractContextManager[None]]


@pytest.fixture(autouse=INTERPRETED)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes its time for each program of a kernel, whatever the program does: let there be few."""
    monkeypatch.setattr(insertion_gpu, "_VALUES", 1 << 13)


def relative(got: NDArray, expected: NDArray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def pair_of(grids: Mapping[GridId, DeviceGrid], number: int) -> tuple[DeviceGrid | None, DeviceGrid | None]:
    return grids.get(GridId(number, Kind.B)), grids.get(GridId(number, Kind.T))


def on_device_parts(
    particles: Particles,
    images: ImagesInMemory,
    parts: PartWeights,
    settings: AccumulationSettings,
    progress: Callable[[int], None] = lambda done: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[Part, Statistics]:
    """Like `accumulate`, on the card."""
    everything = np.ones(len(parts.parts), dtype=bool)
    order, wanted = np.flatnonzero(parts.holds(everything))[::-1], grids_of(parts, everything)
    grids = filled_on_device(wanted, particles, images, order, parts, settings, CARD, progress, say)
    return {part: statistics_of(*pair_of(grids, number), settings, parts, number)
            for number, part in enumerate(parts.parts)}  # fmt: skip


def on_device(
    particles: Particles,
    images: ImagesInMemory,
    subset: NDArray[np.int8],
    settings: AccumulationSettings,
    progress: Callable[[int], None] = lambda done: None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Statistics]:
    """Like `accumulate`, on the card, for numbered subsets in place of parts."""
    return list(on_device_parts(particles, images, numbered_parts(subset), settings, progress, say).values())


def case(
    box_size: int, working: int, symmetry: str = "C1", premultiplied: bool = False
) -> tuple[Particles, ImagesInMemory, AccumulationSettings]:
    """Six images of two optics groups, one of them with all aberrations, B-factors and doses, and coloured noise."""
    rng = np.random.default_rng(box_size)
    particles = two_kinds(imagined_particles(6, box_size), premultiplied)
    particles = replace(
        particles, pre_exposure=np.linspace(0, 30, 6), b_factor_in_square_angstroms=np.linspace(0, 80, 6)
    )
    images = ImagesInMemory((rng.standard_normal((6, box_size, box_size)) + 3).astype(np.float32))
    noise = rng.uniform(0.5, 2, (2, box_size // 2 + 1)) * [[1], [3]]
    return particles, images, AccumulationSettings(working, working + working // 3, noise, symmetry_operators(symmetry))


@pytest.mark.parametrize(
    ("box_size", "working", "symmetry", "premultiplied"),
    [(16, 16, "C1", False), (17, 17, "C1", True), (17, 13, "C2", False), (20, 15, "C1", True), (21, 16, "C1", False)],
)
def test_the_statistics_are_those_of_the_processor(
    box_size: int, working: int, symmetry: str, premultiplied: bool
) -> None:
    particles, images, settings = case(box_size, working, symmetry, premultiplied)
    subset = np.array([0, 0, 1, -1, 3, 1], dtype=np.int8)
    done: list[int] = []
    found = on_device(particles, images, subset, settings, done.append)
    expected = accumulated(particles, images, subset, settings)
    assert [s.n_images for s in found] == [2, 2, 0, 1]
    assert done[-1] == 5
    assert not found[2].backprojection.any()
    for number in (0, 1, 3):
        assert relative(found[number].backprojection, expected[number].backprojection) < 1e-5
        assert relative(found[number].kernel, expected[number].kernel) < 1e-5


def test_soft_parts_are_those_of_the_processor() -> None:
    """Weights of b that may be negative apart from T's, images in no part, parts of one kind alone, symmetry."""
    particles, images, settings = case(17, 13, "C2")
    weights = np.array([[0.5, 0.5, 0], [0, 1, 0], [0.2, 0.3, 0], [0, 0, 0], [1, 0, 0], [0, 0.7, 0]])
    of_b = np.array([[1, -2, 0], [0, 0, 0], [-0.4, 1, 0.5], [0, 0, 0], [0, 0, -1], [0.1, 0, 0]])
    parts = PartWeights.from_dense([Part(state=number) for number in range(3)], weights, weights_of_b=of_b)
    expected = accumulate(particles, images, parts, settings)
    found = on_device_parts(particles, images, parts, replace(settings, device_first_bytes=4 * 17**2 * 4))
    for part, statistics in expected.items():
        for got, wanted in ((found[part].backprojection, statistics.backprojection),
                            (found[part].kernel, statistics.kernel)):  # fmt: skip
            assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)
    assert not found[Part(state=2)].kernel.any()


@pytest.mark.parametrize("most", [1, 2])
def test_a_block_of_soft_parts_that_does_not_fit_is_halved(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    particles, images, settings = case(16, 16)
    weights = np.random.default_rng(0).dirichlet(np.ones(2), 6)
    parts = PartWeights.from_dense([Part(1), Part(2)], weights)
    expected = accumulate(particles, images, parts, settings)
    prepare = Weighting.prepare

    def scarce(self: Weighting, block: Block) -> Prepared:
        if len(block.rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return prepare(self, block)

    monkeypatch.setattr(Weighting, "prepare", scarce)
    monkeypatch.setattr(devices, "free_bytes", lambda device: None)
    found = on_device_parts(particles, images, parts, settings)
    for part, statistics in expected.items():
        assert relative(found[part].backprojection, statistics.backprojection) < 1e-5
        assert relative(found[part].kernel, statistics.kernel) < 1e-5


def test_images_from_a_cache_are_smaller_than_the_box_of_their_table() -> None:
    particles, images, settings = case(20, 15)
    small = ImagesInMemory(fourier_cropped(images.images, 17))
    found = on_device(particles, small, one_set(particles), settings)[0]
    expected = accumulated(particles, small, one_set(particles), settings)[0]
    assert relative(found.backprojection, expected.backprojection) < 1e-5
    assert relative(found.kernel, expected.kernel) < 1e-5


def test_the_gradient_is_that_of_the_images_one_by_one() -> None:
    """In float64, sample by sample."""
    particles = two_kinds(imagined_particles(6, 12), premultiplied=False)
    images = (np.random.default_rng(0).standard_normal((6, 12, 12)) + 3).astype(np.float32)
    noise = np.random.default_rng(1).uniform(0.5, 2, (2, 7))
    settings = AccumulationSettings(12, 24, noise, np.eye(3)[None])
    [s] = on_device(particles, ImagesInMemory(images), one_set(particles), settings)
    volume = 0.1 * np.random.default_rng(2).standard_normal((12,) * 3)
    assert relative(gradient_of(s, volume), direct_gradient(volume, images, particles, noise)) < 5e-3


def test_no_image_at_all_is_no_error() -> None:
    particles, images, settings = case(16, 16)
    none, wanted = np.empty(0, dtype=np.int64), [GridId(0, kind) for kind in Kind]
    grids = filled_on_device(wanted, particles, images, none, PartWeights.whole(6), settings, CARD)
    assert list(grids) == wanted
    assert not any(grid.values.any() for grid in grids.values())


@pytest.mark.parametrize("most", [1, 4])
def test_a_block_that_does_not_fit_is_halved(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says so, and every image counts once."""
    particles, images, settings = case(16, 16)
    expected = accumulated(particles, images, one_set(particles), settings)[0]
    prepare, sizes, said = Weighting.prepare, [], []

    def scarce(self: Weighting, block: Block) -> Prepared:
        sizes.append(len(block.rows))
        if len(block.rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return prepare(self, block)

    monkeypatch.setattr(Weighting, "prepare", scarce)
    monkeypatch.setattr(devices, "free_bytes", lambda device: None)  # nothing is measured
    settings = replace(settings, device_first_bytes=4 * 16**2 * 5)  # a block of five, and what is left
    [found] = on_device(particles, images, one_set(particles), settings, say=said.append)
    assert sizes[0] == 5
    assert sum(size for size in sizes if size <= most) == 6
    assert said[0] == "out of memory on the card with 5 images at once; continuing with 3"
    assert len(said) == {1: 3, 4: 1}[most]
    assert relative(found.backprojection, expected.backprojection) < 1e-5
    assert relative(found.kernel, expected.kernel) < 1e-5


def test_a_single_image_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch, refuses: Refuses) -> None:
    def nothing_fits(self: Weighting, block: Block) -> Prepared:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Weighting, "prepare", nothing_fits)
    particles, images, settings = case(16, 16)
    with refuses("out of memory", "single image of 16 pixels", "--max-resolution", "--device cpu"):
        on_device(particles, images, one_set(particles), settings)


def test_what_an_image_takes_is_measured_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured on the second look at the first block, because libraries take memory at their first use."""
    particles, images, settings = case(16, 16)
    taken, sizes, said = iter([5000, 2000 * 2, 0, 0]), [], []
    real = Weighting.prepare

    def attempt(work: Callable[[], object], device: torch.device) -> tuple[object, int]:
        result = work()
        return result, next(taken) if isinstance(result, Prepared) else 0

    def prepare(self: Weighting, block: Block) -> Prepared:
        sizes.append(len(block.rows))
        return real(self, block)

    monkeypatch.setattr(Weighting, "prepare", prepare)
    monkeypatch.setattr(devices, "attempt", attempt)
    monkeypatch.setattr(devices, "free_bytes", lambda device: 10_100)
    settings = replace(settings, device_first_bytes=4 * 16**2 * 2)
    on_device(particles, images, one_set(particles), settings, say=said.append)
    assert sizes == [1, 2, 2, 2]  # the second block was asked for before anything was known
    # An image takes 2000 bytes and its own 1024; two of them fit into 60 % of what is free.
    assert said == ["blocks of 2 images: each takes 0.00 MB on the card, which has 0.0 GB free beside the grids"]


if not INTERPRETED:

    def test_memory_that_really_runs_out_is_halved_aloud() -> None:
        """Torch gets a share of the card's memory with room for grids and small blocks, but not for one of 64 MB."""
        n, settings = 1200, AccumulationSettings(128, 160, np.ones((1, 65)), np.eye(3)[None])
        particles = imagined_particles(n, 128)
        images = ImagesInMemory(np.random.default_rng(0).standard_normal((n, 128, 128), dtype=np.float32))
        parts, wanted, said = PartWeights.whole(n), [GridId(0, kind) for kind in Kind], []
        devices.release_reserve(CARD)
        total, used = torch.cuda.mem_get_info(CARD)[1], torch.cuda.memory_reserved(CARD)
        try:
            torch.cuda.set_per_process_memory_fraction((used + 300e6) / total, CARD)
            grids = filled_on_device(wanted, particles, images, np.arange(n), parts, settings, CARD, say=said.append)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, CARD)
        assert any("out of memory on the card with" in line for line in said)
        found = statistics_of(*pair_of(grids, 0), settings, parts, 0)
        [expected] = accumulate(particles, images, parts, settings).values()
        assert relative(found.backprojection, expected.backprojection) < 1e-4
        assert relative(found.kernel, expected.kernel) < 1e-4


@pytest.mark.parametrize(
    ("value", "complaint", "at_once"),
    [(np.nan, "NaN or infinite", 1), (np.inf, "NaN or infinite", 6), (3e38, "not finite on", 6)],
)
def test_an_image_that_is_not_finite_on_the_card_is_named(
    value: float, complaint: str, at_once: int, refuses: Refuses
) -> None:
    """3e38 is a number, but a sum over the image is none."""
    particles, images, settings = case(16, 16)
    block = 4 * 16**2 * at_once
    settings = replace(settings, device_first_bytes=block, device_block_bytes=block)
    images.images[2, 3:5, 4] = value
    with refuses(str(particles.ids[2]), complaint):
        on_device(particles, images, one_set(particles), settings)


def test_a_constant_image_is_named(refuses: Refuses) -> None:
    particles, images, settings = case(16, 16)
    images.images[5] = 7
    with refuses(str(particles.ids[5]), "constant"):
        on_device(particles, images, one_set(particles), settings)


def test_both_devices_lead_to_one_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every shell, of the job from the star to the maps. Where the time went is in the log.

    Adam at its full step sizes magnifies a rounding error until another of many equal maps is found, on one and on two
    threads as well; smaller steps do not.
    """
    settings = SimulationSettings(n_images=24, box_size=32, pixel_size_in_angstroms=5.0, snr=0.3, seed=1)
    star = simulate(bundled_model(), tmp_path, settings, overwrite=True)
    steps = {name: 0.25 * size for name, size in FitSettings().step_sizes.items()}
    monkeypatch.setattr(halves, "FitSettings", partial(FitSettings, step_sizes=steps))
    wanted = ReconstructSettings(seed=3, threads=2, n_gaussians=150)
    expected = reconstruction.reconstruct(star, replace(wanted, device="cpu"))
    if INTERPRETED:
        monkeypatch.setattr(devices, "chosen", lambda asked, reporter: CARD)
    found = reconstruction.reconstruct(star, wanted)
    assert INTERPRETED or any(devices.name_of(CARD) in line for line in found.reporter.log)
    for a, b in zip(found.halves, expected.halves, strict=True):
        assert fsc(a.raw, b.raw).min() > 0.9999
        assert fsc(a.map, b.map).min() > 0.999
    assert not np.array_equal(found.halves[0].raw, expected.halves[0].raw)  # they were made differently
    for job in (expected, found):
        [line] = [line for line in job.reporter.log if "accumulation:" in line]
        for part in ("waiting for images", "transforms and weights", "insertion", "finish"):
            assert part in line
