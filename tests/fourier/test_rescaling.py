"""The same particles at another box and pixel size give the same map: images cropped in Fourier space, shifts in Å that
stay, or in pixels that shrink with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.fourier.maps import fourier_resize, soft_sphere
from emsplat.fourier.slices import fourier_volume
from emsplat.io import ImageSource, StackWriter, Table, read_particles, write_star
from emsplat.simulation.acquisition import star_tables
from emsplat.simulation.run import signal_images
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.validation.correlation import fsc
from phantom import accumulated, imagined_particles, lopsided_map

BOX, PIXEL_SIZE, IMAGES = 48, 4.0, 600


def cropped(images: NDArray[np.float32], box_size: int) -> NDArray[np.float32]:
    """(n, d, d) the frequencies that fit, about the same centre, of (n, D, D)."""
    shift, axes = images.shape[-1] // 2 - box_size // 2, (1, 2)
    spectra = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, axes)), axes)[:, shift:, shift:][
        :, :box_size, :box_size
    ]
    if box_size % 2 == 0:
        spectra[:, 0], spectra[:, :, 0] = 0, 0  # Nyquist's, of which only one of a pair is left
    back = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectra, axes)), axes).real
    return (back * (box_size / images.shape[-1]) ** 2).astype(np.float32)


def in_pixels(tables: dict[str, Table], pixel_size: float, origin_pixel_size: float) -> dict[str, Table]:
    """A RELION 3.0 star of the same: one block, optics in each row, the origins in pixels."""
    columns = {name: tables["particles"].column(name) for name in tables["particles"].columns}
    n = len(tables["particles"])
    for axis in "XY":
        in_angstroms = np.array(columns.pop(f"rlnOrigin{axis}Angst"), dtype=np.float64)
        columns[f"rlnOrigin{axis}"] = [str(v) for v in in_angstroms / origin_pixel_size]
    for name in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"):
        columns[name] = tables["optics"].column(name) * n
    columns["rlnDetectorPixelSize"], columns["rlnMagnification"] = [str(pixel_size)] * n, ["10000"] * n
    del columns["rlnOpticsGroup"]
    return {"": Table(columns)}


@pytest.fixture(scope="module")
def raw_map_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., NDArray[np.float32]]:
    """The raw map from the particles at a box size, their origins written in Å or in pixels."""
    particles = imagined_particles(IMAGES, BOX, PIXEL_SIZE)
    particles = replace(particles, origin_in_angstroms=3 * particles.origin_in_angstroms)  # some 18 Å
    images = signal_images(fourier_volume(lopsided_map(BOX)), particles)

    def get(box_size: int, unit: str, origin_pixel: float | None = None, working_box: int | None = None) -> NDArray:
        folder: Path = tmp_path_factory.mktemp("rescaled")
        pixel_size = PIXEL_SIZE * BOX / box_size
        with StackWriter(folder / "images.mrcs", box_size, pixel_size) as stack:
            stack.append(cropped(images, box_size))
        optics = tuple(replace(g, box_size=box_size, pixel_size_in_angstroms=pixel_size) for g in particles.optics)
        ids = np.array([f"{i + 1:06d}@images.mrcs" for i in range(IMAGES)])
        tables = star_tables(replace(particles, optics=optics, ids=ids))
        tables = in_pixels(tables, pixel_size, origin_pixel or pixel_size) if unit == "px" else tables
        write_star(folder / "images.star", tables)
        found = read_particles(folder / "images.star")
        box = working_box or box_size
        settings = AccumulationSettings(box, box, np.ones((1, box_size // 2 + 1)), np.eye(3)[None])
        with ImageSource(found) as source:
            [statistics] = accumulated(found, source, np.zeros(IMAGES, dtype=np.int8), settings)
        return statistics.raw_map()

    return get


def agreement(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    box_size = len(a)
    return fsc(a, b, soft_sphere(box_size, 0.8 * box_size, 2.0))[1 : box_size // 2 - 1]


@pytest.mark.parametrize("unit", ["Å", "px"])
@pytest.mark.parametrize("box_size", [32, 31])
def test_the_map_is_the_same(raw_map_of: Callable, box_size: int, unit: str) -> None:
    rescaled = raw_map_of(box_size, unit)
    assert agreement(rescaled, raw_map_of(BOX, "Å", working_box=box_size)).min() > 0.9999
    # inverted with all its frequencies, it differs in the last shells, which the missing ones reach into
    inner = agreement(rescaled, fourier_resize(raw_map_of(BOX, "Å"), box_size))[: box_size // 4]
    assert inner.min() > 0.999


def test_origins_left_in_the_old_pixels_are_seen(raw_map_of: Callable) -> None:
    """What the other test would say if shifts did not follow the pixel size."""
    original = raw_map_of(BOX, "Å", working_box=32)
    assert agreement(raw_map_of(32, "px", origin_pixel=PIXEL_SIZE), original).min() < 0.9
