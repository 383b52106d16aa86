"""``emsplat abinitio``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from emsplat.commands.arguments import Output
from emsplat.settings import AbInitioSettings
from emsplat.versions import __version__


def abinitio(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES")],
    output: Output,
    settings: OmitArgPrefixes[AbInitioSettings] = AbInitioSettings(),  # noqa: B008 (frozen)
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
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
        overwrite: Replace a run that the folder holds. The old run stays until the new one is complete.
        quiet: Print nothing but errors. The file run.log in the folder has the whole log.
        json: Print the summary as one JSON object; progress and warnings go to standard error.

    Examples:
        # Find the poses of extracted particles, with everything else found from the data:
        emsplat abinitio particles.star -o found
        # Impose a symmetry, and say how large the particle is:
        emsplat abinitio extracted.cs -o found --symmetry D2 --mask-diameter 180
    """
    from json import dumps

    from emsplat.runtime.console import ConsoleReporter

    reporter = ConsoleReporter(quiet=quiet, to_stderr=json)
    reporter.line(f"emsplat {__version__}: {particles} → {output}")
    with reporter.loading():
        from emsplat.abinitio.run import ab_initio
        from emsplat.outputs import reconstruction as outputs
        from emsplat.outputs.abinitio import write_ab_initio
        from emsplat.runs.closing import closing_curve, closing_rows

    with outputs.claimed(output, overwrite, reporter):
        found = ab_initio(particles, settings, reporter)
        summary = write_ab_initio(output, found, reporter, overwrite)
    curve = closing_curve(found.reconstruction.validation) if found.status == "converged" else []
    reporter.closing([("ab initio", found.verdict.text()), *closing_rows(summary, output)], curve)
    if json:
        print(dumps({"folder": str(output)} | summary, ensure_ascii=False, default=str))
