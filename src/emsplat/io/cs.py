"""cryoSPARC particle tables (.cs), with their passthrough tables, as `Particles`.

Sources: CryoSPARC Guide and forum, cryosparc-tools, and the converters pyem (csparc2star.py) and cryoDRGN; what is
known of each column, and from where, stands in docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.conventions import electron_wavelength_in_angstroms, euler_angles
from emsplat.errors import InputError
from emsplat.io.contradictions import Said, all_agree
from emsplat.io.cs_alignments import Alignment, read_alignment
from emsplat.io.cs_columns import Columns, read_columns
from emsplat.io.csg import read_group
from emsplat.io.find_files import renamed
from emsplat.io.stacks import ImageNames, StackFacts, agreed_pixel_size, check_stacks, find_stacks
from emsplat.particles.table import OpticsGroup, Particles

_MANDATORY = ("blob/path", "blob/idx")
_DEFOCUS = ("ctf/df1_A", "ctf/df2_A")
_OTHER_NAMES = {  # names in older versions, or in the slot that a column came from
    "ctf/accel_kv": "mscope_params/accel_kv",
    "ctf/cs_mm": "mscope_params/cs_mm",
    "ctf/amp_contrast": "ctf/ac",
    "ctf/exp_group_id": "location/exp_group_id",
}
_OPTICS = {
    "pixel size": "blob/psize_A",
    "defocus": "ctf/df1_A",
    "voltage": "ctf/accel_kv",
    "spherical aberration": "ctf/cs_mm",
    "amplitude contrast": "ctf/amp_contrast",
    "phase shift": "ctf/phase_shift_rad",
}
_NOT_MODELLED = {"ctf/shift_A": 2, "ctf/tilt_A": 2, "ctf/trefoil_A": 2, "ctf/tetra_A": 4, "ctf/anisomag": 4}
_LARGEST_POSE = 100.0  # radians; those of cryoSPARC stay below 2π


def read_cs(
    path: str | Path,
    *,
    datadir: str | Path | None = None,
    strip_prefix: str | None = None,
    pixel_size_in_angstroms: float | None = None,
    passthrough: Sequence[str | Path] = (),
    table_of: Mapping[str, Path] | None = None,
    need_stacks: bool = True,
    need_poses: bool = True,
    need_ctf: bool = True,
) -> Particles:
    """Reads a .cs file, its passthrough tables and the headers of its stacks.

    Args:
        datadir: the folder that stack names are relative to, cryoSPARC's project folder; by default it is sought among
            the table's folder, those above it and the working directory.
        strip_prefix: leading text of the stacks' names that is no longer part of their path.
        pixel_size_in_angstroms: overrides the table and the stacks' headers.
        passthrough: tables of the same particles, searched in this order for what the main table does not have.
        table_of: the table that each slot of columns is taken from, where a group says so.
        need_stacks: False reads the tables alone, for their poses and optics: stacks stay as written and the box size
            is blob/shape, or 0.
        need_poses: False also reads particles that have no 3D alignment yet; their angles and shifts are 0.
        need_ctf: False also reads particles without CTFs; what is missing is taken from a microscope of 300 kV.
    Raises:
        InputError: anything missing, out of range or contradictory; the message names it and the remedy.
    """
    path = Path(path)
    columns = read_columns(path, [Path(other) for other in passthrough], table_of=table_of)
    _check_columns(columns, need_ctf)
    alignment = read_alignment(columns, needed=need_poses)
    turned = np.abs(alignment.pose).max(axis=1)
    columns.require(turned < _LARGEST_POSE, "pose of the alignment", alignment.pose, "must be in radians")
    names = _image_names(columns)
    if need_stacks:
        stacks = find_stacks(names, None if datadir is None else Path(datadir), strip_prefix)
        facts = check_stacks(names, stacks)
    else:
        stacks = tuple(Path(name) for name in names.stacks)
        facts = StackFacts(_box_size_of_table(columns), (None,) * len(stacks))
    _check_shapes(columns, facts.box_size)
    said = _pixel_size_of_table(columns) if pixel_size_in_angstroms is None else None
    pixel_size = agreed_pixel_size(path, pixel_size_in_angstroms, said, "blob/psize_A", stacks, facts)
    optics, optics_group = _optics_groups(columns, pixel_size, facts.box_size)
    dark = _dark(columns)
    return Particles(
        source=path,
        optics=optics,
        stacks=stacks,
        ids=columns.integers("uid").astype(np.str_),
        stack=names.stack,
        section=names.section,
        optics_group=optics_group,
        euler_angles_in_degrees=euler_angles(_rotations(alignment.pose)),
        origin_in_angstroms=_origin(columns, alignment, pixel_size),
        defocus_u_in_angstroms=columns.numbers("ctf/df1_A", 0),
        defocus_v_in_angstroms=columns.numbers("ctf/df2_A", 0),
        defocus_angle_in_degrees=_defocus_angle(columns),
        phase_shift_in_degrees=np.rad2deg(columns.numbers("ctf/phase_shift_rad", 0)),
        b_factor_in_square_angstroms=columns.numbers("ctf/bfactor", 0),
        ctf_scale=columns.numbers("ctf/scale", 1) * np.maximum(alignment.scale, 0),
        pre_exposure=np.zeros(len(columns)),
        particle=_particle_numbers(columns),
        half_set=_half_sets(columns, alignment),
        warnings=(
            *_said_twice(columns),
            *renamed(names.stacks, stacks),
            *alignment.warnings,
            *_warnings(columns, alignment, dark),
        ),
        dark=dark if dark.any() else None,
        symmetry_axes="cryoSPARC",
        modelled_to_in_angstroms=_modelled_to(columns, optics, optics_group),
    )


def read_csg(path: str | Path, *, passthrough: Sequence[str | Path] = (), **options: Any) -> Particles:
    """Reads the tables that a group of cryoSPARC's outputs names; the options are those of `read_cs`."""
    path = Path(path)
    folder = options.get("datadir")
    group = read_group(path, None if folder is None else Path(folder), options.get("strip_prefix"))
    found = read_cs(group.main, passthrough=[*group.passthrough, *passthrough], table_of=group.table_of, **options)
    if group.n_items in (None, len(found)):
        return found
    line = f"{path} says {group.n_items} particles, and {group.main} holds {len(found)}: were they written together?"
    return replace(found, warnings=(*found.warnings, line))


def images_and_optics(path: Path) -> tuple[ImageNames, dict[str, Said]]:
    """The places of the images of a .cs file, for poses and CTFs that come from elsewhere, and what it says of these.

    Returns:
        The places in the order of the rows, and the values of `contradictions.LIMITS` that the table has.
    """
    columns = read_columns(path, [])
    said = {what: Said(name, columns.numbers(name)) for what, name in _OPTICS.items() if name in columns}
    if "phase shift" in said:
        said["phase shift"] = Said(said["phase shift"].source, np.rad2deg(said["phase shift"].value))
    return _image_names(columns), said


def _said_twice(columns: Columns) -> list[str]:
    """Warnings where two slots say different things about the microscope."""
    lines = []
    for name, what in (
        ("accel_kv", "voltage"),
        ("cs_mm", "spherical aberration"),
        ("amp_contrast", "amplitude contrast"),
    ):
        first, second = f"ctf/{name}", _OTHER_NAMES[f"ctf/{name}"]
        if first in columns and second in columns:
            said = [Said(slot, columns.numbers(slot)) for slot in (first, second)]
            lines += all_agree(columns.path, what, said, "export the particles again, with one microscope")
    return lines


def _check_columns(columns: Columns, need_ctf: bool) -> None:
    missing = [name for name in _MANDATORY if name not in columns]
    of_ctf = [name for name in _DEFOCUS if name not in columns]
    of_ctf += [name for name in _OTHER_NAMES if _name(columns, name) not in columns and name != "ctf/exp_group_id"]
    if need_ctf and of_ctf:
        more = "" if missing else ", or, for images that have no CTF, give --no-ctf"
        raise columns.missing([*missing, *of_ctf], more)
    if missing:
        raise columns.missing(missing)


def _name(columns: Columns, name: str) -> str:
    """The name under which the table has the column, if it has it at all."""
    return name if name in columns else _OTHER_NAMES[name]


def _image_names(columns: Columns) -> ImageNames:
    paths, stack = columns.texts("blob/path")
    section = columns.integers("blob/idx")
    columns.require((section >= 0) & (section < 2**31), "blob/idx", section, "must be a number of an image, from 0")
    # ">" marks a name that cryoSPARC made itself, of a link to an imported stack
    stacks = [path.removeprefix(">") for path in paths]
    different = tuple(dict.fromkeys(stacks))
    number_of_stack = {name: number for number, name in enumerate(different)}
    numbers = np.array([number_of_stack[name] for name in stacks], dtype=np.int32)
    return ImageNames(columns.path, different, numbers[stack], section.astype(np.int64))


def _box_size_of_table(columns: Columns) -> int:
    return int(columns.numbers("blob/shape", 0, (2,))[0, 0])


def _check_shapes(columns: Columns, box_size: int) -> None:
    shapes = columns.numbers("blob/shape", box_size, (2,))
    fits = (shapes == box_size).all(axis=1)
    columns.require(fits, "blob/shape", shapes, f"must be the {box_size} × {box_size} pixels of the stacks")


def _pixel_sizes(columns: Columns) -> NDArray[np.float64] | None:
    """(N,) pixel sizes of the images in Å."""
    if "blob/psize_A" not in columns:
        return None
    sizes = columns.numbers("blob/psize_A")
    columns.require(sizes > 0, "blob/psize_A", sizes, "must be positive")
    return sizes


def _pixel_size_of_table(columns: Columns) -> float | None:
    """Pixel size in Å; InputError where rows differ."""
    sizes = _pixel_sizes(columns)
    if sizes is not None and np.ptp(sizes) > 1e-4 * sizes[0]:
        raise InputError(
            f"{columns.path}: two pixel sizes, {sizes.min():.5g} and {sizes.max():.5g} Å (blob/psize_A); all images "
            "must share one: reconstruct them apart, or give --pixel-size"
        )
    return None if sizes is None else float(sizes[0])


def _optics_groups(
    columns: Columns, pixel_size: float, box_size: int
) -> tuple[tuple[OpticsGroup, ...], NDArray[np.int32]]:
    """One group for every combination of exposure group and optics that occurs, and (N,) the group of each row."""
    voltage = columns.numbers(_name(columns, "ctf/accel_kv"), 300)
    columns.require((voltage > 0) & (voltage < 5000), "ctf/accel_kv", voltage, "must be a positive number of kV")
    contrast = columns.numbers(_name(columns, "ctf/amp_contrast"), 0.1)
    columns.require((contrast >= 0) & (contrast <= 1), "ctf/amp_contrast", contrast, "must be within 0 and 1")
    aberration = columns.numbers(_name(columns, "ctf/cs_mm"), 2.7)
    exposure_group = columns.numbers(_name(columns, "ctf/exp_group_id"), 0)
    keys = np.stack([exposure_group, voltage, aberration, contrast], axis=1)
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    groups = tuple(
        OpticsGroup(
            name=f"expGroup{exposure_group[row]:.0f}",
            pixel_size_in_angstroms=pixel_size,
            box_size=box_size,
            voltage_in_kilovolts=float(voltage[row]),
            spherical_aberration_in_millimetres=float(aberration[row]),
            amplitude_contrast=float(contrast[row]),
        )
        for row in first
    )
    return groups, group.reshape(-1).astype(np.int32)


def _rotations(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3, 3) RELION's matrices A of rotation vectors: ``A = exp([pose]ₓ)ᵀ``.

    Source: pyem's ``expmap``, whose matrices csparc2star.py decomposes into RELION's angles.
    """
    x, y, z = -pose.T
    o = np.zeros_like(x)
    cross = np.stack([o, -z, y, z, o, -x, -y, x, o], axis=-1).reshape(-1, 3, 3)
    angle = np.linalg.norm(pose, axis=1)[:, None, None]
    first = np.sinc(angle / np.pi)  # sin θ / θ
    second = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2  # (1 − cos θ) / θ²
    return np.eye(3) + first * cross + second * (cross @ cross)


def _origin(columns: Columns, alignment: Alignment, pixel_size: float) -> NDArray[np.float64]:
    """(N, 2) origins in Å, from shifts in pixels of the grid they were found on, which may be a coarser one."""
    aligned, image = alignment.pixel_size, _pixel_sizes(columns)
    if aligned is None:
        return alignment.shift * pixel_size
    columns.require(aligned > 0, "psize_A of the alignment", aligned, "must be positive")
    # If the user gives a better pixel size than the table, the ratio of the table's two sizes is still right.
    return alignment.shift * (aligned if image is None else aligned / image * pixel_size)[:, None]


def _defocus_angle(columns: Columns) -> NDArray[np.float64]:
    """(N,) defocus angles in degrees."""
    name = "ctf/df_angle_rad"
    if name not in columns and (columns.numbers("ctf/df1_A", 0) != columns.numbers("ctf/df2_A", 0)).any():
        raise columns.missing([name])
    return np.rad2deg(columns.numbers(name, 0))


def _particle_numbers(columns: Columns) -> NDArray[np.int64]:
    """(N,) particle numbers, equal for the copies of one particle that symmetry expansion made."""
    name = "sym_expand/src_uid"
    if name not in columns:
        return np.arange(len(columns))
    return np.unique(columns.integers(name), return_inverse=True)[1].reshape(-1).astype(np.int64)


def _half_sets(columns: Columns, alignment: Alignment) -> NDArray[np.int8]:
    """(N,) 1 or 2, or all 0 where the table has no half sets."""
    split = alignment.split
    if split is None or np.ptp(split) == 0:  # cryoSPARC's "not split yet" is one value for all
        return np.zeros(len(columns), dtype=np.int8)
    rule = "must be 0 or 1, or the same for all images, which means none"
    columns.require((split == 0) | (split == 1), "split of the alignment", split, rule)
    return (split + 1).astype(np.int8)


def _dark(columns: Columns) -> NDArray[np.bool_]:
    """(N,) whether each image shows dark particles.

    blob/sign is −1 where particles are white, as RELION extracts them, and 1 where they are dark, as in a micrograph.
    """
    sign = columns.numbers("blob/sign", -1)
    columns.require(np.abs(sign) == 1, "blob/sign", sign, "must be 1 or -1")
    return sign > 0


def _not_modelled(columns: Columns) -> list[str]:
    """The names of the columns of aberrations that are not zero."""
    return [name for name, n in _NOT_MODELLED.items() if columns.numbers(name, 0, (n,)).any()]


def _modelled_to(columns: Columns, optics: Sequence[OpticsGroup], optics_group: NDArray[np.int32]) -> float | None:
    """Resolution in Å up to which no aberration left in the images turns a phase by more than 45°; None if none does.

    Only their sizes are known, not their signs: 2π λ² |t| s³ for tilt and trefoil, ½π λ³ |t| s⁴ for tetrafoil, 2π |t| s
    for shifts, and 2π s r of what a matrix moves the edge of a particle of half the box by.
    """
    if not _not_modelled(columns):
        return None
    size = {name: np.abs(columns.numbers(name, 0, (n,))).sum(axis=1) for name, n in _NOT_MODELLED.items()}
    voltage = np.array([group.voltage_in_kilovolts for group in optics])[optics_group]
    wavelength = electron_wavelength_in_angstroms(voltage)
    radius = optics[0].box_size * optics[0].pixel_size_in_angstroms / 4
    s = np.geomspace(1e-3, 2, 400)[:, None]  # 1/Å

    def largest(values: NDArray[np.float64]) -> float:
        return float(values.max())

    phase = (
        2 * np.pi * s**3 * largest(wavelength**2 * (size["ctf/tilt_A"] + size["ctf/trefoil_A"]))
        + 0.5 * np.pi * s**4 * largest(wavelength**3 * size["ctf/tetra_A"])
        + 2 * np.pi * s * (largest(size["ctf/shift_A"]) + radius * largest(size["ctf/anisomag"]))
    )
    beyond = np.flatnonzero(phase[:, 0] > np.pi / 4)
    return float(1 / s[beyond[0], 0]) if len(beyond) else None


def _warnings(columns: Columns, alignment: Alignment, dark: NDArray[np.bool_]) -> Iterator[str]:
    """Warnings of what is read but not honoured, or may surprise; one line each."""
    ignored = _not_modelled(columns)
    if ignored:
        yield f"optics not modelled, their effect stays in the images: {', '.join(ignored)}"
    if dark.any():
        yield f"blob/sign says that {dark.sum()} images show dark particles; they are negated when read"
    negative = int((alignment.scale < 0).sum())
    if negative:
        yield f"the per-particle scale (alpha) is negative for {negative} images; they are given no weight"
