"""``emsplat report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def report(
    run: Annotated[Positional[Path], arg(metavar="DIR")],
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE")] = None,
) -> None:
    """The page on a finished run: curves, slices, surface, views, particles and how they were made, in one HTML file.

    Every run writes its own; this writes it again, from what is in the run's folder.

    Args:
        run: the folder that emsplat reconstruct wrote.
        output: the file to write; left out: report.html in DIR.
    """
    from emsplat.runtime.console import ConsoleReporter

    reporter = ConsoleReporter()
    with reporter.stage("loading"):
        from emsplat.report.page import write_report
    with reporter.stage("report"):
        written = write_report(run, output)
    reporter.line(str(written))
