"""Writes a part of a particle file, which is chosen by the ids of its particles."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

import numpy as np

from emsplat.errors import InputError
from emsplat.io import read_input
from emsplat.io.formats import Format, sniff
from emsplat.io.write_back import check_other_file, open_source, write_back
from emsplat.io.write_relion import write_relion
from emsplat.particles.table import Particles
from emsplat.runtime.files import open_regular
from emsplat.settings import InputSettings

_ONLY_CONVERTED = (Format.CISTEM, Format.CRYOSPARC_GROUP)  # formats that are read and not written


def subset(
    source: Path, out: Path, keep: Path | None = None, drop: Path | None = None, settings: InputSettings | None = None
) -> tuple[int, int, tuple[str, ...]]:
    """Write the particles that a list keeps, or does not drop, in the format of `source` or as a RELION star.

    Args:
        out: the file to write; its ending decides the format, which is that of `source` or .star.
        keep, drop: files of ids, of which at most one may be given. Without any, all particles are written.
        settings: how to read a source that is converted to a star, as in `read_particles`.
    Returns:
        The number of particles that were written and of all, and a line on everything that was lost in the conversion.
    Raises:
        InputError: a list is empty, repeats an id or names an unknown one, or no particle is left to write.
    """
    settings = settings or InputSettings()
    if keep is not None and drop is not None:
        raise InputError("--keep and --drop: both were given; give only one of them")
    check_other_file(source, out)
    if settings.poses is not None or settings.ctf is not None or sniff(source) in _ONLY_CONVERTED:
        return _converted(source, out, keep, drop, settings)
    table = open_source(source)
    if out.suffix == table.suffix:
        if keep is None and drop is None:
            raise InputError(f"{source}: no particles to leave out were given; give a list with --keep or --drop")
        ids = _chosen(table.ids, keep, drop, source)
        return write_back(source, out, ids), len(table.ids), ()
    if table.suffix == ".pkl":
        raise InputError(f"{source}: is not enough for a {out.suffix}; give the stack instead, with --poses and --ctf")
    return _converted(source, out, keep, drop, settings)


def _converted(
    source: Path, out: Path, keep: Path | None, drop: Path | None, settings: InputSettings
) -> tuple[int, int, tuple[str, ...]]:
    if out.suffix != ".star":
        raise InputError(f"{out}: {source} can be written in its own format or as a .star; end the name accordingly")
    particles = read_input(source, settings)
    chosen = particles.select(np.isin(particles.ids, _chosen(particles.ids.tolist(), keep, drop, source)))
    lost = (*particles.warnings, *_unsaid(chosen))
    write_relion(chosen, out)
    return len(chosen), len(particles), lost


def _unsaid(particles: Particles) -> list[str]:
    """Lines on what a star cannot say about the images."""
    if particles.dark is None or not particles.dark.any():
        return []
    if not particles.dark.all():
        raise InputError(
            f"{particles.source}: {particles.dark.sum()} of {len(particles)} images are dark, and a star cannot say "
            "which; write the white and the dark ones apart"
        )
    return ["the images are dark, which a star cannot say: invert them for RELION, or give emsplat --invert"]


def _chosen(ids: Sequence[str], keep: Path | None, drop: Path | None, source: Path) -> list[str]:
    """The ids to write, in the order of the source."""
    path = keep or drop
    if path is None:
        return list(ids)
    listed = set(_listed(path, ids, source))
    chosen = [name for name in ids if (name in listed) == (keep is not None)]
    if not chosen:
        raise InputError(f"{path}: drops all {len(ids)} particles of {source}; leave some")
    return chosen


def _listed(path: Path, ids: Sequence[str], source: Path) -> list[str]:
    """The ids of a list, checked against those of the source."""
    listed, present = Counter(read_ids(path)), Counter(ids)
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


def read_ids(path: Path) -> list[str]:
    """The ids of a list, with one in each line or in the column ``id`` of a CSV file. The list is not empty."""
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
    if not rows:
        raise InputError(f"{path}: no id in it; list at least one particle")
    return [row[column].strip() for row in rows]
