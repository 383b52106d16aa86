"""Reading and writing of files: particle tables, image stacks and maps.

- ``formats``: the format of a particle file, told by its content
- ``star``, ``star_scan``, ``star_rows``: STAR files, fast and row by row
- ``relion``, ``relion_rows``, ``relion_aberrations``: RELION's single particles
- ``tomo``, ``tilt_series``: RELION's tomography with 2D stacks
- ``cs``, ``cs_columns``, ``cs_alignments``, ``csg``: cryoSPARC
- ``cistem``, ``cistem_columns``: cisTEM
- ``pkl``, ``unpickle``: cryoDRGN
- ``lists``: lists of images that are kept or left out
- ``subset``, ``write_back``, ``write_refined``, ``write_relion``: particles written back to files
- ``find_files``: where a named file lies; ``repeats``, ``copies``: rows that show the same image
- ``compressed``: files that are unpacked while they are read
- ``kinds``: files of an unexpected kind; ``contradictions``: facts that a file states twice and differently
- ``mrc``, ``mrc_header``: maps and stacks; ``masks``: masks and maps on the grid of another map
- ``stacks``: which stack an image's name means; ``images``: the images of any rows
- ``cache``, ``cache_folder``: small copies of the images on a local disk
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from emsplat.errors import InputError
from emsplat.io.cistem import read_cistem
from emsplat.io.copies import copies_by_content
from emsplat.io.cs import read_cs, read_csg
from emsplat.io.formats import REMEDY, Format, sniff
from emsplat.io.images import ImageSource, reading_order
from emsplat.io.lists import with_choice
from emsplat.io.mrc import Map, StackReader, StackWriter, read_map, write_map
from emsplat.io.pkl import read_cryodrgn
from emsplat.io.relion import read_relion
from emsplat.io.repeats import with_repeats_joined
from emsplat.io.star import Table, read_star, write_star
from emsplat.io.tomo import read_tomo
from emsplat.particles.table import Particles
from emsplat.runtime.files import replacing
from emsplat.settings import FileSettings, InputSettings

__all__ = [
    "ImageSource",
    "Map",
    "StackReader",
    "StackWriter",
    "Table",
    "as_asked",
    "read_as_said",
    "read_input",
    "read_map",
    "read_particles",
    "read_star",
    "reading_order",
    "replacing",
    "write_map",
    "write_star",
]


_WITHOUT_CTF = (
    "the CTF is taken as 1, {why}: if the images were recorded with a CTF that was not corrected, the map is wrong, in "
    "both halves alike, and the resolution does not show it"
)


def read_input(
    path: str | Path, settings: FileSettings, *, need_stacks: bool = True, need_poses: bool = True
) -> Particles:
    """Read particles as `read_particles` does, with the options of the command line, and choose those that are used."""
    return as_asked(read_as_said(path, settings, need_stacks=need_stacks, need_poses=need_poses), settings)


def read_as_said(
    path: str | Path, settings: FileSettings, *, need_stacks: bool = True, need_poses: bool = True
) -> Particles:
    """The particles of `read_input` with the CTFs that the file gives, even where the user does not want them."""
    table = read_particles(
        path,
        datadir=settings.datadir,
        strip_prefix=settings.strip_prefix,
        pixel_size_in_angstroms=settings.pixel_size,
        poses=settings.poses if isinstance(settings, InputSettings) else None,
        ctf=settings.ctf,
        passthrough=settings.passthrough,
        need_stacks=need_stacks,
        need_poses=need_poses,
        need_ctf=not settings.no_ctf,
    )
    return with_choice(table, settings.keep, settings.drop)


def as_asked(said: Particles, settings: FileSettings) -> Particles:
    """The particles of `read_as_said` with the CTFs that the user wants; InputError if they hold their CTF already."""
    if not settings.no_ctf:
        return said
    if said.premultiplied.any():
        raise InputError(
            f"{said.source}: --no-ctf, but rlnCtfDataAreCtfPremultiplied says that the images are multiplied with "
            "their CTF, and a map that takes it as 1 would be wrong; leave out --no-ctf"
        )
    return _without_ctf(said, "as --no-ctf asks")


def _without_ctf(table: Particles, why: str) -> Particles:
    return replace(table.without_ctf(), warnings=(*table.warnings, _WITHOUT_CTF.format(why=why)))


def read_particles(
    path: str | Path,
    *,
    datadir: str | Path | None = None,
    strip_prefix: str | None = None,
    pixel_size_in_angstroms: float | None = None,
    poses: str | Path | None = None,
    ctf: str | Path | None = None,
    passthrough: Sequence[str | Path] = (),
    need_stacks: bool = True,
    need_poses: bool = True,
    need_ctf: bool = True,
) -> Particles:
    """Reads a particle table of any supported format, which its content decides.

    Rows that show the same image become one particle, in one half set. Images are the same if they lie in one place or
    agree in every pixel.

    Args:
        path: a RELION star of single particles (3.0 to 5) or of tomography (the optimisation set), a cryoSPARC table
            (.cs) or group (.csg), a cisTEM table (.star or .cistem), or, with `poses` and `ctf`, cryoDRGN's images: a
            stack, a list of stacks, a star or a .cs.
        datadir: the folder that the names of stacks are relative to; without it, each reader looks where it says.
        strip_prefix: leading text of the stacks' names that is no longer part of their path.
        pixel_size_in_angstroms: overrides the table and the stacks' headers.
        poses, ctf: cryoDRGN's pickles, which replace what the table says.
        passthrough: cryoSPARC's other tables of the same particles.
        need_stacks: False reads the table alone, for its poses and optics.
        need_poses, need_ctf: False also reads tables that have none; then `ctf` may be given without `poses`, and the
            reverse. A star without a defocus is read in any case: its CTF is 1, and a warning says so.
    Raises:
        InputError: an unsupported format, an option that does not fit it, or anything that its reader refuses.
    """
    path = Path(path)
    kind = sniff(path)
    if passthrough and kind not in (Format.CRYOSPARC, Format.CRYOSPARC_GROUP):
        raise InputError(f"--passthrough is for cryoSPARC tables (.cs), and {path} is {kind.value}; leave it out")
    options: dict[str, Any] = {
        "datadir": datadir,
        "strip_prefix": strip_prefix,
        "pixel_size_in_angstroms": pixel_size_in_angstroms,
        "need_stacks": need_stacks,
    }
    finished = partial(with_repeats_joined, same_image=copies_by_content) if need_stacks else with_repeats_joined
    if kind in (Format.STACK, Format.STACK_LIST) and not (need_poses or need_ctf):
        return finished(read_cryodrgn(path, None, ctf, kind=kind, **options))
    if poses is not None or ctf is not None:
        if (poses is None and need_poses) or (ctf is None and need_ctf) or passthrough:
            raise InputError(
                "--poses and --ctf are the two pickles of cryoDRGN: give both, without --passthrough, or neither"
            )
        return finished(read_cryodrgn(path, poses, ctf, kind=kind, **options))
    needs: dict[str, Any] = {"need_poses": need_poses, "need_ctf": need_ctf}
    if kind is Format.CRYOSPARC:
        return finished(read_cs(path, passthrough=passthrough, **needs, **options))
    if kind is Format.CRYOSPARC_GROUP:
        return finished(read_csg(path, passthrough=passthrough, **needs, **options))
    if kind is Format.CISTEM:
        return finished(read_cistem(path, **needs, **options))
    if kind is Format.RELION:
        table = finished(read_relion(path, **needs, **options))
        return _without_ctf(table, "because the table has no defocus") if need_ctf and not table.has_ctf else table
    if kind is not Format.OPTIMISATION_SET:
        raise InputError(f"{path}: {kind.value}; {REMEDY[kind]}")
    return finished(read_tomo(path, **options))
