"""How near the matrix products of the search come to what the processor can do, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from emsplat.abinitio import grids, search, volume
from emsplat.abinitio.polar import PolarGrid, PolarImages
from emsplat.abinitio.softmax import posterior
from emsplat.runtime.threads import threads

TEXT = """Steps of the search on noise, in processor time of one thread. `first`: 15° grid, 9 rings, 5 shifts, as for
64 images of a batch; `family`: the fine directions of one coarse direction, 7.5°, 14 rings, 9 shifts, for 32 images.
`ms`: per image and grid; `ns`: per pose; `GFlop/s` and `of peak`: products alone, beside a product of two 1,024²
matrices. `select`: the images that keep a family; `whole`: all steps of one E-step and M-step."""
_REPEATS = 8


def product_rows() -> list[dict[str, Any]]:
    """Rows of the table."""
    with threads(1):
        a = torch.randn(1024, 1024)
        peak = 2 * 1024**3 / _seconds(lambda: a @ a)
        rows = _steps("first", 9, 184, 24, 1, 64, peak)
        return rows + _steps("family", 14, 4, 48, 2, 32, peak)


def _seconds(call: Callable[[], Any]) -> float:
    """Shortest processor time of a call."""
    call()
    times = []
    for _ in range(_REPEATS):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def _steps(
    name: str, n_rings: int, n_directions: int, n_turns: int, reach: int, n: int, peak: float
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    grid = PolarGrid.of(n_rings, 0.8)
    shape = (n, n_rings, grid.n_angles)
    signal = 0.1 * (rng.normal(size=shape) + 1j * rng.normal(size=shape))
    images = PolarImages(grid, signal.astype(np.complex64), np.full((n, n_rings), 1e-2, np.float32))
    map_ = 0.01 * rng.normal(size=(volume.map_box(grid),) * 3).astype(np.float32)
    frames = grids.frames(grids.directions(n_directions, grids.random_turn(rng), np.eye(3)[None]))
    turn, offsets = search.turn_matrix(grid.n_orders, n_turns), grids.shift_grid(reach, 1.0)
    slices = search.slices_of(volume.slices(map_, grid, frames), grid)
    moved = search.shifted(images, np.zeros((n, 2)), offsets, 64)
    log_prior = np.zeros(len(offsets), np.float32)
    scores = search.scores_of(slices, moved, turn, reuse=True)
    poses = n_turns * len(frames) * len(offsets)
    rings = 4 * 2 * grid.n_orders * len(frames) * n_rings * len(offsets) * n  # 4 real products of complex values
    turns = 4 * n_turns * grid.n_orders * len(frames) * len(offsets) * n
    everything = np.arange(n)
    normalisation = np.ones(n, np.float32)
    steps: dict[str, tuple[Callable[[], Any], float]] = {
        "shift": (lambda: search.shifted(images, np.zeros((n, 2)), offsets, 64), 0),
        "select": (lambda: moved.select(everything), 0),
        "scores": (lambda: search.scores_of(slices, moved, turn, reuse=True), rings + turns),
        "softmax": (lambda: posterior(scores.numpy(), search.penalty_of(slices, moved), log_prior, 1.0), 0),
        "M-step": (lambda: search.m_step(scores, moved, normalisation, turn, grid), rings + turns),
    }
    rows = []
    for step, (call, flops) in steps.items():
        seconds = _seconds(call)
        rows.append(_row(name, step, seconds, n, poses, flops, peak))
    whole = sum(row["ms"] for row in rows) * n / 1e3
    return [*rows, _row(name, "whole", whole, n, poses, 2 * (rings + turns), peak)]


def _row(name: str, step: str, seconds: float, n: int, poses: int, flops: float, peak: float) -> dict[str, Any]:
    return {
        "grid": name,
        "step": step,
        "ms": 1e3 * seconds / n,
        "ns": 1e9 * seconds / (n * poses),
        "GFlop/s": flops / seconds / 1e9 if flops else None,
        "of peak": flops / seconds / peak if flops else None,
    }
