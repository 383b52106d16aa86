"""``emsplat reconstruct``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

import emsplat
from emsplat.commands.arguments import Output
from emsplat.settings import ReconstructSettings


def reconstruct(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES.star")],
    output: Output,
    settings: OmitArgPrefixes[ReconstructSettings] = ReconstructSettings(),  # noqa: B008 (frozen)
    overwrite: bool = False,
) -> None:
    """Particle images with poses and CTFs → map, half maps, Gaussians, figures, and a resolution.

    Args:
        particles: a RELION star file, 3.0 or 3.1.
        output: the folder to write to.
        settings: what is left out is found from the data and said in the log.
        overwrite: replace a run the folder holds; it stays until the new one is complete.
    """
    from emsplat.console import ConsoleReporter

    reporter = ConsoleReporter()
    reporter.line(f"emsplat {emsplat.__version__}: {particles} → {output}")
    with reporter.stage("loading"):
        from emsplat import outputs
        from emsplat.reconstruction import reconstruct

    outputs.check_output(output, overwrite)
    result = reconstruct(particles, settings, reporter)
    summary = outputs.write_run(output, result, reporter, overwrite=overwrite)
    reporter.table(outputs.closing_rows(summary, output))
