"""A finished search for heterogeneity, read from its folder. Report, viewer and decoder read it through this object."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.runs.heterogeneity_folder import HeterogeneityFolder
from emsplat.runs.run import FinishedJob, json_of

_NEEDED = {"n_components", "box_size", "pixel_size", "states"}
_SURE = 5.0  # standard deviations from which a state surely differs from the consensus


@dataclass(frozen=True)
class HeterogeneityRun(FinishedJob):
    """A finished search for heterogeneity."""

    folder: HeterogeneityFolder

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The contents of summary.json, which every finished run has."""
        found = json_of(self.folder.summary)
        if found is None or not found.keys() >= _NEEDED:
            raise InputError(f"{self.folder.path}: not a finished run of emsplat heterogeneity; give the folder of one")
        return found

    @property
    def n_components(self) -> int:
        """Number of latents, K."""
        return int(self.summary["n_components"])

    @property
    def box_size(self) -> int:
        """Edge of the maps in voxels."""
        return int(self.summary["box_size"])

    @property
    def pixel_size_in_angstroms(self) -> float:
        """Edge of a voxel of the maps."""
        return float(self.summary["pixel_size"])

    @cached_property
    def states(self) -> NDArray[np.float64]:
        """(S, K) mean latent of each state."""
        z = [state["z"] for state in self.summary["states"]]
        return np.array(z, dtype=np.float64).reshape(-1, max(self.n_components, 1))

    def trajectory(self, component: int) -> NDArray[np.float64]:
        """(n, K) points of the trajectory along a component, from 1."""
        path = self.folder.trajectory(component).points
        try:
            rows = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
            return np.stack([rows[f"z{i + 1}"] for i in range(self.n_components)], axis=1).astype(np.float64)
        except (OSError, ValueError, IndexError) as error:
            raise InputError(f"{path}: cannot be read ({error}); make the run again") from None


def open_heterogeneity(folder: Path, name: str | None = None) -> HeterogeneityRun:
    """The finished search in a folder; InputError where the folder holds none. Args: name: what to call it."""
    run = HeterogeneityRun(HeterogeneityFolder(folder), name or folder.resolve().name)
    try:
        _ = run.n_components, run.box_size, run.pixel_size_in_angstroms, run.states
    except (TypeError, ValueError, KeyError):
        raise InputError(f"{folder}: not a finished run of emsplat heterogeneity; give the folder of one") from None
    return run


def resolution_of_state(state: dict[str, Any]) -> str:
    """The resolution of a state in a few words."""
    if state["resolution_kind"] == "not_measurable":
        return "no measurable resolution"
    better = "better than " if state["resolution_kind"] == "better_than" else ""
    return f"{better}{state['resolution']:.2f} Å"


def surely_differs(state: dict[str, Any]) -> bool:
    """Whether a state's direct inversion differs from that of all images beyond doubt."""
    return bool(state["difference_significance"] > _SURE)
