"""The maps of a run under the names that RELION's 3D auto-refinement uses and its other jobs expect."""

from __future__ import annotations

import shutil
from pathlib import Path

from emsplat.runs.run import Run, required
from emsplat.runtime.folders import filling

MAP, HALF_1, HALF_2 = "run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"
MASK = "mask.mrc"
NAMES = (MAP, HALF_1, HALF_2, MASK)


def write_relion_maps(run: Run, folder: Path) -> None:
    """Copies the map, the unregularised half maps and the mask into a folder, which may be the run's own.

    The half maps are the ones that no prior has touched, so that the FSC that RELION computes from them does not
    overstate the resolution.
    """
    files = run.folder
    paths = (files.map(), files.unregularised_map("1"), files.unregularised_map("2"), files.mask)
    sources = {name: required(path) for name, path in zip(NAMES, paths, strict=True)}
    with filling(folder, last=MAP) as staging:
        for name, source in sources.items():
            shutil.copyfile(source, staging / name)
