"""Programs in processes of their own, with their times and memory: emsplat, and RELION for comparison."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import emsplat

GB = 10**9

# A process inherits its parent's peak size until it is replaced; this small one in between keeps ours out of it.
_LAUNCHER = """
import json, os, resource, signal, sys, time
start, limit = time.perf_counter(), int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
_, status, usage = os.wait4(os.posix_spawnp(sys.argv[3], sys.argv[3:], os.environ), 0)
seconds, code = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
facts = dict(seconds=seconds, cpu_seconds=usage.ru_utime + usage.ru_stime, peak_bytes=1024 * usage.ru_maxrss)
json.dump(facts, open(sys.argv[1], "w"))
sys.exit(code != 0 and not (limit and code in (-signal.SIGXCPU, -signal.SIGKILL)))
"""


@dataclass(frozen=True)
class Measured:
    """The time and memory that a program took."""

    seconds: float  # wall clock
    cpu_seconds: float
    peak_bytes: int
    marks: dict[bytes, float] = field(default_factory=dict)  # wall clock at which each text was first printed


def measured(
    command: Sequence[object], folder: Path, marks: tuple[bytes, ...] = (), environ: dict[str, str] | None = None,
    limit: int = 0,
) -> Measured:  # fmt: skip
    """Run a program in `folder` and throw its output away; raise with the end of the output if it fails.

    Args:
        limit: seconds of processor time after which the program is ended, which is no failure; 0 for as long as it
            takes.
    """
    with tempfile.NamedTemporaryFile("r") as facts:
        full = [sys.executable, "-I", "-S", "-c", _LAUNCHER, facts.name, str(limit), *map(str, command)]
        start, seen, end = time.perf_counter(), {}, b""
        process = subprocess.Popen(
            full, cwd=folder, env=os.environ | (environ or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            end = end[-4096:] + piece
            seen |= {mark: time.perf_counter() - start for mark in marks if mark not in seen and mark in end}
        if process.wait() != 0:
            raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{end[-2000:].decode(errors='replace')}")
        return Measured(**json.load(facts), marks=seen)


def run_emsplat(
    star: Path, output: Path, *options: object, job: str = "reconstruct", environ: dict[str, str] | None = None
) -> Measured:
    """A job of emsplat in a process of its own."""
    environ = {"PYTHONPATH": str(Path(emsplat.__file__).parents[1])} | (environ or {})
    start = "import sys; from emsplat.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, job, star, "-o", output, "--overwrite", *options]
    return measured(command, output.parent, environ=environ)


_BACKPROJECTING, _RECONSTRUCTING = b"Back-projecting all images", b"Starting the reconstruction"


@dataclass(frozen=True)
class RelionRun:
    """A map by ``relion_reconstruct --ctf``; insertion is the time between its two announcements."""

    map: Path
    seconds: float
    insertion_seconds: float
    cpu_seconds: float
    peak_bytes: int


def has_relion() -> bool:
    return shutil.which("relion_reconstruct") is not None


def run_relion(star: Path, subset: int | None = None) -> RelionRun:
    """RELION's map of all images, or of one half set, beside the star."""
    output = star.parent / f"relion_{'all' if subset is None else f'half{subset}'}.mrc"
    command = ["relion_reconstruct", "--i", star.name, "--o", output.name, "--ctf"]
    command += [] if subset is None else ["--subset", str(subset)]
    took = measured(command, star.parent, (_BACKPROJECTING, _RECONSTRUCTING))
    insertion = took.marks[_RECONSTRUCTING] - took.marks[_BACKPROJECTING]
    return RelionRun(output, took.seconds, insertion, took.cpu_seconds, took.peak_bytes)
