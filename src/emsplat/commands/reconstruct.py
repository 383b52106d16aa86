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
    """Reconstruct a map, half maps, Gaussians and a resolution from particle images with poses and CTFs.

    Args:
        particles: A RELION star (3.0 to 5; for tomography, the optimisation set), a cryoSPARC table (.cs), or, with the
            options poses and ctf, the images of cryoDRGN (.mrcs, .txt, .star or .cs).
        output: Folder that the run is written to.
        settings: What is left out is found from the data, and the log says what was found.
        overwrite: Replace a run that the folder holds. The old run stays until the new one is complete.
        resume: Continue the run that was interrupted in the folder, to the same result. If there is none, start one.
        quiet: Print nothing but errors. The file run.log in the folder has the whole log.
        json: Print the summary as one JSON object; progress and warnings go to standard error.
        view: Show the Gaussians in the browser while they are fitted.
        host: Address that the view listens on. With the default only this machine can look; with 0.0.0.0 everyone who
            can reach this machine can.
        port: Port that the view listens on. If it is taken, one of the next ports is used.

    Examples:
        # Reconstruct RELION particles, with everything else found from the data:
        emsplat reconstruct particles.star -o run
        # Refine the poses locally, with symmetry, and sharpen the map:
        emsplat reconstruct particles.star -o run --symmetry D2 --refine poses,shifts --sharpen auto
        # Leave out the images that emsplat check found odd:
        emsplat reconstruct particles.star -o run --drop check/odd.csv
        # Reconstruct cryoSPARC particles, or continue after an interruption:
        emsplat reconstruct J24/particles.cs --passthrough J24/passthrough.cs -o run --resume
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
