"""cryoDRGN's particles: images named by one file, poses and CTFs in pickles, joined to the images by their order.

A rotation R takes the map to the image as RELION's matrix does, ``x_image = R x_volume``; a translation is the shift
that centres the image, as RELION's origin, in fractions of the box. A CTF is a row of nine: box in pixels, Å/px, U and
V in Å, angle in degrees, kV, Cs in mm, amplitude contrast, phase shift in degrees; box and pixel size may be those the
images had before they were made smaller.

Source: cryoDRGN 3, ``parse_pose_star``, ``parse_ctf_star``, ``load_ctf_for_training`` and ``TxtFileSource``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.conventions import are_rotations, euler_angles
from emsplat.errors import InputError
from emsplat.io.contradictions import Said, disagreement
from emsplat.io.cs import images_and_optics
from emsplat.io.find_files import renamed
from emsplat.io.formats import Format
from emsplat.io.mrc import StackReader
from emsplat.io.relion import BY_MAGNIFICATION, particle_numbers, pixel_sizes_of_star, tilted_particles
from emsplat.io.relion_rows import read_rows
from emsplat.io.stacks import (
    ImageNames,
    StackFacts,
    agreed_pixel_size,
    check_stacks,
    find_stacks,
    parse_image_names,
)
from emsplat.io.unpickle import read_arrays
from emsplat.particles.table import OpticsGroup, Particles

_LARGEST_ROTATION_ERROR = 1e-3  # poses may be in single precision
_DIFFERENT_DEFOCUS, _SAME_DEFOCUS = 100.0, 1.0  # Å, between a pickle and a star of the same images
_COLUMN_OF = {"voltage": 5, "spherical aberration": 6, "amplitude contrast": 7, "phase shift": 8}
_OF_STAR = {  # what a star says of what the CTFs' pickle says
    "defocus": "rlnDefocusU",
    "voltage": "rlnVoltage",
    "spherical aberration": "rlnSphericalAberration",
    "amplitude contrast": "rlnAmplitudeContrast",
    "phase shift": "rlnPhaseShift",
}


@dataclass(frozen=True)
class _Images:
    """The images, in the order of the pickles' rows."""

    names: ImageNames
    ids: Sequence[str] = ()  # (N,) where the file gives them
    stacks: tuple[Path, ...] = ()  # where they had to be opened to know their images
    half_set: NDArray[np.int8] | None = None  # (N,) 1 or 2, where the file gives them
    particle: NDArray[np.int64] | None = None  # (N,) numbers, where the file may tell the tilts of one particle
    tilted_particle: NDArray[np.int64] | None = None  # as in `Particles`
    said: Mapping[str, Said] = field(default_factory=dict)  # what the CTFs' pickle says, too, by the name in LIMITS


def read_cryodrgn(
    path: str | Path,
    poses: str | Path | None,
    ctf: str | Path | None,
    datadir: str | Path | None = None,
    pixel_size_in_angstroms: float | None = None,
    *,
    kind: Format,
    strip_prefix: str | None = None,
    need_stacks: bool = True,
) -> Particles:
    """Reads the images' names from `path`, poses and CTFs from the pickles.

    Args:
        path: an MRC stack, a text file with one stack a line, or a star or a .cs, of which only the images' names and
            a star's half sets are used.
        kind: which of these it is.
        poses: (N, 3, 3) rotations, or these and (N, 2) translations; None: all are 0.
        ctf: (N, 9) parameters; None: all CTFs are 1.
        datadir, strip_prefix, pixel_size_in_angstroms, need_stacks: as in `read_relion`.
    Raises:
        InputError: anything missing, out of range or of unequal length; the message names it and the remedy.
    """
    path, folder = Path(path), None if datadir is None else Path(datadir)
    images = _images(path, kind, folder, strip_prefix)
    names, n = images.names, len(images.names.section)
    stacks = images.stacks or tuple(Path(name) for name in names.stacks)
    facts = StackFacts(0, (None,) * len(stacks))
    if need_stacks:
        stacks = images.stacks or find_stacks(names, folder, strip_prefix)
        facts = check_stacks(names, stacks)
    rotations, translations = np.tile(np.eye(3), (n, 1, 1)), np.zeros((n, 2))
    if poses is not None:
        rotations, translations = _poses(Path(poses), n, path)
    if ctf is None:
        box_size = facts.box_size
        pixel_size = agreed_pixel_size(path, pixel_size_in_angstroms, None, "nothing", stacks, facts)
        table = np.tile([box_size, pixel_size, 0.0, 0.0, 0.0, 300.0, 0.0, 1.0, 0.0], (n, 1))
    else:
        table = _ctf(Path(ctf), n, path)
        box_size, pixel_size = _sampling(Path(ctf), table, stacks, facts, pixel_size_in_angstroms)
    optics, optics_group = _optics_groups(table, box_size, pixel_size)
    settled = pixel_size_in_angstroms is not None
    twice = [] if ctf is None else _said_twice(Path(ctf), images, table, None if settled else box_size)
    return Particles(
        source=path,
        optics=optics,
        stacks=stacks,
        ids=np.array(
            images.ids or [f"{s + 1}@{names.stacks[k]}" for k, s in zip(names.stack, names.section, strict=True)]
        ),
        stack=names.stack,
        section=names.section,
        optics_group=optics_group,
        euler_angles_in_degrees=euler_angles(rotations),
        origin_in_angstroms=translations * box_size * pixel_size,
        defocus_u_in_angstroms=table[:, 2],
        defocus_v_in_angstroms=table[:, 3],
        defocus_angle_in_degrees=table[:, 4],
        phase_shift_in_degrees=table[:, 8],
        b_factor_in_square_angstroms=np.zeros(n),
        ctf_scale=np.ones(n),
        pre_exposure=np.zeros(n),
        particle=np.arange(n) if images.particle is None else images.particle,
        half_set=np.zeros(n, dtype=np.int8) if images.half_set is None else images.half_set,
        warnings=(*renamed(names.stacks, stacks), *twice),
        tilted_particle=images.tilted_particle,
    )


def _images(path: Path, kind: Format, datadir: Path | None, strip_prefix: str | None) -> _Images:
    """The images that a file of one of the four kinds stands for."""
    if kind is Format.RELION:
        return _images_of_star(path)
    if kind is Format.CRYOSPARC:
        names, said = images_and_optics(path)
        return _Images(names, said=said)
    if kind is Format.STACK:
        return _all_of((path.name,), (path,), path)
    if kind is Format.STACK_LIST:
        return _images_of_list(path, datadir, strip_prefix)
    raise InputError(f"{path}: {kind.value}; with --poses and --ctf, give a stack, a list of stacks, a star or a .cs")


def _images_of_list(path: Path, datadir: Path | None, strip_prefix: str | None) -> _Images:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; a list of stacks has one name a line: check the path") from None
    stacks = tuple(line.strip() for line in lines if line.strip())
    if len(set(stacks)) < len(stacks):
        raise InputError(f"{path}: names a stack twice; each may be named once: remove the repeated line")
    none = np.zeros(len(stacks), dtype=np.int64)
    found = find_stacks(ImageNames(path, stacks, none.astype(np.int32), none), datadir, strip_prefix)
    return _all_of(stacks, found, path)


def _all_of(names: tuple[str, ...], stacks: tuple[Path, ...], source: Path) -> _Images:
    """All images of the stacks, in their order."""
    counts = []
    for path in stacks:
        with StackReader(path) as reader:
            counts.append(reader.shape[0])
    stack = np.repeat(np.arange(len(names), dtype=np.int32), counts)
    return _Images(ImageNames(source, names, stack, np.concatenate([np.arange(n) for n in counts])), stacks=stacks)


def _images_of_star(path: Path) -> _Images:
    rows = read_rows(path, mandatory=("rlnImageName",))
    half_set = rows.numbers("rlnRandomSubset") if "rlnRandomSubset" in rows else None
    if half_set is not None and not np.isin(half_set, (1, 2)).all():
        raise InputError(f"{path}: rlnRandomSubset must be 1 or 2 for all images, or the column absent: remove it")
    ids = rows.texts("rlnImageName")
    said = {what: Said(name, rows.numbers(name)) for what, name in _OF_STAR.items() if name in rows}
    sizes = [size for size in pixel_sizes_of_star(rows) if size.source != BY_MAGNIFICATION]  # which need not be scaled
    return _Images(
        parse_image_names(ids, path),
        ids,
        half_set=None if half_set is None else half_set.astype(np.int8),
        particle=particle_numbers(rows),
        tilted_particle=tilted_particles(rows),
        said=said | ({"pixel size": sizes[0]} if sizes else {}),
    )


def _poses(path: Path, n: int, images: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 3, 3) rotations and (N, 2) translations in fractions of the box, which are 0 if the file has none."""
    arrays = [array.astype(np.float64) for array in read_arrays(path)]
    shapes = [array.shape for array in arrays]
    if len(arrays) > 2 or shapes[0][1:] != (3, 3) or (len(arrays) == 2 and shapes[1] != (shapes[0][0], 2)):
        raise InputError(
            f"{path}: arrays of shape {', '.join(map(str, shapes))}; cryoDRGN's poses are rotations (N, 3, 3), "
            "or these and translations (N, 2): give --poses the right file"
        )
    rotations = arrays[0]
    translations = arrays[1] if len(arrays) == 2 else np.zeros((len(rotations), 2))
    _check_count(path, len(rotations), n, images)
    proper = are_rotations(rotations, _LARGEST_ROTATION_ERROR)
    _require(path, proper, "its 3 × 3 matrix is no rotation; parse the poses again")
    within = np.abs(translations).max(axis=1, initial=0.0) <= 1
    _require(path, within, "its translation is beyond 1; it must be a fraction of the box: parse the poses again")
    return rotations, translations


def _ctf(path: Path, n: int, images: Path) -> NDArray[np.float64]:
    """(N, 9) the CTF's parameters, checked."""
    (table, *more) = read_arrays(path)
    if more or table.ndim != 2 or table.shape[1] != 9:
        raise InputError(
            f"{path}: an array of shape {table.shape}{' and others' * bool(more)}; cryoDRGN's CTFs are (N, 9): "
            "give --ctf the right file"
        )
    _check_count(path, len(table), n, images)
    table = table.astype(np.float64)
    rules = (
        (slice(0, 9), lambda v: np.isfinite(v), "a value is not finite"),
        (slice(0, 1), lambda v: (v >= 1) & (v < 2**16), "its box must be a number of pixels"),
        (slice(1, 2), lambda v: v > 0, "its pixel size must be positive"),
        (slice(5, 6), lambda v: (v > 0) & (v < 5000), "its voltage must be a positive number of kV"),
        (slice(7, 8), lambda v: (v >= 0) & (v <= 1), "its amplitude contrast must be within 0 and 1"),
    )
    for columns, rule, text in rules:
        _require(path, rule(table[:, columns]).all(axis=1), f"{text}; parse the CTFs again")
    return table


def _check_count(path: Path, found: int, n: int, images: Path) -> None:
    if found != n:
        raise InputError(
            f"{path}: {found} rows for the {n} images of {images}; they are joined by their order, so there must be "
            "as many: give files that belong together"
        )


def _require(path: Path, holds: NDArray[np.bool_], what: str) -> None:
    if not holds.all():
        raise InputError(f"{path}, row {int(np.argmin(holds)) + 1}: {what}")


def _sampling(
    path: Path,
    table: NDArray[np.float64],
    stacks: tuple[Path, ...],
    facts: StackFacts,
    override: float | None,
) -> tuple[int, float]:
    """Box in pixels and pixel size in Å: the stacks' box, in pixels that make it as wide as the CTFs' table says."""
    edges = table[:, 0] * table[:, 1]
    if np.ptp(edges) > 1e-4 * edges[0]:
        raise InputError(
            f"{path}: two sizes of the box, {edges.min():.5g} and {edges.max():.5g} Å; all images must share one: "
            "reconstruct them apart"
        )
    box_size = facts.box_size or round(table[0, 0])
    return box_size, agreed_pixel_size(path, override, float(edges[0]) / box_size, "the CTFs' table", stacks, facts)


def _optics_groups(
    table: NDArray[np.float64], box_size: int, pixel_size: float
) -> tuple[tuple[OpticsGroup, ...], NDArray[np.int32]]:
    """One group for every voltage, spherical aberration and contrast that occur together; (N,) each row's group."""
    found, group = np.unique(table[:, 5:8], axis=0, return_inverse=True)
    groups = tuple(
        OpticsGroup(f"opticsGroup{number}", pixel_size, box_size, voltage, aberration, contrast)
        for number, (voltage, aberration, contrast) in enumerate(found.tolist(), start=1)
    )
    return groups, group.reshape(-1).astype(np.int32)


def _said_twice(path: Path, images: _Images, table: NDArray[np.float64], box_size: int | None) -> list[str]:
    """Warnings that images and CTFs may not belong together; InputError where they surely do not.

    Args:
        box_size: of the stack; None: the pixel size is not compared.
    """
    lines, remedy = [], "give the pickle that belongs to these images"
    for what, said in images.said.items():
        if what == "defocus":
            lines += _defoci_in_order(path, np.asarray(said.value), table[:, 2])
        elif what != "pixel size":
            lines += disagreement(path, what, Said("the pickle", table[:, _COLUMN_OF[what]]), said, remedy)
        elif box_size:
            # The table may be of the images as they are, or as they were before they were made smaller.
            sizes = [table[:, 0] * table[:, 1] / box for box in (box_size, table[:, 0])]
            apart = [np.abs(size / np.asarray(said.value) - 1).max() for size in sizes]
            lines += disagreement(path, what, Said("the pickle", sizes[int(np.argmin(apart))]), said, remedy)
    return lines


def _defoci_in_order(path: Path, of_star: NDArray[np.float64], of_pickle: NDArray[np.float64]) -> list[str]:
    """A warning where defoci differ; InputError where they are the same in another order."""
    different = int((np.abs(of_star - of_pickle) > _DIFFERENT_DEFOCUS).sum())
    if not different:
        return []
    if np.abs(np.sort(of_star) - np.sort(of_pickle)).max() < _SAME_DEFOCUS:
        raise InputError(
            f"{path}: the defoci are those of the images' table in another order ({different} of {len(of_star)} rows "
            "differ); pickles are joined to images by their order, so make the pickles from this table"
        )
    return [
        f"the CTF pickle's defocus differs from that of the images' table for {different} images: are their rows in "
        "one order?"
    ]
