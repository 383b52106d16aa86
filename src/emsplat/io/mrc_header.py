"""The header of an MRC file: what it says about values, axes and place.

Source: Cheng et al. (2015), J. Struct. Biol. 192, 146 (MRC2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from emsplat.errors import InputError
from emsplat.io.kinds import is_text, kind_of_file

HEADER_BYTES = 1024
_VALUE_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}  # by mode
_MRC2014 = 20140  # the first version of the standard
_IMOD_STAMP, _IMOD_AT = 1146047817, 152  # and its place in the header; the flags come after it
_IMOD_SIGNED_BYTES, _IMOD_STANDARD_ORIGIN, _IMOD_HALF_BYTES = 1, 4, 16
_SMALLEST_PIXEL, _LARGEST_PIXEL = 1e-3, 1e4  # Å; beyond them a header says nothing


@dataclass(frozen=True)
class Header:
    """What a header says, in the file's own axis order."""

    shape: tuple[int, int, int]  # sections, rows, columns
    values: np.dtype  # with its byte order
    offset_in_bytes: int
    axes: tuple[int, int, int]  # 1, 2, 3 = x, y, z of columns, rows, sections
    voxel_in_angstroms: tuple[float, float, float]  # x, y, z; 0 where unset
    origin_in_angstroms: tuple[float, float, float]  # x, y, z
    cell_angles_in_degrees: tuple[float, ...]  # 0 where unset
    axes_are_strange: bool

    @property
    def section_in_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * self.values.itemsize

    @property
    def pixel_size_in_angstroms(self) -> float | None:
        """None where the header's value is 0 or 1, which programs write for "unset", or no length at all."""
        x = self.voxel_in_angstroms[0]
        return x if _SMALLEST_PIXEL < x < _LARGEST_PIXEL and abs(x - 1) >= 1e-4 else None


def parse_header(path: Path, raw: bytes) -> Header:
    """What the first 1024 bytes of a file say; InputError where they are no header that can be read."""
    what = kind_of_file(raw)
    if what:
        raise InputError(f"{path}: {what.name}, not an MRC file; {what.remedy.format(path=path)}")
    if is_text(raw):
        first = raw[:60].split(b"\n")[0].decode("ascii").strip()
        raise InputError(
            f"{path}: a text file, not an MRC file (it begins with {first!r}); give the images that belong there"
        )
    if len(raw) < HEADER_BYTES:
        raise InputError(
            f"{path}: {len(raw)} bytes, truncated or not an MRC file (the header alone has 1024); check the path"
        )
    h = _in_byte_order(raw)
    if h is None:
        raise InputError(f"{path}: no MRC header (neither byte order gives a sensible size and mode); check the path")
    mode = int(h["mode"])
    if mode not in _VALUE_TYPES:
        raise InputError(f"{path}: MRC mode {mode} is not read, only {sorted(_VALUE_TYPES)}; convert it to mode 2")
    axes = said = (int(h["mapc"]), int(h["mapr"]), int(h["maps"]))
    samples = (int(h["mx"]), int(h["my"]), int(h["mz"]))
    voxel = tuple(float(h["cella"][c]) / n if n > 0 else 0.0 for c, n in zip("xyz", samples, strict=True))
    axes = axes if sorted(axes) == [1, 2, 3] else (1, 2, 3)
    x, y, z = _origin(h, raw, axes, voxel)
    return Header(
        shape=(int(h["nz"]), int(h["ny"]), int(h["nx"])),
        values=np.dtype(_value_type(path, h, raw)).newbyteorder(h.dtype["mode"].byteorder),
        offset_in_bytes=HEADER_BYTES + int(h["nsymbt"]),
        axes=axes,
        voxel_in_angstroms=(voxel[0], voxel[1], voxel[2]),
        origin_in_angstroms=(x, y, z),
        cell_angles_in_degrees=tuple(float(h["cellb"][name]) for name in ("alpha", "beta", "gamma")),
        axes_are_strange=any(said) and sorted(said) != [1, 2, 3],
    )


def _imod_flags(h: np.void, raw: bytes) -> int | None:
    """IMOD's flags, or None where its stamp is not there.

    Source: IMOD, ``mrc_format.txt``: 1, bytes are signed; 4, the origin has the sign of the standard; 16, two 4-bit
    values a byte.
    """
    stamp, flags = np.frombuffer(raw, h.dtype["mode"], 2, offset=_IMOD_AT)
    return int(flags) if int(stamp) == _IMOD_STAMP else None


def _value_type(path: Path, h: np.void, raw: bytes) -> str:
    """The type of a value; stamp and range decide where a mode has been written with and without sign.

    The standard's bytes are signed (MRC2014). Before it they were not, and IMOD flags which its own are.
    """
    mode, flags = int(h["mode"]), _imod_flags(h, raw)
    lowest, highest = float(h["dmin"]), float(h["dmax"])
    ranged = np.isfinite([lowest, highest]).all() and lowest < highest
    if mode == 1 and ranged and lowest >= 0 and 32767 < highest <= 65535:
        return "u2"
    if mode != 0:
        return _VALUE_TYPES[mode]
    if flags is not None and flags & _IMOD_HALF_BYTES:
        raise InputError(f"{path}: two 4-bit values a byte (IMOD's flag 16) are not read; convert it to mode 2")
    must_be_signed = ranged and -128 <= lowest < 0 and highest < 128
    must_be_unsigned = ranged and lowest >= 0 and 127 < highest < 256
    stamped = None if flags is None else bool(flags & _IMOD_SIGNED_BYTES)
    if (stamped is True and must_be_unsigned) or (stamped is False and must_be_signed):
        raise InputError(
            f"{path}: IMOD's stamp says that its bytes are {'signed' if stamped else 'unsigned'}, its header that they "
            f"range from {lowest:g} to {highest:g}; convert it to mode 2 with the program that wrote it"
        )
    if stamped is not None:
        return "i1" if stamped else "u1"
    if must_be_unsigned:
        return "u1"
    if must_be_signed or (ranged and lowest >= 0 and highest < 128) or int(h["nversion"]) >= _MRC2014:
        return "i1"  # where all values are 0 to 127, the sign does not matter
    raise InputError(
        f"{path}: bytes (mode 0), and nothing tells whether they are signed: no stamp of IMOD's, no version of MRC2014 "
        f"and a range of {lowest:g} to {highest:g} in the header; convert it to mode 2 with the program that wrote it"
    )


def _origin(h: np.void, raw: bytes, axes: tuple[int, ...], voxel: tuple[float, ...]) -> tuple[float, float, float]:
    """x, y, z of the first voxel in Å, from the start indices where the origin is 0, as in older files.

    IMOD's own origin has the other sign, unless a flag or a version of the standard says that it has not (IMOD,
    ``mrc_head_read``).
    """
    x, y, z = (float(h["origin"][c]) for c in "xyz")
    if not any((x, y, z)):
        start = (int(h["nxstart"]), int(h["nystart"]), int(h["nzstart"]))  # of columns, rows, sections
        x, y, z = (start[axes.index(axis + 1)] * voxel[axis] for axis in range(3))
        return x, y, z
    flags = _imod_flags(h, raw)
    if flags is not None and not flags & _IMOD_STANDARD_ORIGIN and int(h["nversion"]) < _MRC2014:
        return -x, -y, -z
    return x, y, z


def _in_byte_order(raw: bytes) -> np.void | None:
    """The header in the byte order its machine stamp names, else (many files have none) in the one that makes sense."""
    stamped_big = raw[212] == 0x11
    for order in "><" if stamped_big else "<>":
        header = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
        columns, rows, sections = int(header["nx"]), int(header["ny"]), int(header["nz"])
        sensible_size = 0 < columns < 2**16 and 0 < rows < 2**16 and 0 < sections < 2**28
        if sensible_size and 0 <= int(header["mode"]) < 128 and 0 <= int(header["nsymbt"]) < 2**30:
            return header
    return None
