"""MRC maps and image stacks, read in blocks and never memory-mapped (mapped pages count as memory).

Source: Cheng et al. (2015), J. Struct. Biol. 192, 146 (MRC2014).
"""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from types import TracebackType

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import ArrayLike, NDArray

from emsplat.errors import InputError
from emsplat.io.compressed import is_compressed, open_plain
from emsplat.io.mrc_header import HEADER_BYTES, Header, parse_header
from emsplat.runtime.files import check_memory, open_regular, replacing

_LARGEST_TAIL_IN_BYTES = 64 << 20  # of a compressed file, after the last section


def _open(path: Path, unpack: bool) -> tuple[FileIO | BufferedReader, Header]:
    """An open file and its header; the size is checked here, before anything is allocated.

    The size of a compressed file is known only when its end is reached.
    """
    file = open_regular(path)
    try:
        raw = file.read(HEADER_BYTES)
        if unpack and is_compressed(raw):
            file.close()
            return _open_compressed(path)
        header = parse_header(path, raw)
        _check_size(path, header, os.fstat(file.fileno()).st_size)
    except OSError as error:
        file.close()
        raise InputError(f"{path}: cannot be read: {error.strerror}; check the disk it is on") from None
    except BaseException:
        file.close()
        raise
    return file, header


def _open_compressed(path: Path) -> tuple[BufferedReader, Header]:
    file = open_plain(path)
    try:
        return file, parse_header(path, file.read(HEADER_BYTES))
    except BaseException:
        file.close()
        raise


def _check_size(path: Path, header: Header, size: int) -> None:
    """InputError for a file that is shorter than its header claims."""
    claimed = header.offset_in_bytes + header.shape[0] * header.section_in_bytes
    if size >= claimed:
        return
    extended = header.offset_in_bytes - HEADER_BYTES
    if extended and size == claimed - extended:
        raise InputError(
            f"{path}: short by {extended} bytes, all of the extended header that its header claims: a program "
            "copied the one without the other; set the header's extended bytes (word 24) to 0, or copy it again"
        )
    raise InputError(
        f"{path}: truncated: {size} bytes where its header claims {claimed} "
        f"({header.shape[0]} sections of {header.shape[1]} × {header.shape[2]}); copy or write it again"
    )


class StackReader:
    """An open stack of N images; a header's pixel size of 0 or 1 counts as unset.

    Only one thread may use it at a time, because a read moves the file's position.
    """

    def __init__(self, path: str | Path, largest_read_in_bytes: int = 8 << 20, *, unpack: bool = False) -> None:
        """Open the file.

        Args:
            largest_read_in_bytes: size of one read's buffer, whatever the number of sections asked for.
            unpack: also open a compressed file; its sections can be read only once, and in their order.
        Raises:
            InputError: a file that is missing, truncated, or of an unsupported mode.
        """
        self.path, self._largest_read_in_bytes = Path(path), largest_read_in_bytes
        self._file, self._header = _open(self.path, unpack)

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

    def middle_of(self, section: int, most_bytes: int) -> NDArray:
        """(n,) pixels from the middle of a section, as they are in the file: a piece of at most so many bytes."""
        header = self._header
        if not 0 <= section < self.shape[0]:
            raise InputError(f"{self.path}: holds {self.shape[0]} images, asked for number {section + 1}")
        size = header.values.itemsize
        n = min(most_bytes, header.section_in_bytes) // size
        skipped = (header.section_in_bytes // size - n) // 2
        piece = np.empty(n, dtype=header.values)
        self._read_bytes(header.offset_in_bytes + section * header.section_in_bytes + skipped * size, piece, section)
        return piece

    def _read_run(self, first: int, block: NDArray) -> None:
        """Sections in a row, in the file's own type, as many as the block holds."""
        self._read_bytes(self._header.offset_in_bytes + first * self._header.section_in_bytes, block, first)

    def _read_bytes(self, position: int, block: NDArray, section: int) -> None:
        """Fill the block from a position in the file on, where the section begins or lies."""
        target = block.view(np.uint8).reshape(-1).data
        self._go_to(position)
        filled = 0
        while filled < len(target):  # one read may return less than asked for
            try:
                got = self._file.readinto(target[filled:])
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read: {error.strerror}; check the disk it is on") from None
            if not got:
                raise self._ends_early(section)
            filled += got

    def _go_to(self, position: int) -> None:
        if self._file.seekable():
            self._file.seek(position)
            return
        while (ahead := position - self._file.tell()) > 0:
            if not self._file.read(min(ahead, self._largest_read_in_bytes)):
                raise self._ends_early(0)

    def _ends_early(self, section: int) -> InputError:
        if self._file.seekable():
            return InputError(f"{self.path}: ends within image {section + 1}; was it changed while being read?")
        sections, rows, columns = self.shape
        return InputError(
            f"{self.path}: truncated: unpacked, it ends within section {section + 1} of {sections} ({rows} × "
            f"{columns}); copy or write it again"
        )

    def read_to_the_end(self) -> None:
        """Read the rest of a compressed file, where the checksum of its content stands."""
        if self._file.seekable():
            return
        rest = 0
        while got := len(self._file.read(self._largest_read_in_bytes)):
            rest += got
            if rest > _LARGEST_TAIL_IN_BYTES:
                raise InputError(
                    f"{self.path}: unpacks to far more than its header claims ({rest:,} bytes and more); check the file"
                )

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


def read_map(path: str | Path, *, cubic: bool = True) -> Map:
    """A map, its axes turned to (z, y, x). It may be compressed, as EMDB distributes maps.

    Raises:
        InputError: a file that is missing, truncated or of an unsupported mode, NaN or infinite voxels, unequal voxel
            edges, and, where `cubic`, edges of unequal length.
    """
    path = Path(path)
    with StackReader(path, unpack=True) as reader:
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
        reader.read_to_the_end()
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
            self._file.write(bytes(HEADER_BYTES))
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
