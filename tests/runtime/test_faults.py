"""The main job when something goes wrong around it: an older run stays, nothing half written, and the next run tells.

More faults, at every moment, are tried by ``benchmarks/faults.py``.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from emsplat.cli import main
from emsplat.io.mrc import write_map
from emsplat.reconstruction import reconstruct as reconstruction
from emsplat.reconstruction import solution
from emsplat.simulation import SimulationSettings, bundled_model, simulate
from processes import PATIENCE

N, BOX = 24, 32
OLD = {"map.mrc": b"old", "summary.json": b"{}", "notes.txt": b"mine"}

# The command, with something done as a stage begins.
PROGRAM = """
import os, signal, sys, time
{first}
import emsplat.runtime.console as console
stage = console.ConsoleReporter.stage
def begun(self, name):
    if name == {at!r}:
        {what}
    return stage(self, name)
console.ConsoleReporter.stage = begun
from emsplat.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = SimulationSettings(n_images=N, box_size=BOX, pixel_size_in_angstroms=5.0, snr=1.0)
    return simulate(bundled_model(), tmp_path_factory.mktemp("images"), settings, overwrite=True).parent


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder with an older run, or what stands for it, and a file of the user's."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name, content in OLD.items():
        (folder / name).write_bytes(content)
    return folder


def arguments(images: Path, output: Path) -> list[str]:
    options = ("--n-gaussians", 50, "--max-resolution", 12, "--threads", 1, "--overwrite")
    return [str(a) for a in ("reconstruct", images / "particles.star", "-o", output, *options)]


def start(
    images: Path, output: Path, at: str = "", what: str = "pass", first: str = "pass", **options: Any
) -> subprocess.Popen:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    command = [sys.executable, "-c", PROGRAM.format(at=at, what=what, first=first), *arguments(images, output)]
    return subprocess.Popen(command, text=True, **streams)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def is_one_line(text: str) -> bool:
    return text.startswith("emsplat: ") and text.count("\n") == 1


def test_killed_and_run_again(images: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = start(images, output, "figures", "os.kill(os.getpid(), signal.SIGKILL)")
    assert process.wait(PATIENCE) == -signal.SIGKILL
    left = {name: content for name, content in contents(output).items() if not name.startswith(".")}
    assert left == OLD
    assert main(arguments(images, output)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"warning: {output}: an earlier run was killed here (process {process.pid} on" in out
    assert f"warning: {output}: the half-written files of a killed run were removed" in out
    files = contents(output)
    assert not [name for name in files if name.startswith(".")]
    assert files["notes.txt"] == b"mine"
    assert b"an earlier run was killed here" in files["run.log"]
    assert b"an earlier run was killed here" in files["summary.json"]
    assert files["map.mrc"] != b"old"


def test_two_runs_at_once(images: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = start(images, output, "preview", "print('here', flush=True); time.sleep(60)")
    assert first.stdout is not None
    while (line := first.stdout.readline()) != "here\n":
        assert line, first.communicate()[1]
    assert main(arguments(images, output)) == 2
    err = capsys.readouterr().err
    assert is_one_line(err)
    assert f"{output}: another run is writing to it (process {first.pid} on" in err
    first.terminate()
    first.communicate(timeout=PATIENCE)
    assert first.returncode == 130
    assert contents(output) == OLD


def truncated(stack: Path) -> None:
    os.truncate(stack, 20_000)


def exchanged(stack: Path) -> None:
    write_map(stack, np.random.default_rng(0).normal(size=(N, 24, 24)), 5.0)


def removed(stack: Path) -> None:
    stack.unlink()


@pytest.mark.parametrize(("where", "at"), [(reconstruction, "look_at_sample"), (solution, "accumulate_shared")])
@pytest.mark.parametrize("change", [truncated, exchanged, removed])
def test_images_that_change_while_they_are_read(
    where: ModuleType,
    at: str,
    change: Callable[[Path], None],
    images: Path,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = output.parent / "images"
    folder.mkdir()
    for name in ("particles.star", "particles.mrcs"):
        (folder / name).write_bytes((images / name).read_bytes())
    step = getattr(where, at)

    def changed(*given: Any) -> Any:
        change(folder / "particles.mrcs")
        return step(*given)

    monkeypatch.setattr(where, at, changed)
    code = main(arguments(folder, output))
    if code == 0:  # the open file is still the old one
        assert change is not truncated
        assert at == "accumulate_shared"
        return
    err = capsys.readouterr().err
    assert code == 2
    assert is_one_line(err)
    assert str(folder / "particles.mrcs") in err
    assert contents(output) == OLD


@pytest.mark.parametrize(
    ("prepare", "code", "said"),
    [
        (lambda: (os.close(1), os.close(2)), 0, ""),
        (lambda: resource.setrlimit(resource.RLIMIT_AS, (400_000_000,) * 2), 1, "out of memory"),
    ],
    ids=["no output", "no memory"],
)
def test_a_process_that_lacks_something(
    prepare: Callable[[], Any], code: int, said: str, images: Path, output: Path
) -> None:
    process = start(images, output, preexec_fn=prepare)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert said in err
    assert is_one_line(err) == (code != 0)
    assert (contents(output) == OLD) == (code != 0)


def test_a_read_only_disk(images: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = output.parent / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", disk]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("NO RIGHT TO MOUNT: a read-only disk is untested here")
    try:
        assert main(arguments(images, disk / "run")) == 2
        err = capsys.readouterr().err
        assert is_one_line(err)
        assert "cannot be written" in err
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.usefixtures("signals_of_a_terminal")
def test_a_lost_terminal(images: Path, output: Path) -> None:
    """The hang-up ends a run as Ctrl-C does; one that was told to ignore it, as by nohup, goes on."""
    for first, code in (("pass", 130), ("signal.signal(signal.SIGHUP, signal.SIG_IGN)", 2)):
        what = (
            "os.kill(os.getpid(), signal.SIGHUP); from emsplat.errors import InputError; raise InputError('it went on')"
        )
        process = start(images, output, "loading", what, first)
        _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, is_one_line(err)) == (code, True), err
        assert ("interrupted" in err, "it went on" in err) == (code == 130, code == 2)
        assert contents(output) == OLD
