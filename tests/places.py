"""What may stand where a file is expected."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Something to put where a file was, or another of these."""

    put: Callable[[Path, bytes], None]  # given the path and a valid file's content
    is_read: bool = False  # as if it were the file


def _linked(target: str) -> Callable[[Path, bytes], None]:
    return lambda path, data: _free(path).symlink_to(target)


def _free(path: Path) -> Path:
    """The path, whatever lay there removed."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    return path


def _linked_elsewhere(path: Path, data: bytes) -> None:
    """Out of the folder, as where a data set is spread over file systems."""
    elsewhere = path.parent.with_name(path.parent.name + "-elsewhere")
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "target").write_bytes(data)
    _free(path).symlink_to(elsewhere / "target")


PLACES = {
    "nothing": Place(lambda path, data: _free(path) and None),
    "a folder": Place(lambda path, data: _free(path).mkdir()),
    "a pipe": Place(lambda path, data: os.mkfifo(_free(path))),
    "a link to a device without end": Place(_linked("/dev/zero")),
    "a link to the terminal": Place(_linked("/dev/tty")),
    "a link to nothing": Place(_linked("absent")),
    "a link to itself": Place(lambda path, data: _free(path).symlink_to(path.name)),
    "a link out of the folder": Place(_linked_elsewhere, is_read=True),
}
