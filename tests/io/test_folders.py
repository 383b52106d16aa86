"""An output folder: one process at a time, whole or not at all, and whatever a killed process left is brought to its
end or taken away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from emsplat.runtime import folders
from emsplat.runtime.folders import claiming, filling
from processes import PATIENCE

OLD, NEW = (
    {"a": "old", "sub/b": "old", "c": "old", "end": "old"},
    {"a": "new", "sub/b": "new", "d": "new", "end": "new"},
)
AFTER = {**OLD, **NEW}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    """All files but the hidden ones of this module."""
    files = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
    return {name: text for name, text in files.items() if not name.startswith(".")}


def fill(folder: Path, obsolete: str | None = None) -> None:
    with filling(folder, last="end", obsolete=obsolete) as staging:
        write(staging, NEW)


def test_files_take_the_place_of_old_ones_and_others_stay(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    fill(tmp_path)
    assert contents(tmp_path) == AFTER
    assert sorted(os.listdir(tmp_path)) == ["a", "c", "d", "end", "sub"]


@pytest.mark.parametrize("old", [{}, OLD], ids=["new folder", "old files"])
def test_an_error_leaves_the_folder_as_it_was(tmp_path: Path, old: dict[str, str]) -> None:
    folder = tmp_path / "above" / "run"
    if old:
        folder.mkdir(parents=True)
        write(folder, old)
    with pytest.raises(KeyboardInterrupt), filling(folder, last="end") as staging:
        write(staging, NEW)
        raise KeyboardInterrupt
    assert contents(tmp_path) == {f"above/run/{name}": text for name, text in old.items()}
    assert (tmp_path / "above").exists() == bool(old)


def test_what_cannot_be_moved_into_place_leaves_the_old_files(tmp_path: Path, refuses: Callable) -> None:
    write(tmp_path, OLD)
    (tmp_path / "d").mkdir()
    with refuses(str(tmp_path / "d"), "a folder is where"):
        fill(tmp_path)
    assert contents(tmp_path) == OLD
    assert sorted(os.listdir(tmp_path)) == ["a", "c", "d", "end", "sub"]


@pytest.mark.parametrize("failing", range(1, 8))
def test_a_move_that_fails_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Callable, failing: int
) -> None:
    write(tmp_path, OLD)
    calls = 0

    def replace(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise PermissionError(13, "Permission denied", str(source))
        os.rename(source, target)

    monkeypatch.setattr(folders.os, "replace", replace)
    with refuses(str(tmp_path), "Permission denied"):
        fill(tmp_path)
    assert contents(tmp_path) == OLD


def test_another_process_is_refused(tmp_path: Path) -> None:
    program = f"from emsplat.runtime.folders import *; p = Path({str(tmp_path)!r})\nwith claiming(p): pass"
    with claiming(tmp_path) as found:
        assert found == []
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert f"{tmp_path}: another run is writing to it (process {os.getpid()} on " in done.stderr
        fill(tmp_path)  # the process that claimed it may
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
    assert contents(tmp_path) == NEW
    assert os.listdir(tmp_path / "sub") == ["b"]


def test_a_file_system_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    path = tmp_path / f".unfinished@{socket.gethostname()}@1"  # nobody can know whether its process is alive
    path.mkdir()
    monkeypatch.setattr(folders.fcntl, "flock", flock)
    fill(tmp_path)
    assert contents(tmp_path) == NEW
    assert path.exists()


def test_what_another_machine_left_is_named_and_stays(tmp_path: Path) -> None:
    """Where locks are kept to one machine its process may be alive."""
    names = [".finished@far@2@end", ".unfinished@far@1"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("theirs")
    with claiming(tmp_path) as found:
        told = [line.split(" belongs to a run on far")[0] for line in found]
        assert told == [f"{tmp_path}: {name}" for name in names]
    fill(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"a", "sub", "d", "end", *names}
    assert (tmp_path / "a").read_text() == "new"


# Kills a child at the n-th call that changes the disk, for every n, and looks at what the next process finds.
KILLED_AT_EVERY_CALL = """
import os, shutil, signal, sys
from pathlib import Path
import test_folders as t
from emsplat.runtime.folders import claiming

base, old = Path(sys.argv[1]), t.OLD if sys.argv[2] == "old" else {}
for n in range(1, 200):
    folder = base / str(n)
    folder.mkdir()
    t.write(folder, old)
    states = folder / "states"
    states.mkdir()
    child = os.fork()
    if child == 0:
        calls = 0
        def counted(function):
            def call(*arguments, **options):
                global calls
                calls += 1
                if calls == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)
            return call
        for name in ("replace", "rename", "mkdir", "unlink", "rmdir", "ftruncate", "pwrite", "open", "close"):
            setattr(os, name, counted(getattr(os, name)))
        t.fill(folder, obsolete="states")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    before = t.contents(folder)
    whole = before in (old, {**old, **t.NEW})
    hidden = sorted(p.name.split("@")[0][1:] for p in folder.glob(".*"))
    assert whole or "finished" in hidden, (n, before, hidden)
    with claiming(folder) as found:
        after = t.contents(folder)
    assert after in (old, {**old, **t.NEW}), (n, after)
    assert whole or after != old, n  # what was complete is not lost
    assert states.exists() == (after == old), n  # what leads to it goes with it, and not before
    assert not list(folder.glob(".*")), (n, os.listdir(folder))
    assert all(line.startswith(str(folder)) for line in found)
    print(n, hidden, len(found), after == old)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
"""


@pytest.mark.parametrize("old", ["old", "new"])
def test_killed_at_any_call_nothing_is_lost(tmp_path: Path, old: str) -> None:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", KILLED_AT_EVERY_CALL, tmp_path, old]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 25
    told = [line for line in lines if "'finished'" in line]
    assert len(told) > 5
    assert all(line.split("]")[1].split()[0] == "2" for line in told if "'claim'" in line)


@pytest.mark.usefixtures("signals_of_a_terminal")
def test_an_interrupt_while_files_are_moved_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: Path, target: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        os.rename(source, target)

    monkeypatch.setattr(folders.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path)
    assert contents(tmp_path) == NEW
