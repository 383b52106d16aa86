"""Ranks that share the images of a search come to the bits of one process, as does any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numba
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import blobs
import searching_ranks
from emsplat.abinitio.polar import PolarGrid
from emsplat.abinitio.stochastic import StageSettings, StochasticSettings, first_stage
from emsplat.runtime.ranks import World
from processes import PATIENCE
from ranks import TESTS, free_port, step_of_srun


def test_three_ranks_find_what_one_process_finds(tmp_path: Path) -> None:
    searching_ranks.search(World(), tmp_path / "alone.npz")
    port, path = free_port(), os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    line = [sys.executable, str(TESTS / "searching_ranks.py"), str(tmp_path)]
    places = [os.environ | step_of_srun(rank, 3, port) | {"PYTHONPATH": path} for rank in range(3)]
    ranks = [subprocess.Popen(line, env=place) for place in places]
    try:
        assert [rank.wait(PATIENCE) for rank in ranks] == [0, 0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    alone = np.load(tmp_path / "alone.npz")
    assert np.ptp(alone["classes"]) > 0.1
    for rank in range(3):
        found = np.load(tmp_path / f"rank{rank}.npz")
        for name in alone.files:
            np.testing.assert_array_equal(found[name], alone[name], f"{name} of rank {rank}")


def test_images_are_searched_in_the_same_blocks_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, n, rng = PolarGrid.of(6, 0.7), 400, np.random.default_rng(3)
    signal = blobs.signal_power(grid, rng)
    weight = 100 / (2 * np.pi * grid.radii * signal).sum()
    images = blobs.images_of(grid, Rotation.random(n, random_state=rng).as_matrix(), np.zeros((n, 2)), weight, rng)
    stage = StageSettings(blobs.BOX, 0.7, signal, np.eye(3)[None], 3.0, 1.5)
    settings = StochasticSettings(48, 12, 1.0, batch=n, iterations=3)
    found = []
    for number in (1, 4):
        monkeypatch.setattr(numba, "get_num_threads", partial(int, number))
        found.append(first_stage(images, np.zeros((n, 2)), stage, settings, np.random.default_rng(4))[0])
    np.testing.assert_array_equal(*found)
