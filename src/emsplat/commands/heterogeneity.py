"""``emsplat heterogeneity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from emsplat.commands.arguments import Output
from emsplat.settings import HeterogeneitySettings
from emsplat.versions import __version__


def heterogeneity(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES")],
    output: Output,
    settings: OmitArgPrefixes[HeterogeneitySettings] = HeterogeneitySettings(),  # noqa: B008 (frozen)
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Find how particles differ: a latent for each of them, maps of states, and Gaussians that follow the latents.

    The half sets stay independent throughout, and the number of components is what each half's components explain of
    the other half's images. It may be 0: then the particles show nothing but their consensus.

    Args:
        particles: A RELION star (3.0 to 5; for tomography, the optimisation set), a cryoSPARC table (.cs) or
            group (.csg), a cisTEM table (.star or .cistem), or, with the options poses and ctf, the images of cryoDRGN
            (.mrcs, .txt, .star or .cs). Their poses are taken as true.
        output: Folder that the run is written to.
        settings: What is left out is found from the data, and the log says what was found.
        overwrite: Replace a run that the folder holds. The old run stays until the new one is complete.
        resume: Continue the run that was interrupted in the folder, to the same result. If there is none, start one.
        quiet: Print nothing but errors. The file run.log in the folder has the whole log.
        json: Print the summary as one JSON object; progress and warnings go to standard error.

    Examples:
        # Find the states of particles from a consensus refinement:
        emsplat heterogeneity particles.star -o states
        # Refine the poses first, and look at coarse detail only, which is faster:
        emsplat heterogeneity particles.star -o states --refine poses,shifts --max-resolution 8
        # Continue after an interruption:
        emsplat heterogeneity particles.star -o states --resume
        # Look for variability within a mask, and hand out eight maps:
        emsplat heterogeneity particles.star -o states --mask domain.mrc --states 8
    """
    from contextlib import nullcontext
    from json import dumps

    from emsplat.runtime.console import ConsoleReporter
    from emsplat.runtime.ranks import joined

    reporter = ConsoleReporter(quiet=quiet, to_stderr=json)
    with joined(lambda: reporter.current) as world:
        if not world.is_first:
            reporter = ConsoleReporter(quiet=True)
        reporter.line(f"emsplat {__version__}: {particles} → {output}")
        if world.size > 1:
            reporter.line(f"{world.size} ranks on {', '.join(dict.fromkeys(world.hosts))}")
        with reporter.loading():
            from emsplat.heterogeneity.run import find_heterogeneity
            from emsplat.outputs.heterogeneity import closing_rows, write_heterogeneity
            from emsplat.outputs.reconstruction import claimed, is_complete
            from emsplat.runs.heterogeneity_folder import HeterogeneityFolder
            from emsplat.runtime.checkpoint import checkpoints_of

        look = world.is_first and resume and not overwrite
        if world.broadcast(look and is_complete(output, particles, settings, reporter)):
            reporter.line(f"{output}: this run is complete, nothing is left to do; to make it again, use --overwrite")
            return
        with claimed(output, overwrite, reporter, HeterogeneityFolder) if world.is_first else nullcontext():
            checkpoints = checkpoints_of(output, resume, overwrite, reporter, world)
            with checkpoints.told_of_if_ended():
                result = find_heterogeneity(particles, settings, reporter, checkpoints, world)
                if not world.is_first:
                    reporter.current = "writing"  # by the first rank, which all others wait for
                    return
                summary = write_heterogeneity(output, result, overwrite, world.size)
        reporter.closing(closing_rows(summary, output), [])
        if json:
            print(dumps({"folder": str(output)} | summary, ensure_ascii=False, default=str))
