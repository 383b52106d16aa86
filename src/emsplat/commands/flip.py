"""``emsplat flip``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def flip(folder: Annotated[Positional[Path], arg(metavar="DIR")], overwrite: bool = False) -> None:
    """Write the other hand of a run: map_flipped.mrc, and the particles with the poses of the mirror image.

    Projections do not distinguish a map from its mirror image, so that a map found ab initio may have the wrong hand.

    Args:
        folder: Run folder to which the files are added.
        overwrite: Replace the files of an earlier flip.

    Examples:
        # Write the mirror image of a map that was found ab initio, and the poses of its particles:
        emsplat flip found
        # Write them again after the run was repeated:
        emsplat flip found --overwrite
    """
    from emsplat.outputs.flip import flip as written
    from emsplat.runtime.console import ConsoleReporter

    reporter = ConsoleReporter()
    for path in written(folder, overwrite):
        reporter.line(f"{path} has the other hand")
