from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from emsplat.models.gaussians import Gaussians, merge

NAMES = ("centres", "log_scales", "quaternions", "log_masses")


def some_gaussians(n: int, seed: int = 0) -> Gaussians:
    """Lengths in Å, within 20 Å of the centre."""
    rng = torch.Generator().manual_seed(seed)
    return Gaussians(
        (torch.rand(n, 3, generator=rng) - 0.5) * 24,
        torch.log(2 + 2 * torch.rand(n, 3, generator=rng)),
        torch.randn(n, 4, generator=rng),
        torch.randn(n, generator=rng),
    )


def analytic_transform(model: Gaussians, box_size: int, pixel_size: float) -> np.ndarray:
    """(D, D, D//2+1) Σ a exp(−2πi k·μ − 2π² kᵀΣk) in float64, as the transform of density times voxel volume."""
    k = np.fft.fftfreq(box_size, pixel_size)
    kz, ky, kx = np.meshgrid(k, k, np.fft.rfftfreq(box_size, pixel_size), indexing="ij")
    points = np.stack([kx, ky, kz], axis=-1).reshape(-1, 3)
    total = np.zeros(len(points), dtype=complex)
    covariances = model.covariances().double().numpy()
    for centre, covariance, mass in zip(
        model.centres.double().numpy(), covariances, model.masses().double(), strict=True
    ):
        spread = np.einsum("ni,ij,nj->n", points, covariance, points)
        total += mass.item() * np.exp(-2j * np.pi * points @ centre - 2 * np.pi**2 * spread)
    return total.reshape(kx.shape)


@pytest.mark.parametrize("n", [0, 1, 20])
def test_saved_and_loaded_are_the_same(tmp_path: Path, n: int) -> None:
    model = some_gaussians(n)
    model.save(tmp_path / "g.safetensors", seed="7")
    again = Gaussians.load(tmp_path / "g.safetensors")
    for name in NAMES:
        assert torch.equal(getattr(again, name), getattr(model, name))
    with safe_open(tmp_path / "g.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert "Å" in metadata["centres"]
    assert metadata["seed"] == "7"
    assert [p.name for p in tmp_path.iterdir()] == ["g.safetensors"]


def test_what_is_no_gaussians_file_is_refused(tmp_path: Path, refuses: Callable) -> None:
    (tmp_path / "text").write_text("not a safetensors file at all")
    (tmp_path / "empty").write_bytes(b"")
    save_file({"weights": torch.zeros(3)}, tmp_path / "other")
    tensors = {name: getattr(some_gaussians(4), name).clone() for name in NAMES}
    save_file(tensors | {"centres": torch.zeros(3, 3)}, tmp_path / "unequal")
    some_gaussians(50).save(tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    for name in ("text", "empty", "other", "unequal", "cut", "absent"):
        with refuses(str(tmp_path / name), "gaussians.safetensors"):
            Gaussians.load(tmp_path / name)


@pytest.mark.parametrize(("box_size", "pixel_size"), [(40, 2.0), (41, 2.0), (60, 1.0), (25, 2.9)])
def test_density_on_any_grid_is_the_analytic_one(box_size: int, pixel_size: float) -> None:
    """In density units: the same value at the same place, whatever the grid; up to 0.9 of Nyquist."""
    model = some_gaussians(20)
    volume = model.voxelise(box_size, pixel_size)
    assert volume.shape == (box_size,) * 3
    got = np.fft.rfftn(np.fft.ifftshift(volume.astype(np.float64))) * pixel_size**3
    expected = analytic_transform(model, box_size, pixel_size)
    k = np.fft.fftfreq(box_size)
    inside = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + np.fft.rfftfreq(box_size) ** 2) < 0.45
    assert np.linalg.norm((got - expected)[inside]) < 3e-3 * np.linalg.norm(expected[inside])


def test_two_pixel_sizes_share_their_voxels() -> None:
    """Every second voxel of the fine grid is one of the coarse grid."""
    model = some_gaussians(20)
    fine, coarse = model.voxelise(80, 1.0), model.voxelise(40, 2.0)
    assert np.linalg.norm(fine[::2, ::2, ::2] - coarse) < 0.01 * np.linalg.norm(coarse)
    assert fine.sum() == pytest.approx(coarse.sum() * 8, rel=1e-3)
    assert fine.sum() == pytest.approx(model.masses().sum().item(), rel=1e-3)


def test_merging_averages() -> None:
    one, other = some_gaussians(20, seed=1), some_gaussians(13, seed=2)
    merged = merge(one, other)
    assert len(merged) == 33
    mean = 0.5 * (one.voxelise(32, 2.0) + other.voxelise(32, 2.0))
    assert np.linalg.norm(merged.voxelise(32, 2.0) - mean) < 1e-5 * np.linalg.norm(mean)


@pytest.mark.parametrize("columns", [1, 3])
def test_pixels_become_angstroms(columns: int) -> None:
    """σ and place scale with the pixel, the mass with its volume."""
    zero = torch.zeros(1)
    model = Gaussians.from_pixels(
        torch.tensor([[1.0, 2, 3]]), torch.zeros(1, columns), torch.tensor([[1.0, 0, 0, 0]]), zero, 2.5
    )
    assert torch.allclose(model.centres, torch.tensor([[2.5, 5.0, 7.5]]))
    assert torch.allclose(model.covariances()[0], 6.25 * torch.eye(3))
    assert model.masses().item() == pytest.approx(2.5**3, rel=1e-5)
