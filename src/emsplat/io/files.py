"""Writing a file whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
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
