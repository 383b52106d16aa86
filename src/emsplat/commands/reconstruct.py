"""``emsplat reconstruct``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from shlex import quote
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from emsplat.commands.arguments import Output
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings
from emsplat.versions import __version__


def reconstruct(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES")],
    output: Output,
    settings: OmitArgPrefixes[ReconstructSettings] = ReconstructSettings(),  # noqa: B008 (frozen)
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
    json: bool = False,
    view: bool = False,
    host: str = "127.0.0.1",
    port: int = 8080,
) -> None:
    """Particle images with poses and CTFs → map, half maps, Gaussians, figures, and a resolution.

    Args:
        particles: a RELION star (3.0 to 5; of tomography, the optimisation set), a cryoSPARC table (.cs), or, with
            --poses and --ctf, cryoDRGN's images (.mrcs, .txt, .star, .cs).
        output: the folder to write to.
        settings: what is left out is found from the data and said in the log.
        overwrite: replace a run the folder holds; it stays until the new one is complete.
        resume: go on with the run that was ended in the folder, to the same result; begin one if there is none.
        quiet: print nothing but errors; the folder's run.log has it all.
        json: print the summary as one JSON object, and all else to the standard error.
        view: show the Gaussians in the browser while they are fitted.
        host: of the view, the address to listen at; left: only this machine can look. 0.0.0.0: all who reach it.
        port: of the view; where it is taken, one of the next.
    """
    from json import dumps

    from emsplat.runtime.console import ConsoleReporter
    from emsplat.runtime.ranks import joined

    if view:
        from emsplat.viewer.server import check_installed

        check_installed()
    reporter = ConsoleReporter(quiet=quiet, to_stderr=json)
    with joined(lambda: reporter.current) as world:
        if not world.is_first:
            reporter = ConsoleReporter(quiet=True)
        reporter.line(f"emsplat {__version__}: {particles} → {output}")
        if world.size > 1:
            reporter.line(f"{world.size} ranks on {', '.join(dict.fromkeys(world.hosts))}")
        with reporter.stage("loading"):
            from emsplat.outputs import reconstruction as outputs
            from emsplat.reconstruction.reconstruct import reconstruct
            from emsplat.runs.closing import closing_curve, closing_rows
            from emsplat.runtime.checkpoint import checkpoints_of

        look = world.is_first and resume and not overwrite
        if world.broadcast(look and outputs.is_complete(output, particles, settings, reporter)):
            reporter.line(f"{output}: this run is complete, nothing is left to do; to make it again, use --overwrite")
            return
        with (
            outputs.claimed(output, overwrite, reporter) if world.is_first else nullcontext(),
            _watched(reporter, host, port) if view and world.is_first else nullcontext(),
        ):
            checkpoints = checkpoints_of(output, resume, overwrite, reporter, world)
            with checkpoints.told_of_if_ended():
                result = reconstruct(particles, settings, reporter, checkpoints, world)
                if not world.is_first:
                    reporter.current = "writing"  # by the first rank, which all others wait for
                    return
                summary = outputs.write_run(output, result, reporter, overwrite=overwrite, ranks=world.size)
        reporter.closing(closing_rows(summary, output), closing_curve(result.validation))
        if view:
            reporter.line(f"look at it again: emsplat view {quote(str(output))}")
        if json:
            print(dumps({"folder": str(output)} | summary, ensure_ascii=False, default=str))


def _watched(reporter: Reporter, host: str, port: int) -> AbstractContextManager[None]:
    from emsplat.viewer.live import watched

    return watched(reporter, host, port)
