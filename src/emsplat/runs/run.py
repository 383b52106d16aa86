"""What a finished run left on the disk, as its report reads it."""

from __future__ import annotations

import csv
import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.io.mrc import Map, read_map

EVIDENCE = "report_data.npz"
_AGAIN = "run emsplat reconstruct again"
# What every version has written into summary.json.
_NEEDED = {
    "resolution", "resolution_kind", "poses_shared", "measurable_limit", "nyquist", "n_images", "n_particles",
    "n_gaussians_of_halves", "box_size", "pixel_size", "symmetry", "b_factor", "seconds", "peak_memory_in_bytes",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run folder. What an older run did not write is None; what cannot be read is an InputError."""

    folder: Path
    name: str  # as the reader knows the run

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json, which every finished run has."""
        found = self._json("summary.json")
        if found is None or not found.keys() >= _NEEDED:
            raise InputError(
                f"{self.folder}: no finished run in it (no summary.json that can be read); "
                "give a folder that emsplat reconstruct has written"
            )
        return found

    @cached_property
    def configuration(self) -> dict[str, Any] | None:
        return self._json("config.json")

    @cached_property
    def log(self) -> str | None:
        path = self.folder / "run.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

    @cached_property
    def curves(self) -> dict[str, NDArray[np.float64]] | None:
        """Columns of fsc.csv, (D//2,) each."""
        path = self.folder / "fsc.csv"
        if not path.is_file():
            return None
        try:
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
        except (ValueError, IndexError, TypeError) as error:
            raise InputError(f"{path}: no curves can be read from it ({error}); {_AGAIN}") from None

    @cached_property
    def evidence(self) -> dict[str, NDArray]:
        """The arrays of `evidence.gather_evidence`; empty for a run that left none."""
        path = self.folder / EVIDENCE
        if not path.is_file():
            return {}
        try:
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: cannot be read ({error}); {_AGAIN}, or remove it") from None

    def map(self, name: str) -> Map | None:
        path = self.folder / name
        return read_map(path) if path.is_file() else None

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else None
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error}); {_AGAIN}") from None
