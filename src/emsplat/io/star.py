"""RELION's STAR files: named blocks, each one loop or a list of keys and values.

Source: Hall (1991), J. Chem. Inf. Comput. Sci. 31, 326, in the dialect RELION writes: one row a line, one loop a block,
a blank line ends a loop, ``_name #n`` names a column.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.io.files import replacing

_ROWS_IN_A_BATCH = 1000  # read before they are sorted into columns


@dataclass(frozen=True)
class Table:
    """One block. Values stay the text they were, so that unknown columns survive a round trip.

    Only a column that `read_star` was told to keep as float is an array of numbers.
    """

    columns: Mapping[str, list[str] | array[float]]  # by name without the leading underscore, all of one length
    is_loop: bool = True  # False: keys with one value each
    label: str = "table"  # what error messages call it

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1 or (not self.is_loop and set(lengths.values()) - {1}):
            raise ValueError(f"{self.label}: columns of unequal length {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def floats(self, name: str) -> NDArray[np.float64]:
        """(N,) a numeric column; InputError names the first value that is not a number."""
        values = self._values(name)
        try:
            return np.array(values, dtype=np.float64)
        except ValueError:
            row, value = next((i, v) for i, v in enumerate(map(str, values)) if not _is_number(v))
            raise _not_a_number(self.label, row, name, value) from None

    def integers(self, name: str) -> NDArray[np.int64]:
        """(N,) a column of whole numbers, "1.000000" allowed."""
        values = self.floats(name)
        whole = np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < 2**53)
        if not whole.all():
            row = int(np.argmin(whole))
            raise InputError(
                f"{self.label}, row {row + 1}: {name} is {self.columns[name][row]!r}, not a whole number; "
                "mend the value or remove the row"
            )
        return values.astype(np.int64)

    def column(self, name: str) -> list[str]:
        """(N,) the values as text; InputError where the column is missing."""
        values = self._values(name)
        return values if isinstance(values, list) else [f"{value:.15g}" for value in values]

    def _values(self, name: str) -> list[str] | array[float]:
        if name not in self.columns:
            raise InputError(f"{self.label}: column {name} is missing; add it, or export the file again with it")
        return self.columns[name]


def _not_a_number(label: str, row: int, name: str, value: str) -> InputError:
    return InputError(f"{label}, row {row + 1}: {name} is {value!r}, not a number; mend the value or remove the row")


def _is_number(text: str) -> bool:
    try:
        np.float64(text)
    except ValueError:
        return False
    return True


@dataclass
class _Block:
    """A block while it is being read."""

    label: str
    keep: Mapping[str, type] | None
    names: list[str] = field(default_factory=list)
    columns: dict[str, list[str] | array[float]] = field(default_factory=dict)  # those of the names that are kept
    rows: list[list[str]] = field(default_factory=list)  # the last ones, not yet in the columns
    has_rows: bool = False
    is_loop: bool = False
    ended: bool = False  # a blank line has ended the loop

    def add_name(self, name: str) -> None:
        self.names.append(name)
        if self.keep is None or name in self.keep:
            self.columns[name] = array("d") if self.keep and self.keep[name] is float else []

    def add_row(self, row: list[str]) -> None:
        self.rows.append(row)
        self.has_rows = True
        if len(self.rows) == _ROWS_IN_A_BATCH:
            self.sort_rows()

    def sort_rows(self) -> None:
        """Moves the rows into the columns."""
        for name, values in zip(self.names, zip(*self.rows, strict=True), strict=bool(self.rows)):
            if name in self.columns:
                self._extend(name, values)
        self.rows.clear()

    def _extend(self, name: str, values: Sequence[str]) -> None:
        column = self.columns[name]
        if isinstance(column, list):
            known: dict[str, str] = {}  # equal values share one string
            column.extend([known.setdefault(value, value) for value in values])
            return
        before = len(column)
        try:
            column.extend(map(float, values))
        except ValueError:
            raise _not_a_number(self.label, len(column), name, values[len(column) - before]) from None

    def table(self) -> Table:
        self.sort_rows()
        return Table(self.columns, self.is_loop, self.label)


def read_star(path: str | Path, keep: Mapping[str, type[str] | type[float]] | None = None) -> dict[str, Table]:
    """All blocks of a file by name without ``data_`` (a nameless block is "").

    Args:
        keep: the columns to keep, each as text or as numbers: a fraction of the memory; None keeps all, as text.
    Raises:
        InputError: missing, empty or binary file; a row with too few or too many values (with its line number).
    """
    path = Path(path)
    blocks: dict[str, _Block] = {}
    block: _Block | None = None
    for number, line in _lines(path):
        fields = _fields(line)
        where = f"{path}, line {number}"
        if not fields:
            if block and block.has_rows and block.is_loop and not line.strip():
                block.ended = True
        elif len(fields) == 1 and fields[0].startswith("data_"):
            name = fields[0].removeprefix("data_")
            if name in blocks:
                raise InputError(f"{where}: a second block data_{name}; names must differ: remove or rename one")
            block = blocks[name] = _Block(f"{path}, data_{name}", keep)
        elif block is None:
            raise InputError(f"{where}: {_short(line)} stands before any data_ line; is this a STAR file?")
        else:
            _take(block, fields, where)
    if not blocks:
        raise InputError(f"{path}: no data_ block in it; a STAR file has at least one: check the path")
    return {name: found.table() for name, found in blocks.items()}


def _take(block: _Block, fields: list[str], where: str) -> None:
    """Adds one line that is neither blank nor the start of a block."""
    if fields == ["loop_"]:
        if block.names:
            raise InputError(f"{where}: a second loop in one block; RELION's files have one: split the block")
        block.is_loop = True
    elif fields[0].startswith("_") and not (block.is_loop and block.has_rows):
        name = fields[0].removeprefix("_")
        if name in block.names:
            raise InputError(f"{where}: a second column {name} in one block; names must differ: remove one")
        if not block.is_loop:
            if len(fields) != 2:
                raise InputError(f"{where}: {name} has {len(fields) - 1} values; a key outside a loop has one: mend it")
            block.rows = [[*(block.rows[0] if block.rows else []), fields[1]]]
        block.add_name(name)
    elif not block.is_loop or block.ended:
        raise InputError(
            f"{where}: values outside a loop ({_short(' '.join(fields))}); a blank line ends a loop: remove that line"
        )
    elif len(fields) != len(block.names):
        raise InputError(
            f"{where}: {len(fields)} values for {len(block.names)} columns; a row has one value a column: "
            "mend or remove the line"
        )
    else:
        block.add_row(fields)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their number from 1; CRLF and a byte-order mark are taken off."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if "\0" in line:
                    raise InputError(f"{path}: a binary file, not a STAR file (text); check the path")
                yield number, line
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text, so not a STAR file; check the path or convert it to UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; check the path") from None


_TOKEN = re.compile(r"""'(.*?)'(?=\s|$)|"(.*?)"(?=\s|$)|(\S+)""")


def _fields(line: str) -> list[str]:
    """The values of a line; a # at the start of a word begins a comment."""
    if not ("#" in line or "'" in line or '"' in line):
        return line.split()
    fields = []
    for single, double, bare in _TOKEN.findall(line):
        if bare.startswith("#"):
            break
        fields.append(single or double or bare)
    return fields


def _short(line: str) -> str:
    text = line.strip()
    return repr(text if len(text) <= 40 else text[:37] + "...")


def write_star(path: str | Path, blocks: Mapping[str, Table]) -> None:
    """Writes blocks as RELION reads them, whole or not at all.

    RELION takes a file for 3.1 by its version line, so one is written where there is an optics block.
    """
    version = "\n# version 30001\n" if "optics" in blocks else ""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for name, table in blocks.items():
            file.write(f"{version}\ndata_{name}\n\n")
            file.writelines(_loop_lines(table) if table.is_loop else _key_lines(table))
            file.write("\n")


def _loop_lines(table: Table) -> Iterator[str]:
    yield "loop_\n"
    for number, name in enumerate(table.columns, start=1):
        yield f"_{name} #{number}\n"
    for row in zip(*map(table.column, table.columns), strict=True):
        yield " ".join(map(_quoted, row)) + "\n"


def _key_lines(table: Table) -> Iterator[str]:
    width = max(map(len, table.columns), default=0) + 3
    for name in table.columns:
        (value,) = table.column(name)
        yield f"_{name}".ljust(width) + _quoted(value) + "\n"


def _quoted(value: str) -> str:
    """A value as one word: quoted where it is empty, holds a space, or would read as a comment or a name."""
    if "\n" in value or "\r" in value:
        raise ValueError(f"a STAR value cannot hold a line break: {value!r}")
    if value and not any(c.isspace() for c in value) and value[0] not in "#_'\"":
        return value
    return f"'{value}'" if '"' in value else f'"{value}"'
