"""``emsplat check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from emsplat.check.settings import CheckSettings
from emsplat.versions import __version__


def check(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES")],
    output: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("check"),
    settings: OmitArgPrefixes[CheckSettings] = CheckSettings(),  # noqa: B008 (frozen)
    overwrite: bool = False,
) -> None:
    """Check whether a particle file makes sense, and draw a quick map of its particles.

    Every verdict comes with one line of advice. The exit code is 0 whenever the file could be checked, whatever was
    found in it.

    Args:
        particles: Any particle file that emsplat reconstruct reads.
        output: Folder that check.png, check.json and odd.csv are written to. The last lists unusable and odd images.
        settings: What is left out is found from the data.
        overwrite: Replace a check that the folder holds.

    Examples:
        # Check a RELION star, and write the picture to the folder "check":
        emsplat check particles.star
        # Check cryoSPARC particles, and look at every image instead of a sample:
        emsplat check particles.cs --passthrough passthrough.cs --every-image -o check_J24
        # Check what is left without the images that the last check found odd:
        emsplat check particles.star -o check_again --drop check/odd.csv
    """
    from emsplat.runtime.console import ConsoleReporter

    reporter = ConsoleReporter()
    reporter.line(f"emsplat {__version__}: checking {particles}")
    with reporter.loading():
        from emsplat.check.oddities import odd_list
        from emsplat.check.run import check, closing_line
        from emsplat.check.write import ODD, PICTURE, check_output, write_check

    check_output(output, overwrite)
    result = check(particles, settings, reporter)
    write_check(output, result, reporter)
    for finding in sorted(result.findings, key=lambda f: ("fine", "note", "problem").index(f.verdict)):
        if finding.verdict == "problem":
            reporter.warn(finding.line())
        else:
            reporter.line(f"{finding.verdict}: {finding.line()}")
    n_odd = len(odd_list(result.statistics, result.odd, result.particles))
    some = "" if len(result.statistics.rows) == len(result.particles) else " (of the sample; --every-image lists all)"
    listed = f"; {n_odd:,} images to leave out{some}: {output / ODD}" if n_odd else ""
    reporter.line(f"{closing_line(result)}; picture: {output / PICTURE}{listed}")
