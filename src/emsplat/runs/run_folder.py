"""What a finished run left on the disk, found again."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from emsplat.errors import InputError


@dataclass(frozen=True)
class RunFolder:
    """The folder of a finished run, and the grid its maps have."""

    path: Path
    box_size: int
    pixel_size_in_angstroms: float

    def file(self, name: str) -> Path:
        """One of the run's files; InputError where it is gone."""
        path = self.path / name
        if not path.is_file():
            raise InputError(f"{path}: is missing from the run; run emsplat reconstruct again")
        return path


def open_run(folder: Path) -> RunFolder:
    """InputError where the folder holds no finished run."""
    summary = folder / "summary.json"  # written last: where it is, the run is complete
    try:
        facts = json.loads(summary.read_text(encoding="utf-8"))
        run = RunFolder(folder, int(facts["box_size"]), float(facts["pixel_size"]))
        if not (run.box_size > 0 and 0 < run.pixel_size_in_angstroms < math.inf):
            raise ValueError("no size of a map")
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        raise InputError(
            f"{folder}: no finished run in it (no summary.json that can be read); "
            "give a folder that emsplat reconstruct has written"
        ) from None
    return run
