"""Lists of images that the user keeps or leaves out: ids in a text or CSV file, or row numbers in a pickle.

cryoDRGN's ``ind.pkl`` is such a pickle, of rows counted from 0 (``--ind`` of its commands, ``utils.load_pkl``). Whether
the listed images are kept or left out is said by the option that the list is given to.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.io.formats import Format, sniff
from emsplat.io.unpickle import read_arrays
from emsplat.particles.table import Particles
from emsplat.runtime.files import open_regular

# The readers leave rows of these files out, or make several images of one.
_OTHER_ROWS = (Format.CISTEM, Format.OPTIMISATION_SET, Format.TOMO_PARTICLES)


def with_choice(particles: Particles, keep: Path | None, drop: Path | None) -> Particles:
    """The particles that a list keeps, or does not drop; all of them without a list.

    Raises:
        InputError: as `chosen_rows`; or a list of row numbers for the tilts of particles, for a file whose rows are not
            its images one by one, or that divide rows of one id.
    """
    path = keep or drop
    if path is None:
        return particles
    if is_pickle(path):
        if particles.pre_exposure.any() or _varies_within_particles(particles, particles.b_factor_in_square_angstroms):
            raise row_numbers_of_tilts(path, particles.source)
        if (kind := sniff(particles.source)) in _OTHER_ROWS:
            raise InputError(
                f"{path}: row numbers, and the rows of {particles.source} ({kind.value}) are not its images one by "
                "one; list ids instead"
            )
        chosen = chosen_rows(particles.ids.tolist(), keep, drop, particles.source)
        shared = np.intersect1d(particles.ids[chosen], particles.ids[~chosen])
        if len(shared):
            raise InputError(
                f"{path}: row numbers that divide rows of one id ({shared[0]}); write the rows to a file of their own "
                "with emsplat subset first"
            )
    else:
        chosen = chosen_rows(particles.ids.tolist(), keep, drop, particles.source)
    return replace(particles.select(chosen), n_left_out=int(np.count_nonzero(~chosen)))


def _varies_within_particles(particles: Particles, values: NDArray[np.float64]) -> bool:
    """Whether a particle has images of different values, as only the tilts of one particle have."""
    _, first, particle = np.unique(particles.particle, return_index=True, return_inverse=True)
    return bool((values != values[first][particle.reshape(-1)]).any())


def row_numbers_of_tilts(path: Path, source: Path) -> InputError:
    """The error for a list of row numbers where several rows are the tilts of one particle."""
    return InputError(f"{path}: row numbers, which may count particles or their tilts in {source}; list ids instead")


def chosen_rows(ids: Sequence[str], keep: Path | None, drop: Path | None, source: Path) -> NDArray[np.bool_]:
    """(N,) whether a row is used: whether a list keeps it, or does not drop it.

    Args:
        ids: (N,) of the rows of `source`.
        keep, drop: the list, of which at most one is given.
    Raises:
        InputError: a list is empty, repeats an id or a row number, or names one that is not there, or no row is left. A
            list to leave out may be a CSV file with the column id and no rows, which leaves nothing out.
    """
    path = keep or drop
    if path is None:
        return np.ones(len(ids), dtype=bool)
    if is_pickle(path):
        listed = np.zeros(len(ids), dtype=bool)
        listed[_numbers(path, len(ids), source)] = True
    else:
        names = set(_listed(path, ids, source, may_be_empty=drop is not None))
        listed = np.fromiter((name in names for name in ids), dtype=bool, count=len(ids))
    chosen = listed if keep is not None else ~listed
    if not chosen.any():
        raise InputError(f"{path}: drops all {len(ids)} particles of {source}; leave some")
    return chosen


def is_pickle(path: Path) -> bool:
    """Whether a list is a pickle of row numbers."""
    with open_regular(path) as file:
        start = file.read(2)
    return path.suffix == ".pkl" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _numbers(path: Path, n_rows: int, source: Path) -> NDArray[np.int64]:
    """(n,) the row numbers of a pickle, from 0, checked."""
    (numbers, *more) = read_arrays(path)
    if more or numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        shape = f"an array of shape {numbers.shape} of {numbers.dtype}{' and others' * bool(more)}"
        raise InputError(f"{path}: {shape}; a list of images is one row of whole numbers, as cryoDRGN's ind.pkl")
    if len(numbers) == 0:
        raise InputError(f"{path}: no row number in it; list at least one particle")
    outside = (numbers < 0) | (numbers >= n_rows)
    if outside.any():
        raise InputError(
            f"{path}: row {numbers[int(np.argmax(outside))]} is not in {source}, whose {n_rows} rows are counted from "
            f"0 to {n_rows - 1}; give the list that was made of that file"
        )
    numbers = numbers.astype(np.int64)
    if len(np.unique(numbers)) < len(numbers):
        found, times = np.unique(numbers, return_counts=True)
        raise InputError(f"{path}: lists row {found[int(np.argmax(times > 1))]} more than once; list each row once")
    return numbers


def _listed(path: Path, ids: Sequence[str], source: Path, may_be_empty: bool) -> list[str]:
    """The ids of a list, checked against those of the source."""
    listed, present = Counter(read_ids(path, may_be_empty)), Counter(ids)
    unknown = [name for name in listed if name not in present]
    if unknown:
        more = f" and {len(unknown) - 1} more are" if len(unknown) > 1 else " is"
        raise InputError(
            f"{path}: {unknown[0]!r}{more} not in {source}, whose ids read like {ids[0]!r}; "
            "list ids of that file, as they are written there"
        )
    repeated = next((name for name, times in listed.items() if times > present[name]), None)
    if repeated is not None:
        raise InputError(
            f"{path}: lists {repeated!r} {listed[repeated]} times, {source} has it {present[repeated]} times; "
            "list each particle once"
        )
    return list(listed)


def read_ids(path: Path, may_be_empty: bool = False) -> list[str]:
    """The ids of a list, with one in each line or in the column ``id`` of a CSV file.

    Args:
        may_be_empty: whether a column ``id`` may have no rows; otherwise no list is empty.
    """
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, skipinitialspace=True) if any(cell.strip() for cell in row)]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{path}: not a list of ids: text in UTF-8, one a line; check the path") from None
    header = [cell.strip() for cell in rows[0]] if rows else []
    column = header.index("id") if "id" in header else 0
    if "id" in header:
        rows = rows[1:]
    elif len(header) > 1:
        raise InputError(f"{path}: {len(header)} columns, none called id; say in the first row which holds the ids")
    short = next((number for number, row in enumerate(rows, start=1) if len(row) <= column), None)
    if short is not None:
        raise InputError(f"{path}: row {short} has no value in the column id; mend or remove it")
    if not rows and not (may_be_empty and "id" in header):
        raise InputError(f"{path}: no id in it; list at least one particle")
    return [row[column].strip() for row in rows]
