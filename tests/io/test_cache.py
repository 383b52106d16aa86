"""The cache of images: the same images to float16's rounding, once from their stacks, whatever becomes of the cache."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from emsplat.fourier.background import outside_circle, subtract_background
from emsplat.fourier.cropping import fourier_crop, fourier_cropped
from emsplat.imaging.likelihood import observe
from emsplat.io import ImageSource, StackWriter, Table, cache, read_particles, write_star
from emsplat.io.cache import CachedImages
from emsplat.particles.table import Particles
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings
from emsplat.validation.correlation import fsc

N, BOX = 40, 16
RECORD = 12 + 2 * BOX**2

_ZERO = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginX", "rlnOriginY", "rlnDefocusAngle")
_SAME = {"rlnDefocusU": "10000", "rlnDefocusV": "10000", "rlnVoltage": "300", "rlnSphericalAberration": "2.7"}
_SAME |= {"rlnAmplitudeContrast": "0.1", "rlnDetectorPixelSize": "2", "rlnMagnification": "10000"}


class Counted(ImageSource):
    """Counts the images that are read from stacks."""

    n_read = 0

    def read(self, rows):
        images = super().read(rows)
        self.n_read += len(images)
        return images


@pytest.fixture
def data_set(tmp_path: Path) -> Callable[..., Particles]:
    """Makes a table of N images of one stack, backwards, at a wide range of grey values."""

    def make(name: str = "images", seed: int = 0, box_size: int = BOX) -> Particles:
        rng = np.random.default_rng(seed)
        images = rng.standard_normal((N, box_size, box_size)) + rng.uniform(-3, 3, (N, 1, 1))
        with StackWriter(tmp_path / f"{name}.mrcs", box_size, 2.0) as stack:
            stack.append(images * 10 ** rng.uniform(-20, 20, (N, 1, 1)))
        columns = {column: ["0"] * N for column in _ZERO} | {c: [v] * N for c, v in _SAME.items()}
        columns["rlnImageName"] = [f"{i}@{name}.mrcs" for i in range(N, 0, -1)]
        write_star(tmp_path / f"{name}.star", {"": Table(columns)})
        return read_particles(tmp_path / f"{name}.star")

    return make


def opened(
    particles: Particles, folder: Path, box_size: int | None = None, size: float | None = None, invert: bool = False
) -> tuple[CachedImages, Counted, Reporter]:
    source, reporter = Counted(particles, invert), Reporter()
    return CachedImages(source, box_size or particles.box_size, folder, size, reporter), source, reporter


def everything(particles: Particles, folder: Path, **options) -> tuple[NDArray[np.float32], int, list[str]]:
    """All images through the cache, how many came from their stack, and what was warned of."""
    images, source, reporter = opened(particles, folder, **options)
    with images, source:
        return images.read(np.arange(N)), source.n_read, reporter.warnings


@pytest.mark.parametrize("invert", [False, True])
def test_images_to_the_rounding_of_float16_and_the_second_time_without_their_stack(data_set, tmp_path, invert):
    particles = data_set()
    with ImageSource(particles, invert) as source:
        recorded = source.read(np.arange(N))
    rng = np.random.default_rng(1)
    folder = tmp_path / "cache"
    images, source, _ = opened(particles, folder, invert=invert)
    with images, source:
        for rows in (rng.permutation(N)[:7], np.array([3, 3, 9]), np.arange(N) % 3 == 0, np.array([], dtype=int)):
            part = images.read(rows)
            spread = recorded[rows].std(axis=(1, 2), dtype=np.float64, keepdims=True)
            assert np.all(np.abs(part - recorded[rows]) <= 2.0**-11 * 10 * spread)
    first, _, _ = everything(particles, folder, invert=invert)
    relative = (first - recorded) / recorded.std(axis=(1, 2), dtype=np.float64, keepdims=True)
    assert np.sqrt(np.mean(relative**2)) < 3e-4
    second, n_read, warnings = everything(particles, folder, invert=invert)
    np.testing.assert_array_equal(second, first)
    assert n_read == 0
    assert not warnings


@pytest.mark.parametrize(("full", "small"), [(16, 10), (17, 10), (16, 9), (15, 15)])
def test_a_cropped_image_holds_the_low_frequencies_as_they_were(full, small):
    images = np.random.default_rng(0).standard_normal((3, full, full), dtype=np.float32)
    cropped = np.fft.rfft2(fourier_cropped(images, small))
    expected = fourier_crop(np.fft.rfft2(images), small)
    ky, kx = np.fft.fftfreq(small, 1 / small)[:, None], np.arange(small // 2 + 1)
    below = 2 * np.hypot(kx, ky) < small
    np.testing.assert_allclose(cropped[:, below], expected[:, below], atol=1e-4)
    back = fourier_crop(expected, full)
    np.testing.assert_array_equal(fourier_crop(back, small)[:, below], expected[:, below])
    assert np.count_nonzero(back) <= np.count_nonzero(expected)


@pytest.mark.parametrize("working", [8, 10, 14])
def test_cropped_images_say_the_same_to_refinement_and_solver(data_set, working):
    """In a working box no larger than theirs all that counts; in a larger one, as a refinement may ask for, theirs."""
    particles, cropped = data_set(), 10
    with ImageSource(particles) as source:
        images = source.read(np.arange(N))
    images /= images.std(axis=(1, 2), dtype=np.float64, keepdims=True)
    noise = np.random.default_rng(2).uniform(1, 2, (1, BOX // 2 + 1))
    whole = observe(images, particles, noise, working)
    subtract_background(images, outside_circle(BOX))  # as the cache does before it crops
    small = observe(fourier_cropped(images, cropped), particles, noise, working)
    assert torch.equal(small.weights, whole.weights)
    ky, kx = np.fft.fftfreq(working, 1 / working)[:, None], np.arange(working // 2 + 1)
    below = torch.from_numpy(2 * np.hypot(kx, ky) < min(working, cropped))
    assert torch.allclose(
        small.spectra[:, below], whole.spectra[:, below], atol=1e-5 * whole.spectra.abs().max().item()
    )
    assert small.spectra[:, below].abs().max() > 0


def test_a_stack_that_changed_a_box_and_a_sign_are_other_data_sets(data_set, tmp_path):
    folder = tmp_path / "cache"
    assert everything(data_set(), folder)[1] == N
    assert everything(data_set(seed=1), folder)[1] == N
    particles = data_set(seed=1)
    os.utime(tmp_path / "images.mrcs", ns=(1, 1))
    for options in ({}, {"box_size": 10}, {"invert": True}):
        assert everything(particles, folder, **options)[1] == N
        assert everything(particles, folder, **options)[1] == 0


def images_file(folder: Path) -> Path:
    [path] = folder.glob("emsplat-*/images")
    return path


def flip(path: Path) -> int:
    """Damages a pixel of the third image and the mean of the sixth."""
    content = bytearray(path.read_bytes())
    content[2 * RECORD + 100] ^= 1
    content[5 * RECORD + 5] ^= 1
    path.write_bytes(content)
    return 2


def cut(path: Path) -> int:
    os.truncate(path, 10 * RECORD + 17)
    return N - 10


def swap(path: Path) -> int:
    """The first two images, each whole, in each other's place."""
    content = path.read_bytes()
    path.write_bytes(content[RECORD : 2 * RECORD] + content[:RECORD] + content[2 * RECORD :])
    return 2


def empty(path: Path) -> int:
    path.write_bytes(b"")
    return N


@pytest.mark.parametrize("spoil", [flip, cut, swap, empty])
def test_what_is_damaged_is_read_again_and_said_once(data_set, tmp_path, spoil):
    particles, folder = data_set(), tmp_path / "cache"
    first, *_ = everything(particles, folder)
    lost = spoil(images_file(folder))
    images, source, reporter = opened(particles, folder)
    with images, source:
        for rows in np.array_split(np.arange(N), 8):
            np.testing.assert_array_equal(images.read(rows), first[rows])
    assert source.n_read == lost
    assert len(reporter.warnings) == (spoil is not empty)
    assert all("damaged" in warning and "@images.mrcs" in warning for warning in reporter.warnings)
    again, n_read, warnings = everything(particles, folder)
    np.testing.assert_array_equal(again, first)
    assert n_read == 0
    assert not warnings


PROGRAM = """
import os, signal, sys
import numpy as np
from pathlib import Path
from emsplat.imaging.likelihood import observe
from emsplat.io import ImageSource, read_particles
from emsplat.io.cache import CachedImages
from emsplat.runtime.reporting import Reporter
star, folder, seed, last = sys.argv[1:]
table = read_particles(star)
rows = np.random.default_rng(int(seed)).permutation(len(table))
with ImageSource(table) as source, CachedImages(source, table.box_size, Path(folder), None, Reporter()) as images:
    for i, row in enumerate(rows):
        images.read([row])
        if i == int(last):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_runs_share_a_data_set_and_may_be_killed(data_set, tmp_path):
    particles, folder = data_set(), tmp_path / "cache"
    arguments = [(1, -1), (2, -1), (3, N // 2)]  # seed, and the image after which it is killed
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "images.star"), str(folder)]
    runs = [subprocess.Popen([*command, str(seed), str(last)]) for seed, last in arguments]
    assert [run.wait() for run in runs] == [0, 0, -signal.SIGKILL]
    _, n_read, warnings = everything(particles, folder)
    assert n_read == 0
    assert not warnings
    expected = everything(particles, tmp_path / "other")[0]
    np.testing.assert_array_equal(everything(particles, folder)[0], expected)


# The bound


def test_what_does_not_fit_is_read_from_its_stack(data_set, tmp_path):
    particles, folder = data_set(), tmp_path / "cache"
    whole = everything(particles, tmp_path / "whole")[0]
    for n_read in (N, N - 11):
        images, got, warnings = everything(particles, folder, size=11.5 * RECORD / 1e9)
        np.testing.assert_array_equal(images, whole)
        assert got == n_read
        assert "room for 11 of 40 images" in warnings[0]
    assert images_file(folder).stat().st_size <= 11 * RECORD
    assert everything(particles, folder)[1] == N - 11  # a larger bound finds what was kept
    assert everything(particles, folder)[1] == 0


def test_the_data_set_unused_for_longest_makes_room(data_set, tmp_path):
    folder, size = tmp_path / "cache", 2.5 * N * RECORD / 1e9
    a, b, c = (data_set(name, seed) for seed, name in enumerate("abc"))
    for table in (a, b):
        everything(table, folder, size=size)
    age = 300
    for facts in folder.glob("emsplat-*/facts.json"):  # both unused for long
        os.utime(facts, (0, facts.stat().st_mtime - age))
    assert everything(a, folder, size=size)[1] == 0  # used again, so the other one is the oldest now
    images, source, reporter = opened(c, folder, size=size)
    with images, source:
        assert len([line for line in reporter.log if "has made room" in line]) == 1
        images.read(np.arange(N))
    assert everything(a, folder, size=size)[1] == 0
    assert everything(b, folder, size=size)[1] == N


def test_a_data_set_in_use_stays(data_set, tmp_path):
    folder, size = tmp_path / "cache", 1.51 * N * RECORD / 1e9
    first, second = data_set("a", 0), data_set("b", 1)
    images, source, _ = opened(first, folder, size=size)
    with images, source:
        images.read(np.arange(N))
        _, n_read, warnings = everything(second, folder, size=size)
        assert n_read == N
        assert "room for 20 of 40" in warnings[0]
        assert everything(first, folder, size=size)[1] == 0
    assert everything(second, folder, size=size)[2] == []  # nobody uses the first any more
    assert len(list(folder.glob("emsplat-*"))) == 1


def test_foreign_files_in_the_folder_stay(data_set, tmp_path):
    folder = tmp_path / "cache"
    (folder / "emsplat-results").mkdir(parents=True)
    (folder / "emsplat-results" / "map.mrc").write_bytes(b"mine")
    everything(data_set(), folder, size=1.1 * N * RECORD / 1e9)
    assert (folder / "emsplat-results" / "map.mrc").read_bytes() == b"mine"


def test_a_disk_too_small_is_refused_with_what_it_needs(data_set, tmp_path, refuses, monkeypatch):
    particles, folder = data_set(), tmp_path / "cache"
    images, source, _ = opened(data_set("other", 1), folder)
    with images, source:
        images.read(np.arange(N))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10 * RECORD))
        with refuses(f"--cache {folder}", "40 images take 2.1e-05 GB", "room for 5.13e-06 GB", "--cache-size"):
            opened(particles, folder)
        assert len(list(folder.glob("emsplat-*"))) == 1
    assert everything(particles, folder)[2] == []  # in the place of the other, which nobody uses any more
    assert len(list(folder.glob("emsplat-*"))) == 1


@pytest.mark.parametrize("where", ["a file", "below a file", "/proc/nowhere"])
def test_no_folder_to_write_to(data_set, tmp_path, refuses, where):
    (tmp_path / "file").write_bytes(b"")
    folder = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "cache"}.get(where, Path(where))
    with refuses("--cache", str(folder), "choose another"):
        opened(data_set(), folder)


def test_a_disk_that_fills_up_ends_the_keeping_not_the_run(data_set, tmp_path, monkeypatch):
    particles = data_set()
    expected = everything(particles, tmp_path / "whole")[0]

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "pwrite", full)
    images, source, reporter = opened(particles, tmp_path / "cache")
    with images, source:
        for row in range(N):
            np.testing.assert_array_equal(images.read([row])[0], expected[row])
    assert len(reporter.warnings) == 1
    assert "disk is full" in reporter.warnings[0]


# The whole job


@pytest.mark.parametrize(("finest", "box_size"), [(None, 48), (14.0, 24)])
def test_the_same_inversion_and_no_stack_the_second_time(simulated, tmp_path, finest, box_size):
    """At the whole box the stacks are read once; at a smaller one the preview still reads its sample from them.

    The rounding moves the Gaussians about, less than another seed would, so the inversions are what is the same.
    """
    table = read_particles(simulated / "particles.star").select(np.arange(0, 600, 2))
    plain = ReconstructSettings(n_gaussians=300, max_resolution=finest)
    kept = replace(plain, cache=tmp_path / "cache")
    reporters = [Reporter(), Reporter(), Reporter()]
    expected, first, second = (
        reconstruct(table, settings, reporter)
        for settings, reporter in zip((plain, kept, kept), reporters, strict=True)
    )
    limit = box_size // 2 - 1
    for half, other in zip(first.halves, expected.halves, strict=True):
        assert fsc(half.raw, other.raw)[:limit].min() > 1 - 1e-6
        assert fsc(half.map, other.map)[:limit].mean() > 0.9
    assert first.preview.diameter_in_angstroms == pytest.approx(expected.preview.diameter_in_angstroms)
    np.testing.assert_array_equal(second.map, first.map)
    assert any(line.endswith("300 from the stacks") for line in reporters[1].log)
    assert any(line.endswith("read from it, 0 from the stacks") for line in reporters[2].log)
    assert images_file(tmp_path / "cache").stat().st_size == 300 * (12 + 2 * box_size**2)
