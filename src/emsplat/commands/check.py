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
    """Does a particle file make sense? Facts, a quick map, verdicts with one line of advice each, and a picture.

    Problems found are advice: the exit code is 0 wherever the file could be checked.

    Args:
        particles: any particle file that emsplat reconstruct reads.
        output: the folder to write check.png and check.json to.
        settings: what is left out is found from the data.
        overwrite: replace a check the folder holds.
    """
    from emsplat.runtime.console import ConsoleReporter

    reporter = ConsoleReporter()
    reporter.line(f"emsplat {__version__}: checking {particles}")
    with reporter.stage("loading"):
        from emsplat.check.run import check, closing_line
        from emsplat.check.write import PICTURE, check_output, write_check

    check_output(output, overwrite)
    result = check(particles, settings, reporter)
    write_check(output, result, reporter)
    for finding in sorted(result.findings, key=lambda f: ("fine", "note", "problem").index(f.verdict)):
        if finding.verdict == "problem":
            reporter.warn(finding.line())
        else:
            reporter.line(f"{finding.verdict}: {finding.line()}")
    reporter.line(f"{closing_line(result)}; picture: {output / PICTURE}")
