"""The particle format of a file, determined by its content. The name counts only if the content says nothing."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

from emsplat.errors import InputError
from emsplat.io.cistem_columns import is_binary_table
from emsplat.io.compressed import is_compressed, open_plain
from emsplat.io.kinds import kind_of_file

_START_IN_BYTES = 65536  # the columns' names of a star come well before
_IS_GROUP = re.compile(rb"^results:.*^ +metafile:", re.MULTILINE | re.DOTALL)
_IS_STAR = re.compile(rb"^[ \t]*data_", re.MULTILINE)


class Format(Enum):
    """The formats of particle files; the value is their name in messages."""

    RELION = "a star file"
    OPTIMISATION_SET = "a RELION optimisation set"
    TOMO_PARTICLES = "the particles of a RELION tomography, whose tilts another file describes"
    CRYOSPARC = "a cryoSPARC table"
    CRYOSPARC_GROUP = "a group of cryoSPARC's outputs"
    CISTEM = "a cisTEM table"
    STACK = "a stack of images"
    STACK_LIST = "a list of stacks"
    PICKLE = "a pickle"
    UNKNOWN = "of unknown format"


_POSES_ARE_MISSING = "poses and CTFs are missing: give the table that has them, or cryoDRGN's --poses and --ctf"
REMEDY = {
    Format.TOMO_PARTICLES: "give the optimisation set that names both",
    Format.STACK: _POSES_ARE_MISSING,
    Format.STACK_LIST: _POSES_ARE_MISSING,
    Format.PICKLE: "give the images, and cryoDRGN's pickles as --poses and --ctf",
    Format.CRYOSPARC_GROUP: "give the .cs file that it names",
    Format.CISTEM: "convert it to a RELION star first",
    Format.UNKNOWN: (
        "RELION stars, tables of cryoSPARC (.cs) and cisTEM, and cryoDRGN's images with pickles are read: convert it"
    ),
}


def sniff(path: Path) -> Format:
    """The format of a file; InputError if it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file; give the file with the particles")
        with path.open("rb") as file:
            start = file.read(_START_IN_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    start = _unpacked_star(path, start) or start
    other = kind_of_file(start)
    if other and not start.startswith((b"data_", b"\x93NUMPY")):
        raise InputError(f"{path}: {other.name}, not a particle file; {other.remedy.format(path=path)}")
    if is_binary_table(start):
        return Format.CISTEM
    if start.startswith((b"\x93NUMPY", b"\x94CSDAT")):
        return Format.CRYOSPARC
    if start[208:211] == b"MAP" or (b"\0" in start and path.suffix in (".mrc", ".mrcs")):
        return Format.STACK
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return Format.PICKLE
    if b"\0" in start:
        return Format.UNKNOWN
    if _IS_STAR.search(start) or path.suffix == ".star":
        return _sniff_star(start)
    if path.suffix == ".csg" or _IS_GROUP.search(start):
        return Format.CRYOSPARC_GROUP
    first_line = start.strip().split(b"\n", 1)[0].strip()
    return Format.STACK_LIST if first_line.endswith((b".mrcs", b".mrc")) else Format.UNKNOWN


def _unpacked_star(path: Path, start: bytes) -> bytes | None:
    """The start of a compressed star file; None for every other file. Only star files are read compressed."""
    if not is_compressed(start):
        return None
    with open_plain(path) as file:
        unpacked = file.read(_START_IN_BYTES)
    return unpacked if _IS_STAR.search(unpacked) and b"\0" not in unpacked else None


def _sniff_star(start: bytes) -> Format:
    columns = set(re.findall(rb"^[ \t]*_(\w+)", start, re.MULTILINE))
    if any(name.startswith(b"cisTEM") for name in columns) and not any(name.startswith(b"rln") for name in columns):
        return Format.CISTEM
    if b"rlnTomoParticlesFile" in columns:
        return Format.OPTIMISATION_SET
    if columns & {b"rlnTomoVisibleFrames", b"rlnTomoSubTomosAre2DStacks"} and b"rlnDefocusU" not in columns:
        return Format.TOMO_PARTICLES
    return Format.RELION
