"""``emsplat reconstruct``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from emsplat.commands.arguments import LongJobOptions, Output
from emsplat.commands.session import session
from emsplat.errors import InputError
from emsplat.runtime.threads import import_beside
from emsplat.settings import ReconstructSettings


def reconstruct(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES")],
    output: Output,
    settings: OmitArgPrefixes[ReconstructSettings] = ReconstructSettings(),  # noqa: B008 (frozen)
    run: OmitArgPrefixes[LongJobOptions] = LongJobOptions(),  # noqa: B008 (frozen)
) -> None:
    """Reconstruct a map, half maps, Gaussians and a resolution from particle images with poses and CTFs.

    Args:
        particles: A RELION star (3.0 to 5; for tomography, the optimisation set), a cryoSPARC table (.cs) or
            group (.csg), a cisTEM table (.star or .cistem), or, with the options poses and ctf, the images of cryoDRGN
            (.mrcs, .txt, .star or .cs).
        output: Folder that the run is written to.
        settings: What is left out is found from the data, and the log says what was found.
        run: How the run is made and shown.

    Examples:
        # Reconstruct RELION particles, with everything else found from the data:
        emsplat reconstruct particles.star -o run
        # Refine the poses locally, with symmetry, and sharpen the map:
        emsplat reconstruct particles.star -o run --symmetry D2 --refine poses,shifts --sharpen auto
        # Judge the map within a mask of your own, which is resampled where its box or pixel size differ:
        emsplat reconstruct particles.star -o run --mask mask.mrc
        # Leave out the images that emsplat check found odd:
        emsplat reconstruct particles.star -o run --drop check/odd.csv
        # Fit a hash grid with a small network instead of Gaussians, to compare the two:
        emsplat reconstruct particles.star -o run-hash-grid --model hash-grid
        # Reconstruct cryoSPARC particles, or continue after an interruption:
        emsplat reconstruct J24/particles.cs --passthrough J24/passthrough.cs -o run --resume
    """
    from json import dumps

    if run.view and settings.model != "gaussians":
        raise InputError(f"--view shows Gaussians, and --model {settings.model} has none; leave out one of them")
    with session(particles, output, run) as at:
        reporter, world = at.reporter, at.world
        with reporter.loading():
            from emsplat.outputs.claims import is_complete
            from emsplat.reconstruction.reconstruct import reconstruct
            from emsplat.runs.closing import closing_curve, closing_rows

        if world.broadcast(at.may_be_complete and is_complete(output, particles, settings, reporter)):
            at.tell_complete()
            return
        with at.at_work() as checkpoints:
            if world.is_first:  # which writes the run: what that needs is imported while a core is idle
                reporter.when("validation", partial(import_beside, "emsplat.outputs.reconstruction"))
            result = reconstruct(particles, settings, reporter, checkpoints, world)
            if not world.is_first:
                reporter.current = "writing"  # by the first rank, which all others wait for
                return
            from emsplat.outputs.reconstruction import write_run

            summary = write_run(output, result, reporter, overwrite=run.overwrite, ranks=world.size)
        reporter.closing(closing_rows(summary, output), closing_curve(result.validation))
        if run.view:
            reporter.line(f"look at it again: emsplat view {quote(str(output))}")
        if run.json:
            print(dumps({"folder": str(output)} | summary, ensure_ascii=False, default=str))
