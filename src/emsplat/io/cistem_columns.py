"""The columns of cisTEM's tables: star files and binary .cistem files, which hold the same.

A .cistem file begins with the numbers of its columns and rows, 32 bits each. A code of 64 bits and a type of 8 bits
follow for every column, and then the rows. A text is its length, 32 bits, and that many bytes.

Source: cisTEM, ``cisTEMParameters::WriteTocisTEMStarFile``, ``WriteTocisTEMBinaryFile`` and
``cisTEMStarFileReader``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.io.star import read_star
from emsplat.runtime.files import check_memory, open_regular

PREFIX = "cisTEM"
STACK, POSITION = "StackFilename", "PositionInStack"
_CODES = {  # of the binary file, by bit; the names are those of the star
    name: 1 << bit
    for bit, name in enumerate((
        POSITION, "ImageActivity", "AnglePsi", "XShift", "YShift", "Defocus1", "Defocus2", "DefocusAngle", "PhaseShift",
        "Occupancy", "LogP", "Sigma", "Score", "ScoreChange", "PixelSize", "MicroscopeVoltagekV", "MicroscopeCsMM",
        "AmplitudeContrast", "BeamTiltX", "BeamTiltY", "ImageShiftX", "ImageShiftY", "AngleTheta", "AnglePhi", STACK,
        "OriginalImageFilename", "Reference3DFilename", "Best2DClass", "BeamTiltGroup", "ParticleGroup", "PreExposure",
        "TotalExposure", "AssignedSubset", "OriginalXPosition", "OriginalYPosition",
    ))
}  # fmt: skip
_NAMES = {code: name for name, code in _CODES.items()}
_TEXTS = (STACK, "OriginalImageFilename", "Reference3DFilename")
_WHOLE = ("ImageActivity", "Best2DClass", "BeamTiltGroup", "ParticleGroup", "AssignedSubset")
_TYPES = {2: "i", 3: "f", 5: "q", 6: "d", 7: "b", 9: "I"}  # of columns with an unknown code, in struct's letters
_TYPE_OF_TEXT = 8
_KEPT = (
    *(POSITION, "ImageActivity", "AnglePsi", "AngleTheta", "AnglePhi", "XShift", "YShift", "Defocus1", "Defocus2"),
    *("DefocusAngle", "PhaseShift", "Occupancy", "PixelSize", "MicroscopeVoltagekV", "MicroscopeCsMM"),
    *("AmplitudeContrast", "BeamTiltX", "BeamTiltY", "ImageShiftX", "ImageShiftY", "ParticleGroup", "PreExposure"),
    "AssignedSubset",
)
_CONSTANTS = ("PixelSize", "MicroscopeVoltagekV", "MicroscopeCsMM", "AmplitudeContrast")
_MOST_COLUMNS = 64
_LONGEST_TEXT = 1 << 16
_ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Columns:
    """The columns of N particles that are kept, by their names without the prefix cisTEM; angles in degrees."""

    path: Path
    numbers: dict[str, NDArray[np.float64]]  # (N,) each
    stacks: tuple[str, ...]  # names as written; empty where the table has none
    stack: NDArray[np.int32]  # (N,) index into stacks
    row: NDArray[np.int64]  # (N,) rows of the file, from 1

    def __len__(self) -> int:
        return len(self.stack)

    def __contains__(self, name: str) -> bool:
        return name in self.numbers

    def get(self, name: str, default: float | None = None) -> NDArray[np.float64]:
        """(N,) finite numbers; all are the default where the column is absent; InputError where there is none."""
        if name not in self.numbers:
            if default is None:
                raise self.missing([name])
            return np.full(len(self), float(default))
        values = self.numbers[name]
        self.require(np.isfinite(values), name, values, "must be finite")
        return values

    def require(self, holds: NDArray[np.bool_], name: str, values: NDArray, rule: str) -> None:
        """InputError naming the first row where the rule does not hold."""
        if not holds.all():
            row = int(np.argmin(holds))
            raise InputError(
                f"{self.path}, row {self.row[row]}: {PREFIX}{name} is {values[row]:g}; it {rule}: mend the value or "
                "remove the row"
            )

    def missing(self, names: Sequence[str]) -> InputError:
        columns = ", ".join(f"{PREFIX}{name}" for name in names)
        return InputError(
            f"{self.path}: missing column{'s' * (len(names) > 1)} {columns}; export the refinement from cisTEM again"
        )

    def select(self, rows: NDArray[np.bool_]) -> Columns:
        """The chosen rows, and the stacks that they are of."""
        used, stack = np.unique(self.stack[rows], return_inverse=True)
        stacks = tuple(self.stacks[number] for number in used) if self.stacks else ()
        numbers = {name: values[rows] for name, values in self.numbers.items()}
        return Columns(self.path, numbers, stacks, stack.reshape(-1).astype(np.int32), self.row[rows])


def is_binary_table(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a .cistem file: a header of known columns that fit together."""
    if len(start) < 8:
        return False
    n_columns, n_rows = struct.unpack_from("<2i", start)
    if not (0 < n_columns <= _MOST_COLUMNS and n_rows > 0 and len(start) >= 8 + 9 * n_columns):
        return False
    codes = [code for code, _ in struct.iter_unpack("<qB", start[8 : 8 + 9 * n_columns])]
    are_bits = all(code > 0 and code & (code - 1) == 0 for code in codes)
    return are_bits and _CODES[POSITION] in codes and len(set(codes)) == n_columns


def read_columns(path: Path) -> Columns:
    """The kept columns of a star file or of a .cistem file, which the content decides.

    Raises:
        InputError: the file cannot be read, is damaged, has no rows, or has no column of positions.
    """
    try:
        with BufferedReader(open_regular(path)) as file:
            binary = is_binary_table(file.read(8 + 9 * _MOST_COLUMNS))
            file.seek(0)
            columns = _read_binary(path, file) if binary else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    columns = columns or _read_text(path)
    if len(columns) == 0:
        raise InputError(f"{path}: no particles in it (0 rows); check the path or the selection that wrote it")
    return columns


def _read_text(path: Path) -> Columns:
    kept: dict[str, type[str] | type[float]] = {f"{PREFIX}{name}": float for name in _KEPT}
    kept[f"{PREFIX}{STACK}"] = str
    table = next((t for t in read_star(path, kept).values() if f"{PREFIX}{POSITION}" in t), None)
    if table is None:
        raise InputError(f"{path}: no column {PREFIX}{POSITION}, so no table of particles; export it from cisTEM again")
    numbers = {name: table.floats(f"{PREFIX}{name}") for name in _KEPT if f"{PREFIX}{name}" in table}
    named = f"{PREFIX}{STACK}" in table
    names = table.column(f"{PREFIX}{STACK}") if named else [""] * len(table)
    return Columns(path, numbers, *_numbered(names), np.arange(1, len(table) + 1))


def _numbered(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The different names and (N,) the number of each row's; none where all are empty."""
    number_of: dict[str, int] = {}
    stack = np.array([number_of.setdefault(name, len(number_of)) for name in names], dtype=np.int32)
    return (tuple(number_of) if any(number_of) else ()), stack


def _read_binary(path: Path, file: BinaryIO) -> Columns:
    """The kept columns of a .cistem file, whose header is believed only as far as there are bytes behind it."""
    n_columns, n_rows = struct.unpack("<2i", file.read(8))
    header = list(struct.iter_unpack("<qB", file.read(9 * n_columns)))
    columns = [(_NAMES.get(code, ""), _letter(path, code, type_)) for code, type_ in header]
    size = file.seek(0, 2)
    file.seek(8 + 9 * n_columns)
    least = sum(4 if letter == "s" else struct.calcsize(letter) for _, letter in columns)
    if 8 + 9 * n_columns + n_rows * least > size:
        raise InputError(
            f"{path}: truncated: {size} bytes where its header claims {n_rows} rows of at least {least}; copy or "
            "write it again"
        )
    kept = [name for name, _ in columns if name in _KEPT]
    check_memory(path, 8 * n_rows * (len(kept) + 1))
    numbers = {name: np.empty(n_rows) for name in kept}
    names: list[str] = []
    first = 0
    for block in _blocks(path, file, columns, n_rows):
        for name, (_, letter), values in zip([n for n, _ in columns], columns, block, strict=True):
            if name in numbers:
                numbers[name][first : first + len(values)] = values
            elif name == STACK and letter == "s":
                names += values
        first += len(block[0])
    if file.read(1):
        raise InputError(f"{path}: damaged: more bytes than its {n_rows} rows take; copy or write it again")
    if "PhaseShift" in numbers:
        numbers["PhaseShift"] = np.rad2deg(numbers["PhaseShift"])  # the star has degrees
    for name in _CONSTANTS:
        if name in numbers:  # 2.7 in single precision is 2.7, and not 2.700000047683716
            different, which = np.unique(numbers[name], return_inverse=True)
            numbers[name] = np.array([float(f"{value:.7g}") for value in different.tolist()])[which.reshape(-1)]
    return Columns(path, numbers, *_numbered(names or [""] * n_rows), np.arange(1, n_rows + 1))


def _letter(path: Path, code: int, type_: int) -> str:
    """struct's letter of a column, which its code decides, as in cisTEM; "s" is a text."""
    name = _NAMES.get(code)
    if name is not None:
        return "s" if name in _TEXTS else "I" if name == POSITION else "i" if name in _WHOLE else "f"
    if type_ == _TYPE_OF_TEXT:
        return "s"
    if type_ not in _TYPES:
        raise InputError(
            f"{path}: a column with the code {code} of type {type_}, which is not known; export it as star"
        )
    return _TYPES[type_]


def _blocks(path: Path, file: BinaryIO, columns: Sequence[tuple[str, str]], n_rows: int) -> Iterator[list[Any]]:
    """Blocks of rows, each as one sequence of values for every column."""
    runs = [(is_text, [letter for _, letter in run]) for is_text, run in groupby(columns, lambda c: c[1] == "s")]
    if not any(is_text for is_text, _ in runs):
        types = np.dtype([(str(i), f"<{'i1' if c == 'b' else c}") for i, (_, c) in enumerate(columns)])
        for first in range(0, n_rows, _ROWS_AT_ONCE):
            rows = np.frombuffer(file.read(types.itemsize * min(_ROWS_AT_ONCE, n_rows - first)), types)
            yield [rows[str(i)] for i in range(len(columns))]
        return
    formats = [None if is_text else struct.Struct(f"<{''.join(letters)}") for is_text, letters in runs]
    lengths = [len(letters) for _, letters in runs]
    for first in range(0, n_rows, _ROWS_AT_ONCE):
        block = [_one_row(path, file, formats, lengths) for _ in range(min(_ROWS_AT_ONCE, n_rows - first))]
        yield [list(values) for values in zip(*block, strict=True)]


def _one_row(
    path: Path, file: BinaryIO, formats: Sequence[struct.Struct | None], lengths: Sequence[int]
) -> list[float | str]:
    row: list[float | str] = []
    for form, length in zip(formats, lengths, strict=True):
        if form is not None:
            row += form.unpack(_exactly(path, file, form.size))
            continue
        for _ in range(length):
            (size,) = struct.unpack("<i", _exactly(path, file, 4))
            if not 0 <= size <= _LONGEST_TEXT:
                raise InputError(f"{path}: damaged: a text of {size} bytes; copy or write it again")
            row.append(_text(path, _exactly(path, file, size)))
    return row


def _exactly(path: Path, file: BinaryIO, size: int) -> bytes:
    got = file.read(size)
    if len(got) < size:
        raise InputError(f"{path}: truncated: it ends within a row; copy or write it again")
    return got


def _text(path: Path, raw: bytes) -> str:
    try:
        text = raw.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError:
        text = "\n"
    if len(text.splitlines()) > 1 or any(c in text for c in "\n\r\0"):
        raise InputError(f"{path}: damaged: a name of a file that is no line of UTF-8 text; copy or write it again")
    return text
