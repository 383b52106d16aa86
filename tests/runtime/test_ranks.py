"""The main job on several ranks makes the map that one process makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import many_ranks
from emsplat.io import read_map
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.runtime.ranks import World
from emsplat.validation.correlation import fsc
from processes import PATIENCE
from ranks import FEW, FEW_AS_OPTIONS, TESTS, arguments, assert_same_maps, free_port, step_of_srun


def test_four_ranks_make_what_one_makes(images_for_ranks: Path, tmp_path: Path) -> None:
    """To the last bit, by the statistics, the refinement, the images and soft parts, with more or fewer threads."""
    port, folders = free_port(), [tmp_path / name for name in ("four", "one")]
    for folder in folders:
        folder.mkdir()
    line = [sys.executable, TESTS / "many_ranks.py", images_for_ranks / "particles.star", folders[0]]
    path = f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"
    ranks = [
        subprocess.Popen(line, env=os.environ | step_of_srun(rank, 4, port) | {"PYTHONPATH": path}) for rank in range(4)
    ]
    many_ranks.make(images_for_ranks / "particles.star", folders[1], World(), threads=2)
    assert [rank.wait(PATIENCE) for rank in ranks] == [0] * 4
    for name in (*many_ranks.JOBS, many_ranks.PARTS):
        four, one = (np.load(folder / f"{name}.npz") for folder in folders)
        for entry in one:
            if entry == "changes":  # float64, by LAPACK, whose last digits depend on where in memory a matrix lies
                np.testing.assert_allclose(four[entry], one[entry], rtol=0, atol=1e-12)
            else:
                np.testing.assert_array_equal(four[entry], one[entry], f"{name}: {entry}")


def test_the_script_for_slurm_starts_one_job(images_for_ranks: Path, tmp_path: Path) -> None:
    script = TESTS.parent / "docs" / "cluster.sh"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").symlink_to(TESTS / "fake_srun.py")
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", script, images_for_ranks / "particles.star", tmp_path / "run", *map(str, FEW_AS_OPTIONS)]
    alone = reconstruct(images_for_ranks / "particles.star", FEW)
    ended = subprocess.run(command, env=os.environ | {"PATH": path, "FAKE_TASKS": "2"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("resolution  ") == 1  # one rank speaks
    assert "2 ranks on" in ended.stdout
    assert_same_maps(tmp_path / "run", alone)
    assert subprocess.run(["bash", script], capture_output=True).returncode == 2


def test_six_ranks_by_torchrun_make_about_the_same(images_for_ranks: Path, tmp_path: Path) -> None:
    """Six ranks share the images: sums are rounded differently, which the fit magnifies as it does another seed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "6", "-m", "emsplat"]
    ended = subprocess.run(
        [*command, *arguments(images_for_ranks, tmp_path / "run")], capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode == 0, ended.stderr
    assert "6 ranks on" in ended.stdout
    alone = reconstruct(images_for_ranks / "particles.star", FEW)
    for number, half in enumerate(alone.halves, 1):
        raw = read_map(tmp_path / "run" / f"raw_half{number}.mrc").values
        assert np.linalg.norm(raw - half.raw) < 1e-5 * np.linalg.norm(half.raw)
    made = read_map(tmp_path / "run" / "map.mrc").values
    measurable = slice(alone.validation.limit_shell)
    assert alone.validation.limit_shell > 4
    assert fsc(made, alone.map, np.ones_like(made))[measurable].min() > 0.95  # steps and splits may fall otherwise
