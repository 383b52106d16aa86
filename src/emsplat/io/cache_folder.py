"""The folder of a cache that runs share: which data sets are in it, who uses them, and whether there is room for more.

Each data set has a folder of its own in it, with two files: ``images``, a file with holes that is locked (shared) by
every run that uses it, and ``facts.json``, which says how much it may grow to and whose time is that of its last use.
What is added or removed is added and removed under the lock of the whole cache, which no run holds for long.
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

_PREFIX = "emsplat-"  # of the folders that are ours: what else lies there is not touched
_LOCK, _IMAGES, _FACTS = ".emsplat-cache", "images", "facts.json"
_SPARE_SHARE = 0.02  # of the disk's free room, left to others

Say = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where a data set's images are kept, for as long as the descriptor is open."""

    descriptor: int
    most_images: int  # that may be kept: the first ones
    present_share: float  # of them there already, as the disk counts


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
        """What it may grow to; 0 where a run was killed before it had said so."""
        try:
            return int(json.loads(self.facts.read_text())["bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    @property
    def last_used(self) -> float:
        return self.facts.stat().st_mtime if self.facts.exists() else 0.0

    @property
    def held_in_bytes(self) -> int:
        """What it takes of the disk."""
        try:
            return self.images.stat().st_blocks * 512
        except OSError:
            return 0

    def is_idle(self) -> bool:
        """Whether no run uses it. Where there are no locks nobody can tell, and it stays."""
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
    """A place for a data set, for which others give way: the one first that was not used for longest.

    Args:
        name: tells data sets apart; letters and digits.
        most_bytes: of all data sets together; where this one does not fit, only its first images are kept.
        say: told, a line each, which data sets give way.
    Raises:
        InputError: the folder cannot be one or cannot be written, or the disk has no room.
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
    """How many images there is room for, once idle data sets have given way."""
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
    """Holds the lock of the whole cache, waiting for it."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):  # not every network's file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _data_sets(folder: Path) -> list[_DataSet]:
    return [_DataSet(path) for path in sorted(folder.glob(f"{_PREFIX}*")) if path.is_dir()]
