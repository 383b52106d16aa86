"""`emsplat plan` beside the runs that it predicts, and its plan for ten million images of 512² on 64 GPUs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import emsplat
from cases import MANY, QUICK, resized
from common import Report, arguments, cores, simulated
from emsplat.plan.cluster import Cluster
from emsplat.plan.model import Job
from emsplat.plan.rates import ASSUMED_CARD, Card, Rates
from emsplat.plan.run import Plan, of_rates
from emsplat.plan.text import size_text, time_text
from memory import with_images
from programs import GB, measured

_TEXT = f"""`emsplat plan --json` and, right after it, `emsplat reconstruct`, each a process of its own, the second one
under `torchrun` where there are several processes. Seconds of the summary's stages, without the start of Python. The
machine has {cores()} cores, so several processes share them: what the table can show of them is that the sum over
processes costs little, not speed. More images than were simulated: the star names each several times, so they come
from the page cache. The plan does not know how far the signal reaches, which decides the number of Gaussians and of
steps; it takes Nyquist's shell."""

_FAR_TEXT = f"""The rates of this machine with a stack of 512² at hand, and a graphics card as assumed (H100, data
sheet) unless one is there. Eight machines of eight GPUs, a process each; each machine has the {cores()} cores of this
one, which load the images. Predictions: nothing of this was run."""

_PROGRAM = [sys.executable, "-c", "import sys; from emsplat.cli import main; sys.exit(main())"]


def planned(star: Path, *options: object) -> dict[str, Any]:
    command = [*_PROGRAM, "plan", str(star), "--json", *map(str, options)]
    found = subprocess.run(command, cwd=star.parent, env=_environment(), capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def run(star: Path, output: Path, processes: int) -> dict[str, Any]:
    command: list[object] = [*_PROGRAM, "reconstruct", star, "-o", output, "--overwrite"]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
        command = [*launcher, "-m", "emsplat", *command[len(_PROGRAM) :]]
    measured(command, star.parent, environ=_environment())
    summary = json.loads((output / "summary.json").read_text())
    shutil.rmtree(output)
    return summary


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(emsplat.__file__).parents[1])}


def row(star: Path, work: Path, n: int, box_size: int, processes: int) -> dict[str, Any]:
    """One plan and its run."""
    plan = planned(star, "--processes", processes)
    summary = run(star, work / "plan-run", processes)
    predicted = {stage["name"]: stage["seconds"] for stage in plan["stages"]}
    seconds = summary["seconds"]
    whole = sum(seconds.values())
    facts = {"images": n, "box": box_size, "processes": processes}
    for name in ("pass", "fit", "local resolution"):
        facts |= {f"{name}: plan, s": predicted[name], f"{name}: run, s": seconds.get(name)}
    return facts | {
        "job: plan, s": plan["seconds"],
        "job: run, s": whole,
        "plan / run": plan["seconds"] / whole,
        "peak: plan, GB": plan["memory_of_a_process_in_bytes"] / GB,
        "peak: run, GB": summary["peak_memory_in_bytes"] / GB,
    }


def far(star: Path) -> list[dict[str, Any]]:
    """The plans for ten million such images on 64 GPUs, for several file systems and machines."""
    found = planned(star, "--gpus", 1)
    rates = Rates(**found["rates"])
    card = Card(**found["gpu"]) if found["gpu"] else ASSUMED_CARD
    job = replace(Job(**found["job"]), n_images=10_000_000)
    gpus = Cluster(machines=8, gpus=8, network=100.0, memory=1000.0)
    cached = replace(job, cached=True)
    on = {
        "8 × 8 GPUs, file system of 5 GB/s": (job, replace(gpus, storage=5.0), card),
        "the same of 50 GB/s": (job, replace(gpus, storage=50.0), card),
        "the same, a cache on each machine's disk of 5 GB/s": (cached, replace(gpus, storage=40.0), card),
        "64 machines like this one, 50 GB/s": (job, Cluster(64, storage=50.0, network=100.0, memory=256.0), None),
    }
    return [{"on": name} | prospect(of_rates(of, cluster, rates, a_card)) for name, (of, cluster, a_card) in on.items()]


def prospect(plan: Plan) -> dict[str, Any]:
    """The totals of a plan."""
    stages = {stage.name: stage for stage in plan.stages}
    facts: dict[str, Any] = {
        name: f"{time_text(stages[name].seconds)} ({stages[name].limited_by})" for name in ("read", "pass", "fit")
    }
    facts["validation, local resolution"] = time_text(stages["validation"].seconds + stages["local resolution"].seconds)
    facts |= {"job": time_text(plan.seconds), "memory of a machine": size_text(plan.machine_bytes)}
    facts["of a GPU"] = size_text(max(stage.card_bytes for stage in plan.stages)) if plan.card else None
    return facts | {"lacking": "; ".join(plan.obstacles()) or None}


def main() -> None:
    args = arguments(__doc__)
    report = Report("plan", "The plan beside the run", args)
    case = QUICK if args.quick else MANY
    edge = case.settings.box_size
    if args.quick:
        sizes = [(200, edge, 1), (200, edge, 2)]
    else:
        sizes = [(1000, 64, 1), (10_000, 64, 1), (100_000, 64, 1), (1000, 128, 1), (10_000, 128, 1), (1000, 256, 1)]
        sizes += [(10_000, 128, n) for n in (2, 4)]
    rows: list[dict[str, Any]] = []
    for n, box_size, processes in sizes:
        base = case if box_size == edge else resized(case, box_size, 1000 if box_size > edge else 10_000)
        star = simulated(base, args.work)
        rows.append(row(with_images(star, n), args.work, n, box_size, processes))
        report.table("Predicted and measured", rows, _TEXT)
    # A long table: what it takes to open one must not count for its rows.
    large = with_images(simulated(resized(case, 48 if args.quick else 512, 100), args.work), 20_000)
    report.table("Ten million images", far(large), _FAR_TEXT)
    report.extra["assumed card"] = asdict(ASSUMED_CARD)
    report.write()


if __name__ == "__main__":
    main()
