"""Whether a job may write its run folder, and whether a complete run is there already.

These questions are asked before the work. What only writing needs is therefore not imported here: it takes long.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from emsplat.errors import InputError
from emsplat.reconstruction.identity import digests
from emsplat.runs.classes_folder import ClassesFolder
from emsplat.runs.heterogeneity_folder import HeterogeneityFolder, holds_heterogeneity
from emsplat.runs.run_folder import JobFolder, RunFolder
from emsplat.runtime.folders import check_folder, claiming
from emsplat.runtime.reporting import Reporter

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Folder = RunFolder | HeterogeneityFolder | ClassesFolder
_KINDS: dict[type[Folder], str] = {
    RunFolder: "a reconstruction",
    HeterogeneityFolder: "a search for heterogeneity",
    ClassesFolder: "a search for classes",
}


def check_output(folder: Path, overwrite: bool = False, kind: type[Folder] = RunFolder) -> None:
    """InputError if a run could not be written to `folder`, which the user wants to know before the work."""
    names = [path.name for path in kind(folder).results]
    check_folder(folder, names, overwrite, "run")
    there = _kind_of(folder)
    if there is not None and there is not kind:
        raise InputError(
            f"{folder}: holds {_KINDS[there]}, whose files would stay among those of {_KINDS[kind]}; give another "
            "folder, or remove this one first"
        )


def _kind_of(folder: Path) -> type[Folder] | None:
    """The kind of the finished job in a folder; None if there is none."""
    if not JobFolder(folder).summary.is_file():
        return None
    if holds_heterogeneity(folder):
        return HeterogeneityFolder
    return ClassesFolder if ClassesFolder(folder).table.is_file() else RunFolder


@contextmanager
def claimed(folder: Path, overwrite: bool, reporter: Reporter, kind: type[Folder] = RunFolder) -> Iterator[None]:
    """Reserve `folder` for the run that the block makes, and warn of what killed runs have left in it.

    Args:
        kind: the kind of folder that the run makes.
    Raises:
        InputError: a run could not be written to the folder, or another run is using it.
    """
    check_output(folder, overwrite, kind)
    with claiming(folder) as found:
        for line in found:
            reporter.warn(line)
        # Once more, because the files of a killed run may just have been completed.
        check_output(folder, overwrite, kind)
        yield


def is_complete(
    folder: Path, particles: Path, settings: DataclassInstance, reporter: Reporter, entry: str = "settings"
) -> bool:
    """Whether the folder holds a complete run of these particles and settings.

    The files of a run that was killed while they were moved into place are completed first.

    Args:
        entry: the entry of config.json that holds the settings of such a job.
    """
    if not folder.is_dir():
        return False
    with claiming(folder) as found:
        for line in found:
            reporter.warn(line)
    files = JobFolder(folder)
    if files.checkpoints.exists() or not files.summary.exists():
        return False
    try:
        made_with = json.loads(files.configuration.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    asked = json.loads(json.dumps(asdict(settings), default=str))
    made = tuple(made_with.get(name) for name in ("particles", entry, "digests"))
    return made == (str(particles.absolute()), asked, digests(settings))
