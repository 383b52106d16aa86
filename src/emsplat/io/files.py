"""Writing a file, or a folder of files, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from emsplat.errors import InputError


def temporary_name(path: Path) -> Path:
    """The name a file is written under before it is renamed: same folder, hidden, this process's own."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name in the folder of `path`; renamed to `path` on a clean exit, else removed.

    An interrupt therefore leaves either the old file or the new one, never half of one.

    Raises:
        InputError: the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        # A failed write carries no file name; an error about another file is not ours to explain.
        if error.filename not in (None, temporary, path, str(temporary), str(path)):
            raise
        raise InputError(f"{path}: cannot be written: {_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space or choose another output folder"
    return f"{error.strerror}; choose another output folder"


def check_folder(folder: Path, names: Iterable[str], overwrite: bool, what: str) -> None:
    """InputError unless `folder` can be filled: is writable, and holds none of these files or may be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a file, not a folder; choose another output folder")
    if not overwrite and any((folder / name).exists() for name in names):
        raise InputError(f"{folder}: holds a {what} already; choose another folder, or replace it with --overwrite")
    above = _nearest_existing(folder)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written, {above} is not a folder you may write to; choose another")


@contextmanager
def filling(folder: Path, last: str) -> Iterator[Path]:
    """Yields an empty folder whose files are moved into `folder` on a clean exit; otherwise `folder` stays as it was.

    The file named `last` is moved last and an old one of that name removed first: where it is, all the rest is.

    Raises:
        InputError: `folder` cannot be made or written, or the disk is full.
    """
    made = _make_parents(folder)
    staging = temporary_name(folder / "files") if folder.is_dir() else temporary_name(folder)
    try:
        staging.mkdir()
        yield staging
        with _uninterrupted():
            _move_all(staging, folder, last)
            made = []
    except InputError as error:
        raise InputError(str(error).replace(str(staging), str(folder))) from error
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(staging)):
            raise
        raise InputError(f"{folder}: cannot be written: {_reason(error)}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # another process may have put something there
            for parent in made:
                parent.rmdir()


def _nearest_existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _make_parents(folder: Path) -> list[Path]:
    """Makes the folders above; returns those that were missing, innermost first."""
    missing = [p for p in folder.absolute().parents if not p.exists()]
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made a folder: {_reason(error)}") from error
    return missing


def _move_all(source: Path, target: Path, last: str) -> None:
    """Moves the files of one folder into another of the same file system, by renaming."""
    files = sorted((p for p in source.rglob("*") if p.is_file()), key=lambda p: p.name == last)
    target.mkdir(exist_ok=True)
    (target / last).unlink(missing_ok=True)
    for file in files:
        destination = target / file.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, destination)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is done: for milliseconds of work that must not be left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    held = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: waiting.append(number)) for number in held]
    try:
        yield
    finally:
        for number, handler in zip(held, before, strict=True):
            signal.signal(number, handler)
    if waiting:
        signal.raise_signal(waiting[0])  # to whom it was meant for
