"""The sample: which rows, the small copies, and what is said of images that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.check.oddities import find_odd_images, image_findings, masked_findings, ramp_findings
from emsplat.check.sample import Sample, choose_rows, look_at_images, take_sample
from emsplat.fourier.background import outside_circle, subtract_background
from emsplat.io import ImageSource, read_particles
from emsplat.io.mrc import StackWriter
from emsplat.particles.table import Particles
from phantom import imagined_particles


def sample_of(table: Particles, n_images: int = 10_000) -> Sample:
    with ImageSource(table) as images:
        return take_sample(table, images, choose_rows(table, n_images, 0), lambda done, total: None)


def on_disk(folder: Path, images: NDArray[np.float32], pixel_size: float) -> Particles:
    """Imagined particles whose images a file holds."""
    table = imagined_particles(len(images), images.shape[-1], pixel_size)
    with StackWriter(folder / "a.mrcs", images.shape[-1], pixel_size) as writer:
        writer.append(images)
    return replace(table, stacks=(folder / "a.mrcs",))


def test_rows_are_spread_over_the_file_and_read_in_order() -> None:
    table = imagined_particles(1000, 32)
    table = replace(table, section=np.random.default_rng(0).permutation(1000))
    rows = choose_rows(table, 100, seed=3)
    assert len(np.unique(rows)) == 100
    assert (np.bincount(rows // 10, minlength=100) == 1).all()
    assert (np.diff(table.section[rows]) > 0).all()
    assert len(choose_rows(table, 999, 0)) == 999
    assert sorted(choose_rows(table, 5000, 0)) == list(range(1000))


def test_large_images_make_a_smaller_sample() -> None:
    table = imagined_particles(1000, 2048)
    assert len(choose_rows(table, 1000, 0)) == 100


@pytest.mark.parametrize("box_size", [64, 65, 90, 101])
def test_small_copies_keep_the_low_frequencies_and_the_centre(box_size: int, tmp_path: Path) -> None:
    """Against the Fourier sum about the centres, pixel D//2 of the image and d//2 of the copy."""
    pixel_size = 1.5
    images = np.random.default_rng(0).standard_normal((3, box_size, box_size)).astype(np.float32)
    found = sample_of(on_disk(tmp_path, images, pixel_size))
    d = found.small.box_size
    assert 32 <= d <= 48
    assert found.small.pixel_size_in_angstroms * d == pytest.approx(pixel_size * box_size)
    window = outside_circle(box_size)
    subtract_background(images, window)
    highest = (d - 1) // 2
    k = np.arange(-highest, highest + 1)
    waves, small_waves = (np.exp(-2j * np.pi * np.outer(k, np.arange(n) - n // 2) / n) / n for n in (box_size, d))
    expected = waves @ images @ waves.T
    assert np.abs(small_waves @ found.images @ small_waves.T - expected).max() < 1e-5 * np.abs(expected).max()


def test_bad_images_are_named_and_left_out(spoilt: Callable[..., Path]) -> None:
    def paint(images: NDArray[np.float32]) -> None:
        images[4, 3, 3] = np.nan
        images[7] = 2.0
        images[20] += 30 * (images[20] - images[20].mean())
        images[30] += 50

    table = read_particles(spoilt(paint=paint))
    found = sample_of(table)
    assert len(found.images) == len(table) - 2
    assert {4, 7}.isdisjoint(found.rows)
    assert np.isfinite(found.images).all() and np.isfinite(found.powers).all()
    odd = find_odd_images(found.statistics, table)
    assert list(odd.by_mean) == [30]
    assert list(odd.by_deviation) == [20]
    unusable, strange = image_findings(found.statistics, odd, table)
    assert unusable.verdict == "problem"
    assert "000005@particles.mrcs: NaN" in unusable.text and "000008@particles.mrcs: a constant" in unusable.text
    assert strange.verdict == "note"
    assert "000021@particles.mrcs, 000031@particles.mrcs" in strange.text


def test_ramps_of_the_background_are_told_of_and_taken_off(spoilt: Callable[..., Path], sample: Sample) -> None:
    def paint(images: NDArray[np.float32]) -> None:
        along = np.arange(images.shape[1], dtype=np.float32) - images.shape[1] // 2
        slopes = np.random.default_rng(3).normal(0, 0.03, len(images)).astype(np.float32) * images.std()
        images += slopes[:, None, None] * along

    found = sample_of(read_particles(spoilt(paint=paint)))
    (finding,) = ramp_findings(found.statistics)
    assert finding.verdict == "note"
    assert ramp_findings(sample.statistics) == []
    assert np.abs(found.images - sample.images).max() < 1e-3 * np.abs(sample.images).max()


def test_many_odd_images_are_a_problem(spoilt: Callable[..., Path]) -> None:
    def paint(images: NDArray[np.float32]) -> None:
        images[::20] *= 30

    table = read_particles(spoilt(paint=paint))
    with ImageSource(table) as images:
        statistics = look_at_images(table, images, np.arange(len(table)), lambda done, total: None)
    odd = find_odd_images(statistics, table)
    assert list(odd.by_deviation) == list(range(0, len(table), 20))
    (finding,) = image_findings(statistics, odd, table)
    assert finding.verdict == "problem"


def test_good_images_raise_no_word(sample: Sample) -> None:
    (finding,) = image_findings(sample.statistics, find_odd_images(sample.statistics, sample.full), sample.full)
    assert finding.verdict == "fine"
    assert masked_findings(sample) == []
    assert abs(sample.signal_share) < 0.5


def test_masked_images_are_seen(spoilt: Callable[..., Path]) -> None:
    def paint(images: NDArray[np.float32]) -> None:
        n = images.shape[-1]
        axis = np.arange(n) - n // 2
        images[:, np.hypot(axis[:, None], axis) > 0.4 * n] = 0

    (finding,) = masked_findings(sample_of(read_particles(spoilt(paint=paint))))
    assert finding.verdict == "problem"
