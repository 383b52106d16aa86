"""RELION particle tables, 3.0 (one block) and 3.1 onwards (optics groups in a block of their own), as `Particles`.

Source: the label definitions of RELION 3.1 (``relion_refine --print_metadata_labels``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.io.contradictions import LIMITS, Said, all_agree
from emsplat.io.find_files import renamed
from emsplat.io.relion_aberrations import ABERRATION_COLUMNS, with_aberrations
from emsplat.io.relion_rows import CTF_COLUMNS, NOT_MODELLED, Rows, mandatory_columns, read_rows
from emsplat.io.repeats import joined
from emsplat.io.stacks import (
    ImageNames,
    StackFacts,
    agreed_pixel_size,
    check_stacks,
    find_stacks,
    parse_image_names,
)
from emsplat.particles.table import OpticsGroup, Particles

BY_MAGNIFICATION = "rlnDetectorPixelSize / rlnMagnification"
_SHARED_B_FACTORS = 0.75  # share of the B-factors of a tilted particle that other particles have, too
_OPTICS = {
    "rlnVoltage": "voltage",
    "rlnSphericalAberration": "spherical aberration",
    "rlnAmplitudeContrast": "amplitude contrast",
}


def read_relion(
    path: str | Path,
    datadir: str | Path | None = None,
    pixel_size_in_angstroms: float | None = None,
    *,
    strip_prefix: str | None = None,
    need_stacks: bool = True,
    need_poses: bool = True,
    need_ctf: bool = True,
) -> Particles:
    """Reads a star file and the headers of its stacks.

    Args:
        datadir: the folder that image names are relative to; by default the star's folder, then the working directory.
        strip_prefix: leading text of the image names' stacks that is no longer part of their path.
        pixel_size_in_angstroms: overrides the star and the stacks' headers.
        need_stacks: False reads the table alone, for its poses and optics: stacks stay as written and the box size
            is rlnImageSize, or 0.
        need_poses: False also reads particles that have no poses yet; their angles and origins are 0.
        need_ctf: False also reads a table whose CTFs are incomplete; what is missing is taken from a microscope of
            300 kV. Where nothing in the table tells of a CTF but its microscope, the CTF is 1 in any case.
    Raises:
        InputError: anything missing, out of range or contradictory; the message names it and the remedy.
    """
    path = Path(path)
    rows = read_rows(path, mandatory=mandatory_columns(need_poses, ctf=False))
    none = not any(name in rows for name in CTF_COLUMNS)
    if need_ctf and not none:
        rows.must_have(mandatory_columns(need_poses))
    names = parse_image_names(rows.texts("rlnImageName"), path)
    if need_stacks:
        stacks = find_stacks(names, Path(datadir) if datadir is not None else None, strip_prefix)
        facts = check_stacks(names, stacks)
    else:
        stacks, facts = unread_stacks(rows, names)
    found = particles_of(rows, names, stacks, facts, pixel_size_in_angstroms)
    if not none:
        return found
    if found.premultiplied.any():
        raise InputError(
            f"{path}: no defocus in it, although rlnCtfDataAreCtfPremultiplied says that the images are multiplied "
            "with their CTF; export the particles with their CTF"
        )
    return found.without_ctf()


def unread_stacks(rows: Rows, names: ImageNames) -> tuple[tuple[Path, ...], StackFacts]:
    """The stacks as written, and what the rows alone say about them."""
    box_size = int(rows.numbers("rlnImageSize", 0)[0])
    return tuple(Path(name) for name in names.stacks), StackFacts(box_size, (None,) * len(names.stacks))


def particles_of(
    rows: Rows,
    names: ImageNames,
    stacks: tuple[Path, ...],
    facts: StackFacts,
    pixel_size_in_angstroms: float | None,
) -> Particles:
    """The particles of rows whose stacks are known, one for each image; see `read_relion`."""
    _check_image_sizes(rows, facts.box_size)
    pixel_size, pixel_warnings = _pixel_size(rows, pixel_size_in_angstroms, stacks, facts)
    optics, optics_group = _optics_groups(rows, pixel_size, facts.box_size)
    origin, origin_warnings = _origins(rows, pixel_size, pixel_size_in_angstroms)
    twice = _optics_twice(rows)
    dose = rows.numbers("rlnMicrographPreExposure", 0)
    particle = _tilted_particles(rows)
    return Particles(
        source=rows.path,
        optics=optics,
        stacks=stacks,
        ids=np.array(rows.texts("rlnImageName")),
        stack=names.stack,
        section=names.section,
        optics_group=optics_group,
        euler_angles_in_degrees=np.stack([rows.numbers(f"rlnAngle{a}", 0) for a in ("Rot", "Tilt", "Psi")], axis=1),
        origin_in_angstroms=origin,
        defocus_u_in_angstroms=rows.numbers("rlnDefocusU", 0),
        defocus_v_in_angstroms=rows.numbers("rlnDefocusV", 0),
        defocus_angle_in_degrees=_defocus_angle(rows),
        phase_shift_in_degrees=rows.numbers("rlnPhaseShift", 0),
        b_factor_in_square_angstroms=rows.numbers("rlnCtfBfactor", 0),
        ctf_scale=rows.numbers("rlnCtfScalefactor", 1),
        pre_exposure=np.where(_varies_within(particle, dose), dose, 0.0),
        particle=particle_numbers(rows),
        half_set=_half_sets(rows, particle),
        warnings=(*renamed(names.stacks, stacks), *pixel_warnings, *twice, *origin_warnings, *_warnings(rows)),
        tilted_particle=_if_shared(particle),
    )


def _check_image_sizes(rows: Rows, box_size: int) -> None:
    if "rlnImageSize" not in rows:
        return
    sizes = rows.numbers("rlnImageSize")
    sensible = (sizes >= 1) & (sizes < 2**16) & (sizes == np.round(sizes))
    rows.require(sensible, "rlnImageSize", sizes, "must be a number of pixels")
    if np.ptp(sizes) > 0:
        raise InputError(
            f"{rows.path}: two box sizes, {sizes.min():g} and {sizes.max():g} (rlnImageSize); all images must share "
            "one: extract again, or reconstruct the optics groups apart"
        )
    rows.require(sizes == box_size, "rlnImageSize", sizes, f"must be the {box_size} pixels the stack has")


def _pixel_size(
    rows: Rows, override: float | None, stacks: Sequence[Path], facts: StackFacts
) -> tuple[float, list[str]]:
    """Pixel size in Å, as by `agreed_pixel_size`, and warnings of what is doubtful about it."""
    said = pixel_sizes_of_star(rows)
    in_table = [_one_pixel_size(rows, one) for one in said] if override is None else []
    star = in_table[0] if in_table else None
    size = agreed_pixel_size(rows.path, override, star, said[0].source if said else "rlnImagePixelSize", stacks, facts)
    if override is not None or not said:
        return size, []
    confirmed = any(facts.pixel_sizes_in_angstroms)
    if confirmed and len(said) > 1:  # two that agree overrule the third
        said = [said[0], *(other for other in said[1:] if _is_near(said[0], other) or " of the " in other.source)]
    lines = all_agree(rows.path, "pixel size", said, "say which is right with --pixel-size, or remove the wrong column")
    for other in pixel_sizes_of_star(rows)[1:]:
        if confirmed and not _is_near(Said("", size), other):
            lines.append(
                f"two pixel sizes: {size:.5g} Å ({said[0].source}, and the stacks' headers) against "
                f"{float(np.median(other.value)):.5g} Å ({other.source}); the first is taken"
            )
    unconfirmed = said[0].source == BY_MAGNIFICATION and not confirmed
    doubt = f"pixel size {size:.5g} Å is from {said[0].source} alone; if wrong, give --pixel-size"
    return size, [*lines, *[doubt] * unconfirmed]


def _is_near(one: Said, other: Said) -> bool:
    return bool(np.all(np.abs(np.asarray(other.value) / np.asarray(one.value) - 1) <= LIMITS["pixel size"].refused))


def pixel_sizes_of_star(rows: Rows) -> list[Said]:
    """Pixel sizes in Å, (N,) from every place that gives them; RELION takes the first."""
    found = []
    for name in ("rlnImagePixelSize", "rlnPixelSize"):
        both = rows.in_both(name)
        if name in rows:
            sizes = rows.numbers(name) if both is None else both[0]
            rows.require(sizes > 0, name, sizes, "must be positive")
            found.append(Said(name if both is None else f"{name} of data_optics", sizes))
        if both is not None:
            rows.require(both[1] > 0, name, both[1], "must be positive")
            found.append(Said(f"{name} of the particles", both[1]))
    if "rlnDetectorPixelSize" in rows and "rlnMagnification" in rows:
        magnification = rows.numbers("rlnMagnification")
        rows.require(magnification > 0, "rlnMagnification", magnification, "must be positive")
        sizes = rows.numbers("rlnDetectorPixelSize") * 1e4 / magnification  # µm → Å
        rows.require(sizes > 0, BY_MAGNIFICATION, sizes, "must be positive")
        found.append(Said(BY_MAGNIFICATION, sizes))
    return found


def _one_pixel_size(rows: Rows, said: Said) -> float:
    """Pixel size of all rows in Å; InputError where rows differ."""
    sizes = np.asarray(said.value)
    if np.ptp(sizes) > 1e-4 * sizes[0]:  # more than the rounding of a printed value
        raise InputError(
            f"{rows.path}: two pixel sizes, {sizes.min():.5g} and {sizes.max():.5g} Å ({said.source}); all images must "
            "share one: reconstruct the optics groups apart, or give --pixel-size"
        )
    return float(sizes[0])


def _optics_twice(rows: Rows) -> list[str]:
    """Warnings where both tables say different things about the optics."""
    lines = []
    for name, what in _OPTICS.items():
        both = rows.in_both(name)
        if both is not None:
            said = [Said(f"{name} of data_optics", both[0]), Said(f"{name} of the particles", both[1])]
            lines += all_agree(rows.path, what, said, "remove the column that is wrong")
    for name in ("rlnImageSize", "rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped"):
        both = rows.in_both(name)
        if both is not None and (both[0] != both[1]).any():
            row = int(np.argmax(both[0] != both[1]))
            raise InputError(
                f"{rows.path}, row {row + 1}: {name} is {both[0][row]:g} in data_optics and {both[1][row]:g} in the "
                "particles; remove the column that is wrong"
            )
    return lines


def _optics_groups(rows: Rows, pixel_size: float, box_size: int) -> tuple[tuple[OpticsGroup, ...], NDArray[np.int32]]:
    """One group for every combination of optics that occurs, and (N,) the group of each row."""
    voltage = rows.numbers("rlnVoltage", 300)
    rows.require((voltage > 0) & (voltage < 5000), "rlnVoltage", voltage, "must be a positive number of kV")
    contrast = rows.numbers("rlnAmplitudeContrast", 0.1)
    rows.require((contrast >= 0) & (contrast <= 1), "rlnAmplitudeContrast", contrast, "must be within 0 and 1")
    aberration = rows.numbers("rlnSphericalAberration", 2.7)
    premultiplied = rows.numbers("rlnCtfDataAreCtfPremultiplied", 0)
    flipped = rows.numbers("rlnCtfDataArePhaseFlipped", 0)
    both = "must not be set beside rlnCtfDataAreCtfPremultiplied, for nobody knows what the images hold then"
    rows.require((premultiplied == 0) | (flipped == 0), "rlnCtfDataArePhaseFlipped", flipped, both)
    label = rows.numbers("rlnOpticsGroup", 1)
    keys = np.stack([label, voltage, aberration, contrast, premultiplied, flipped, _own_aberrations(rows)], axis=1)
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    names = rows.texts("rlnOpticsGroupName") if "rlnOpticsGroupName" in rows else None
    groups = tuple(
        with_aberrations(
            OpticsGroup(
                name=names[row] if names else f"opticsGroup{number}",
                pixel_size_in_angstroms=pixel_size,
                box_size=box_size,
                voltage_in_kilovolts=float(voltage[row]),
                spherical_aberration_in_millimetres=float(aberration[row]),
                amplitude_contrast=float(contrast[row]),
                premultiplied=bool(premultiplied[row]),
                phase_flipped=bool(flipped[row]),
            ),
            {column: rows.text(column, row) for column in ABERRATION_COLUMNS if column in rows},
            f"{rows.path}, row {row + 1}",
        )
        for number, row in enumerate(first, start=1)
    )
    return groups, group.reshape(-1).astype(np.int32)


def _own_aberrations(rows: Rows) -> NDArray[np.int64]:
    """(N,) numbers, equal for rows whose aberrations in the particle table itself agree, as in RELION 3.0."""
    columns = [rows.particles.column(name) for name in ABERRATION_COLUMNS if name in rows.particles]
    if not columns:
        return np.zeros(len(rows), dtype=np.int64)
    number_of: dict[tuple[str, ...], int] = {}
    return np.array([number_of.setdefault(values, len(number_of)) for values in zip(*columns, strict=True)])


def _origins(rows: Rows, pixel_size: float, override: float | None) -> tuple[NDArray[np.float64], list[str]]:
    """(N, 2) origins in Å from RELION 3.1's columns, else 3.0's in pixels, else 0, and warnings about them.

    A refinement finds shifts in pixels. Those in Å were made with the table's pixel size: if the user gives a
    better one, they remain shifts by the same number of pixels.
    """
    said = pixel_sizes_of_star(rows) if override is not None else []
    of_table = np.asarray(said[0].value) if said else np.full(len(rows), pixel_size)
    found, lines = [], []
    for axis in "XY":
        in_angstroms, in_pixels = f"rlnOrigin{axis}Angst", f"rlnOrigin{axis}"
        if in_angstroms not in rows:
            found.append(rows.numbers(in_pixels, 0) * pixel_size)
            continue
        pixels = rows.numbers(in_angstroms) / of_table
        found.append(pixels * pixel_size)
        if in_pixels in rows:
            both = [Said(f"{in_angstroms} / pixel size", pixels), Said(in_pixels, rows.numbers(in_pixels))]
            lines += all_agree(rows.path, "origin", both, f"remove the column that is wrong, {in_pixels} as a rule")
    scaled = any(f"rlnOrigin{axis}Angst" in rows for axis in "XY") and np.any(found)
    if said and scaled and np.abs(of_table / pixel_size - 1).max() > 1e-4:
        lines.append(
            f"--pixel-size {pixel_size:.5g} in place of {of_table[0]:.5g} Å: the origins in Å are scaled by "
            f"{pixel_size / of_table[0]:.5g}, so that they stay the same number of pixels"
        )
    return np.stack(found, axis=1), lines


def _defocus_angle(rows: Rows) -> NDArray[np.float64]:
    if "rlnDefocusAngle" not in rows and not np.array_equal(
        rows.numbers("rlnDefocusU", 0), rows.numbers("rlnDefocusV", 0)
    ):
        raise InputError(
            f"{rows.path}: missing column rlnDefocusAngle, and rlnDefocusU differs from rlnDefocusV; "
            "astigmatism needs its angle: add the column"
        )
    return rows.numbers("rlnDefocusAngle", 0)


def particle_numbers(rows: Rows) -> NDArray[np.int64]:
    """(N,) particle numbers, equal for the tilts of one particle and for images made from one recorded image."""
    return _with_original_images(rows, _tilted_particles(rows))


def tilted_particles(rows: Rows) -> NDArray[np.int64] | None:
    """(N,) particle numbers, equal for the tilts of one particle; None where no particle has several."""
    return _if_shared(_tilted_particles(rows))


def _if_shared(particle: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The numbers if any two of them are equal."""
    return particle if len(np.unique(particle)) < len(particle) else None


def holds_tilts(path: Path) -> bool:
    """Whether rows of a star file are tilts of one particle."""
    return tilted_particles(read_rows(path, mandatory=("rlnImageName",))) is not None


def _tilted_particles(rows: Rows) -> NDArray[np.int64]:
    """(N,) particle numbers, equal for the tilts of one particle.

    rlnGroupName names a tilted particle only where the pre-exposure varies within it, or the B-factor as it does where
    programs derive it from the exposure of each tilt; otherwise it names a micrograph.
    """
    if "rlnTomoParticleName" in rows:
        return _numbered(rows.texts("rlnTomoParticleName"))
    alone = np.arange(len(rows))
    if "rlnGroupName" not in rows:
        return alone
    group = _numbered(rows.texts("rlnGroupName"))
    dose = rows.numbers("rlnMicrographPreExposure", 0)
    tilts = _varies_within(group, dose) | _vary_with_exposure(group, rows.numbers("rlnCtfBfactor", 0))
    return _numbered(np.where(tilts, group, len(rows) + alone))


def _with_original_images(rows: Rows, particle: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) particle numbers, also equal for rows whose images were made from one recorded image by subtracting signal.

    The subtracted images of one particle differ, and hold the same noise.
    """
    if "rlnImageOriginalName" not in rows:
        return particle
    original = rows.texts("rlnImageOriginalName")
    known = np.array(["@" in name for name in original])
    image = _numbered([_as_number_and_path(name) if "@" in name else name for name in original])
    return joined(particle, np.where(known, image, len(rows) + np.arange(len(rows))))


def _as_number_and_path(name: str) -> str:
    """An image's name in one spelling: "000012@./a//b.mrcs" as "12@a/b.mrcs"."""
    number, _, path = name.partition("@")
    return f"{number.lstrip('0')}@{os.path.normpath(path)}"


def _numbered(labels: Sequence[str] | NDArray) -> NDArray[np.int64]:
    """(N,) labels replaced by numbers from 0."""
    return np.unique(np.asarray(labels), return_inverse=True)[1].astype(np.int64)


def _varies_within(group: NDArray[np.int64], value: NDArray) -> NDArray[np.bool_]:
    """(N,) whether the value differs among the rows of this row's group (numbered from 0)."""
    lowest, highest = np.full(group.max() + 1, np.inf), np.full(group.max() + 1, -np.inf)
    np.minimum.at(lowest, group, value)
    np.maximum.at(highest, group, value)
    return (lowest < highest)[group]


def _vary_with_exposure(group: NDArray[np.int64], b_factor: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) whether this row's group has several rows whose B-factors are those of the tilts of one particle.

    No two of them are equal, and most occur in other groups, too, for most of the rows of a file. B-factors that were
    fitted to single particles differ within a micrograph as well, but hardly any of them occurs twice.
    """
    _, number, count = np.unique(np.stack([group, b_factor]), axis=1, return_inverse=True, return_counts=True)
    alone = count[number.reshape(-1)] == 1
    elsewhere = _varies_within(np.unique(b_factor, return_inverse=True)[1].reshape(-1), group)
    size, differ, shared = (np.bincount(group, of) for of in (None, alone, elsewhere))
    found = ((size > 1) & (differ == size) & (shared >= _SHARED_B_FACTORS * size))[group]
    return found & (found.mean() >= 0.5)


def _half_sets(rows: Rows, particle: NDArray[np.int64]) -> NDArray[np.int8]:
    if "rlnRandomSubset" not in rows:
        return np.zeros(len(rows), dtype=np.int8)
    subset = rows.numbers("rlnRandomSubset")
    rows.require((subset == 1) | (subset == 2), "rlnRandomSubset", subset, "must be 1 or 2, or the column absent")
    split = _varies_within(particle, subset)
    rows.require(~split, "rlnRandomSubset", subset, "must be the same for all tilts of one particle, or absent")
    return subset.astype(np.int8)


def _warnings(rows: Rows) -> list[str]:
    """Warnings of what is read but not honoured, or looks wrong; one line each."""
    lines = []
    for name, none in NOT_MODELLED.items():
        if _differs(rows, name, none):
            raise InputError(
                f"{rows.path}: {name} is set, and images of that kind are not modelled: a map of them would be wrong; "
                "export the particles without it"
            )
    amplified = int((rows.numbers("rlnCtfBfactor", 0) < 0).sum())
    if amplified:
        lines.append(
            f"rlnCtfBfactor is negative for {amplified} images and amplifies high frequencies, as in RELION; "
            "Warp writes −4 × dose there"
        )
    return lines


def _differs(rows: Rows, name: str, none: float) -> bool:
    """Whether any image has a value other than `none`; a value may be a list, "[1,2]"."""
    if name not in rows:
        return False
    for text in set(rows.texts(name)):
        try:
            values = np.array(text.strip("[]").split(",") if text.strip("[]") else [], dtype=np.float64)
        except ValueError:
            raise InputError(f"{rows.path}: {name} is {text!r}, not a number; mend or remove the column") from None
        if (values != none).any():
            return True
    return False
