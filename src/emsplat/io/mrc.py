"""MRC maps and image stacks, read in blocks and never memory-mapped (mapped pages count as memory).

Source: Cheng et al. (2015), J. Struct. Biol. 192, 146 (MRC2014).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import os
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import ArrayLike, NDArray

from emsplat.errors import InputError
from emsplat.io.kinds import kind_of_file
from emsplat.runtime.files import check_memory, open_regular, replacing

_HEADER_BYTES = 1024
_VALUE_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}  # by mode
_MRC2014 = 20140  # the first version of the standard
_IMOD_STAMP, _IMOD_AT = 1146047817, 152  # and its place in the header; the flags come after it
_IMOD_SIGNED_BYTES, _IMOD_STANDARD_ORIGIN, _IMOD_HALF_BYTES = 1, 4, 16
_LARGEST_PIECE_IN_BYTES = 8 << 20  # largest part of a compressed file that is unpacked at once
_SMALLEST_PIXEL, _LARGEST_PIXEL = 1e-3, 1e4  # Å; beyond them a header says nothing


@dataclass(frozen=True)
class _Header:
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


def _open(path: Path) -> tuple[FileIO, _Header]:
    """An open file and its header; the size is checked here, before anything is allocated."""
    file = open_regular(path)
    try:
        raw = file.read(_HEADER_BYTES)
        header = _parse(path, raw)
        size = os.fstat(file.fileno()).st_size
        claimed = header.offset_in_bytes + header.shape[0] * header.section_in_bytes
        if size < claimed:
            extended = header.offset_in_bytes - _HEADER_BYTES
            if extended and size == claimed - extended:
                raise InputError(
                    f"{path}: short by {extended} bytes, all of the extended header that its header claims: a program "
                    "copied the one without the other; set the header's extended bytes (word 24) to 0, or copy it again"
                )
            raise InputError(
                f"{path}: truncated: {size} bytes where its header claims {claimed} "
                f"({header.shape[0]} sections of {header.shape[1]} × {header.shape[2]}); copy or write it again"
            )
    except BaseException:
        file.close()
        raise
    return file, header


def _parse(path: Path, raw: bytes) -> _Header:
    what = kind_of_file(raw)
    if what:
        raise InputError(f"{path}: {what.name}, not an MRC file; {what.remedy.format(path=path)}")
    if len(raw) < _HEADER_BYTES:
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
    return _Header(
        shape=(int(h["nz"]), int(h["ny"]), int(h["nx"])),
        values=np.dtype(_value_type(path, h, raw)).newbyteorder(h.dtype["mode"].byteorder),
        offset_in_bytes=_HEADER_BYTES + int(h["nsymbt"]),
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
    if must_be_signed or (ranged and lowest >= 0) or int(h["nversion"]) >= _MRC2014:
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


class StackReader:
    """An open stack of N images; a header's pixel size of 0 or 1 counts as unset.

    Only one thread may use it at a time, because a read moves the file's position.
    """

    def __init__(self, path: str | Path, largest_read_in_bytes: int = 8 << 20) -> None:
        """Open the file.

        Args:
            largest_read_in_bytes: size of one read's buffer, whatever the number of sections asked for.
        Raises:
            InputError: a file that is missing, truncated, or of an unsupported mode.
        """
        self.path, self._largest_read_in_bytes = Path(path), largest_read_in_bytes
        self._file, self._header = _open(self.path)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, rows, columns)."""
        return self._header.shape

    @property
    def pixel_size_in_angstroms(self) -> float | None:
        return self._header.pixel_size_in_angstroms

    def read(self, sections: ArrayLike, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """(n, rows, columns) the images of these section numbers (from 0), in the order asked for.

        Args:
            out: an array of that shape to put them in.
        """
        wanted = np.asarray(sections, dtype=np.int64).ravel()
        outside = (wanted < 0) | (wanted >= self.shape[0])
        if outside.any():
            number = int(wanted[np.argmax(outside)]) + 1
            raise InputError(f"{self.path}: holds {self.shape[0]} images, asked for number {number}; check the star")
        out = np.empty((len(wanted), *self.shape[1:]), dtype=np.float32) if out is None else out
        order = np.argsort(wanted, kind="stable")
        longest = max(1, self._largest_read_in_bytes // self._header.section_in_bytes)
        for rows in consecutive_runs(order, wanted[order], longest):
            first, together = int(wanted[rows[0]]), out[rows[0] : rows[0] + len(rows)]
            # Sections that are wanted in the file's order and type need no memory in between.
            if self._header.values == out.dtype and together.flags.c_contiguous and (np.diff(rows) == 1).all():
                self._read_run(first, together)
                continue
            block = np.empty((len(rows), *self.shape[1:]), dtype=self._header.values)
            self._read_run(first, block)
            out[rows] = block
        return out

    def _read_run(self, first: int, block: NDArray) -> None:
        """Sections in a row, in the file's own type, as many as the block holds."""
        target = block.view(np.uint8).reshape(-1).data
        self._file.seek(self._header.offset_in_bytes + first * self._header.section_in_bytes)
        filled = 0
        while filled < len(target):  # one read may return less than asked for
            try:
                got = self._file.readinto(target[filled:])
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read: {error.strerror}; check the disk it is on") from None
            if not got:
                raise InputError(f"{self.path}: ends within image {first + 1}; was it changed while being read?")
            filled += got

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> StackReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def consecutive_runs(order: NDArray[np.int64], ascending: NDArray[np.int64], longest: int) -> list[NDArray[np.int64]]:
    """`order` cut where consecutive sections end, and into pieces of at most `longest`."""
    if len(order) == 0:
        return []
    runs = np.split(order, np.flatnonzero(np.diff(ascending) != 1) + 1)
    return [run[i : i + longest] for run in runs for i in range(0, len(run), longest)]


@dataclass(frozen=True)
class Map:
    """A volume with its place in space."""

    values: NDArray[np.float32]  # (z, y, x)
    pixel_size_in_angstroms: float | None  # None where the header does not say (0 or 1)
    origin_in_angstroms: NDArray[np.float64]  # (3,) x, y, z of the first voxel


_UNPACKERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b\x08": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


def _unpackers(path: Path) -> Callable[..., Any] | None:
    """The function that opens a compressed file; None for a file that is not compressed."""
    with open_regular(path) as file:
        start = file.read(8)
    return next((opener for magic, opener in _UNPACKERS.items() if start.startswith(magic)), None)


def _unpacked_map(path: Path, opener: Callable[..., Any], cubic: bool) -> Map:
    """A compressed map, as EMDB distributes them, read by way of a temporary file."""
    with TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        try:
            with opener(path) as packed, plain.open("wb") as file:
                while block := packed.read(_LARGEST_PIECE_IN_BYTES):
                    file.write(block)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise InputError(f"{path}: cannot be unpacked: {error}; copy or write it again") from None
        try:
            return read_map(plain, cubic=cubic)
        except InputError as error:
            raise InputError(str(error).replace(str(plain), str(path))) from None


def read_map(path: str | Path, *, cubic: bool = True) -> Map:
    """A map, its axes turned to (z, y, x).

    Raises:
        InputError: a file that is missing, truncated or of an unsupported mode, NaN or infinite voxels, unequal voxel
            edges, and, where `cubic`, edges of unequal length.
    """
    path = Path(path)
    opener = _unpackers(path)
    if opener:
        return _unpacked_map(path, opener, cubic)
    with StackReader(path) as reader:
        header = reader._header
        sections, rows, columns = header.shape
        if cubic and not sections == rows == columns:
            raise InputError(f"{path}: {columns} × {rows} × {sections} voxels, not a cube; pad or crop the map to one")
        angles = header.cell_angles_in_degrees
        if any(angles) and any(abs(angle - 90) > 0.01 for angle in angles):
            raise InputError(f"{path}: cell angles {angles}°; its axes must be orthogonal: resample it to cubic voxels")
        if header.axes_are_strange:
            raise InputError(
                f"{path}: axes (mapc, mapr, maps) that are not 1, 2, 3 in any order; mend the header, or write it again"
            )
        x = header.voxel_in_angstroms[0]
        if x != 0 and not all(abs(edge / x - 1) <= 0.01 for edge in header.voxel_in_angstroms):
            raise InputError(f"{path}: voxel edges {header.voxel_in_angstroms} Å differ; resample to cubic voxels")
        if not np.isfinite(header.origin_in_angstroms).all():
            raise InputError(f"{path}: origin {header.origin_in_angstroms} Å; it must be finite: mend the header")
        check_memory(path, 4 * math.prod(header.shape))
        values = reader.read(np.arange(sections))
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds NaN or infinite voxels; write the map again without them")
    z, y, x_axis = (2 - header.axes.index(axis) for axis in (3, 2, 1))  # array axis that runs along z, y, x
    return Map(
        np.ascontiguousarray(values.transpose(z, y, x_axis)),
        header.pixel_size_in_angstroms,
        np.array(header.origin_in_angstroms),
    )


def write_map(
    path: str | Path,
    volume: ArrayLike,
    pixel_size_in_angstroms: float,
    origin_in_angstroms: ArrayLike | None = None,
) -> None:
    """Writes (z, y, x) as float32, whole or not at all; the origin (x, y, z) is 0 as RELION's is, so maps overlay."""
    values = np.ascontiguousarray(volume, dtype="<f4")
    if values.ndim != 3:
        raise ValueError(f"a map has three axes, not {values.ndim}")
    header = _new_header(values.shape, pixel_size_in_angstroms, is_volume=True)
    header["origin"] = tuple(np.zeros(3) if origin_in_angstroms is None else np.asarray(origin_in_angstroms))
    _set_statistics(header, values.min(), values.max(), values.mean(dtype=np.float64), values.std(dtype=np.float64))
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header.tobytes())
        file.write(values.data)


class StackWriter:
    """Appends blocks of images to a float32 stack without holding it; use it in a ``with`` statement.

    The file gets its name on a clean exit and is removed otherwise.
    """

    def __init__(self, path: str | Path, box_size: int, pixel_size_in_angstroms: float) -> None:
        self.path = Path(path)
        self._box_size = box_size
        self._pixel_size_in_angstroms = pixel_size_in_angstroms
        self._count = 0
        self._lowest, self._highest = np.inf, -np.inf
        self._sum, self._sum_of_squares = 0.0, 0.0
        self._context = ExitStack()

    def __enter__(self) -> StackWriter:
        with ExitStack() as context:
            temporary = context.enter_context(replacing(self.path))
            self._file = context.enter_context(temporary.open("wb"))
            self._file.write(bytes(_HEADER_BYTES))
            self._context = context.pop_all()
        return self

    def append(self, images: ArrayLike) -> None:
        """Appends (n, D, D) images, or one (D, D)."""
        block = np.ascontiguousarray(images, dtype="<f4")
        if block.ndim not in (2, 3) or block.shape[-2:] != (self._box_size, self._box_size):
            raise ValueError(f"images of shape {block.shape} in a stack of box {self._box_size}")
        if block.size == 0:
            return
        self._file.write(block.data)
        self._count += block.size // self._box_size**2
        self._lowest, self._highest = min(self._lowest, block.min()), max(self._highest, block.max())
        self._sum += block.sum(dtype=np.float64)
        self._sum_of_squares += float(np.square(block, dtype=np.float64).sum())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._context:  # renames, or removes and explains a full disk
            if error is not None:
                raise error
            self._finish()

    def _finish(self) -> None:
        """Writes the header that belongs to what was appended."""
        if self._count == 0:
            raise ValueError(f"{self.path}: a stack needs at least one image")
        pixels = self._count * self._box_size**2
        mean = self._sum / pixels
        shape = (self._count, self._box_size, self._box_size)
        header = _new_header(shape, self._pixel_size_in_angstroms, is_volume=False)
        deviation = np.sqrt(max(self._sum_of_squares / pixels - mean**2, 0.0))
        _set_statistics(header, self._lowest, self._highest, mean, deviation)
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.flush()


def _new_header(shape: tuple[int, ...], pixel_size_in_angstroms: float, *, is_volume: bool) -> np.ndarray:
    """A little-endian mode-2 header; a stack's cell is one section deep (MRC2014)."""
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    sections, rows, columns = shape
    depth = sections if is_volume else 1
    header["nx"], header["ny"], header["nz"] = columns, rows, sections
    header["mx"], header["my"], header["mz"] = columns, rows, depth
    header["cella"] = tuple(n * pixel_size_in_angstroms for n in (columns, rows, depth))
    header["cellb"] = (90, 90, 90)
    header["mode"] = 2
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["ispg"] = 1 if is_volume else 0
    header["nversion"] = 20141
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0)
    header["nlabl"] = 1
    header["label"][0] = b"emsplat"
    return header


def _set_statistics(header: np.ndarray, lowest: float, highest: float, mean: float, deviation: float) -> None:
    header["dmin"], header["dmax"], header["dmean"], header["rms"] = lowest, highest, mean, deviation
