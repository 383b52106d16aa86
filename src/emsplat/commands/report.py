"""``emsplat report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def report(
    run: Annotated[Positional[Path], arg(metavar="DIR")],
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE")] = None,
) -> None:
    """Write the report of a finished run again: one HTML file with curves, slices, surface, views and settings.

    Every run writes its own report. This command makes it again from the files in the run folder.

    Args:
        run: Folder that emsplat reconstruct, abinitio or heterogeneity wrote. In a folder of several classes, the
            report of every class is written.
        output: File to write. If left out, report.html in DIR.

    Examples:
        # Write run/report.html again:
        emsplat report run
        # Write the report to another file:
        emsplat report run -o ~/notebook/ribosome.html
    """
    from emsplat.runtime.console import ConsoleReporter

    reporter = ConsoleReporter()
    with reporter.loading():
        from emsplat.report.heterogeneity import write_heterogeneity_report
        from emsplat.report.page import write_report, write_reports_of_classes
        from emsplat.runs.classes_folder import holds_classes
        from emsplat.runs.heterogeneity_folder import holds_heterogeneity
    with reporter.stage("report"):
        if holds_classes(run):
            written = write_reports_of_classes(run, output)
        elif holds_heterogeneity(run):
            written = [write_heterogeneity_report(run, output)]
        else:
            written = [write_report(run, output)]
    for path in written:
        reporter.line(str(path))
