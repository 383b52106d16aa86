"""A run's maps under the names a 3D auto-refinement gives them, which RELION's other jobs go by."""

from __future__ import annotations

import shutil
from pathlib import Path

from emsplat.runs.run_folder import RunFolder
from emsplat.runtime.folders import filling

MAP, HALF_1, HALF_2 = "run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"
MASK = "mask.mrc"
# The half maps are those no prior has touched: their FSC, which RELION goes by, overstates nothing.
_SOURCES = {MAP: "map.mrc", HALF_1: "raw_half1.mrc", HALF_2: "raw_half2.mrc", MASK: "mask.mrc"}
NAMES = tuple(_SOURCES)


def write_relion_maps(run: RunFolder, folder: Path) -> None:
    """Copies map, unfiltered half maps and mask into a folder, which may be the run's own."""
    sources = {name: run.file(source) for name, source in _SOURCES.items()}
    with filling(folder, last=MAP) as staging:
        for name, source in sources.items():
            shutil.copyfile(source, staging / name)
