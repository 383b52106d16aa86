"""The names of all files that a search for heterogeneity leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from emsplat.runs.run_folder import AVERAGE, JobFolder, MapFolder, suffix


@dataclass(frozen=True)
class StateFolder(MapFolder):
    """Paths in the folder of one state. Its maps combine averages of the decoder's maps and direct inversions."""

    @property
    def difference(self) -> Path:
        """The difference between the direct inversions of the state and of all images."""
        return self.path / "difference.mrc"

    @property
    def difference_error(self) -> Path:
        """The standard error of the difference at each voxel."""
        return self.path / "difference_error.mrc"

    @property
    def ids(self) -> Path:
        """The particles that are most likely in this state, for `emsplat subset --keep`."""
        return self.path / "ids.csv"


@dataclass(frozen=True)
class TrajectoryFolder:
    """Paths in the folder of the trajectory along one component."""

    path: Path

    @property
    def points(self) -> Path:
        """The points in latent space, a row for each map."""
        return self.path / "points.csv"

    @property
    def movie(self) -> Path:
        return self.path / "movie.gif"

    @property
    def script(self) -> Path:
        """Commands that play the maps in ChimeraX."""
        return self.path / "play.cxc"


@dataclass(frozen=True)
class HeterogeneityFolder(JobFolder):
    """Paths in the folder of a search for heterogeneity. No path is opened here, and a file need not exist."""

    FIGURES: ClassVar[tuple[str, ...]] = ("components", "landscape", "states", "differences", "movement")

    @property
    def consensus(self) -> Path:
        """The run folder of the reconstruction of all images."""
        return self.path / "consensus"

    @property
    def latents(self) -> Path:
        return self.path / "latents.csv"

    def decoder(self, half: str = AVERAGE) -> Path:
        return self.path / f"decoder{suffix(half)}.safetensors"

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

    def trajectory(self, component: int) -> TrajectoryFolder:
        """The folder of a component's trajectory. Args: component: from 1."""
        return TrajectoryFolder(self.trajectories / f"component{component}")

    @property
    def results(self) -> tuple[Path, ...]:
        """The files and folders by which a folder is known to hold such a run."""
        return (self.summary, self.configuration, self.log, self.latents, self.decoder(), self.consensus, self.states)


def holds_heterogeneity(folder: Path) -> bool:
    """Whether a folder holds a search for heterogeneity, complete or not, rather than a reconstruction."""
    files = HeterogeneityFolder(folder)
    return files.latents.is_file() and files.consensus.is_dir()
