"""Runs that are killed at random moments and resumed: do they give the same map, what stays, and what is lost?"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import emsplat
from cases import MANY, QUICK, resized
from common import Case, Report, arguments, simulated
from emsplat.io.mrc import read_map

_PATIENCE = 3600  # seconds after which a run counts as hanging
_FACTS = {"seconds of writing": r"states, [\d.]+ GB in ([\d.]+) s", "states": r"checkpoints: (\d+) states"}

# The command, which tells a file what stage it is at; at any pace, where there is little to lose.
_PROGRAM = """
import sys
from pathlib import Path
import emsplat.runtime.checkpoint as checkpoint
import emsplat.runtime.console as console
stage = console.ConsoleReporter.stage
def begun(self, name):
    Path({at!r}).write_text(name)
    return stage(self, name)
console.ConsoleReporter.stage = begun
if {always}:
    init = checkpoint.Pace.__init__
    checkpoint.Pace.__init__ = lambda self: init(self, times=0.0, least=0.0)
from emsplat.cli import main
sys.exit(main())
"""

_TEXT = """`emsplat reconstruct --resume` in processes of their own, each killed (SIGKILL) after a random time, at most
that of an undisturbed run ({seconds:.0f} s), and begun again in the same folder; a process that is done before its time
ends the run, which is then compared with the undisturbed one, and the next run begins. **Relative L2** of `map.mrc` to
that of the undisturbed run, required: at most 1e-6. **Only its files**: the folder holds what the undisturbed run's
holds, and nothing else, hidden files and checkpoints included. **Seconds** are those of all the run's processes;
what a kill costs is what was done since the last state, and beginning again. {pace}"""


@dataclass(frozen=True)
class Job:
    """A kind of job, which is killed and resumed."""

    name: str
    star: Path
    options: tuple[str, ...]

    def start(self, output: Path, always: bool) -> subprocess.Popen:
        environ = os.environ | {"PYTHONPATH": str(Path(emsplat.__file__).parents[1])}
        program = _PROGRAM.format(at=str(self._stage_file(output)), always=always)
        command = [sys.executable, "-c", program, "reconstruct", self.star, "-o", output, "--resume", *self.options]
        return subprocess.Popen(command, text=True, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def stage(self, output: Path) -> str:
        """The stage that the process ended in."""
        file = self._stage_file(output)
        return file.read_text() if file.exists() else "start"

    def _stage_file(self, output: Path) -> Path:
        return output.with_name(f"{output.name}.stage")


def jobs(args: Any) -> list[Job]:
    def star(case: Case) -> Path:
        return simulated(QUICK if args.quick else case, args.work)

    few = ("--n-gaussians", "60", "--max-resolution", "16") if args.quick else ()
    refined = resized(MANY, 64, 4000)
    by_images = resized(MANY, 64, 1000)
    return [
        Job("statistics", star(MANY), few),
        Job("statistics, refining poses and shifts", star(refined), ("--refine", "poses,shifts", *few)),
        Job("images", star(by_images), ("--solver", "images", *(few or ("--n-gaussians", "1000")))),
    ]


def ended(process: subprocess.Popen, after: float) -> tuple[int, str, str]:
    """Kill the process after so many seconds if it still runs; return its exit code, output and complaint."""
    try:
        out, err = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    return process.returncode, out, err


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def undisturbed(job: Job, output: Path, always: bool) -> tuple[float, str]:
    """The seconds and the output of an undisturbed run."""
    shutil.rmtree(output, ignore_errors=True)
    begun = time.perf_counter()
    code, out, err = ended(job.start(output, always), _PATIENCE)
    assert code == 0, err
    return time.perf_counter() - begun, out


def one_run(
    job: Job, output: Path, whole: Path, longest: float, kills: int, rng: np.random.Generator, always: bool
) -> dict[str, Any]:
    """Run from the beginning to the end, with at most so many kills on the way."""
    shutil.rmtree(output, ignore_errors=True)
    begun, stages, resumed, complaints = time.perf_counter(), [], [], 0
    while True:
        after = float(rng.uniform(0, longest)) if len(stages) < kills else _PATIENCE
        code, out, err = ended(job.start(output, always), after)
        resumed += re.findall(r"resuming from ([a-z]+)", out)
        if code != -signal.SIGKILL:
            break
        complaints += err != ""
        stages.append(job.stage(output))
    assert code == 0, err
    one, other = (read_map(folder / "map.mrc").values.astype(np.float64) for folder in (whole, output))
    return {
        "kills": len(stages),
        "in": ", ".join(stages),
        "went on from": ", ".join(resumed),
        "relative L2": f"{np.linalg.norm(other - one) / np.linalg.norm(one):.1e}",
        "only its files": files(output) == files(whole) and not complaints,
        "seconds": time.perf_counter() - begun,
    }


def main() -> None:
    args = arguments(__doc__, kills=(20, "of each job"), seed=(0, "of the moments"))
    if args.quick:
        args.kills = min(args.kills, 3)
    report = Report("resume", "Killed and gone on with", args)
    pace = "Here every state is written." if args.quick else "A state is written as often as the program does it."
    overall: list[dict[str, Any]] = []
    for job in jobs(args):
        whole, output = args.work / "resume-undisturbed", args.work / "resume-killed"
        seconds, out = undisturbed(job, whole, args.quick)
        cost = {name: re.findall(pattern, out) for name, pattern in _FACTS.items()}
        rng, rows, longest = np.random.default_rng(args.seed), [], seconds
        while (left := args.kills - sum(row["kills"] for row in rows)) > 0:
            rows.append(one_run(job, output, whole, longest, left, rng, args.quick))
            if not rows[-1]["kills"]:  # it was faster: later moments would be after its end
                longest = min(longest, rows[-1]["seconds"])
            report.table(f"By {job.name}", rows, _TEXT.format(seconds=seconds, pace=pace))
        overall.append(
            {
                "job": job.name,
                "undisturbed, s": seconds,
                "states written": int(cost["states"][0]) if cost["states"] else 0,
                "of which writing, s": float(cost["seconds of writing"][0]) if cost["seconds of writing"] else 0.0,
                "kills": sum(row["kills"] for row in rows),
                "runs": len(rows),
                "largest relative L2": max((row["relative L2"] for row in rows), key=float),
                "only their files": all(row["only its files"] for row in rows),
                "a kill costs, s": (sum(row["seconds"] for row in rows) - len(rows) * seconds) / args.kills,
            }
        )
        report.table("Overall", overall)


if __name__ == "__main__":
    main()
