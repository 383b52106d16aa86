"""A small data set with one thing changed at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.io import StackWriter, Table, write_star

N_IMAGES, BOX_SIZE, PIXEL_SIZE_IN_ANGSTROMS = 6, 8, 1.5

_PARTICLES = {
    "rlnImageName": [f"{i + 1:06d}@stack.mrcs" for i in range(N_IMAGES)],
    "rlnAngleRot": [10.0 * i for i in range(N_IMAGES)],
    "rlnAngleTilt": [20.0 * i for i in range(N_IMAGES)],
    "rlnAnglePsi": [30.0 * i for i in range(N_IMAGES)],
    "rlnDefocusU": [10000.0 + i for i in range(N_IMAGES)],
    "rlnDefocusV": [9000.0 + i for i in range(N_IMAGES)],
    "rlnDefocusAngle": [5.0] * N_IMAGES,
    "rlnOpticsGroup": [1] * N_IMAGES,
    "rlnOriginXAngst": [3.0] * N_IMAGES,
    "rlnOriginYAngst": [-1.5] * N_IMAGES,
}
_OPTICS = {
    "rlnOpticsGroup": [1],
    "rlnOpticsGroupName": ["scope"],
    "rlnVoltage": [300.0],
    "rlnSphericalAberration": [2.7],
    "rlnAmplitudeContrast": [0.1],
    "rlnImagePixelSize": [PIXEL_SIZE_IN_ANGSTROMS],
    "rlnImageSize": [BOX_SIZE],
}

Columns = Mapping[str, list | None]


def as_table(base: Columns, changes: Columns) -> Table:
    """The base columns with some replaced, added, or (None) taken out."""
    merged = {**base, **changes}
    return Table({name: [str(v) for v in values] for name, values in merged.items() if values is not None})


@pytest.fixture(scope="session")
def write_stack() -> Callable[..., NDArray[np.float32]]:
    """Writes noise around k + 1 as image k, so that each is known by its mean; returns the images."""

    def write(path: Path, n: int = N_IMAGES, box_size: int = BOX_SIZE, pixel_size: float = 1.5) -> NDArray[np.float32]:
        noise = np.random.default_rng(0).normal(0, 0.1, (n, box_size, box_size))
        images = (noise + 1 + np.arange(n)[:, None, None]).astype(np.float32)
        with StackWriter(path, box_size, pixel_size) as stack:
            stack.append(images)
        return images

    return write


@pytest.fixture
def dataset(tmp_path: Path, write_stack: Callable) -> Callable[..., Path]:
    """Writes stack.mrcs and a RELION 3.1 star; keyword columns replace, add, or (None) remove."""

    def make(
        optics: Columns | None = None, n: int = N_IMAGES, pixel_size: float = 1.5, **particles: list | None
    ) -> Path:
        write_stack(tmp_path / "stack.mrcs", n, pixel_size=pixel_size)
        path = tmp_path / "particles.star"
        write_star(path, {"optics": as_table(_OPTICS, optics or {}), "particles": as_table(_PARTICLES, particles)})
        return path

    return make


@pytest.fixture
def dataset_30(tmp_path: Path, write_stack: Callable) -> Callable[..., Path]:
    """The same images as a RELION 3.0 star: one block, optics in every row, origins in pixels."""

    def make(block: str = "images", **particles: list | None) -> Path:
        write_stack(tmp_path / "stack.mrcs")
        in_rows: dict[str, list | None] = {
            "rlnVoltage": [300.0] * N_IMAGES,
            "rlnSphericalAberration": [2.7] * N_IMAGES,
            "rlnAmplitudeContrast": [0.1] * N_IMAGES,
            "rlnDetectorPixelSize": [5.0] * N_IMAGES,
            "rlnMagnification": [5e4 / PIXEL_SIZE_IN_ANGSTROMS] * N_IMAGES,
            "rlnOriginX": [2.0] * N_IMAGES,
            "rlnOriginY": [-1.0] * N_IMAGES,
            **dict.fromkeys(("rlnOpticsGroup", "rlnOriginXAngst", "rlnOriginYAngst")),
        }
        path = tmp_path / "particles.star"
        write_star(path, {block: as_table(_PARTICLES, {**in_rows, **particles})})
        return path

    return make
