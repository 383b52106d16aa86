"""RELION's STAR files: named blocks, each one loop or a list of keys and values.

Source: Hall (1991), J. Chem. Inf. Comput. Sci. 31, 326, in the dialect RELION writes: one row a line, one loop a block,
a blank line ends a loop, ``_name #n`` names a column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.io.files import replacing


@dataclass(frozen=True)
class Table:
    """One block. Values stay the text they were, so that unknown columns survive a round trip."""

    columns: dict[str, list[str]]  # by name without the leading underscore, all of one length
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
        values = self.column(name)
        try:
            return np.array(values, dtype=np.float64)
        except ValueError:
            row, value = next((i, v) for i, v in enumerate(values) if not _is_number(v))
            raise InputError(
                f"{self.label}, row {row + 1}: {name} is {value!r}, not a number; mend the value or remove the row"
            ) from None

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
        if name not in self.columns:
            raise InputError(f"{self.label}: column {name} is missing; add it, or export the file again with it")
        return self.columns[name]


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
    names: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    is_loop: bool = False
    ended: bool = False  # a blank line has ended the loop

    def table(self) -> Table:
        values = [list(column) for column in zip(*self.rows, strict=True)] or [[] for _ in self.names]
        return Table(dict(zip(self.names, values, strict=True)), self.is_loop, self.label)


def read_star(path: str | Path) -> dict[str, Table]:
    """All blocks of a file by name without ``data_`` (a nameless block is "").

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
            if block and block.rows and block.is_loop and not line.strip():
                block.ended = True
        elif len(fields) == 1 and fields[0].startswith("data_"):
            name = fields[0].removeprefix("data_")
            if name in blocks:
                raise InputError(f"{where}: a second block data_{name}; names must differ: remove or rename one")
            block = blocks[name] = _Block(f"{path}, data_{name}")
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
    elif fields[0].startswith("_") and not (block.is_loop and block.rows):
        name = fields[0].removeprefix("_")
        if name in block.names:
            raise InputError(f"{where}: a second column {name} in one block; names must differ: remove one")
        if not block.is_loop:
            if len(fields) != 2:
                raise InputError(f"{where}: {name} has {len(fields) - 1} values; a key outside a loop has one: mend it")
            block.rows = [[*(block.rows[0] if block.rows else []), fields[1]]]
        block.names.append(name)
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
        block.rows.append(fields)


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
    for row in zip(*table.columns.values(), strict=True):
        yield " ".join(map(_quoted, row)) + "\n"


def _key_lines(table: Table) -> Iterator[str]:
    width = max(map(len, table.columns), default=0) + 3
    for name, (value,) in table.columns.items():
        yield f"_{name}".ljust(width) + _quoted(value) + "\n"


def _quoted(value: str) -> str:
    """A value as one word: quoted where it is empty, holds a space, or would read as a comment or a name."""
    if "\n" in value or "\r" in value:
        raise ValueError(f"a STAR value cannot hold a line break: {value!r}")
    if value and not any(c.isspace() for c in value) and value[0] not in "#_'\"":
        return value
    return f"'{value}'" if '"' in value else f'"{value}"'
