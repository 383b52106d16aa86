"""The names of all files that a search for heterogeneity leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from emsplat.runs.run_folder import AVERAGE


@dataclass(frozen=True)
class StateFolder:
    """Paths in the folder of one state."""

    path: Path

    def map(self, half: str = AVERAGE) -> Path:
        """The average of the decoder's maps over the state's images."""
        return self.path / f"map{_suffix(half)}.mrc"

    def unregularised_map(self, half: str) -> Path:
        """The direct inversion of a half's images of the state."""
        return self.path / f"raw{_suffix(half)}.mrc"

    @property
    def mask(self) -> Path:
        return self.path / "mask.mrc"

    @property
    def difference(self) -> Path:
        """The difference between the direct inversions of the state and of all images."""
        return self.path / "difference.mrc"

    @property
    def difference_error(self) -> Path:
        return self.path / "difference_error.mrc"

    @property
    def gaussians(self) -> Path:
        """The decoder's Gaussians at the state's mean latent."""
        return self.path / "gaussians.safetensors"

    @property
    def curves(self) -> Path:
        return self.path / "fsc.csv"

    @property
    def ids(self) -> Path:
        """The particles that are most likely in this state, for `emsplat subset --keep`."""
        return self.path / "ids.csv"


@dataclass(frozen=True)
class HeterogeneityFolder:
    """Paths in the folder of a search for heterogeneity. No path is opened here, and a file need not exist."""

    path: Path

    SUMMARY: ClassVar[str] = "summary.json"

    @property
    def summary(self) -> Path:
        """The summary. It is moved into place last, so that a folder with a summary holds a complete run."""
        return self.path / self.SUMMARY

    @property
    def configuration(self) -> Path:
        return self.path / "config.json"

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @property
    def consensus(self) -> Path:
        """The run folder of the reconstruction of all images."""
        return self.path / "consensus"

    @property
    def latents(self) -> Path:
        return self.path / "latents.csv"

    def decoder(self, half: str = AVERAGE) -> Path:
        return self.path / f"decoder{_suffix(half)}.safetensors"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def states(self) -> Path:
        return self.path / "states"

    def state(self, number: int) -> StateFolder:
        """The folder of a state. Args: number: number of the state, from 1."""
        return StateFolder(self.states / f"{number:02d}")

    @property
    def junk(self) -> Path:
        """The images that probably show no particle, for `emsplat subset --drop`."""
        return self.path / "junk.csv"

    @property
    def landscape(self) -> Path:
        """A page that shows the latents; points can be selected on it."""
        return self.path / "landscape.html"

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories"

    def trajectory(self, component: int) -> Path:
        """The folder of a component's trajectory. Args: component: from 1."""
        return self.trajectories / f"component{component}"

    @property
    def results(self) -> tuple[Path, ...]:
        """The files and folders by which a folder is known to hold such a run."""
        return (self.summary, self.configuration, self.log, self.latents, self.decoder(), self.consensus, self.states)


def _suffix(half: str) -> str:
    return "" if half == AVERAGE else f"_half{half}"
