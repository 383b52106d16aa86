"""Ranks that share the images of a search come to the bits of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import searching_ranks
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
