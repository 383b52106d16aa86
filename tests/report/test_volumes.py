"""Maps made small: the right voxels, the right values."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from emsplat.report import volumes
from emsplat.report.volumes import Window


def waves(shape: tuple[int, int, int], edge_in_voxels: int, frequencies: tuple[int, int, int]) -> np.ndarray:
    """A cosine of whole periods in the edge, sampled on any grid of that edge."""
    z, y, x = (np.arange(n) / n for n in shape)
    kz, ky, kx = frequencies
    phase = kz * z[:, None, None] + ky * y[:, None] + kx * x
    return (2 + np.cos(2 * np.pi * phase + 0.3)).astype(np.float32)


@pytest.mark.parametrize("new", [(24, 24, 24), (40, 33, 21), (15, 15, 15)])
@pytest.mark.parametrize("old", [24, 25])
def test_resampling_keeps_what_both_grids_hold(old: int, new: tuple[int, int, int]) -> None:
    frequencies = (3, -4, 5)
    expected = waves(new, old, frequencies)
    assert np.allclose(volumes.resampled(waves((old,) * 3, old, frequencies), new), expected, atol=1e-4)


def test_what_a_coarser_grid_cannot_hold_is_gone() -> None:
    found = volumes.resampled(waves((32, 32, 32), 32, (0, 0, 11)), (16, 16, 16))
    assert np.allclose(found, 2, atol=1e-4)


@pytest.mark.parametrize("box_size", [40, 41])
def test_the_window_holds_the_mask(box_size: int) -> None:
    mask = np.zeros((box_size,) * 3, dtype=np.float32)
    mask[12:25, 18:30, 15:20] = 0.2
    window = volumes.window_about(mask, 2.5)
    assert mask[window.cut].sum() == mask.sum()
    assert window.first + window.edge // 2 == box_size // 2  # the origin is in its middle
    assert window.edge < box_size
    assert volumes.window_about(np.zeros_like(mask), 2.5).edge >= box_size - 1


def test_samples_and_picked_voxels_lie_at_the_same_places() -> None:
    box_size = 96
    z, y, x = np.meshgrid(*3 * [np.arange(box_size, dtype=np.float32)], indexing="ij")
    smooth = np.exp(-((x - 50) ** 2 + (y - 44) ** 2 + (z - 47) ** 2) / 200).astype(np.float32)
    window = Window(0, 96, 96, 1.5)
    picked = window.nearest(smooth)
    assert window.coarse_n == 48
    assert np.allclose(window.coarse(smooth), picked, atol=2e-3)
    assert picked[20, 18, 21] == smooth[40, 36, 42]
    inner = Window(8, 80, 40, 1.5)
    assert inner.voxel_in_angstroms == 3.0
    assert np.allclose(inner.sample(smooth), smooth[8:88:2, 8:88:2, 8:88:2], atol=2e-3)


def test_what_is_packed_can_be_unpacked() -> None:
    volume = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    packed = volumes.packed(volume, -2.0, 2.0)
    values = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), dtype=np.uint8).reshape(
        3 * (packed["n"],)
    )
    assert np.max(np.abs(-2 + values * (4 / 255) - np.clip(volume, -2, 2))) <= 2 / 255 + 1e-6


def test_the_first_level_parts_particle_from_solvent() -> None:
    rng = np.random.default_rng(1)
    volume = rng.normal(0, 0.1, (32, 32, 32)).astype(np.float32)
    volume[10:20, 10:20, 10:20] += 1
    mask = np.zeros_like(volume)
    mask[7:23, 7:23, 7:23] = 1
    assert 0.3 < volumes.surface_level(volume, mask) < 0.7
    assert np.isfinite(volumes.surface_level(volume, np.zeros_like(mask)))


def test_agreement_is_that_of_the_neighbourhood() -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.normal(size=(32, 32, 32)).astype(np.float32) for _ in range(2))
    b[:, :, :12] = a[:, :, :12]  # equal on one side, nothing in common on the other
    agreement = volumes.local_agreement(a, b, 2.0)
    assert agreement[:, :, :6].min() > 0.98
    assert abs(agreement[:, :, 20:].mean()) < 0.03
    assert np.allclose(volumes.local_agreement(a, -2 * a, 2.0), -1, atol=1e-4)


def test_what_is_not_known_is_taken_from_the_nearest_that_is() -> None:
    values = np.zeros((5, 5, 5), dtype=np.float32)
    known = np.zeros(values.shape, dtype=bool)
    values[2, 2, 0], values[2, 2, 4] = 3, 7
    known[2, 2, 0] = known[2, 2, 4] = True
    spread = volumes.spread_outwards(values, known)
    assert spread[2, 2].tolist()[:2] == [3, 3]
    assert spread[2, 2].tolist()[3:] == [7, 7]
    assert spread[0, 0, 0] == 3
    assert np.array_equal(volumes.spread_outwards(values, np.zeros_like(known)), values)
