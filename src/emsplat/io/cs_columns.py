"""The columns of a cryoSPARC table and of its passthrough tables, joined on the particles' uid.

A .cs file is a NumPy array file (.npy) that holds one structured array; a job writes what it changed to one table and
what it merely passed on to another, the passthrough.
Source: NumPy's format description (``numpy.lib.format``); CryoSPARC Guide, "Manipulating .cs Files".
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as array_format
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.runtime.files import check_memory, open_regular

_LARGEST_HEADER_IN_BYTES = 1 << 18  # a table of a hundred classes needs a third of it

# All columns that are read of a table; only names that match may be asked for.
_KEPT = re.compile(
    r"uid|sym_expand/src_uid|(ctf|location)/exp_group_id|mscope_params/(accel_kv|cs_mm)"
    r"|blob/(path|idx|shape|psize_A|sign)"
    r"|ctf/(accel_kv|cs_mm|amp_contrast|ac|df1_A|df2_A|df_angle_rad|phase_shift_rad|bfactor|scale)"
    r"|ctf/(shift_A|tilt_A|trefoil_A|tetra_A|anisomag)"
    r"|alignments\w*/(pose|shift|psize_A|split|alpha|class_posterior)"
)


@dataclass(frozen=True)
class Columns:
    """The columns of N particles; those of the main table hide those of the same name in a passthrough."""

    path: Path  # of the main table
    tables: tuple[dict[str, NDArray], ...]  # the main table, then the passthroughs; (N, ...) in the main table's order

    def __len__(self) -> int:
        return len(self.tables[0]["uid"])

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def _find(self, name: str) -> NDArray | None:
        if not _KEPT.fullmatch(name):
            raise KeyError(f"{name} is not among the columns that are kept")
        return next((table[name] for table in self.tables if name in table), None)

    def numbers(
        self,
        name: str,
        default: float | None = None,
        shape: tuple[int, ...] = (),
        of_class: NDArray[np.intp] | None = None,
    ) -> NDArray[np.float64]:
        """(N, *shape) finite numbers; all are the default if the column is absent.

        Args:
            of_class: (N,) wanted entry along the axis of classes, for a column that has this axis.
        """
        values = self._find(name)
        if values is None:
            if default is None:
                raise self.missing([name])
            return np.full((len(self), *shape), default)
        if of_class is not None and values.ndim == 2 + len(shape) and of_class.max() < values.shape[1]:
            values = values[np.arange(len(self)), of_class]
        self._check(name, values, "iufb", "numbers", shape)
        with np.errstate(invalid="ignore"):  # some of the numbers that are none
            values = values.astype(np.float64)
        self.require(np.isfinite(values).reshape(len(self), -1).all(axis=1), name, values, "must be finite")
        return values

    def integers(self, name: str) -> NDArray:
        """(N,) whole numbers, of the type the file has."""
        values = self._find(name)
        if values is None:
            raise self.missing([name])
        self._check(name, values, "iu", "whole numbers", ())
        return values

    def texts(self, name: str) -> tuple[list[str], NDArray[np.intp]]:
        """The different values of a column of text, and (N,) the number of each row's value among them."""
        values = self._find(name)
        if values is None:
            raise self.missing([name])
        self._check(name, values, "S", "byte strings", ())
        different, first, which = np.unique(values, return_index=True, return_inverse=True)
        texts = [value.decode("utf-8", "replace") for value in different.tolist()]
        for text, row in zip(texts, first, strict=True):
            if text.splitlines() != [text] or "\0" in text or "\ufffd" in text:
                raise InputError(
                    f"{self.path}, row {row + 1}: {name} is {text!r}, not one line of UTF-8 text; "
                    "mend the value or remove the row"
                )
        return texts, which.reshape(-1)

    def row_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one particle's entry in a column that is present; () is a single value."""
        values = self._find(name)
        if values is None:
            raise self.missing([name])
        return values.shape[1:]

    def _check(self, name: str, values: NDArray, kinds: str, what: str, shape: tuple[int, ...]) -> None:
        if values.dtype.kind not in kinds or values.shape[1:] != shape:
            has = f"{values.dtype} {list(values.shape[1:])}" if values.shape[1:] else str(values.dtype)
            must = f"{' × '.join(map(str, shape))} {what}" if shape else f"one column of {what}"
            raise InputError(
                f"{self.path}: {name} has the type {has}; it must be {must} a particle: export the particles again"
            )

    def require(self, holds: NDArray[np.bool_], name: str, values: Sequence | NDArray, rule: str) -> None:
        """InputError naming the first row where the rule does not hold."""
        if not holds.all():
            row = int(np.argmin(holds))
            uid, value = self.tables[0]["uid"][row], " ".join(str(values[row]).split())
            raise InputError(
                f"{self.path}, row {row + 1} (uid {uid}): {name} is {value}; it {rule}: "
                "mend the value or remove the row"
            )

    def missing(self, names: Sequence[str], otherwise: str = "") -> InputError:
        tables = f"{self.path}{' and its passthrough tables' if len(self.tables) > 1 else ''}"
        return InputError(
            f"{tables}: missing column{'s' * (len(names) > 1)} {', '.join(names)}; "
            f"give the table of the same job that has them with --passthrough{otherwise}"
        )


def read_columns(
    path: Path,
    passthrough: Sequence[Path],
    block_in_bytes: int = 16 << 20,
    table_of: Mapping[str, Path] | None = None,
) -> Columns:
    """The main table with its passthrough tables joined to it; rows that only a passthrough has are left out.

    Args:
        table_of: the table that each slot of columns is taken from, whichever other table has it too.
        block_in_bytes: size of the rows that are read at once; most of a table's columns are not kept.
    Raises:
        InputError: a file that is no table, is damaged or holds Python objects; a uid that is missing or repeated.
    """
    tables = [_read_slots(path, block_in_bytes, table_of or {})]
    uid = _uids(path, tables[0])
    if len(uid) == 0:
        raise InputError(f"{path}: no particles in it (0 rows); check the path or the selection that wrote it")
    for other in passthrough:
        table = _read_slots(other, block_in_bytes, table_of or {})
        rows = _rows_of(uid, path, _uids(other, table), other)
        tables.append({name: values[rows] for name, values in table.items() if name not in tables[0]})
    return Columns(path, tuple(tables))


def _read_slots(path: Path, block_in_bytes: int, table_of: Mapping[str, Path]) -> dict[str, NDArray]:
    """The kept columns of a table without those of slots that are taken from another table."""
    table = _read_table(path, block_in_bytes)
    return {name: values for name, values in table.items() if table_of.get(name.partition("/")[0], path) == path}


def _uids(path: Path, table: dict[str, NDArray]) -> NDArray[np.uint64]:
    """(n,) the uids; InputError where one occurs twice."""
    uid = table.get("uid")
    if uid is None or uid.dtype.kind not in "iu" or uid.ndim != 1:
        raise InputError(f"{path}: no column uid of whole numbers; is this a cryoSPARC particle table?")
    order = np.argsort(uid, kind="stable")
    again = np.flatnonzero(np.diff(uid[order]) == 0)
    if len(again):
        first, second = sorted(order[again[0] : again[0] + 2] + 1)
        raise InputError(
            f"{path}: rows {first} and {second} have the same uid, {uid[first - 1]}; "
            "tables are joined and particles known by it: export the particles again"
        )
    return uid.astype(np.uint64)


def _rows_of(uid: NDArray[np.uint64], path: Path, other_uid: NDArray[np.uint64], other: Path) -> NDArray[np.intp]:
    """(N,) each uid's row in the other table."""
    order = np.argsort(other_uid)
    place = np.searchsorted(other_uid[order], uid)
    rows = order[np.minimum(place, len(order) - 1)] if len(order) else np.zeros(len(uid), dtype=np.intp)
    found = other_uid[rows] == uid if len(order) else np.zeros(len(uid), dtype=bool)
    if not found.all():
        raise InputError(
            f"{other}: {np.sum(~found)} of the {len(uid)} particles of {path} are not in it (the first has the uid "
            f"{uid[np.argmin(found)]}); is it the passthrough table of the same job?"
        )
    return rows


def _read_table(path: Path, block_in_bytes: int) -> dict[str, NDArray]:
    """The kept columns of one .cs file, (n, ...) each; nothing is unpickled or memory-mapped.

    Memory is what the kept columns take, and that is at most the size of the file: a header is believed only as far
    as there are bytes behind it.
    """
    try:
        with BufferedReader(open_regular(path)) as file:
            types, count = _header(path, file)
            return _read_rows(path, file, types, count, block_in_bytes)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; check the path") from None


def _header(path: Path, file: BinaryIO) -> tuple[np.dtype, int]:
    """The row type and the number of rows; the file stands at the first row."""
    start = file.read(_LARGEST_HEADER_IN_BYTES)
    if start.startswith(b"\x94CSDAT"):
        raise InputError(f"{path}: a compressed cryoSPARC table (CSDAT); save it with cryosparc-tools as NumPy array")
    try:
        types, shape, first_row = _parsed(start)
    except Exception:  # whatever a hostile header makes Python or NumPy raise, recursion and memory errors too
        raise InputError(f"{path}: no legible NumPy array header; not a cryoSPARC table, or damaged") from None
    if types.hasobject:
        raise InputError(f"{path}: holds Python objects, which are not read; save it from cryoSPARC again")
    if not types.names or len(shape) != 1 or types.itemsize == 0:
        raise InputError(f"{path}: an array, but not a table with named columns; is this a cryoSPARC particle table?")
    claimed, held = first_row + shape[0] * types.itemsize, os.fstat(file.fileno()).st_size
    if held != claimed:
        raise InputError(
            f"{path}: {'truncated' if held < claimed else 'damaged'}: {held} bytes where its header claims {claimed} "
            f"({shape[0]} rows of {types.itemsize} bytes); copy or export it again"
        )
    file.seek(first_row)
    return types, shape[0]


def _parsed(start: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    """The row type, the shape, and where the first row starts.

    NumPy's own reader of headers takes minutes over some illegible ones.
    """
    if not start.startswith(b"\x93NUMPY"):
        raise ValueError("not an array file")
    size_of_length = 2 if start[6] == 1 else 4
    first = 8 + size_of_length
    first_row = first + int.from_bytes(start[8:first], "little")
    header = ast.literal_eval(start[first:first_row].decode("utf-8" if start[6] == 3 else "latin1").strip())
    shape = tuple(int(length) for length in header["shape"])
    if set(header) != {"descr", "fortran_order", "shape"} or not isinstance(header["fortran_order"], bool):
        raise ValueError("a header that NumPy would not write or read")
    if first_row > len(start) or not all(0 <= length < 2**63 for length in shape):
        raise ValueError("a header longer than the file or than any table's, or an impossible shape")
    return array_format.descr_to_dtype(header["descr"]), shape, first_row


def _read_rows(path: Path, file: BinaryIO, types: np.dtype, count: int, block_in_bytes: int) -> dict[str, NDArray]:
    kept = [name for name in types.names or () if _KEPT.fullmatch(name)]
    check_memory(path, count * sum(types[name].itemsize for name in kept))
    columns = {name: np.empty((count, *types[name].shape), types[name].base) for name in kept}
    longest = max(1, block_in_bytes // types.itemsize)
    for first in range(0, count, longest):
        rows = np.fromfile(file, types, min(longest, count - first))
        if len(rows) < min(longest, count - first):
            raise InputError(f"{path}: ends within row {first + len(rows) + 1}; was it changed while being read?")
        for name in kept:
            columns[name][first : first + len(rows)] = rows[name]
    return columns
