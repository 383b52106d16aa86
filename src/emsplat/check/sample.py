"""A sample of the images, spread over the file: statistics, power spectrum and a small copy of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.check.thon import phase_powers
from emsplat.errors import InputError
from emsplat.fourier.background import background_slopes, outside_circle, subtract_background
from emsplat.fourier.cropping import fourier_crop
from emsplat.io.images import ImageSource, reading_order
from emsplat.optics.ctf import ctf_parameters
from emsplat.particles.table import Particles

_BLOCK_BYTES = 32 << 20
_SAMPLE_BYTES = 1 << 30  # bytes of the sample, which large images reach with fewer of them
_SMALLEST, _LARGEST, _PIXEL_SIZE = 32, 48, 4.0  # box in pixels and pixel size in Å of the small copies

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of single images; NaN for images that could not be used."""

    rows: NDArray[np.int64]  # (n,) of the table
    mean: NDArray[np.float64]  # (n,)
    deviation: NDArray[np.float64]  # (n,) standard deviation
    ramp: NDArray[np.float64]  # (n,) rise of the background over the width of the box, in standard deviations
    unusable: tuple[str, ...]  # what is wrong with the images that could not be used, one line each

    @property
    def usable(self) -> NDArray[np.bool_]:
        return np.isfinite(self.mean)


@dataclass(frozen=True)
class Sample:
    """The usable images of a sample, in the order of the disk."""

    rows: NDArray[np.int64]  # (n,) of the table
    full: Particles  # (n rows) as in the file
    small: Particles  # the same rows, with the small copies' box and pixel size
    images: NDArray[np.float32]  # (n, d, d) small copies, background subtracted, particle white
    powers: NDArray[np.float32]  # (n, D//2) from `phase_powers`
    signal_share: float  # rough share of the variance within the particle's circle that exceeds the outside
    statistics: ImageStatistics  # of all images of the sample, usable or not


def choose_rows(particles: Particles, n_images: int, seed: int) -> NDArray[np.int64]:
    """(n,) rows spread over the file, a random one from each of n equal stretches, in reading order."""
    affordable = max(100, _SAMPLE_BYTES // (4 * particles.box_size**2))
    n = min(len(particles), n_images, affordable)
    edges = np.linspace(0, len(particles), n + 1).astype(np.int64)
    rows = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    chosen = np.zeros(len(particles), dtype=bool)
    chosen[rows] = True
    order = reading_order(particles)
    return order[chosen[order]]


def take_sample(particles: Particles, images: ImageSource, rows: NDArray[np.int64], progress: Progress) -> Sample:
    """Read these rows once."""
    box_size = particles.box_size
    small_box = _small_box(particles)
    window = outside_circle(box_size)
    found: list[ImageStatistics] = []
    small, powers, shares = [], [], []
    for block, statistics in _blocks(particles, images, rows, progress):
        found.append(statistics)
        if len(block) == 0:
            continue
        subtract_background(block, window)
        shares.append(_signal_shares(block, window))
        spectra = scipy.fft.rfft2(block, workers=numba.get_num_threads())
        chosen = particles.select(statistics.rows[statistics.usable])
        powers.append(phase_powers(spectra, ctf_parameters(chosen)))
        small.append(_shrunk(spectra, small_box))
    statistics = _joined(found)
    kept = statistics.rows[statistics.usable]
    if len(kept) == 0:
        raise InputError(
            f"{particles.source}: none of {len(rows):,} images can be used: {statistics.unusable[0]}; "
            "extract the images again"
        )
    full = particles.select(kept)
    return Sample(
        rows=kept,
        full=full,
        small=with_box(full, small_box),
        images=np.concatenate(small),
        powers=np.concatenate(powers),
        signal_share=float(np.median(np.concatenate(shares))),
        statistics=statistics,
    )


def look_at_images(
    particles: Particles, images: ImageSource, rows: NDArray[np.int64], progress: Progress
) -> ImageStatistics:
    """The statistics of these images alone."""
    return _joined([statistics for _, statistics in _blocks(particles, images, rows, progress)])


def _small_box(particles: Particles) -> int:
    """Box of the small copies: between 32 and 48 pixels, of about 4 Å if possible."""
    wanted = int(np.ceil(particles.box_size * particles.pixel_size_in_angstroms / _PIXEL_SIZE))
    return min(particles.box_size, int(np.clip(wanted, _SMALLEST, _LARGEST)))


def with_box(particles: Particles, box_size: int) -> Particles:
    """The table of the same images with another box and pixel size; the field of view stays."""
    factor = particles.box_size / box_size
    optics = tuple(
        replace(group, box_size=box_size, pixel_size_in_angstroms=group.pixel_size_in_angstroms * factor)
        for group in particles.optics
    )
    return replace(particles, optics=optics, dark=None)  # the copies are white already


def _shrunk(spectra: NDArray[np.complex64], box_size: int) -> NDArray[np.float32]:
    """(n, d, d) images of (n, D, D//2+1) transforms, with the same densities and the centre at pixel d//2.

    The Nyquist frequency of an even box is left out, because only one of a pair exists.
    """
    full = spectra.shape[1]
    cropped = fourier_crop(spectra, box_size)
    if box_size < full:
        move = box_size // 2 - full // 2 * box_size / full  # pixels: where odd boxes meet even ones
        along_y, along_x = (np.exp(-2j * np.pi * move * k(box_size)) for k in (np.fft.fftfreq, np.fft.rfftfreq))
        if box_size % 2 == 0:
            along_y[box_size // 2] = along_x[-1] = 0
        cropped *= np.outer(along_y, along_x).astype(np.complex64)
    images = scipy.fft.irfft2(cropped, s=(box_size, box_size), workers=numba.get_num_threads())
    return images * np.float32((box_size / full) ** 2)


def _signal_shares(block: NDArray[np.float32], window: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) 1 − (variance outside the circle / variance inside), after subtraction of the background."""
    square = np.square(block, dtype=np.float32)
    outside = np.einsum("nyx,yx->n", square, window) / window.sum()
    inside = np.einsum("nyx,yx->n", square, 1 - window) / (1 - window).sum()
    return 1 - outside / np.maximum(inside, np.finfo(np.float32).tiny)


def _blocks(particles: Particles, images: ImageSource, rows: NDArray[np.int64], progress: Progress):
    """Yields the usable images of each block, and the statistics of all of its images."""
    at_once = max(1, _BLOCK_BYTES // (4 * particles.box_size**2))
    window = outside_circle(particles.box_size)
    for first in range(0, len(rows), at_once):
        chosen = rows[first : first + at_once]
        block, usable, reasons = _read(images, chosen)
        mean, deviation, ramp = np.full((3, len(chosen)), np.nan)
        mean[usable] = block.mean(axis=(1, 2), dtype=np.float64)
        deviation[usable] = block.std(axis=(1, 2), dtype=np.float64)
        ramp[usable] = background_slopes(block, window) / np.maximum(deviation[usable], 1e-30)
        yield block, ImageStatistics(chosen, mean, deviation, ramp, tuple(reasons))
        progress(first + len(chosen), len(rows))


def _read(images: ImageSource, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[str]]:
    """The usable images, whether each image is usable, and what is wrong with the others."""
    try:
        return images.read(rows), np.ones(len(rows), dtype=bool), []
    except InputError:
        pass  # one image spoils the block; find out which
    usable, reasons, kept = np.ones(len(rows), dtype=bool), [], []
    for i, row in enumerate(rows):
        try:
            kept.append(images.read([row]))
        except InputError as error:
            usable[i] = False
            reasons.append(str(error).split(";")[0])
    size = images.particles.box_size
    return np.concatenate(kept) if kept else np.empty((0, size, size), np.float32), usable, reasons


def _joined(parts: list[ImageStatistics]) -> ImageStatistics:
    names = ("rows", "mean", "deviation", "ramp")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return ImageStatistics(**arrays, unusable=tuple(line for part in parts for line in part.unusable))
