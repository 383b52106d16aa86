from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.conventions import rotation_matrices
from emsplat.fourier.insertion import _TILE, HALO, WIDTH, SliceGrid
from emsplat.fourier.slices import central_slices, fourier_volume
from inserted import EXTREME, direct_sum, filled, magnified, points_and_values, random_slices, within_sphere


@pytest.mark.parametrize(
    ("box_size", "extent", "dtype"),
    [
        *((d, d, np.complex64) for d in (7, 20, 21)),
        *((d, e, np.float32) for d, e in ((6, 12), (20, 20), (20, 40), (21, 42), (25, 8))),
        (24, 8, np.complex64),
    ],
)
@pytest.mark.parametrize("stretch", [1.0, 1.03, 1.2])
def test_insertion_is_the_direct_sum(box_size: int, extent: int, dtype: type, stretch: float) -> None:
    rotations = magnified(rotation_matrices(np.random.default_rng(1).uniform(-180, 180, (6, 3))), stretch)
    slices = random_slices(6, box_size, dtype)
    expected = direct_sum(*points_and_values(slices, rotations), extent, box_size)
    error = filled(extent, slices, rotations).backprojection() - expected
    sphere = within_sphere(extent)
    assert np.abs(error).max() <= 5e-3 * np.abs(expected).max()
    assert np.linalg.norm(error) <= 5e-3 * np.linalg.norm(expected)
    assert np.linalg.norm(error[sphere]) <= 3e-3 * np.linalg.norm(expected[sphere])


@pytest.mark.parametrize("box_size", [20, 21])
def test_views_along_the_axes(box_size: int) -> None:
    """Samples on grid points and at tiles' and kernels' very edges, in step, so that errors add up towards corners."""
    rotations = rotation_matrices(EXTREME)
    slices = random_slices(len(EXTREME), box_size, 2)
    expected = direct_sum(*points_and_values(slices, rotations), box_size, box_size)
    error = filled(box_size, slices, rotations).backprojection() - expected
    sphere = within_sphere(box_size)
    assert np.abs(error[sphere]).max() <= 5e-3 * np.abs(expected[sphere]).max()
    assert np.linalg.norm(error) <= 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("box_size", [20, 21])
def test_insertion_against_finufft(box_size: int, dtype: type) -> None:
    finufft = pytest.importorskip(
        "finufft", reason="NO FINUFFT: insertion unjudged by a foreign program; pip install it"
    )
    rotations = rotation_matrices(np.random.default_rng(2).uniform(-180, 180, (40, 3)))
    slices = random_slices(40, box_size, dtype)
    points, values = points_and_values(slices, rotations)
    x, y, z = np.ascontiguousarray(2 * np.pi / box_size * points.T)
    extent = 2 * (box_size // 2) + 4
    expected = finufft.nufft3d1(z, y, x, values, (extent,) * 3, eps=1e-10, isign=1).real
    error = filled(extent, slices, rotations).backprojection() - expected
    assert np.abs(error).max() <= 5e-3 * np.abs(expected).max()
    assert np.linalg.norm(error) <= 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("box_size", [32, 33])
@pytest.mark.parametrize("stretch", [1.0, 1.2])
def test_insertion_is_the_adjoint_of_slicing(box_size: int, stretch: float) -> None:
    """⟨insert(x), V⟩ = ⟨x, slice(V)⟩ over full planes."""
    rng = np.random.default_rng(3)
    volume = (rng.standard_normal((box_size,) * 3) * within_sphere(box_size)).astype(np.float32)
    rotations = magnified(rotation_matrices(rng.uniform(-180, 180, (10, 3))), stretch)
    x = random_slices(10, box_size, np.complex64)
    # Centred slices: the volume's origin at pixel 0, so no phase.
    sliced = central_slices(fourier_volume(volume), rotations, np.full((10, 2), box_size // 2, dtype=np.float64))
    _, a = points_and_values(x, rotations)
    _, b = points_and_values(sliced, rotations)
    through_volume = np.vdot(filled(box_size, x, rotations).backprojection().astype(np.float64), volume)
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    assert abs(through_volume - np.vdot(a, b).real) < 1e-4 * scale


def test_any_number_of_threads_gives_the_same_grid() -> None:
    rotations = rotation_matrices(np.random.default_rng(4).uniform(-180, 180, (20, 3)))
    slices = random_slices(20, 40, np.complex64)
    before = numba.get_num_threads()
    grids = []
    for threads in (1, before):
        numba.set_num_threads(threads)
        grids.append(filled(40, slices, rotations).values)
    numba.set_num_threads(before)
    assert np.array_equal(*grids)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize(
    ("box_size", "extent"),
    [(d, e) for d in (2, 3, 4, 5, 8, 9, 31, 32) for e in (2, max(2, d // 4), d, 2 * d + d % 2)],
)
def test_no_kernel_leaves_the_stored_grid(box_size: int, extent: int, dtype: type) -> None:
    """Whatever the view, however short the extent: by the positions, and by guard zones around the memory."""
    angles = np.concatenate([EXTREME, np.random.default_rng(5).uniform(-180, 180, (200, 3))])
    rotations = rotation_matrices(angles)
    rotations = np.concatenate([rotations, magnified(rotations), magnified(rotations, 3.0), 1.5 * rotations])
    grid = SliceGrid.empty(extent, box_size, dtype)
    across = grid.period + 2 * HALO
    points, _ = points_and_values(np.zeros((len(rotations), box_size, box_size // 2 + 1)), rotations)
    positions = (points * grid.period / box_size).astype(np.float32)
    for rounding in (-1e-3, 1e-3):
        first = np.ceil(positions + across // 2 + rounding - WIDTH / 2)
        assert first.min() >= 0
        assert first.max() + WIDTH <= across
        plane = np.ceil(positions[:, 2] + HALO + rounding - WIDTH / 2)
        assert plane.max() + WIDTH <= grid.values.shape[0]

    guard = 4 * _TILE * across
    memory = np.zeros(grid.values.size + 2 * guard, dtype=dtype)
    grid.values = memory[guard:-guard].reshape(grid.values.shape)
    grid.insert(random_slices(len(rotations), box_size, dtype) + dtype(100), rotations)
    assert grid.values.any()
    assert not memory[:guard].any()
    assert not memory[-guard:].any()


def test_empty_input_adds_nothing() -> None:
    grid = SliceGrid.empty(12, 12, np.complex64)
    grid.insert(np.zeros((0, 12, 7), dtype=np.complex64), np.zeros((0, 3, 3)))
    assert not grid.backprojection().any()


@pytest.mark.parametrize("bad", [np.full((3, 3), np.nan), np.ones((3, 3)), np.full((3, 3), np.inf)])
def test_what_spans_no_plane_is_refused(bad: NDArray) -> None:
    grid = SliceGrid.empty(12, 12, np.complex64)
    with pytest.raises(ValueError, match="matrices hold"):
        grid.insert(random_slices(1, 12, np.complex64), bad[None])


IN_A_PROCESS = """
import sys
import numpy as np
from emsplat.conventions import rotation_matrices
from emsplat.fourier.insertion import SliceGrid
from inserted import random_slices
for dtype in (np.complex64, np.float32):
    grid = SliceGrid.empty(33, 33, dtype)
    angles = np.random.default_rng(5).uniform(-180, 180, (40, 3))
    grid.insert(random_slices(40, 33, dtype), rotation_matrices(angles))
    np.save(f"{sys.argv[1]}-{np.dtype(dtype)}.npy", grid.values)
"""


def test_a_process_that_compiles_has_the_sums_of_one_that_does_not(tmp_path: Path) -> None:
    """What numba keeps is optimised once more than what it runs at first."""
    path = f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}"
    environ = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": path}
    for name in ("compiles", "loads"):
        subprocess.run([sys.executable, "-c", IN_A_PROCESS, tmp_path / name], env=environ, check=True)
    for dtype in ("complex64", "float32"):
        compiled, loaded = (np.load(tmp_path / f"{name}-{dtype}.npy") for name in ("compiles", "loads"))
        assert np.abs(compiled).max() > 0
        np.testing.assert_array_equal(compiled, loaded)
