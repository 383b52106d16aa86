"""Jobs of several ranks on this machine: how they are started, what they say when they end, and their maps."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from emsplat.io import read_map
from emsplat.reconstruction.reconstruct import Reconstruction
from emsplat.settings import ReconstructSettings
from hurried_rank import ACCUMULATING
from processes import PATIENCE

TESTS = Path(__file__).parent
FEW = ReconstructSettings(n_gaussians=60, n_fits=1, max_resolution=14.0, threads=1, seed=3)
FEW_AS_OPTIONS = ("--n-gaussians", 60, "--n-fits", 1, "--max-resolution", 14, "--threads", 1, "--seed", 3)
Command = Sequence[object]


def arguments(images: Path, output: Path, *options: object) -> list[str]:
    """Of ``emsplat``, for the settings `FEW`."""
    return [str(a) for a in ("reconstruct", images / "particles.star", "-o", output, *FEW_AS_OPTIONS, *options)]


def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def step_of_srun(rank: int, size: int, port: int) -> dict[str, str]:
    """What srun puts into the environment of a rank."""
    return {
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_PROCID": str(rank),
        "SLURM_JOB_ID": "1",
        "MASTER_PORT": str(port),
        "TORCH_CPP_LOG_LEVEL": "FATAL",  # as `joined` sets it before torch is loaded, which is too late here
    }


def start(
    commands: Sequence[Command],
    *,
    dwell: bool = False,
    other_scipy: Sequence[int] = (),
    on_its_host: Callable[[int, Command], list[str]] | None = None,
    **environment: str,
) -> list[subprocess.Popen]:
    """Start a job with a `hurried_rank` for every command.

    Args:
        dwell: whether all ranks stay in the accumulation after their first block.
        other_scipy: ranks that have another version of SciPy.
        on_its_host: makes the command of a rank one that runs on the host of that number.
        environment: variables beside those of srun.
    """
    port, ranks = free_port(), []
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    for rank, command in enumerate(commands):
        options = ["--dwell"] * dwell + ["--other-scipy"] * (rank in other_scipy)
        line: Command = [sys.executable, TESTS / "hurried_rank.py", *options, *command]
        place = step_of_srun(rank, len(commands), port) | {"PYTHONPATH": path} | environment
        ranks.append(
            subprocess.Popen(
                [str(word) for word in (on_its_host(rank, line) if on_its_host else line)],
                env=os.environ | place,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return ranks


def ends(ranks: Sequence[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Exit codes, and all lines of their standard errors; those that do not end by themselves are killed."""
    until = time.monotonic() + PATIENCE
    try:
        said = [rank.communicate(timeout=max(1.0, until - time.monotonic()))[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], "".join(said).splitlines()


def wait_until_all_accumulate(ranks: Sequence[subprocess.Popen]) -> None:
    """Return when ranks that dwell have added their first block, and have told the others which stage they are in."""
    for rank in ranks:
        assert rank.stdout is not None
        while (line := rank.stdout.readline()) != f"{ACCUMULATING}\n":
            assert line, ends(ranks)
    time.sleep(1.0)  # the stage is told with the next pulse


def assert_same_maps(run: Path, alone: Reconstruction) -> None:
    """The run folder has the maps that one process made, to the last bit."""
    expected = {"map": alone.map}
    for number, (half, combined) in enumerate(zip(alone.halves, alone.half_maps, strict=True), 1):
        expected |= {f"raw_half{number}": half.raw, f"map_half{number}": combined}
    for name, values in expected.items():
        np.testing.assert_array_equal(read_map(run / f"{name}.mrc").values, values, name)
