"""Writes a part of a particle file, which is chosen by the ids of its particles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emsplat.errors import InputError
from emsplat.io import read_input
from emsplat.io.formats import Format, sniff
from emsplat.io.lists import chosen_rows, is_pickle, row_numbers_of_tilts
from emsplat.io.relion import holds_tilts
from emsplat.io.write_back import check_other_file, open_source
from emsplat.io.write_relion import write_relion
from emsplat.particles.table import Particles
from emsplat.settings import InputSettings

_ONLY_CONVERTED = (Format.CISTEM, Format.CRYOSPARC_GROUP)  # formats that are read and not written


def subset(source: Path, out: Path, settings: InputSettings | None = None) -> tuple[int, int, tuple[str, ...]]:
    """Write the particles that a list keeps, or does not drop, in the format of `source` or as a RELION star.

    Args:
        out: the file to write; its ending decides the format, which is that of `source` or .star.
        settings: the list that chooses, all particles without one; and how to read a source that is converted to a
            star, as in `read_input`.
    Returns:
        The number of particles that were written and of all, and a line on everything that was lost in the conversion.
    Raises:
        InputError: a list is empty, repeats an id or names an unknown one, or no particle is left to write.
    """
    settings = settings or InputSettings()
    check_other_file(source, out)
    if settings.poses is not None or settings.ctf is not None or sniff(source) in _ONLY_CONVERTED:
        return _converted(source, out, settings)
    table = open_source(source)
    if out.suffix == table.suffix:
        if settings.keep is None and settings.drop is None:
            raise InputError(f"{source}: no particles to leave out were given; give a list with --keep or --drop")
        choice = settings.keep or settings.drop
        if choice and is_pickle(choice) and sniff(source) is Format.RELION and holds_tilts(source):
            raise row_numbers_of_tilts(choice, source)
        rows = np.flatnonzero(chosen_rows(table.ids, settings.keep, settings.drop, source))
        table.write(out, rows, {})
        return len(rows), len(table.ids), ()
    if table.suffix == ".pkl":
        raise InputError(f"{source}: is not enough for a {out.suffix}; give the stack instead, with --poses and --ctf")
    return _converted(source, out, settings)


def _converted(source: Path, out: Path, settings: InputSettings) -> tuple[int, int, tuple[str, ...]]:
    if out.suffix != ".star":
        how = "as a .star alone" if sniff(source) in _ONLY_CONVERTED else "in its own format or as a .star"
        raise InputError(f"{out}: {source} can be written {how}; end the name accordingly")
    chosen = read_input(source, settings)
    lost = (*chosen.warnings, *_unsaid(chosen))
    write_relion(chosen, out)
    return len(chosen), len(chosen) + chosen.n_left_out, lost


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
