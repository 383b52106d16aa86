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
    """Particle images without poses → poses, a map, and whether to believe them.

    Both half sets are searched from random poses, independently of each other; a run has converged only if they find
    the same map and the same poses. The hand of the map stays undetermined: `emsplat flip DIR` writes the other one.

    Args:
        particles: a RELION star, a cryoSPARC table (.cs), or, with --ctf, cryoDRGN's images; poses are
            ignored. With --no-ctf, a stack alone is enough.
        output: the folder to write to.
        settings: what is left out is found from the data, and the log says what was found.
        overwrite: replace a run in the folder; it stays until the new one is complete.
        quiet: print nothing but errors; run.log in the folder has everything.
        json: print the summary as one JSON object, and everything else to the standard error.

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
    with reporter.stage("loading"):
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
