"""Gaussians as a splat file: read again as viewers read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from emsplat.export.ply import write_ply

# What viewers ask for; source: https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/ply
EXPECTED = {
    *("x", "y", "z", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    *("opacity", "f_dc_0", "f_dc_1", "f_dc_2"),
}


def read_ply(path: Path) -> NDArray:
    """(K,) records of a binary little-endian .ply with one element, all of whose properties are float."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    words = [line.split() for line in lines[2:] if not line.startswith("comment")]
    assert words[0][:2] == ["element", "vertex"]
    assert all(word[:2] == ["property", "float"] for word in words[1:])
    records = np.frombuffer(body, [(word[2], "<f4") for word in words[1:]])
    assert len(records) == int(words[0][2])
    return records


def stacked(records: NDArray, *names: str) -> NDArray[np.float64]:
    return np.stack([records[name] for name in names], axis=1).astype(np.float64)


@pytest.fixture
def written(some_gaussians: Callable, tmp_path: Path) -> tuple:
    gaussians = some_gaussians(500)
    write_ply(tmp_path / "model.ply", gaussians)
    return gaussians, read_ply(tmp_path / "model.ply")


def test_geometry_survives(written: tuple) -> None:
    gaussians, records = written
    assert set(records.dtype.names) >= EXPECTED
    assert np.array_equal(stacked(records, "x", "y", "z"), gaussians.centres.double().numpy())
    quaternions = stacked(records, "rot_0", "rot_1", "rot_2", "rot_3")
    assert np.allclose(np.linalg.norm(quaternions, axis=1), 1, atol=1e-6)
    axes = Rotation.from_quat(quaternions, scalar_first=True).as_matrix()
    variances = np.exp(2 * stacked(records, "scale_0", "scale_1", "scale_2"))
    covariances = np.einsum("kij,kj,klj->kil", axes, variances, axes)
    assert np.allclose(covariances, gaussians.covariances().double().numpy(), atol=1e-4)


def test_dense_gaussians_are_opaque_and_light(written: tuple) -> None:
    gaussians, records = written
    opacity = 1 / (1 + np.exp(-records["opacity"].astype(np.float64)))
    assert 0.009 < opacity.min() < 0.2 < 0.8 < opacity.max() < 0.991
    mass = gaussians.masses().double().numpy()
    sigma = np.exp(gaussians.log_scales.double().numpy()).prod(axis=1) ** (1 / 3)
    column, density = mass / sigma**2, mass / sigma**3
    assert np.array_equal(np.argsort(opacity[opacity < 0.98]), np.argsort(column[opacity < 0.98]))
    colours = 0.5 + stacked(records, "f_dc_0", "f_dc_1", "f_dc_2") * 0.28209479177387814
    assert -1e-6 < colours.min() < colours.max() < 1 + 1e-6
    lightness = colours @ (0.2126, 0.7152, 0.0722)
    assert (
        lightness[density > np.quantile(density, 0.9)].min() > 2 * lightness[density < np.quantile(density, 0.2)].max()
    )


def test_one_gaussian_will_do(some_gaussians: Callable, tmp_path: Path) -> None:
    write_ply(tmp_path / "one.ply", some_gaussians(1))
    assert np.isfinite(stacked(read_ply(tmp_path / "one.ply"), *EXPECTED)).all()
