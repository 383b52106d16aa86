"""An output folder. One process at a time fills it, whole or not at all, whatever happens to that process.

While a process works for a folder, the folder contains

- ``.claim``, a locked file that names the process. The system releases the lock when the process ends, so that a claim
  without a lock was left by a process that was killed;
- ``.unfinished@HOST@PID``, the files that are being written;
- ``.finished@HOST@PID@LAST``, the same files when all are complete, while they are moved into place, LAST as the last.
  Inside it, ``.replaced`` holds the old files that they replace. Its name is ``.finished@HOST@PID@LAST@OBSOLETE`` if
  the folder OBSOLETE is to be removed when the files are complete.

On some file systems locks hold on one machine only. What another machine left is therefore reported and not touched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from emsplat.errors import InputError
from emsplat.runtime.files import flush, reason

_CLAIM, _UNFINISHED, _FINISHED, _REPLACED = ".claim", ".unfinished", ".finished", ".replaced"
_OWNER_BYTES = 500

_claimed: set[Path] = set()  # folders that this process has claimed


def check_folder(folder: Path, names: Iterable[str], overwrite: bool, what: str) -> None:
    """InputError unless `folder` is writable and holds none of these files, or may be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file and not a folder; choose another output folder")
    if not overwrite and any((folder / name).exists() for name in names):
        raise InputError(f"{folder}: holds a {what} already; choose another folder, or replace it with --overwrite")
    above = _nearest_existing(folder)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(
            f"{folder}: cannot be written, because {above} is not a folder that you may write to; choose another folder"
        )


@contextmanager
def claiming(folder: Path) -> Iterator[list[str]]:
    """Keep other processes from writing to `folder`, which is made if necessary and removed again if it stays empty.

    Complete files that killed processes left are moved into place, and half-written files are removed. Yields a line
    on each.

    Raises:
        InputError: another process has claimed the folder, or it cannot be made or written.
    """
    key = folder.absolute()
    if key in _claimed:
        yield []
        return
    made = _make_folders(folder)
    try:
        with _locked(folder) as (alone, previous):
            _claimed.add(key)
            try:
                yield _settled(folder, previous) if alone else []
            finally:
                _claimed.remove(key)
    finally:
        with suppress(OSError):  # what is not empty stays
            for path in made:
                path.rmdir()


@contextmanager
def filling(folder: Path, last: str, obsolete: str | None = None) -> Iterator[Path]:
    """Yield an empty folder whose files are moved into `folder` on a clean exit; otherwise `folder` stays as it was.

    The file named `last` is moved last, and an old file of that name is removed first. If it exists, all others do.

    Args:
        obsolete: a folder in `folder` that is removed when the files are complete and on the disk.
    Raises:
        InputError: `folder` is claimed, cannot be made or written, or the disk is full.
    """
    with claiming(folder):
        owner = f"{socket.gethostname()}@{os.getpid()}"
        then = [obsolete] if obsolete and (folder / obsolete).is_dir() else []
        staging, finished = folder / f"{_UNFINISHED}@{owner}", folder / "@".join([_FINISHED, owner, last, *then])
        try:
            staging.mkdir(parents=True)  # also makes the folder again if it has been removed meanwhile
            yield staging
            if then:
                _flush_all(staging)
            with _uninterrupted():
                staging.rename(finished)
                _move_all(finished, folder, last)
                _remove_all(folder, then)
        except InputError as error:
            raise InputError(str(error).replace(str(staging), str(folder))) from error
        except OSError as error:
            if error.filename is not None and not str(error.filename).startswith(str(folder)):
                raise
            raise InputError(f"{folder}: cannot be written: {reason(error)}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            shutil.rmtree(finished, ignore_errors=True)


def _nearest_existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _make_folders(folder: Path) -> list[Path]:
    """Make the folder and those above it, and return the folders that were missing, innermost first."""
    missing = [p for p in (folder.absolute(), *folder.absolute().parents) if not p.exists()]
    try:
        folder.absolute().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: this folder cannot be made: {reason(error)}") from error
    return missing


@contextmanager
def _locked(folder: Path) -> Iterator[tuple[bool, str]]:
    """Hold the claim of the folder. Yields whether the claim is locked, and the text of a killed process in it."""
    path = folder / _CLAIM
    try:
        descriptor, alone = _open_claim(folder, path)
        previous = os.pread(descriptor, _OWNER_BYTES, 0).decode(errors="replace")
        os.ftruncate(descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, begun {since}".encode(), 0)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {reason(error)}") from error
    try:
        yield alone, previous
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_claim(folder: Path, path: Path) -> tuple[int, bool]:
    """An open claim, and whether it is locked. Not every network file system has locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, _OWNER_BYTES, 0).decode(errors="replace")
            os.close(descriptor)
            raise InputError(
                f"{folder}: another run is writing to it ({owner}); wait for its end, or choose another folder"
            ) from None
        except OSError:
            return descriptor, False
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor, True
        os.close(descriptor)  # its owner has just removed it


def _settled(folder: Path, previous: str) -> list[str]:
    """Complete or remove what killed processes left in a folder that is locked, and return a line on each."""
    lines = [f"an earlier run was killed here ({previous})"] if previous else []
    for path in sorted([*folder.glob(f"{_UNFINISHED}@*"), *folder.glob(f"{_FINISHED}@*")]):
        kind, host, _, *last = path.name.split("@")
        if host != socket.gethostname():
            lines.append(
                f"{path.name} belongs to a run on {host} that was killed or is still active; remove it if that run has "
                "ended"
            )
            continue
        if kind == _FINISHED:
            lines.append("a run was killed while its complete files were moved into place; they are in place now")
            with _uninterrupted():
                _move_all(path, folder, last=last[0])
                _remove_all(folder, last[1:])
        else:
            lines.append("the half-written files of a killed run were removed")
        shutil.rmtree(path, ignore_errors=True)
    return [f"{folder}: {line}" for line in lines]


def _move_all(source: Path, target: Path, last: str) -> None:
    """Move the files of one folder into another on the same file system: all of them or, on an error, none."""
    replaced = source / _REPLACED
    files = [p.relative_to(source) for p in source.rglob("*") if p.is_file() and replaced not in p.parents]
    files.sort(key=lambda file: file.name == last)
    done: list[tuple[Path, Path]] = []

    def move(file: Path, start: Path, end: Path) -> None:
        (end / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(start / file, end / file)
        done.append((start / file, end / file))

    try:
        for file in reversed(files):
            if (target / file).is_dir():
                raise InputError(f"{target / file}: a folder is where a file is to be written; move it away")
            if os.path.lexists(target / file):
                move(file, target, replaced)
        for file in files:
            move(file, source, target)
    except (OSError, InputError):
        for start, end in reversed(done):
            os.replace(end, start)
        raise


def _flush_all(folder: Path) -> None:
    """Flush files and folders to disk, so that what they replace is not removed before they are safe."""
    for path in (*folder.rglob("*"), folder):
        flush(path)


def _remove_all(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        flush(folder)
        shutil.rmtree(folder / name, ignore_errors=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay signals to end until the block is done, for milliseconds of work that must not be left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    held = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda number, _: waiting.append(number)) for number in held]
    try:
        yield
    finally:
        for number, handler in zip(held, before, strict=True):
            signal.signal(number, handler)
    if waiting:
        signal.raise_signal(waiting[0])  # for the handler that it was meant for
