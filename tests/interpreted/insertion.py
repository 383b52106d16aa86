"""The insertion kernel, on a card or by Triton's interpreter, against the processor's and against direct sums.

``tests/statistics/test_accumulate_gpu.py`` runs this file in a process of its own, because TRITON_INTERPRET must be set
before Triton is imported.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from emsplat.conventions import rotation_matrices
from emsplat.fourier import insertion_gpu
from emsplat.fourier.insertion_gpu import DeviceGrids, Views
from emsplat.runtime import trial_gpu
from inserted import EXTREME, direct_sum, filled, magnified, points_and_values, random_slices, within_sphere

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda", 0)


@pytest.fixture(autouse=INTERPRETED)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes its time for each program of a kernel, whatever the program does: let there be few."""
    monkeypatch.setattr(insertion_gpu, "_VALUES", 1 << 12)


def test_a_first_kernel() -> None:
    trial_gpu.run(DEVICE)


def views(matrices: NDArray, box_size: int) -> Views:
    return Views(*(torch.from_numpy(array).to(DEVICE) for array in Views.arrays(matrices, box_size)))


def device_grids(n_sets: int, extent: int, slices: NDArray, matrices: NDArray, sets: NDArray) -> DeviceGrids:
    box_size, dtype = slices.shape[1], torch.from_numpy(slices[:0]).dtype
    grids = DeviceGrids.empty(n_sets, extent, box_size, dtype, DEVICE)
    what = torch.from_numpy(slices).to(DEVICE), views(matrices, box_size)
    grids.insert(*what, torch.from_numpy(sets.astype(np.int32)).to(DEVICE))
    return grids


def relative(got: NDArray, expected: NDArray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("box_size", "extent", "dtype"),
    [(7, 7, np.complex64), (20, 20, np.complex64), (21, 42, np.float32), (20, 32, np.float32), (24, 8, np.complex64)],
)
@pytest.mark.parametrize("stretch", [1.0, 1.2])
def test_the_grid_is_that_of_the_processor_and_the_sum_the_direct_one(
    box_size: int, extent: int, dtype: type, stretch: float
) -> None:
    """Of every set; the middle one gets no slice."""
    matrices = magnified(rotation_matrices(np.random.default_rng(1).uniform(-180, 180, (5, 3))), stretch)
    slices, sets = random_slices(5, box_size, dtype), np.array([2, 0, 0, 2, 2])
    grids = device_grids(3, extent, slices, matrices, sets)
    assert not grids.values[1].any()
    for number in (0, 2):
        mine = sets == number
        expected = filled(extent, slices[mine], matrices[mine])
        assert relative(grids.values[number].cpu().numpy(), expected.values) < 1e-5
        volume = grids.of(number).backprojection()
        assert relative(volume, expected.backprojection()) < 1e-5
        direct = direct_sum(*points_and_values(slices[mine], matrices[mine]), extent, box_size)
        assert relative(volume, direct) < 5e-3


@pytest.mark.parametrize("box_size", [16, 17])
def test_views_along_the_axes(box_size: int) -> None:
    """Slices within the plane z = 0, where both k and −k are stored, and samples on grid points."""
    rotations = rotation_matrices(EXTREME[::3])
    slices = random_slices(len(rotations), box_size, np.complex64, 2)
    expected = direct_sum(*points_and_values(slices, rotations), box_size, box_size)
    error = device_grids(1, box_size, slices, rotations, np.zeros(len(rotations))).of(0).backprojection() - expected
    sphere = within_sphere(box_size)
    assert np.abs(error[sphere]).max() <= 5e-3 * np.abs(expected[sphere]).max()
    assert np.linalg.norm(error) <= 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(("box_size", "extent", "dtype"), [(9, 18, torch.float32), (8, 3, torch.complex64)])
def test_no_kernel_leaves_the_stored_grid(box_size: int, extent: int, dtype: torch.dtype) -> None:
    """By guard zones around the memory."""
    rotations = rotation_matrices(np.concatenate([EXTREME[::5], np.random.default_rng(5).uniform(-180, 180, (4, 3))]))
    matrices = np.concatenate([rotations, magnified(rotations, 3.0), 1.5 * rotations])
    grids = DeviceGrids.empty(1, extent, box_size, dtype, DEVICE)
    guard = 8 * grids.values.shape[2] ** 2
    memory = torch.zeros(grids.values.numel() + 2 * guard, dtype=dtype, device=DEVICE)
    grids.values = memory[guard:-guard].view(grids.values.shape)
    ones = torch.ones(len(matrices), box_size, box_size // 2 + 1, dtype=dtype, device=DEVICE)
    grids.insert(ones, views(matrices, box_size), torch.zeros(len(matrices), dtype=torch.int32, device=DEVICE))
    assert grids.values.any()
    assert not memory[:guard].any()
    assert not memory[-guard:].any()


def test_no_slice_adds_nothing_and_slices_beyond_a_launch_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    rotations = rotation_matrices(np.random.default_rng(6).uniform(-180, 180, (5, 3)))
    slices = random_slices(5, 12, np.float32)
    assert not device_grids(1, 12, slices[:0], rotations[:0], np.zeros(0)).values.any()
    whole = device_grids(1, 12, slices, rotations, np.zeros(5)).values.cpu().numpy()
    monkeypatch.setattr(insertion_gpu, "_MOST_SLICES", 2)
    parts = device_grids(1, 12, slices, rotations, np.zeros(5)).values.cpu().numpy()
    assert relative(parts, whole) < 1e-6


def test_slices_that_the_kernel_would_read_wrong_are_refused() -> None:
    rotations = rotation_matrices(np.zeros((2, 3)))
    grids, sets = DeviceGrids.empty(1, 8, 8, torch.float32, DEVICE), torch.zeros(2, dtype=torch.int32, device=DEVICE)
    slices = torch.ones(2, 8, 5, device=DEVICE)
    for wrong in (slices.double(), slices.to(torch.complex64), torch.ones(2, 5, 8, device=DEVICE).transpose(1, 2)):
        with pytest.raises(ValueError, match="must be contiguous"):
            grids.insert(wrong, views(rotations, 8), sets)
    assert not grids.values.any()


@pytest.mark.parametrize("at_once", [1, 3000])
def test_the_planes_are_finished_in_any_number_of_parts(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rotations = rotation_matrices(np.random.default_rng(7).uniform(-180, 180, (4, 3)))
    grids = device_grids(1, 13, random_slices(4, 12, np.complex64), rotations, np.zeros(4))
    whole = grids.of(0).backprojection()
    monkeypatch.setattr(insertion_gpu, "_AT_ONCE_BYTES", at_once)
    assert relative(grids.of(0).backprojection(), whole) < 1e-6
