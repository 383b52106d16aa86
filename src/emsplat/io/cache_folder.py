"""The folder of a cache that runs share: its data sets, their users, and the room for more.

Each data set has a folder of its own with two files: ``images``, a sparse file that every run that uses it locks
(shared), and ``facts.json``, which says how large it may grow, and whose modification time is that of its last use.
Data sets are added and removed under the lock of the whole cache, which no run holds for long.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from emsplat.errors import InputError
from emsplat.runtime.files import reason, replacing

_PREFIX = "emsplat-"  # prefix of the folders of data sets; nothing else in the folder is touched
_LOCK, _IMAGES, _FACTS = ".emsplat-cache", "images", "facts.json"
_SPARE_SHARE = 0.02  # share of the free space of the disk that is left to others

Say = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where the images of a data set are kept, as long as the descriptor is open."""

    descriptor: int
    most_images: int  # most images that may be kept: the first ones
    present_share: float  # share of these that is there already, as the disk counts


@dataclass(frozen=True)
class _DataSet:
    path: Path

    @property
    def images(self) -> Path:
        return self.path / _IMAGES

    @property
    def facts(self) -> Path:
        return self.path / _FACTS

    @property
    def planned_in_bytes(self) -> int:
        """The size to which the data set may grow; 0 if a run was killed before it wrote this down."""
        try:
            return int(json.loads(self.facts.read_text())["bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    @property
    def last_used(self) -> float:
        return self.facts.stat().st_mtime if self.facts.exists() else 0.0

    @property
    def held_in_bytes(self) -> int:
        """The space that the data set takes on the disk."""
        try:
            return self.images.stat().st_blocks * 512
        except OSError:
            return 0

    def is_idle(self) -> bool:
        """Whether no run uses the data set. Without locks this is unknown, and the data set stays."""
        try:
            descriptor = os.open(self.images, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True


def place(folder: Path, name: str, n_images: int, bytes_an_image: int, most_bytes: float, say: Say) -> Place:
    """A place for a data set. Others give way to it, starting with the one that has been unused for longest.

    Args:
        name: name of the data set, of letters and digits.
        most_bytes: limit of all data sets together. If this one does not fit, only its first images are kept.
        say: called with a line on each data set that gives way.
    Raises:
        InputError: the folder cannot be made or written, or the disk has no room.
    """
    _make(folder)
    mine = _DataSet(folder / f"{_PREFIX}{name}")
    try:
        with _locked(folder):
            others = [d for d in _data_sets(folder) if d.path != mine.path]
            idle = sorted((d for d in others if d.is_idle()), key=lambda d: d.last_used)
            kept = _kept(folder, mine, others, idle, n_images, bytes_an_image, most_bytes, say)
            mine.path.mkdir(exist_ok=True)
            with replacing(mine.facts) as temporary:
                temporary.write_text(json.dumps({"images": n_images, "kept": kept, "bytes": kept * bytes_an_image}))
            descriptor = os.open(mine.images, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            with suppress(OSError):  # not every network's file system has locks
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            present = min(mine.held_in_bytes / max(kept * bytes_an_image, 1), 1.0)
    except OSError as error:
        raise InputError(f"--cache {folder}: cannot be written: {_why(error)}") from error
    return Place(descriptor, kept, present)


def _kept(
    folder: Path,
    mine: _DataSet,
    others: list[_DataSet],
    idle: list[_DataSet],
    n_images: int,
    bytes_an_image: int,
    most_bytes: float,
    say: Say,
) -> int:
    """Number of images that there is room for when idle data sets have given way."""
    in_use = sum(d.planned_in_bytes for d in others if d not in idle)
    kept = int(max(0, min(n_images, (most_bytes - in_use) // bytes_an_image)))
    needed = kept * bytes_an_image
    held = mine.held_in_bytes
    free = int(shutil.disk_usage(folder).free * (1 - _SPARE_SHARE))
    if needed - held > free + sum(d.held_in_bytes for d in idle):
        raise InputError(
            f"--cache {folder}: {kept:,} images take {needed / 1e9:.3g} GB, and the disk has room for "
            f"{(free + held + sum(d.held_in_bytes for d in idle)) / 1e9:.3g} GB; free some, keep only a part with "
            "--cache-size (in GB), or choose another folder"
        )
    planned = sum(d.planned_in_bytes for d in idle)
    for oldest in idle:
        if in_use + planned + needed <= most_bytes and needed - held <= free:
            break
        gone = oldest.held_in_bytes
        last = time.strftime("%Y-%m-%d %H:%M", time.localtime(oldest.last_used))
        planned, free = planned - oldest.planned_in_bytes, free + gone
        shutil.rmtree(oldest.path, ignore_errors=True)
        say(f"cache {folder}: a data set of {gone / 1e9:.3g} GB, last used {last}, has made room")
    return kept


def _make(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--cache {folder}: a file, not a folder; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--cache {folder}: cannot be made a folder: {_why(error)}") from error


def _why(error: OSError) -> str:
    return reason(error).replace("another output folder", "another")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for the lock of the whole cache, and hold it."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):  # not every network's file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _data_sets(folder: Path) -> list[_DataSet]:
    return [_DataSet(path) for path in sorted(folder.glob(f"{_PREFIX}*")) if path.is_dir()]
