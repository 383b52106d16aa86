"""Writes particles back in the format, the columns and the order of the file that they were read from.

Star files are copied line by line, and cryoSPARC tables row by row, so that nothing changes without being asked for.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emsplat.errors import InputError
from emsplat.io.cs_columns import read_columns
from emsplat.io.formats import REMEDY, Format, sniff
from emsplat.io.star import read_star
from emsplat.io.star_rows import copy_rows
from emsplat.io.unpickle import read_arrays
from emsplat.runtime.files import replacing

Writer = Callable[[Path, NDArray[np.int64], Mapping[str, NDArray]], None]


@dataclass(frozen=True)
class SourceTable:
    """A particle file as rows that can be written back."""

    suffix: str  # suffix of the format: .star, .cs, .pkl
    ids: Sequence[str]  # (N,) as in `Particles.ids`; rows of a pickle have no name: their number from 1
    write: Writer  # (path, rows in ascending order, new values of these rows by column)


def open_source(path: str | Path) -> SourceTable:
    """Open a RELION star of any version, a cryoSPARC table, or cryoDRGN's poses or ctf, which its content decides."""
    path = Path(path)
    kind = sniff(path)
    openers = {
        Format.RELION: _open_star,
        Format.TOMO_PARTICLES: _open_star,
        Format.CRYOSPARC: _open_cs,
        Format.PICKLE: _open_pickle,
    }
    if kind not in openers:
        raise InputError(f"{path}: {kind.value}; {REMEDY.get(kind, 'give the star of the particles that it names')}")
    return openers[kind](path)


def write_back(
    source: str | Path,
    out: str | Path,
    ids: Sequence[str] | None = None,
    updates: Mapping[str, ArrayLike] | None = None,
) -> int:
    """Write rows of a particle file unchanged, except for the columns that are updated, and return their number.

    Args:
        source: the file that the particles were read from (`Particles.source`).
        out: the file to write, which must be another one.
        ids: (n,) `Particles.ids` of the rows to write, in any order; they are written in the order of the file. If rows
            share an id, its k-th mention means the k-th of them. None: all rows.
        updates: values by the format's own name of the column (``rlnAngleRot``, ``alignments3D/pose``), one for each of
            `ids`: (n,), or (n, ...) in a .cs, where they take the type of the column. New columns are added.
    Raises:
        InputError: the file does not have an id, or not so often, or `out` is `source`.
    """
    source, out = Path(source), Path(out)
    check_other_file(source, out)
    table = open_source(source)
    rows = np.arange(len(table.ids)) if ids is None else _rows_of(table.ids, [str(name) for name in ids], source)
    values = {name: np.asarray(column) for name, column in (updates or {}).items()}
    for name, column in values.items():
        if len(column) != len(rows):
            raise ValueError(f"{name}: {len(column)} values for {len(rows)} rows")
    order = np.argsort(rows)
    table.write(out, rows[order], {name: column[order] for name, column in values.items()})
    return len(rows)


def check_other_file(source: Path, out: Path) -> None:
    """InputError if the output would replace the file that it is made from."""
    if out.exists() and out.samefile(source):
        raise InputError(f"{out}: is the file that is read; choose another name for the output")


def _rows_of(present: Sequence[str], wanted: Sequence[str], source: Path) -> NDArray[np.int64]:
    row_of = {key: row for row, key in enumerate(_numbered(present))}
    rows = np.array([row_of.get(key, -1) for key in _numbered(wanted)], dtype=np.int64)
    if (rows < 0).any():
        raise InputError(
            f"{source}: has no particle {wanted[int(np.argmin(rows))]!r}, or not so often; "
            f"its ids read like {present[0]!r}: give the file that the particles were read from"
        )
    return rows


def _numbered(ids: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Each id with the number of its earlier occurrences, which distinguishes rows that show one image."""
    seen: Counter[str] = Counter()
    for name in ids:
        yield name, seen[name]
        seen[name] += 1


def _open_star(path: Path) -> SourceTable:
    blocks = read_star(path, {"rlnImageName": str})
    name = next((name for name, table in blocks.items() if name != "optics" and "rlnImageName" in table), None)
    if name is None:
        raise InputError(
            f"{path}: no particle table (no block has a column rlnImageName); give the star with the particles"
        )
    table = blocks[name]
    if not table.is_loop or len(table) == 0:
        raise InputError(f"{path}: no loop of particles in it; check the path or the selection that wrote it")

    def write(out: Path, rows: NDArray[np.int64], updates: Mapping[str, NDArray]) -> None:
        keep = np.zeros(len(table), dtype=bool)
        keep[rows] = True
        copy_rows(path, out, name, keep, {column: _texts(values) for column, values in updates.items()})

    return SourceTable(".star", table.column("rlnImageName"), write)


def _texts(values: NDArray) -> list[str]:
    """Numbers as RELION writes them."""
    return [f"{value:.6f}" if isinstance(value, float) else str(value) for value in values.tolist()]


def _open_cs(path: Path) -> SourceTable:
    uids = read_columns(path, []).integers("uid")  # checks the file, so that NumPy can read it safely

    def write(out: Path, rows: NDArray[np.int64], updates: Mapping[str, NDArray]) -> None:
        table = np.load(path, allow_pickle=False, max_header_size=path.stat().st_size)
        changed = _with_columns(table[rows], updates, path)
        with replacing(out) as temporary, temporary.open("wb") as file:
            np.save(file, changed)

    return SourceTable(".cs", [str(uid) for uid in uids.tolist()], write)


def _with_columns(table: NDArray, updates: Mapping[str, NDArray], path: Path) -> NDArray:
    """The rows with some columns replaced, or with new columns at the end."""
    if not updates:
        return table
    names = table.dtype.names or ()
    added = [(name, values.dtype, values.shape[1:]) for name, values in updates.items() if name not in names]
    changed = np.empty(len(table), dtype=np.dtype([*table.dtype.descr, *added]))
    for name in names:
        changed[name] = table[name]
    for name, values in updates.items():
        if values.shape != changed[name].shape:
            raise ValueError(f"{path}: {name} has the shape {changed[name].shape}, not {values.shape}")
        changed[name] = values
    return changed


def _open_pickle(path: Path) -> SourceTable:
    arrays = read_arrays(path)
    if any(array.ndim == 0 for array in arrays) or len({len(array) for array in arrays}) > 1 or len(arrays[0]) == 0:
        raise InputError(f"{path}: its arrays differ in length or are empty; give cryoDRGN's poses or ctf")

    def write(out: Path, rows: NDArray[np.int64], updates: Mapping[str, NDArray]) -> None:
        if updates:
            raise InputError(f"{path}: a pickle has no columns to update; convert the particles to a star")
        chosen = tuple(array[rows] for array in arrays)
        with replacing(out) as temporary:
            temporary.write_bytes(_pickled(chosen if len(chosen) > 1 else chosen[0]))

    return SourceTable(".pkl", [str(number) for number in range(1, len(arrays[0]) + 1)], write)


def _pickled(content: NDArray | tuple[NDArray, ...]) -> bytes:
    """A pickle that NumPy 1 can open too, although NumPy 2 moved the module of the array's constructor."""
    return pickle.dumps(content, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)
