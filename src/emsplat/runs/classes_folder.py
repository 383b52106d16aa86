"""The names of all files that a search for poses leaves if it finds several classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from emsplat.runs.run_folder import JobFolder, RunFolder


@dataclass(frozen=True)
class ClassesFolder(JobFolder):
    """Paths in the folder of a search for several classes. No path is opened here, and a file need not exist."""

    def of_class(self, number: int) -> RunFolder:
        """The run folder of a class. Args: number: from 1, the largest class first."""
        return RunFolder(self.path / f"class{number}")

    def finished(self) -> Iterator[RunFolder]:
        """The run folders of all classes that are there."""
        for number in count(1):
            of_class = self.of_class(number)
            if not of_class.summary.is_file():
                return
            yield of_class

    def ids(self, number: int) -> Path:
        """The images of a class, for `emsplat subset --keep`. Args: number: from 1."""
        return self.path / f"class{number}.csv"

    @property
    def junk(self) -> Path:
        """The images that probably show no particle, for `emsplat subset --drop`."""
        return self.path / "junk.csv"

    @property
    def table(self) -> Path:
        """The class of every image, and its posteriors."""
        return self.path / "classes.csv"

    @property
    def results(self) -> tuple[Path, ...]:
        """The files and folders by which a folder is known to hold such a run."""
        return (self.summary, self.configuration, self.log, self.table, self.junk, self.of_class(1).path)


def holds_classes(folder: Path) -> bool:
    """Whether a folder holds a finished search for several classes."""
    files = ClassesFolder(folder)
    return files.table.is_file() and files.summary.is_file()
