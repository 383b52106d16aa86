"""``emsplat subset``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from emsplat.settings import InputSettings


def subset(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES")],
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE")],
    keep: Annotated[Path | None, arg(metavar="IDS.csv")] = None,
    drop: Annotated[Path | None, arg(metavar="IDS.csv")] = None,
    settings: OmitArgPrefixes[InputSettings] = InputSettings(),  # noqa: B008 (frozen)
    overwrite: bool = False,
) -> None:
    """Some of the particles, in the file's own format and columns; or any particles as a RELION star.

    Args:
        particles: a RELION star, a cryoSPARC .cs, cryoDRGN's poses or ctf (.pkl), or its stack with --poses and --ctf.
        output: the file to write, its name ending as that of PARTICLES; or .star, which converts.
        keep: the particles to write: one id a line, or a CSV with a column id. Ids are rlnImageName in a star, uid in
            a .cs, the row's number from 1 in a .pkl.
        drop: the particles to leave out, instead of --keep.
        settings: act where a file is converted.
        overwrite: replace a file that exists.
    """
    from emsplat.errors import InputError
    from emsplat.io.subset import subset
    from emsplat.runtime.console import ConsoleReporter

    if output.exists() and not overwrite:
        raise InputError(f"{output}: exists already; choose another name, or replace it with --overwrite")
    reporter = ConsoleReporter()
    with reporter.stage("reading"):
        written, total, lost = subset(particles, output, keep, drop, settings)
    for line in lost:
        reporter.warn(line)
    reporter.line(f"{written:,} of {total:,} particles: {output}")
