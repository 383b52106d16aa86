"""A reconstruction that is ended at any stage, and gone on with, comes to the same as one that is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emsplat.cli import main
from emsplat.io import read_map
from emsplat.reconstruction.reconstruct import Reconstruction, reconstruct
from emsplat.runtime.checkpoint import Checkpoints
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings
from emsplat.simulation import SimulationSettings, bundled_model, simulate
from ended import ended_after
from processes import PATIENCE
from small_work import always, command_works, small_work

TESTS = Path(__file__).parents[1]
FEW = ReconstructSettings(n_gaussians=100, max_resolution=14.0, mask_diameter=140.0, seed=3, threads=2)
SMALL = small_work(accumulated=50, refined=40)


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = SimulationSettings(n_images=200, box_size=32, pixel_size_in_angstroms=5.0, snr=0.2, seed=1)
    return simulate(bundled_model(), tmp_path_factory.mktemp("images"), settings, overwrite=True)


def equal(one: Reconstruction, other: Reconstruction) -> None:
    np.testing.assert_array_equal(one.map, other.map)
    for name in ("centres", "log_scales", "quaternions", "log_masses"):
        np.testing.assert_array_equal(getattr(one.gaussians, name).numpy(), getattr(other.gaussians, name).numpy())
    for half, other_half in zip(one.halves, other.halves, strict=True):
        np.testing.assert_array_equal(half.raw, other_half.raw)
        assert half.histories == other_half.histories
    np.testing.assert_array_equal(one.validation.c_map, other.validation.c_map)
    assert (one.refinement is None) == (other.refinement is None)
    if one.refinement and other.refinement:
        np.testing.assert_array_equal(one.refinement.changes, other.refinement.changes)
        assert one.refinement.gains == other.refinement.gains


# By what states it is ended, one after the other: how many of which have been written since it was gone on with.
ENDS = {
    "statistics": (
        replace(FEW, threads=1),  # the halves are fitted one after the other
        [(1, "pass"), (2, "pass"), (1, "statistics1"), (5, "fit1-1"), (1, "fit1-2"), (1, "half1"), (20, "fit2-2")],
    ),
    "images": (
        replace(FEW, solver="images"),
        [(2, "pass"), (1, "statistics2"), (1, "fit1-1"), (2, "fit1-1"), (1, "half1"), (3, "fit2-1"), (1, "half2")],
    ),
    "refined": (
        replace(FEW, refine="poses,shifts", n_fits=1),
        [
            (2, "refinement"),
            (3, "refinement"),
            (3, "pass"),
            (3, "fit1-1"),
            (1, "half2"),
            (1, "refinement"),
            (2, "pass"),
        ],
    ),
}


@pytest.mark.parametrize("kind", ENDS)
def test_the_same_as_if_never_ended(kind: str, star: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, ends = ENDS[kind]
    whole = reconstruct(star, settings, tuning=SMALL)
    logs: list[str] = []

    def run() -> Reconstruction:
        reporter = Reporter()
        checkpoints = Checkpoints(tmp_path / "checkpoints", True, reporter=reporter, pace=always())
        try:
            return reconstruct(star, settings, reporter, checkpoints, tuning=SMALL)
        finally:
            logs.append("\n".join(reporter.log))
            assert not [text for text in reporter.warnings if "checkpoint" in text]

    for number, name in ends:
        ended_after(number, name, monkeypatch, run)
        assert not list((tmp_path / "checkpoints").glob(".*"))
    equal(run(), whole)
    for (_, name), log in zip(ends, logs[1:], strict=True):
        assert f"resuming from {name}" in log, name


def test_ended_by_a_rule_of_the_command(
    star: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is there is neither replaced nor gone on with by mistake, and does not stay when all is done."""
    output = tmp_path / "run"
    command = ["reconstruct", str(star), "-o", str(output), "--n-gaussians", "100", "--max-resolution", "14"]

    def run(*options: str) -> int:
        with command_works(SMALL):
            return main([*command, *options])

    def said(code: int, *options: str) -> str:
        assert run(*options) == code
        out, err = capsys.readouterr()
        assert (err.count("\n"), err.startswith("emsplat: ")) == ((0, False) if code == 0 else (1, True))
        return out + err

    ended_after(2, "pass", monkeypatch, lambda: run("--resume"))
    assert "starts at its beginning" in capsys.readouterr().out
    assert "continue with --resume, or replace it with --overwrite" in said(2)
    assert "isotropic False there, True here" in said(2, "--resume", "--isotropic")
    assert "resuming from pass" in said(0, "--resume")
    assert "complete, nothing is left to do" in said(0, "--resume")
    assert "holds a run already" in said(2, "--resume", "--isotropic")
    assert not [path.name for path in output.iterdir() if path.name.startswith(".") or path.name == "checkpoints"]


def test_a_full_disk_does_not_end_a_run(star: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States that cannot be written are told of once; what was written before stays of use."""
    reporter = Reporter()
    checkpoints = Checkpoints(tmp_path / "checkpoints", reporter=reporter, pace=always())
    fsync, calls = os.fsync, [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > 6:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    settings = replace(FEW, n_fits=1)
    result = reconstruct(star, settings, reporter, checkpoints, tuning=SMALL)
    monkeypatch.undo()
    [told] = [text for text in reporter.warnings if "disk" in text]
    assert "continues without" in told
    assert [path.name.split("-")[0] for path in tmp_path.glob("checkpoints/*") if "before" not in path.name] == ["pass"]
    assert not list(tmp_path.glob("checkpoints/.*"))
    resumed = Checkpoints(tmp_path / "checkpoints", True, reporter=Reporter())
    equal(reconstruct(star, settings, Reporter(), resumed, tuning=SMALL), result)


# A process of its own, that is killed when so many states have been written.
PROGRAM = """
import os, signal, sys
from emsplat.cli import main
from small_work import command_works, small_work
replace, left = os.replace, {left}
def killed(*paths):
    global left
    left -= "checkpoints" in str(paths[1])
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = killed
with command_works(small_work(accumulated=50, refined=40)):
    sys.exit(main())
"""


def test_killed_processes_leave_no_trace(star: Path, tmp_path: Path) -> None:
    """In the middle of writing a state of the pass, and of a fit; the rest is done without a kill."""
    whole, output = reconstruct(star, replace(FEW, n_fits=1), tuning=SMALL).map, tmp_path / "run"
    command = ["reconstruct", str(star), "-o", str(output), "--resume", "--n-gaussians", "100", "--threads", "2"]
    command += ["--max-resolution", "14", "--mask-diameter", "140", "--seed", "3", "--n-fits", "1"]
    for left, code in ((4, -signal.SIGKILL), (30, -signal.SIGKILL), (-1, 0)):
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(left=left), *command],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert (process.returncode, process.stderr) == (code, ""), process.stderr
    assert "resuming from fit1-1" in process.stdout
    np.testing.assert_array_equal(read_map(output / "map.mrc").values, whole)
    assert not [path.name for path in output.iterdir() if path.name.startswith(".") or path.name == "checkpoints"]
