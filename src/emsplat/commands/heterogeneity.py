"""``emsplat heterogeneity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from emsplat.commands.arguments import LongJobOptions, Output
from emsplat.commands.session import session
from emsplat.settings import HeterogeneitySettings


def heterogeneity(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES")],
    output: Output,
    settings: OmitArgPrefixes[HeterogeneitySettings] = HeterogeneitySettings(),  # noqa: B008 (frozen)
    run: OmitArgPrefixes[LongJobOptions] = LongJobOptions(),  # noqa: B008 (frozen)
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
        run: How the run is made and shown; a view shows the consensus while it is fitted.

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
    from json import dumps

    with session(particles, output, run) as at:
        reporter, world = at.reporter, at.world
        with reporter.loading():
            from emsplat.heterogeneity.run import find_heterogeneity
            from emsplat.outputs.claims import is_complete
            from emsplat.outputs.heterogeneity import closing_rows, write_heterogeneity
            from emsplat.runs.heterogeneity_folder import HeterogeneityFolder

        if world.broadcast(at.may_be_complete and is_complete(output, particles, settings, reporter)):
            at.tell_complete()
            return
        with at.at_work(HeterogeneityFolder) as checkpoints:
            result = find_heterogeneity(particles, settings, reporter, checkpoints, world)
            if not world.is_first:
                reporter.current = "writing"  # by the first rank, which all others wait for
                return
            summary = write_heterogeneity(output, result, run.overwrite, world.size)
        reporter.closing(closing_rows(summary, output), [])
        if run.json:
            print(dumps({"folder": str(output)} | summary, ensure_ascii=False, default=str))
