"""Opens files, and writes them whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from emsplat.errors import InputError


def open_regular(path: str | Path) -> FileIO:
    """A file opened for reading, unbuffered.

    Raises:
        InputError: the file is missing, may not be read, or is no regular file. (A pipe would block without end.)
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: cannot be read: {why}; check the path") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise InputError(f"{path}: cannot be read: it is {what} and not a file; check the path")
    return FileIO(descriptor)


def check_memory(path: Path, needed_in_bytes: int) -> None:
    """InputError if a file claims to need more memory than the machine has. (A sparse file can be that long.)"""
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed_in_bytes > present:
        raise InputError(
            f"{path}: needs {needed_in_bytes / 1e9:,.0f} GB, and the machine has {present / 1e9:,.0f} GB of memory; "
            "check the file"
        )


def temporary_name(path: Path) -> Path:
    """The hidden name, in the same folder and unique to this process, under which a file is written first."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`. The file is renamed to `path` on a clean exit, or else removed.

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
        # A failed write has no file name. An error about another file is not explained here.
        if error.filename not in (None, temporary, path, str(temporary), str(path)):
            raise
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file, or the renaming of files in a folder, to disk, so that it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: OSError) -> str:
    """Why something could not be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space or choose another output folder"
    return f"{error.strerror}; choose another output folder"
