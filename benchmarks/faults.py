"""What happens to a run, and to an older run in its folder, when something goes wrong at any moment."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import emsplat
from common import Report, arguments
from emsplat.io import write_map
from emsplat.simulation import SimulationSettings, bundled_model, simulate

_STAGES = ("read", "preview", "pass", "inversion", "fit", "validation", "writing", "figures")
_JOB = ("--n-gaussians", "50", "--threads", "1", "--max-resolution", "12")
_N_CALLS = 90  # of those that are counted, in a run that replaces another one
_PATIENCE = 120  # seconds after which a run counts as hanging
_GB = 10**9

# The command, with something done as a stage begins or at the n-th time the system is asked for something.
_PROGRAM = """
import os, signal, sys, time
import emsplat.runtime.console as console
signal.signal(signal.SIGINT, signal.default_int_handler)  # both may be ignored where this is started by & or nohup
signal.signal(signal.SIGHUP, signal.SIG_DFL)
at, calls, stage = {at!r}, 0, console.ConsoleReporter.stage
def happens():
    {what}
def begun(self, name):
    global at
    if name == at:
        at = None
        happens()
    return stage(self, name)
console.ConsoleReporter.stage = begun
def counted(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == at:
            happens()
        return function(*arguments, **options)
    return call
if isinstance(at, int):
    for name in ("replace", "rename", "mkdir", "unlink", "rmdir", "ftruncate", "pwrite"):
        setattr(os, name, counted(getattr(os, name)))
from emsplat.cli import main
sys.exit(main())
"""

_TEXT = """Each row is a run of `emsplat reconstruct --overwrite` in a process of its own, on {n} images of {box}²
pixels, in a folder that holds an older, complete run (or in a new one). **kept**: after the fault the folder holds the
older run or the new one, each byte of it, and nothing half written. **one line**: the run either succeeded, or was
killed, or said in one line what was wrong (where OpenBLAS gets no memory for its buffers, it ends the process with
words of its own). **next run**: the same command without the fault succeeded, left nothing but its files, and, where
the first one was killed, said so. The moment is a time, the stage that begins, or the n-th of all system calls that
rename, remove, make a folder or write a claim."""


@dataclass
class Case:
    """A folder with a particle file and a stack, which a run reads."""

    folder: Path
    old: bool = True
    before: dict[str, bytes] = field(default_factory=dict)

    @property
    def star(self) -> Path:
        return self.folder / "particles.star"

    @property
    def stack(self) -> Path:
        return self.folder / "particles.mrcs"

    @property
    def output(self) -> Path:
        return self.folder / "disk" / "run"

    def start(self, at: str | int | None = None, what: str = "pass", **options: Any) -> subprocess.Popen:
        """Start the command in a process; `what` is done at the moment `at`."""
        environ = os.environ | {"PYTHONPATH": str(Path(emsplat.__file__).parents[1])}
        command = [sys.executable, "-c", _PROGRAM.format(at=at, what=what), "reconstruct", self.star, "-o", self.output]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([*command, "--overwrite", *_JOB], text=True, env=environ, **streams)


@dataclass
class Outcome:
    """How a run ended."""

    code: int | None  # None: it hung
    out: str
    err: str

    @property
    def is_one_line(self) -> bool:
        """Whether the run succeeded, was killed, or failed with one line."""
        if self.code in (0, -signal.SIGKILL):
            return self.err == ""
        return self.code is not None and self.err.count("\n") == 1 and self.err.startswith("emsplat: ")

    @property
    def was_killed(self) -> bool:
        """Whether a signal or a library ended the process, so that our own code had no chance to clean up."""
        return self.code == -signal.SIGKILL or (self.code == 1 and "emsplat: " not in self.err)


def ended(process: subprocess.Popen) -> Outcome:
    try:
        out, err = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Outcome(None, "", "")
    return Outcome(process.returncode, out or "", err or "")


def contents(folder: Path) -> dict[str, bytes]:
    """The files that a user sees, with their contents."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {n: p.read_bytes() for p in files if not (n := str(p.relative_to(folder))).startswith(".")}


def hidden(folder: Path) -> list[str]:
    """The remains of a claim, or of files that are not in place yet. An empty claim has only just been made."""
    found = folder.glob(".*") if folder.exists() else ()
    return sorted(p.name for p in found if p.is_dir() or p.stat().st_size)


# --- faults: each starts a run, makes something go wrong, and tells how the run ended ---------------------------------

Fault = Callable[[Case], Outcome]


def killed(number: signal.Signals, at: str | int) -> Fault:
    return lambda case: ended(case.start(at, f"os.kill(os.getpid(), {int(number)}); time.sleep(0.1)"))


def killed_after(seconds: float) -> Fault:
    def fault(case: Case) -> Outcome:
        process = case.start()
        time.sleep(seconds)
        process.kill()
        return ended(process)

    return fault


def deleted(at: str) -> Fault:
    return undone(at, lambda case: f"os.rename({str(case.stack)!r}, {str(case.stack) + '.away'!r})", ".away")


def truncated(at: str) -> Fault:
    return undone(at, lambda case: f"os.truncate({str(case.stack)!r}, 20000)")


def exchanged(at: str) -> Fault:
    """Put another stack, of other images, in place under the same name."""

    def what(case: Case) -> str:
        write_map(case.folder / "other", np.random.default_rng(0).normal(size=(40, 24, 24)), 5.0)
        return f"os.rename({str(case.folder / 'other')!r}, {str(case.stack)!r})"

    return undone(at, what)


def undone(at: str, what: Callable[[Case], str], away: str = "") -> Fault:
    """Do something to the stack, which is put back afterwards."""

    def fault(case: Case) -> Outcome:
        stack = case.stack.read_bytes()
        outcome = ended(case.start(at, what(case)))
        case.stack.write_bytes(stack)
        if away:
            case.stack.with_name(case.stack.name + away).unlink()
        return outcome

    return fault


def limited(kind: int, limit: int) -> Fault:
    return lambda case: ended(case.start(preexec_fn=lambda: resource.setrlimit(kind, (limit, limit))))


def on_a_full_disk(case: Case) -> Outcome:
    filler = case.output.parent / "filler"
    free = os.statvfs(case.output.parent).f_bavail * os.statvfs(case.output.parent).f_frsize
    filler.write_bytes(bytes(max(0, free - 200_000)))
    outcome = ended(case.start())
    filler.unlink()
    return outcome


def filled_up_at(stage: str) -> Fault:
    def fault(case: Case) -> Outcome:
        filler = case.output.parent / "filler"
        what = f"os.system('head -c 1G /dev/zero > {filler} 2> /dev/null')"
        outcome = ended(case.start(stage, what))
        filler.unlink()
        return outcome

    return fault


def on_a_read_only_disk(case: Case) -> Outcome:
    subprocess.run(["mount", "-o", "remount,ro", case.output.parent], check=True)
    outcome = ended(case.start())
    subprocess.run(["mount", "-o", "remount,rw", case.output.parent], check=True)
    return outcome


def output_removed(at: str) -> Fault:
    def fault(case: Case) -> Outcome:
        kept = case.folder / "kept"
        outcome = ended(case.start(at, f"os.system('cp -r {case.output} {kept}; rm -r {case.output}')"))
        if outcome.code != 0 and not contents(case.output):  # by the user, not by the run
            shutil.copytree(kept, case.output, dirs_exist_ok=True, ignore=lambda *_: {".claim"})
        shutil.rmtree(kept)
        return outcome

    return fault


def second_at(stage: str) -> Fault:
    """Start a second run in the folder of a first that is at work; the second is judged, and the first's files stay."""

    def fault(case: Case) -> Outcome:
        first = case.start(stage, "print('here', flush=True); time.sleep(8)")
        assert first.stdout is not None
        while (line := first.stdout.readline()) and line != "here\n":
            pass
        second = ended(case.start())
        if ended(first).code != 0:
            return Outcome(None, "", "the first run failed")
        if second.code == 0:
            return Outcome(None, "", "both went on")
        case.old, case.before = True, contents(case.output)  # the first run's
        return second

    return fault


def without(*streams: str, to: str | None = None) -> Fault:
    """Run with standard streams that are closed, or that go to a device."""

    def fault(case: Case) -> Outcome:
        def prepare() -> None:
            for name in streams:
                number = {"stdout": 1, "stderr": 2}[name]
                os.close(number)
                if to:
                    os.set_inheritable(os.open(to, os.O_WRONLY), True)  # the lowest number that is free: this one

        return ended(case.start(preexec_fn=prepare))

    return fault


def kills(quick: bool, rng: np.random.Generator) -> Iterator[tuple[str, str, Fault]]:
    """The kills: name, moment, fault."""
    for stage in _STAGES[-2:] if quick else _STAGES:
        yield "SIGKILL", stage, killed(signal.SIGKILL, stage)
    for number in () if quick else (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        for stage in ("read", "pass", "figures"):
            yield number.name, stage, killed(number, stage)
    for seconds in np.sort(rng.uniform(0.5, 5, 2 if quick else 6)):
        yield "SIGKILL", f"{seconds:.1f} s", killed_after(float(seconds))


def kills_at_calls(quick: bool) -> Iterator[tuple[str, str, Fault]]:
    for call in range(1, _N_CALLS + 1, 30 if quick else 6):
        yield "SIGKILL", f"call {call}", killed(signal.SIGKILL, call)


def others(quick: bool) -> Iterator[tuple[str, str, Fault]]:
    for stage in ("preview", "pass"):
        yield "stack deleted", stage, deleted(stage)
        yield "stack truncated", stage, truncated(stage)
        yield "stack exchanged", stage, exchanged(stage)
    yield "disk full", "start", on_a_full_disk
    for stage in ("writing", "figures"):
        yield "disk full", stage, filled_up_at(stage)
    yield "file size limited to 100 kB", "", limited(resource.RLIMIT_FSIZE, 100_000)
    yield "disk read-only", "start", on_a_read_only_disk
    yield "output folder removed", "fit", output_removed("fit")
    for stage in ("preview", "figures"):
        yield "second run", stage, second_at(stage)
    yield "stdout closed", "", without("stdout")
    yield "stderr closed", "", without("stderr")
    yield "stdout and stderr closed", "", without("stdout", "stderr")
    yield "stdout on a full disk", "", without("stdout", to="/dev/full")
    for limit in (0.5, 2.0) if quick else (0.2, 0.5, 1.0, 1.1, 1.2, 2.0):
        yield f"memory limited to {limit} GB", "", limited(resource.RLIMIT_AS, int(limit * _GB))
    yield "20 open files", "", limited(resource.RLIMIT_NOFILE, 20)


def judged(case: Case, fault: Fault) -> dict[str, Any]:
    """The row of one fault: how the run ended, what it left, and how the next run went."""
    outcome = fault(case)
    after, left = contents(case.output), hidden(case.output)
    names = set(case.before)
    whole = set(after) == names and b"resolution" in after["summary.json"]
    kept = whole if outcome.code == 0 else after == case.before if case.old else not after
    complete = any(name.startswith(".finished") for name in left)  # and the next run moves it into place
    kept = kept or complete if outcome.was_killed else kept and not left
    following = ended(case.start())
    said = [line for line in following.out.splitlines() if "killed" in line]
    clean = following.code == 0 and set(contents(case.output)) == names and not hidden(case.output)
    return {
        "exit": "hung" if outcome.code is None else outcome.code,
        "said": (outcome.err.splitlines() or [""])[-1].replace(str(case.folder), "…").replace("|", "¦")[:160],
        "left hidden": ", ".join(left),
        "kept": kept,
        "one line": outcome.is_one_line,
        "next run": clean and bool(said) == bool(left),
        "next run said": " / ".join(line.split("warning: ")[-1].split(": ", 1)[-1] for line in said)[:200],
    }


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Mount a file system of 30 MB."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def main() -> None:
    args = arguments(__doc__, seed=(0, "of the random moments"))
    settings = SimulationSettings(n_images=40, box_size=32, pixel_size_in_angstroms=5.0, snr=1.0)
    folder = args.work / "faults"
    simulate(bundled_model(), folder, settings, overwrite=True)
    report = Report("faults", "Faults", args)
    text = _TEXT.format(n=settings.n_images, box=settings.box_size)
    with disk(folder / "disk"):
        case = Case(folder)
        first = ended(case.start())
        assert first.code == 0, first.err
        case.before = contents(case.output)
        for old in (True, False):
            rows: list[dict[str, Any]] = []
            rng = np.random.default_rng(args.seed)
            chosen = [*kills(args.quick, rng), *(kills_at_calls(args.quick) if old else ()), *others(args.quick)]
            for name, moment, fault in chosen if old else chosen[:: 2 if args.quick else 3]:
                case.old = old
                if not old:
                    shutil.rmtree(case.output)
                rows.append({"fault": name, "moment": moment, **judged(case, fault)})
                case.before = contents(case.output)
                report.table("With an older run in the folder" if old else "In a new folder", rows, text)


if __name__ == "__main__":
    main()
