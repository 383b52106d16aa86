"""``emsplat subset``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from emsplat.settings import InputSettings


def subset(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES")],
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE")],
    settings: OmitArgPrefixes[InputSettings] = InputSettings(),  # noqa: B008 (frozen)
    overwrite: bool = False,
) -> None:
    """Write some of the particles in the file's own format and columns, or any particles as a RELION star.

    Args:
        particles: A RELION star, a cryoSPARC .cs, cryoDRGN's poses.pkl or ctf.pkl, or its stack with the options poses
            and ctf. A cryoSPARC group (.csg) and a cisTEM table can only be converted to a RELION star.
        output: File to write. Its name ends like that of PARTICLES, or in .star, which converts.
        settings: A list for --keep or --drop is a text file with one id in each line, a CSV file with a column called
            id, or a pickle of row numbers counted from 0. The id of a particle is its rlnImageName in a star, its uid
            in a .cs, and its row number, counted from 1, in a .pkl. All other options act where a file is converted.
        overwrite: Replace a file that exists.

    Examples:
        # Keep the particles that are listed in ids.csv:
        emsplat subset particles.star -o kept.star --keep ids.csv
        # Leave out the images that emsplat check found odd:
        emsplat subset particles.star -o clean.star --drop check/odd.csv
        # Keep the particles that cryoDRGN kept:
        emsplat subset particles.star -o filtered.star --keep ind.pkl
        # Convert cryoSPARC particles to a RELION star:
        emsplat subset J24/particles.cs --passthrough J24/passthrough.cs -o particles.star
    """
    from emsplat.errors import InputError
    from emsplat.io.subset import subset
    from emsplat.runtime.console import ConsoleReporter

    if output.exists() and not overwrite:
        raise InputError(f"{output}: exists already; choose another name, or replace it with --overwrite")
    reporter = ConsoleReporter()
    with reporter.stage("reading"):
        written, total, lost = subset(particles, output, settings)
    for line in lost:
        reporter.warn(line)
    reporter.line(f"{written:,} of {total:,} particles: {output}")
