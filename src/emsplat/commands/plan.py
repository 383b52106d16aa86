"""``emsplat plan``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from emsplat.errors import InputError
from emsplat.plan.cluster import Cluster
from emsplat.settings import ReconstructSettings
from emsplat.versions import __version__


def plan(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES")],
    cluster: OmitArgPrefixes[Cluster] = Cluster(),  # noqa: B008 (frozen)
    settings: OmitArgPrefixes[ReconstructSettings] = ReconstructSettings(),  # noqa: B008 (frozen)
    job: Literal["reconstruct", "abinitio", "heterogeneity"] = "reconstruct",
    components: int = 3,
    classes: int | None = None,
    json: bool = False,
) -> None:
    """Predict how long a job will take with these options, and how much memory and disk it will need.

    The command reads the table, looks at a sample of the images and measures this machine for a few seconds. It writes
    nothing.

    Args:
        particles: Any particle file that the job reads.
        cluster: What the job would run on.
        settings: Options that the job would be given.
        job: reconstruct; or abinitio, for images without poses; or heterogeneity, which begins with a reconstruction.
        classes: Number of classes that emsplat abinitio would be asked for.
        components: Number of components that emsplat heterogeneity is assumed to find.
        json: Print everything as one JSON object; progress and warnings go to standard error.

    Examples:
        # Plan a job on this machine:
        emsplat plan particles.star --symmetry D2
        # Plan a search for the poses of extracted particles:
        emsplat plan extracted.star --job abinitio
        # Plan a job on eight machines with eight graphics cards each and a file system of 20 GB/s:
        emsplat plan particles.star --machines 8 --gpus 8 --storage 20
        # Plan a search for heterogeneity:
        emsplat plan particles.star --job heterogeneity --max-resolution 8
    """
    from json import dumps

    from emsplat.runtime.console import ConsoleReporter

    if components < 1:
        raise InputError(f"--components {components}: it must be a positive number")
    if classes is not None and job != "abinitio":
        raise InputError(f"--classes: emsplat {job} has no such option; leave it out, or add --job abinitio")
    reporter = ConsoleReporter(to_stderr=json)
    reporter.line(f"emsplat {__version__}: planning {particles}")
    with reporter.loading():
        from emsplat.plan.run import plan, plan_poses
        from emsplat.plan.text import plan_table

    if job == "abinitio":
        result = plan_poses(particles, replace(settings.for_search(), classes=classes), cluster, reporter)
    else:
        result = plan(particles, settings, cluster, reporter, components if job == "heterogeneity" else None)
    if json:
        print(dumps(result.summary(), ensure_ascii=False))
        return
    size = result.job
    reporter.line(
        f"{size.n_images:,} images of {size.box}² on {cluster.machines} machine(s), {cluster.ranks} process(es)"
        + (f", a GPU each ({result.card.name})" if result.card else "")
    )
    reporter.console.print(plan_table(result))
    for line in result.assumptions:
        reporter.line(f"assumed: {line}")
    for line in result.obstacles():
        reporter.warn(line)
