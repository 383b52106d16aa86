"""A sample of the simulated particles, for the rooms of the check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.check.inversion import SmallData
from emsplat.check.sample import Sample, choose_rows, take_sample
from emsplat.imaging.noise import noise_spectra
from emsplat.io import ImageSource, read_particles
from emsplat.io.star import Table, read_star, write_star
from emsplat.simulation import SimulationSettings, bundled_model, simulate

Columns = dict[str, list[str]]


def ignore(done: int, total: int) -> None:
    """For a bar that nobody looks at."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 500 images of 7PBL, 32 × 32 pixels of 5 Å; with the truth."""
    settings = SimulationSettings(n_images=500, box_size=32, pixel_size_in_angstroms=5.0, snr=0.05, seed=2)
    return simulate(bundled_model(), tmp_path_factory.mktemp("tiny"), settings, overwrite=True).parent


@pytest.fixture(scope="session")
def sample(tiny: Path) -> Sample:
    """All images of `tiny`."""
    table = read_particles(tiny / "particles.star")
    with ImageSource(table) as images:
        return take_sample(table, images, choose_rows(table, len(table), 0), ignore)


@pytest.fixture(scope="session")
def small(sample: Sample) -> SmallData:
    return SmallData(sample.small, sample.images, noise_spectra(sample.images, sample.small))


@pytest.fixture
def noise_like(small: SmallData) -> Callable[[int], SmallData]:
    """The same table with images of white noise, by seed."""

    def make(seed: int) -> SmallData:
        images = np.random.default_rng(seed).standard_normal(small.images.shape).astype(np.float32)
        return replace(small, images=images, noise=noise_spectra(images, small.particles))

    return make


@pytest.fixture
def spoilt(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of `tiny`: `change` is given the columns of optics and particles, `paint` the images."""

    def make(
        change: Callable[[Columns, Columns], None] = lambda optics, particles: None,
        paint: Callable[[NDArray[np.float32]], None] = lambda images: None,
    ) -> Path:
        blocks = read_star(tiny / "particles.star")
        columns = {name: dict(table.columns) for name, table in blocks.items()}
        change(columns["optics"], columns["particles"])
        write_star(tmp_path / "particles.star", {name: Table(columns[name], blocks[name].is_loop) for name in blocks})
        stack = bytearray((tiny / "particles.mrcs").read_bytes())
        box_size = int.from_bytes(stack[:4], "little")
        paint(np.frombuffer(stack, "<f4", offset=1024).reshape(-1, box_size, box_size))
        (tmp_path / "particles.mrcs").write_bytes(stack)
        return tmp_path / "particles.star"

    return make
