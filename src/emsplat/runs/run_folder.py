"""The names of all files in a run folder. What writes, reads or mentions a file of a run takes its path from here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from emsplat.io.write_refined import NAMES as REFINED_PARTICLES
from emsplat.runtime.checkpoint import FOLDER as CHECKPOINTS

HALVES = ("1", "2")
AVERAGE = "average"


@dataclass(frozen=True)
class JobFolder:
    """Paths of what every job leaves in its folder. No path is opened here, and a file need not exist."""

    path: Path

    SUMMARY: ClassVar[str] = "summary.json"
    CHECKPOINTS: ClassVar[str] = CHECKPOINTS

    @property
    def summary(self) -> Path:
        """The summary. It is moved into place last, so that a folder with a summary holds a complete run."""
        return self.path / self.SUMMARY

    @property
    def configuration(self) -> Path:
        """The command, all settings, and what was found from the data."""
        return self.path / "config.json"

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.path / "figures"

    def figure(self, name: str) -> Path:
        """The figure of this name, without its ending."""
        return self.figures / f"{name}.png"

    @property
    def checkpoints(self) -> Path:
        """The folder of states to resume from. It is removed when the run is complete."""
        return self.path / self.CHECKPOINTS


@dataclass(frozen=True)
class MapFolder:
    """Paths of a map and of all that belongs to it.

    A model, a map or an unregularised map is that of half "1" or "2", or of their "average" where there is one.
    """

    path: Path

    def map(self, half: str = AVERAGE) -> Path:
        """The final map, which is the average, or a half map."""
        return self.path / f"map{suffix(half)}.mrc"

    def unregularised_map(self, half: str) -> Path:
        """The direct inversion of a half's images."""
        return self.path / f"raw{suffix(half)}.mrc"

    def gaussians(self, half: str = AVERAGE) -> Path:
        return self.path / f"gaussians{suffix(half)}.safetensors"

    @property
    def mask(self) -> Path:
        return self.path / "mask.mrc"

    @property
    def curves(self) -> Path:
        """The Fourier shell correlations and c_map."""
        return self.path / "fsc.csv"


@dataclass(frozen=True)
class RunFolder(JobFolder, MapFolder):
    """Paths in the folder of a reconstruction. Its maps are combinations of Gaussians and direct inversion."""

    @property
    def evidence(self) -> Path:
        """The arrays that the report needs beside the other files."""
        return self.path / "report_data.npz"

    @property
    def local_resolution(self) -> Path:
        return self.path / "local_resolution.mrc"

    @property
    def uncertainty(self) -> Path:
        """The standard error of the map at each voxel."""
        return self.path / "uncertainty.mrc"

    @property
    def junk(self) -> Path:
        """The images that probably show no particle, for `--drop`, if a search for poses has found any."""
        return self.path / "junk.csv"

    @property
    def refined_particles(self) -> tuple[Path, ...]:
        """The files that refined particles may have been written to, one for each format."""
        return tuple(self.path / name for name in REFINED_PARTICLES)

    # --- all of them

    @property
    def maps(self) -> tuple[Path, ...]:
        return (
            self.map(),
            *(self.map(half) for half in HALVES),
            *(self.unregularised_map(half) for half in HALVES),
            self.mask,
            self.local_resolution,
            self.uncertainty,
        )

    @property
    def models(self) -> tuple[Path, ...]:
        return (self.gaussians(), *(self.gaussians(half) for half in HALVES))

    @property
    def results(self) -> tuple[Path, ...]:
        """The files by which a folder is known to hold a run, complete or not."""
        return (
            *self.maps,
            *self.models,
            self.curves,
            self.summary,
            self.configuration,
            self.log,
            *self.refined_particles,
        )


def suffix(half: str) -> str:
    """What is added to a file's name for a half; nothing for the average of both."""
    if half not in (*HALVES, AVERAGE):
        raise ValueError(f"no half is called {half!r}")
    return "" if half == AVERAGE else f"_half{half}"
