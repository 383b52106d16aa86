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
from emsplat.io.compressed import Bound, open_plain
from emsplat.runtime.files import replacing

_LARGEST_UNPACKED = Bound(in_bytes=256 << 20, ratio=100)  # that of real star files is 3 to 10
_WORDS_IN_A_BATCH = 1 << 16  # words that are read before they are sorted into columns


@dataclass(frozen=True)
class Reading:
    """How a file is read."""

    piece: int = 1 << 20  # bytes that are read at once, and the longest line
    rows_worth_compiling: int = 50_000  # loading the compiled reader takes as long as reading so many rows without it


@dataclass(frozen=True)
class Table:
    """One block of a file. Values stay the text that they were, so that unknown columns survive a round trip.

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
        return np.array(values if isinstance(values, array) else _numbers(self.label, 0, name, values))

    def integers(self, name: str) -> NDArray[np.int64]:
        """(N,) a column of whole numbers; "1.000000" counts as one."""
        values = self.floats(name)
        whole = np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < 2**53)
        if not whole.all():
            row = int(np.argmin(whole))
            raise InputError(
                f"{self.label}, row {row + 1}: {name} is {_short(str(self.columns[name][row]))}, not a whole number; "
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


def _numbers(label: str, first_row: int, name: str, words: Sequence[str]) -> array[float]:
    """Words as numbers; InputError names the first that is not one. Python's own additions (1_000, １) are not."""
    try:
        plain = "".join(words)
        if plain.isascii() and "_" not in plain:
            return array("d", [float(word) for word in words])
    except ValueError:
        pass
    row, word = next((i, w) for i, w in enumerate(words) if not _is_number(w))
    raise InputError(
        f"{label}, row {first_row + row + 1}: {name} is {_short(word)}, not a number; mend the value or remove the row"
    )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return word.isascii() and "_" not in word


@dataclass
class _Block:
    """A block while it is being read."""

    label: str
    keep: Mapping[str, type] | None
    names: dict[str, None] = field(default_factory=dict)  # in order
    columns: dict[str, list[str] | array[float]] = field(default_factory=dict)  # columns that are kept, by name
    rows: list[list[str]] = field(default_factory=list)  # the latest rows, which are not yet in the columns
    n_rows: int = 0
    is_loop: bool = False
    ended: bool = False  # a blank line has ended the loop

    def add_name(self, name: str) -> None:
        self.names[name] = None
        if self.keep is None or name in self.keep:
            self.columns[name] = array("d") if self.keep and self.keep[name] is float else []

    def add_key(self, name: str, value: str) -> None:
        """A name with its value, outside a loop."""
        self.add_name(name)
        self.rows = self.rows or [[]]
        self.rows[0].append(value)

    def add_row(self, row: list[str]) -> None:
        self.rows.append(row)
        self.n_rows += 1
        if len(self.rows) * len(row) >= _WORDS_IN_A_BATCH:
            self.sort_rows()

    def sort_rows(self) -> None:
        """Moves the rows into the columns."""
        for name, values in zip(self.names, zip(*self.rows, strict=True), strict=bool(self.rows)):
            column = self.columns.get(name)
            if isinstance(column, list):
                column += _shared(values)
            elif column is not None:
                column += _numbers(self.label, len(column), name, values)
        self.rows.clear()

    def add_plain_rows(self, text: bytes) -> int:
        """Adds rows from the start of the text by compiled code; returns the position where it stopped."""
        from emsplat.io.star_scan import scan_rows

        self.sort_rows()
        kept = np.array([i for i, name in enumerate(self.names) if name in self.columns], dtype=np.int64)
        are_numbers = np.array([isinstance(column, array) for column in self.columns.values()], dtype=np.bool_)
        found = scan_rows(text, len(self.names), kept, are_numbers)
        letters = text.decode("latin-1")  # one character a byte: plain rows are ASCII
        for slot, (name, column) in enumerate(self.columns.items()):
            if isinstance(column, list):
                begins, ends = found.spans[slot].tolist()
                column += _shared([letters[a:b] for a, b in zip(begins, ends, strict=True)])
                continue
            values = found.values[slot]
            for row in np.flatnonzero(~found.exact[slot]):
                begin, end = found.spans[slot, :, row]
                (values[row],) = _numbers(self.label, len(column) + int(row), name, [letters[begin:end]])
            column.frombytes(values.tobytes())
        self.n_rows += found.n_rows
        return found.end

    def is_worth_compiling(self, rows_worth_compiling: int) -> bool:
        """Whether the following rows are best read by compiled code; a line of one word may be no row."""
        large = self.n_rows >= rows_worth_compiling and not self.ended
        return large and self.keep is not None and len(self.names) > 1

    def table(self) -> Table:
        self.sort_rows()
        return Table(self.columns, self.is_loop, self.label)


def _shared(words: Sequence[str]) -> list[str]:
    """The words, with equal ones as one object, which halves the memory."""
    known = dict(zip(words, words, strict=True))
    return [known[word] for word in words]


def read_star(
    path: str | Path,
    keep: Mapping[str, type[str] | type[float]] | None = None,
    reading: Reading = Reading(),
) -> dict[str, Table]:
    """All blocks of a file by name without ``data_`` (a nameless block is "").

    Args:
        keep: the columns to keep, each as text or as numbers, in a fraction of the memory; None keeps all as text.
        reading: how the file is read; the tables do not depend on it.
    Raises:
        InputError: a missing, empty or binary file, or a row (with its line number) with too few or too many values.
    """
    path = Path(path)
    blocks: dict[str, _Block] = {}
    block: _Block | None = None
    number = 0  # number of the current line
    try:
        for piece in _pieces(path, reading.piece):
            end = 0
            if block and block.is_worth_compiling(reading.rows_worth_compiling):
                before = block.n_rows
                end = block.add_plain_rows(piece)
                number += block.n_rows - before
            for line in _lines(path, piece[end:]):
                number += 1
                line = line.strip()
                if not line:
                    if block and block.n_rows:
                        block.ended = True
                elif not line.startswith("#"):
                    fields = _fields(line)
                    if len(fields) == 1 and line.startswith("data_"):  # not in quotes
                        block = _begun(blocks, fields[0].removeprefix("data_"), path, keep)
                    else:
                        _take(block, line, fields)
    except _Refused as what:
        raise InputError(f"{path}, line {number}: {what}") from None
    if not blocks:
        raise InputError(f"{path}: no data_ block in it; a STAR file has at least one: check the path")
    return {name: found.table() for name, found in blocks.items()}


class _Refused(Exception):
    """What is wrong with a line, and what to do."""


def _begun(blocks: dict[str, _Block], name: str, path: Path, keep: Mapping[str, type] | None) -> _Block:
    """A new block, added to the others."""
    if name in blocks:
        raise _Refused(f"a second block data_{_cut(name)}; names must differ: remove or rename one")
    blocks[name] = _Block(f"{path}, data_{name}", keep)
    return blocks[name]


def _take(block: _Block | None, line: str, fields: list[str]) -> None:
    """Adds one line that is neither blank nor the start of a block."""
    if block is None:
        raise _Refused(f"{_short(line)} stands before any data_ line; is this a STAR file?")
    if fields == ["loop_"] and line.startswith("loop_"):
        if block.names:
            raise _Refused("a second loop in one block; RELION's files have one: split the block")
        block.is_loop = True
    elif line.startswith("_") and not block.n_rows:
        name = fields[0].removeprefix("_")
        if name in block.names:
            raise _Refused(f"a second column {_cut(name)} in one block; names must differ: remove one")
        if block.is_loop:
            block.add_name(name)
        elif len(fields) == 2:
            block.add_key(name, fields[1])
        else:
            raise _Refused(f"{_cut(name)} has {len(fields) - 1} values; a key outside a loop has one: mend it")
    elif not block.is_loop or block.ended:
        raise _Refused(f"values outside a loop ({_short(line)}); a blank line ends a loop: remove that line")
    elif len(fields) != len(block.names):
        raise _Refused(
            f"{len(fields)} values for {len(block.names)} columns; a row has one value a column: "
            "mend or remove the line"
        )
    else:
        block.add_row(fields)


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    """The file in pieces of whole lines; a byte-order mark and carriage returns are taken off."""
    with open_plain(path, _LARGEST_UNPACKED) as file:
        try:
            mark = file.peek(3).startswith(b"\xef\xbb\xbf")
            file.read(3 if mark else 0)
            while piece := file.read(size):
                rest = b"" if piece.endswith(b"\n") else file.readline(size)
                if len(rest) == size and not rest.endswith(b"\n"):
                    raise InputError(f"{path}: a line of more than {size} characters; is this a STAR file?")
                piece += rest
                if b"\0" in piece:
                    raise InputError(f"{path}: a binary file, not a STAR file (text); check the path")
                yield piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in piece else piece
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}; check the path") from None


def _lines(path: Path, piece: bytes) -> list[str]:
    try:
        lines = piece.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text, so not a STAR file; check the path or convert it to UTF-8") from None
    return lines if lines[-1] else lines[:-1]  # nothing follows the end of the last line


_WORD = re.compile(r"\S+")
_CLOSING = {"'": re.compile(r"'(?=\s|$)"), '"': re.compile(r'"(?=\s|$)')}


def _fields(line: str) -> list[str]:
    """The values of a line; a # at the start of a word begins a comment. The time is linear in the line's length."""
    if not ("#" in line or "'" in line or '"' in line):
        return line.split()
    found: list[str] = []
    closing = dict(_CLOSING)
    end = 0
    while word := _WORD.search(line, end):
        start, end = word.span()
        if line[start] == "#":
            break
        if line[start] in closing:
            quote = closing[line[start]].search(line, start + 1)
            if quote:
                found.append(line[start + 1 : quote.start()])
                end = quote.end()
                continue
            del closing[line[start]]  # there is none further on either
        found.append(word[0])
    return found


def _short(text: str) -> str:
    return repr(_cut(text.strip()))


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def write_star(path: str | Path, blocks: Mapping[str, Table]) -> None:
    """Writes blocks as RELION reads them, whole or not at all.

    RELION recognises a file of version 3.1 by its version line, so one is written where there is an optics block.
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
        yield " ".join(map(quoted, row)) + "\n"


def _key_lines(table: Table) -> Iterator[str]:
    width = max(map(len, table.columns), default=0) + 3
    for name in table.columns:
        (value,) = table.column(name)
        yield f"_{name}".ljust(width) + quoted(value) + "\n"


def quoted(value: str) -> str:
    """A value as one word: quoted where it is empty, holds a space, or would read as something else."""
    if any(c in value for c in "\n\r\0"):
        raise ValueError(f"a STAR value cannot hold a line break or a NUL: {value!r}")
    is_special = value.startswith(("#", "_", "'", '"', "data_", "loop_"))
    if value and not is_special and not any(c.isspace() for c in value):
        return value
    mark = "'" if '"' in value else '"'
    if _CLOSING[mark].search(f"{value}."):
        raise ValueError(f"a STAR value cannot hold quotes of both kinds before spaces: {value!r}")
    return f"{mark}{value}{mark}"
