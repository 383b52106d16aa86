"""A finished run, read from its folder. Report, viewer and export read runs through this object alone."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.io.mrc import Map, read_map
from emsplat.runs.classes_folder import ClassesFolder, holds_classes
from emsplat.runs.heterogeneity_folder import HeterogeneityFolder, holds_heterogeneity
from emsplat.runs.run_folder import JobFolder, RunFolder
from emsplat.settings import MODEL_NAMES, ModelKind

_AGAIN = "run emsplat reconstruct again"
# What every version has written into summary.json.
_NEEDED = {
    "resolution", "resolution_kind", "poses_shared", "measurable_limit", "nyquist", "n_images", "n_particles",
    "n_gaussians_of_halves", "box_size", "pixel_size", "symmetry", "b_factor", "seconds", "peak_memory_in_bytes",
}  # fmt: skip


@dataclass(frozen=True)
class FinishedJob:
    """What every finished job left. A file that an older version did not write is None; an unreadable file is an
    InputError.
    """

    folder: JobFolder
    name: str  # what the user calls the run

    @property
    def summary(self) -> dict[str, Any]:
        """The contents of summary.json."""
        raise NotImplementedError

    @cached_property
    def configuration(self) -> dict[str, Any] | None:
        return json_of(self.folder.configuration)

    @cached_property
    def log(self) -> str | None:
        path = self.folder.log
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


@dataclass(frozen=True)
class Run(FinishedJob):
    """A finished reconstruction."""

    folder: RunFolder

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The contents of summary.json, which every finished run has."""
        found = json_of(self.folder.summary)
        if found is None or not found.keys() >= _NEEDED:
            raise _unfinished(self.folder)
        return found

    @cached_property
    def _needed_by_export(self) -> tuple[int, float, ModelKind]:
        """Box size and pixel size (Å) of the maps, and what was fitted: all that the export needs of the summary."""
        try:
            facts = json.loads(self.folder.summary.read_text(encoding="utf-8"))
            box_size, pixel_size = int(facts["box_size"]), float(facts["pixel_size"])
            model = facts.get("model", "gaussians")  # older versions fitted Gaussians only
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            raise _unfinished(self.folder) from None
        if not (box_size > 0 and 0 < pixel_size < math.inf and model in list(MODEL_NAMES)):
            raise _unfinished(self.folder)
        return box_size, pixel_size, model

    @property
    def box_size(self) -> int:
        """Edge of the maps in voxels."""
        return self._needed_by_export[0]

    @property
    def pixel_size_in_angstroms(self) -> float:
        """Edge of a voxel of the maps."""
        return self._needed_by_export[1]

    @property
    def model(self) -> ModelKind:
        """The kind of model that was fitted."""
        return self._needed_by_export[2]

    def gaussians(self, half: str) -> Path:
        """The file of the Gaussians of a half; InputError if it is missing, or if something else was fitted."""
        if self.model != "gaussians":
            raise InputError(
                f"{self.folder.path}: this run fitted {MODEL_NAMES[self.model]}, so that it has no Gaussians; its maps "
                "are in the folder, and emsplat export --format relion writes them under RELION's names"
            )
        return required(self.folder.gaussians(half))

    @cached_property
    def curves(self) -> dict[str, NDArray[np.float64]] | None:
        """Columns of fsc.csv, (D//2,) each."""
        return curves_of(self.folder.curves)

    @cached_property
    def evidence(self) -> dict[str, NDArray]:
        """The arrays of `evidence.gather_evidence`; empty if the run left none."""
        path = self.folder.evidence
        if not path.is_file():
            return {}
        try:
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: cannot be read ({error}); {_AGAIN}, or remove it") from None


def open_run(folder: Path) -> Run:
    """The finished run in a folder; InputError where the folder holds none."""
    if holds_heterogeneity(folder):
        raise InputError(
            f"{folder}: holds a search for heterogeneity; write its maps and models with emsplat decode, or give "
            f"{HeterogeneityFolder(folder).consensus}, its reconstruction of all images"
        )
    run, classes = Run(RunFolder(folder), folder.resolve().name), ClassesFolder(folder)
    try:
        _ = run.box_size
    except InputError:
        if holds_classes(folder):
            first = classes.of_class(1).path
            raise InputError(f"{folder}: holds a search for several classes; give the folder of one, {first}") from None
        raise
    return run


def curves_of(path: Path) -> dict[str, NDArray[np.float64]] | None:
    """Columns of a file of curves, or None if the run left none."""
    if not path.is_file():
        return None
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"{path}: no curves can be read from it ({error}); {_AGAIN}") from None


def map_of(path: Path) -> Map | None:
    """One of the run's maps, or None if the run left none."""
    return read_map(path) if path.is_file() else None


def required(path: Path) -> Path:
    """The path itself; InputError if this file of a finished run is missing."""
    if not path.is_file():
        raise InputError(f"{path}: is missing from the run; {_AGAIN}")
    return path


def _unfinished(folder: RunFolder) -> InputError:
    return InputError(
        f"{folder.path}: no finished run in it (no summary.json that can be read); "
        "give a folder that emsplat reconstruct has written"
    )


def json_of(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is no such file or it holds something else."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {_AGAIN}") from None
