"""``emsplat abinitio``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from emsplat.commands.arguments import LongJobOptions, Output
from emsplat.commands.session import Session, session
from emsplat.settings import AbInitioSettings


def abinitio(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES")],
    output: Output,
    settings: OmitArgPrefixes[AbInitioSettings] = AbInitioSettings(),  # noqa: B008 (frozen)
    run: OmitArgPrefixes[LongJobOptions] = LongJobOptions(),  # noqa: B008 (frozen)
) -> None:
    """Find poses and a map from particle images without poses, and say whether they can be trusted.

    Both half sets are searched from random poses, independently of each other. A run has converged only if they find
    the same map and the same poses. The hand of the map stays undetermined: `emsplat flip DIR` writes the other one.

    Args:
        particles: A RELION star, a cryoSPARC table (.cs) or group (.csg), a cisTEM table (.star or .cistem), or,
            with the option ctf, the images of cryoDRGN. Poses are ignored. With the option no-ctf, a stack alone is
            enough.
        output: Folder that the run is written to.
        settings: What is left out is found from the data, and the log says what was found.
        run: How the run is made and shown.

    Examples:
        # Find the poses of extracted particles, with everything else found from the data:
        emsplat abinitio particles.star -o found
        # Impose a symmetry, and say how large the particle is:
        emsplat abinitio extracted.cs -o found --symmetry D2 --mask-diameter 180
        # Find two maps in a mixture, and the images that show no particle:
        emsplat abinitio particles.star -o found --classes 2
        # Continue a search that was interrupted:
        emsplat abinitio particles.star -o found --resume
    """
    from json import dumps

    with session(particles, output, run) as at:
        reporter, world = at.reporter, at.world
        with reporter.loading():
            from emsplat.abinitio.run import ab_initio
            from emsplat.outputs.abinitio import is_complete, write_ab_initio
            from emsplat.runs.closing import closing_curve, closing_rows

        if world.broadcast(at.may_be_complete and is_complete(output, particles, settings, reporter)):
            at.tell_complete()
            return
        if settings.classes is not None:
            _with_classes(at, particles, settings)
            return
        with at.at_work() as checkpoints:
            found = ab_initio(particles, settings, reporter, checkpoints, world)
            if not world.is_first:
                reporter.current = "writing"  # by the first rank, which all others wait for
                return
            summary = write_ab_initio(output, found, reporter, run.overwrite, world.size)
        curve = closing_curve(found.reconstruction.validation) if found.status == "converged" else []
        reporter.closing([("ab initio", found.verdict.text()), *closing_rows(summary, output)], curve)
        if run.json:
            print(dumps({"folder": str(output)} | summary, ensure_ascii=False, default=str))


def _with_classes(at: Session, particles: Path, settings: AbInitioSettings) -> None:
    """Find several classes."""
    from json import dumps

    from emsplat.abinitio.run_classes import ab_initio_classes
    from emsplat.outputs.classes import closing_rows, write_classes
    from emsplat.runs.classes_folder import ClassesFolder

    with at.at_work(ClassesFolder) as checkpoints:
        found = ab_initio_classes(particles, settings, at.reporter, checkpoints, at.world)
        if not at.world.is_first:
            at.reporter.current = "writing"  # by the first rank, which all others wait for
            return
        summary = write_classes(at.output, found, at.reporter, at.options.overwrite, at.world.size)
    at.reporter.closing(closing_rows(summary, at.output), [])
    if at.options.json:
        print(dumps({"folder": str(at.output)} | summary, ensure_ascii=False, default=str))
