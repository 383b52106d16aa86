"""``emsplat heterogeneity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from emsplat.commands.arguments import JobOptions, Output
from emsplat.settings import HeterogeneitySettings
from emsplat.versions import __version__


def heterogeneity(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES")],
    output: Output,
    settings: OmitArgPrefixes[HeterogeneitySettings] = HeterogeneitySettings(),  # noqa: B008 (frozen)
    run: OmitArgPrefixes[JobOptions] = JobOptions(),  # noqa: B008 (frozen)
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
        run: How the run is written and shown.

    Examples:
        # Find the states of particles from a consensus refinement:
        emsplat heterogeneity particles.star -o states
        # Refine the poses first, and look at coarse detail only, which is faster:
        emsplat heterogeneity particles.star -o states --refine poses,shifts --max-resolution 8
        # Look for variability within a mask, and hand out eight maps:
        emsplat heterogeneity particles.star -o states --mask domain.mrc --states 8
    """
    from json import dumps

    from emsplat.runtime.console import ConsoleReporter

    reporter = ConsoleReporter(quiet=run.quiet, to_stderr=run.json)
    reporter.line(f"emsplat {__version__}: {particles} → {output}")
    with reporter.loading():
        from emsplat.heterogeneity.run import find_heterogeneity
        from emsplat.outputs.heterogeneity import claimed, closing_rows, write_heterogeneity
    with claimed(output, run.overwrite, reporter):
        result = find_heterogeneity(particles, settings, reporter)
        summary = write_heterogeneity(output, result, run.overwrite)
    reporter.closing(closing_rows(summary, output), [])
    if run.json:
        print(dumps({"folder": str(output)} | summary, ensure_ascii=False, default=str))
