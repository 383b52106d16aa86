"""Ranks on machines of their own, one of which is cut off during the accumulation: how all end, and how they resume."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import emsplat
from cases import MANY, QUICK
from common import REPOSITORY, Report, arguments, simulated
from ranks import compared
from resume import files

sys.path.append(str(REPOSITORY / "tests"))
from hosts import Hosts, hosts

_PATIENCE = 180  # seconds after which a run counts as hanging
_WITHIN = 60.0  # seconds in which all must have ended
_PORT = 29_500
_OPTIONS = ("--threads", "1", "--n-gaussians", "500", "--n-fits", "1")

# The command, which tells a file when the pass begins, and writes its state after every block of images.
_PROGRAM = """
import sys
from pathlib import Path
import emsplat.runtime.checkpoint as checkpoint
import emsplat.runtime.console as console
stage = console.ConsoleReporter.stage
def begun(self, name):
    if name == "pass":
        Path({at!r}).touch()
    return stage(self, name)
console.ConsoleReporter.stage = begun
init = checkpoint.Pace.__init__
checkpoint.Pace.__init__ = lambda self: init(self, times=0.0, least=0.0)
from emsplat.cli import main
sys.exit(main())
"""

_TEXT = f"""One rank a host, started by `torchrun` on every host as docs/cluster.md has it; hosts are network namespaces
on a switch, all on this machine, so that nothing here says anything of speed. At a random moment of the pass the cable
of one is pulled, packets vanish and no connection is closed. **Ended** is when the last process of all hosts had, from
then on; required: at most {_WITHIN:.0f} s. **Lines** are those of emsplat on each side of the cut; **names it**: those
of the others (each says one, where the first host is cut off) tell which host; torchrun adds a page of its own.
Then the cable is back and the same command with `--resume` makes the maps, which are compared with those of a run that
nothing happened to: half maps, raw half maps and the final one. **Only its files**: the folder holds what that run's
holds, hidden files and checkpoints included. A state is written after every block of images."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    seconds: float  # when, from the cut
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines that emsplat itself wrote to its standard error."""
        return [line for line in self.err.splitlines() if line.startswith("emsplat: ")]

    @property
    def rank_code(self) -> int:
        """The rank's exit code; that of torchrun is 1 whatever happened."""
        found = re.search(r"exitcode\s*: (\d+)", self.err)
        return int(found[1]) if found else self.code


@dataclass(frozen=True)
class Place:
    """The hosts and the folder of the runs."""

    star: Path
    work: Path

    @property
    def mark(self) -> Path:
        return self.work / "cut-off-in-the-pass"

    def start(self, machines: Hosts, output: Path, *options: str) -> list[subprocess.Popen]:
        """Start torchrun on every host."""
        program = self.work / "cut-off-program.py"
        program.write_text(_PROGRAM.format(at=str(self.mark)))
        self.mark.unlink(missing_ok=True)
        command: list[object] = [sys.executable, "-m", "torch.distributed.run", "--nnodes", machines.size]
        command += ["--nproc-per-node", 1, "--master-addr", "h0", "--master-port", _PORT]
        job = [program, "reconstruct", self.star, "-o", output, *_OPTIONS, *options]
        environ = os.environ | {"PYTHONPATH": str(Path(emsplat.__file__).parents[1])}
        processes = []
        for host in range(machines.size):
            with open(self._said(host, "out"), "w") as out, open(self._said(host, "err"), "w") as err:
                line = machines.command(host, [*command, "--node-rank", host, *job])
                processes.append(subprocess.Popen(line, env=environ, stdout=out, stderr=err, start_new_session=True))
        return processes

    def _said(self, host: int, kind: str) -> Path:
        return self.work / f"cut-off-{host}.{kind}"

    def wait(self, processes: Sequence[subprocess.Popen]) -> list[Ended]:
        """Wait for all processes to end; those that do not are killed."""
        begun, at = time.monotonic(), {}
        while len(at) < len(processes) and time.monotonic() - begun < _PATIENCE:
            at |= {h: time.monotonic() - begun for h, p in enumerate(processes) if h not in at and p.poll() is not None}
            time.sleep(0.1)
        for process in processes:
            process.kill()
            process.wait()
        said = [[self._said(host, kind).read_text() for kind in ("out", "err")] for host in range(len(processes))]
        return [Ended(p.returncode, at.get(h, float("inf")), *said[h]) for h, p in enumerate(processes)]

    def whole(self, machines: Hosts, output: Path, *options: str) -> tuple[float, list[Ended]]:
        """Run to the end; return the seconds of the accumulation, and how each process ended."""
        ended = self.wait(self.start(machines, output, *options))
        assert [e.code for e in ended] == [0] * machines.size, "\n".join(e.err for e in ended)
        return json.loads((output / "summary.json").read_text())["seconds"].get("pass", 0.0), ended


def row(place: Place, machines: Hosts, whole: Path, cut: int, after: float) -> dict[str, Any]:
    """The row of a run that loses a host some seconds into the accumulation, and is resumed when the host is back."""
    output = place.work / "cut-off-run"
    shutil.rmtree(output, ignore_errors=True)
    processes = place.start(machines, output)
    while not place.mark.exists():
        assert not any(process.poll() for process in processes), "ended before the pass"
        time.sleep(0.02)
    time.sleep(after)
    machines.cut_off(cut)
    ended = place.wait(processes)
    machines.plug_in(cut)
    others = [e for host, e in enumerate(ended) if host != cut]
    named = {name for e in others for line in e.lines for name in re.findall(r"on (h\d+)", line)}
    left = files(output) if output.exists() else set()
    _, resumed = place.whole(machines, output, "--resume")
    least, same = compared(whole, output)
    return {
        "hosts": machines.size,
        "cut off": f"h{cut}",
        "seconds into the pass": after,
        "ended, s": max(e.seconds for e in ended),
        "exit codes": ", ".join(str(e.rank_code) for e in ended),
        "lines: the others, it": f"{sum(len(e.lines) for e in others)}, {len(ended[cut].lines)}",
        "names it": f"h{cut}" in named,
        "no map is left": not any(name.endswith(".mrc") for name in left),
        "went on from": ", ".join(re.findall(r"resuming from (\S+)\.safetensors", resumed[0].out)),
        "least FSC": least,
        "the same bits": same,
        "only its files": files(output) == files(whole),
    }


def main() -> None:
    args = arguments(__doc__, seed=(0, "of the moments"))
    report = Report("cut_off", "A machine that is cut off", args)
    place = Place(simulated(QUICK if args.quick else MANY, args.work), args.work)
    rng, rows = np.random.default_rng(args.seed), []
    for size, cuts in ((2, (1,)), (4, (2,))) if args.quick else ((2, (1, 0)), (4, (1, 3, 0))):
        whole = args.work / f"cut-off-{size}-undisturbed"
        shutil.rmtree(whole, ignore_errors=True)
        with hosts(size) as machines:
            seconds, _ = place.whole(machines, whole)
            for cut in cuts:
                rows.append(row(place, machines, whole, cut, float(rng.uniform(0.1, 0.9)) * seconds))
                report.table("Cut off in the pass", rows, _TEXT)


if __name__ == "__main__":
    main()
