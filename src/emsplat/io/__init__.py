"""Files in and out: particle tables, image stacks, maps."""

from __future__ import annotations

from pathlib import Path

from emsplat.errors import InputError
from emsplat.io.files import replacing
from emsplat.io.images import ImageSource, reading_order
from emsplat.io.mrc import Map, StackReader, StackWriter, read_map, write_map
from emsplat.io.relion import read_relion
from emsplat.io.star import Table, read_star, write_star
from emsplat.particles import Particles

__all__ = [
    "ImageSource",
    "Map",
    "StackReader",
    "StackWriter",
    "Table",
    "read_map",
    "read_particles",
    "read_star",
    "reading_order",
    "replacing",
    "write_map",
    "write_star",
]


def read_particles(
    path: str | Path,
    *,
    datadir: str | Path | None = None,
    pixel_size_in_angstroms: float | None = None,
    need_stacks: bool = True,
) -> Particles:
    """Reads a particle table of any format that is read, told by its content; arguments as in `read_relion`."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    if start.startswith(b"\x93NUMPY"):
        raise InputError(f"{path}: a cryoSPARC table (.cs); only RELION star files are read: convert it to .star")
    if b"\0" in start or (start and b"data_" not in start and path.suffix != ".star"):
        raise InputError(f"{path}: unknown format; only RELION star files are read: convert it to .star")
    return read_relion(path, datadir, pixel_size_in_angstroms, need_stacks=need_stacks)
