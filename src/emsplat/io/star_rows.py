"""Copies of a STAR file with some of its rows left out or changed, and everything else unchanged.

A star that is parsed and written again loses its comments, its version line and its layout; here lines are copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.io.compressed import open_plain
from emsplat.io.star import quoted
from emsplat.runtime.files import replacing

_WORD = re.compile(r"""'.*?'(?=\s|$)|".*?"(?=\s|$)|\S+""")


def copy_rows(
    source: Path, out: Path, block: str, keep: NDArray[np.bool_], updates: Mapping[str, Sequence[str]]
) -> None:
    """Copies a file that `read_star` reads, with the chosen rows of one of its loops.

    Args:
        block: the loop's name without ``data_``.
        keep: (N,) whether each of its rows is kept.
        updates: (n,) values of the kept rows by column; a column the loop does not have comes last.
    """
    with (
        TextIOWrapper(open_plain(source), encoding="utf-8", newline="") as lines,
        replacing(out) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        file.writelines(_selected(lines, _Loop(block, keep, updates)))


@dataclass
class _Loop:
    """Where the walk through a file stands in the block whose rows are chosen."""

    block: str
    keep: NDArray[np.bool_]
    updates: Mapping[str, Sequence[str]]
    inside: bool = False
    names: list[str] = field(default_factory=list)
    row: int = 0  # number among all rows
    kept: int = 0

    @property
    def added(self) -> list[str]:
        return [name for name in self.updates if name not in self.names]


def _selected(lines: Iterable[str], loop: _Loop) -> Iterator[str]:
    for line in lines:
        words = line.removeprefix("\ufeff").split(maxsplit=2)
        alone = len(words) == 1 or (len(words) > 1 and words[1].startswith("#"))
        if not words or words[0].startswith("#"):
            yield line
        elif alone and words[0].startswith("data_"):
            loop.inside = words[0] == f"data_{loop.block}"
            yield line
        elif not loop.inside or (alone and words[0] == "loop_"):
            yield line
        elif words[0].startswith("_") and loop.row == 0:
            loop.names.append(words[0].removeprefix("_"))
            yield line
        else:
            if loop.row == 0:
                end = "\r\n" if line.endswith("\r\n") else "\n"
                yield from (f"_{name} #{n}{end}" for n, name in enumerate(loop.added, start=len(loop.names) + 1))
            if loop.keep[loop.row]:
                yield _updated(line, loop) if loop.updates else line
                loop.kept += 1
            loop.row += 1


def _updated(line: str, loop: _Loop) -> str:
    """The row with its new values; columns stay where they stood if the new values fit."""
    words = list(_WORD.finditer(line))[: len(loop.names)]
    parts, end = [], 0
    for name, word in zip(loop.names, words, strict=True):
        parts.append(line[end : word.start()])
        parts.append(_value(loop, name).rjust(len(word[0])) if name in loop.updates else word[0])
        end = word.end()
    return "".join([*parts, *(f" {_value(loop, name)}" for name in loop.added), line[end:]])


def _value(loop: _Loop, name: str) -> str:
    return quoted(loop.updates[name][loop.kept])
