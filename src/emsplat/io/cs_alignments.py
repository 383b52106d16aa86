"""The 3D alignment of every particle of a cryoSPARC table, whichever slot of columns it stands in.

A refinement writes the slot ``alignments3D``; classifications write one slot a class (``alignments_class_0``,
``alignments_class3D_0``, ...) or the slot ``alignments3D_multi``, whose columns have an axis of classes.
Source: cryosparc-tools, the examples of ``save_external_result`` and ``alloc_output``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.io.cs_columns import Columns

_PLAIN, _MULTI = "alignments3D", "alignments3D_multi"
_POSE_OF_A_CLASS = re.compile(r"(alignments_class(?:3D)?_)(\d+)/pose")


@dataclass(frozen=True)
class Alignment:
    """An alignment of every particle, with the values that the table has."""

    pose: NDArray[np.float64]  # (N, 3) rotation vector, radians
    shift: NDArray[np.float64]  # (N, 2) x, y in pixels of the grid the alignment was done on
    pixel_size: NDArray[np.float64] | None  # (N,) Å, of that grid
    scale: NDArray[np.float64]  # (N,) scale of the reference; 1 where the table has none
    split: NDArray[np.float64] | None  # (N,)
    warnings: tuple[str, ...]  # which alignment was taken, if there was a choice


@dataclass(frozen=True)
class _Source:
    """The slots of one alignment; several slots are classes."""

    columns: Columns
    slots: tuple[str, ...]
    best: NDArray[np.intp] | None = None  # (N,) each image's most probable class; None where there are no classes

    def field(self, name: str, shape: tuple[int, ...] = (), default: float | None = None) -> NDArray[np.float64]:
        """(N, *shape) values of one field, from each image's own class."""
        if self.best is None or len(self.slots) == 1:
            return self.columns.numbers(f"{self.slots[0]}/{name}", default, shape, self.best)
        values = np.empty((len(self.columns), *shape))
        for number, slot in enumerate(self.slots):
            rows = self.best == number
            values[rows] = self.columns.numbers(f"{slot}/{name}", default, shape)[rows]
        return values

    def optional(self, name: str) -> NDArray[np.float64] | None:
        return self.field(name) if all(f"{slot}/{name}" in self.columns for slot in self.slots) else None


def read_alignment(columns: Columns, needed: bool = True) -> Alignment:
    """The plain alignment, or else that of the most probable class; the main table comes before a passthrough.

    Args:
        needed: False gives an alignment of zeros where there is none.

    Raises:
        InputError: no 3D alignment, or classes without their probabilities.
    """
    found = [slots for table in columns.tables for slots in _slots(table)]
    if not found and not needed:
        n = len(columns)
        return Alignment(np.zeros((n, 3)), np.zeros((n, 2)), None, np.ones(n), None, ())
    if not found:
        only_2d = any(name.startswith("alignments2D/") for table in columns.tables for name in table)
        raise InputError(
            f"{columns.path}: no poses, {'only 2D alignments' if only_2d else f'no column {_PLAIN}/pose'}; give the "
            "particles of a 3D refinement, or the table that has them with --passthrough"
        )
    source, warnings = _Source(columns, found[0]), []
    if len(source.slots) > 1 or source.slots == (_MULTI,):
        best, n_classes = _most_probable(columns, source.slots)
        source = _Source(columns, source.slots, best)
        if n_classes > 1:
            warnings.append(f"{_named(found[0])}: each image has the pose of its most probable class of {n_classes}")
    unused = dict.fromkeys(_named(slots) for slots in found[1:] if slots != found[0])
    if unused:
        warnings.append(f"the poses are those of {_named(found[0])}; not used: {', '.join(unused)}")
    return Alignment(
        pose=source.field("pose", (3,)),
        shift=source.field("shift", (2,)),
        pixel_size=source.optional("psize_A"),
        scale=source.field("alpha", default=1.0),
        split=source.optional("split"),
        warnings=tuple(warnings),
    )


def _slots(table: Iterable[str]) -> list[tuple[str, ...]]:
    """The alignments that one table has, the preferred one first."""
    classes: dict[str, list[int]] = {}
    for match in filter(None, map(_POSE_OF_A_CLASS.fullmatch, table)):
        classes.setdefault(match[1], []).append(int(match[2]))
    return [
        *[(_PLAIN,)] * (f"{_PLAIN}/pose" in table),
        *(tuple(f"{prefix}{number}" for number in sorted(numbers)) for prefix, numbers in classes.items()),
        *[(_MULTI,)] * (f"{_MULTI}/pose" in table),
    ]


def _most_probable(columns: Columns, slots: tuple[str, ...]) -> tuple[NDArray[np.intp], int]:
    """(N,) the number of each image's class, and how many classes there are."""
    if slots == (_MULTI,):
        name = f"{_MULTI}/class_posterior"
        shape = columns.row_shape(name)
        if len(shape) != 1 or shape[0] == 0:
            raise InputError(f"{columns.path}: {name} has no axis of classes; export the particles again")
        return columns.numbers(name, shape=shape).argmax(axis=1), shape[0]
    best, highest = np.zeros(len(columns), dtype=np.intp), np.full(len(columns), -np.inf)
    for number, slot in enumerate(slots):
        posterior = columns.numbers(f"{slot}/class_posterior")
        best[posterior > highest] = number
        highest = np.maximum(highest, posterior)
    return best, len(slots)


def _named(slots: tuple[str, ...]) -> str:
    return slots[0] if len(slots) == 1 else f"{slots[0]} to {slots[-1]}"
