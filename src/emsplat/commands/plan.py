"""``emsplat plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from emsplat.plan.cluster import Cluster
from emsplat.settings import ReconstructSettings
from emsplat.versions import __version__


def plan(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES")],
    cluster: OmitArgPrefixes[Cluster] = Cluster(),  # noqa: B008 (frozen)
    settings: OmitArgPrefixes[ReconstructSettings] = ReconstructSettings(),  # noqa: B008 (frozen)
    json: bool = False,
) -> None:
    """How long emsplat reconstruct will take with these particles and options, how much memory and disk, and why.

    It reads the table, looks at a sample and measures this machine for some seconds; nothing is written.

    Args:
        particles: any particle file that emsplat reconstruct reads.
        cluster: what the job would run on.
        settings: the options the job would be given.
        json: print everything as one JSON object, and all else to the standard error.
    """
    from json import dumps

    from emsplat.runtime.console import ConsoleReporter

    reporter = ConsoleReporter(to_stderr=json)
    reporter.line(f"emsplat {__version__}: planning {particles}")
    with reporter.stage("loading"):
        from emsplat.plan.run import plan
        from emsplat.plan.text import plan_table

    result = plan(particles, settings, cluster, reporter)
    if json:
        print(dumps(result.summary(), ensure_ascii=False))
        return
    job = result.job
    reporter.line(
        f"{job.n_images:,} images of {job.box}² on {cluster.machines} machine(s), {cluster.ranks} process(es)"
        + (f", a GPU each ({result.card.name})" if result.card else "")
    )
    reporter.console.print(plan_table(result))
    for line in result.assumptions:
        reporter.line(f"assumed: {line}")
    for line in result.obstacles():
        reporter.warn(line)
