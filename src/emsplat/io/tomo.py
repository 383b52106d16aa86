"""RELION tomography, versions 4 and 5: particles whose images are 2D stacks of tilts, read as one row for each tilt.

A tilt sees its particle along ``A = R_tilt A_subtomogram A_particle``; the particle's centre lies at
``−R_tilt A_subtomogram o`` from the image's, o the origin in 3D; the defocus changes with the depth along the beam.

Source: RELION 5, ``ParticleSet``, ``Tomogram::getCtf``, ``Experiment::read``; WarpTools, ``ts_export_particles --2d``.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.conventions import euler_angles, rotation_matrices
from emsplat.errors import InputError
from emsplat.io.contradictions import Said, all_agree
from emsplat.io.relion import particles_of, unread_stacks
from emsplat.io.relion_rows import KEPT, Rows, read_rows
from emsplat.io.stacks import ImageNames, StackFacts, check_stacks, find_file, find_stacks
from emsplat.io.star import Table, read_star
from emsplat.io.tilt_series import TiltSeries, parse_list, read_tilt_series
from emsplat.particles.table import Particles

_ANGLES = ("Rot", "Tilt", "Psi")
_MANDATORY = (
    *("rlnImageName", "rlnTomoName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"),
    *("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"),
)
_KEPT: dict[str, type[str] | type[float]] = {
    **KEPT,
    **dict.fromkeys(("rlnTomoName", "rlnTomoVisibleFrames"), str),
    **dict.fromkeys((f"rlnTomoSubtomogram{angle}" for angle in _ANGLES), float),
    **dict.fromkeys((f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"), float),
    **dict.fromkeys((f"rlnCoordinate{axis}" for axis in "XYZ"), float),
    **dict.fromkeys(("rlnOriginZAngst", "rlnImageDimensionality"), float),
    **dict.fromkeys(("rlnTomoTiltSeriesPixelSize", "rlnTomoSubtomogramBinning"), float),
}
_ORIGINS_IN_PIXELS = ("rlnOriginX", "rlnOriginY")  # of a particle in its subtomogram, and so of none of its images
_ALSO_OF_TOMOGRAMS = (  # columns that both files have, and the fields of a tilt series
    ("rlnVoltage", "voltage", "voltage_in_kilovolts"),
    ("rlnSphericalAberration", "spherical aberration", "spherical_aberration_in_millimetres"),
    ("rlnAmplitudeContrast", "amplitude contrast", "amplitude_contrast"),
    ("rlnTomoTiltSeriesPixelSize", "pixel size", "pixel_size_in_angstroms"),
)


def read_tomo(
    path: str | Path,
    datadir: str | Path | None = None,
    pixel_size_in_angstroms: float | None = None,
    *,
    strip_prefix: str | None = None,
    need_stacks: bool = True,
) -> Particles:
    """Reads an optimisation set, the particles and tomograms it names, and the headers of the particles' stacks.

    Args:
        datadir: the folder that names of files are relative to, as in `read_relion`: RELION's project folder.
        strip_prefix, pixel_size_in_angstroms, need_stacks: as in `read_relion`.
    Returns:
        One row for each visible tilt, with the id "tilt<number from 1 in its series>@<stack>".
    Raises:
        InputError: anything missing, out of range or contradictory; the message names it and the remedy.
    """
    path, folder = Path(path), None if datadir is None else Path(datadir)
    particles_file, tomograms_file = _files_of_set(path, folder, strip_prefix)
    particles = _read_particle_rows(particles_file)
    tomograms = particles.texts("rlnTomoName")
    series = read_tilt_series(tomograms_file, dict.fromkeys(tomograms), folder, strip_prefix)
    twice = [line for one in series.values() for line in one.warnings]
    twice += _said_twice(particles, [series[name] for name in tomograms], pixel_size_in_angstroms is not None)
    images = _images(particles, [series[name] for name in tomograms])
    if need_stacks:
        stacks = find_stacks(images.names, folder, strip_prefix)
        facts = check_stacks(images.names, stacks)
        names = _with_sections(images, facts, particles)
    else:
        names = images.names
        stacks, facts = unread_stacks(particles, names)
    found = particles_of(_rows_of_images(particles, images), names, stacks, facts, pixel_size_in_angstroms)
    return replace(
        found,
        pre_exposure=images.of_tilt("pre_exposure"),  # the dose of a particle with a single tilt counts too
        optics=tuple(replace(g, beam_tilt_in_milliradians=(0.0, 0.0), odd_zernike=()) for g in found.optics),
        warnings=(*found.warnings, *twice, *_warnings(particles, images, found)),
    )


def _warnings(particles: Rows, images: _Images, found: Particles) -> list[str]:
    """Warnings of what is read but not honoured; one line each."""
    lines = []
    unknown = int((~_depth_is_known(particles, images.series)).sum())
    if unknown:
        lines.append(
            f"{unknown} of {len(particles)} particles are an older WarpTools', whose coordinates and hand RELION's "
            "columns do not explain; the tilts' defocus is that at the tomogram's centre, not at the particle's depth"
        )
    if any(any(g.odd_zernike) or any(g.beam_tilt_in_milliradians) for g in found.optics):
        lines.append(
            "beam tilt and odd Zernikes are not applied: RELION takes them out of the images when it extracts a stack"
        )
    return lines


def _said_twice(particles: Rows, series: Sequence[TiltSeries], pixel_size_is_settled: bool) -> list[str]:
    """Warnings where the particles and the tomograms say different things; InputError where it matters."""
    pairs: list[tuple[str, Said, Said]] = []
    for column, what, field in _ALSO_OF_TOMOGRAMS:
        if column in particles:
            stated = Said(f"{column} of the tomograms", np.array([getattr(one, field) for one in series]))
            pairs.append((what, Said(f"{column} of the particles", particles.numbers(column)), stated))
    if "rlnTomoSubtomogramBinning" in particles and "rlnImagePixelSize" in particles and not pixel_size_is_settled:
        size = np.array([one.pixel_size_in_angstroms for one in series])
        binned = Said(
            "rlnTomoTiltSeriesPixelSize × rlnTomoSubtomogramBinning",
            size * particles.numbers("rlnTomoSubtomogramBinning"),
        )
        pairs.append(("pixel size", Said("rlnImagePixelSize", particles.numbers("rlnImagePixelSize")), binned))
    if all(f"rlnCenteredCoordinate{axis}Angst" in particles for axis in "XYZ") and "rlnCoordinateZ" in particles:
        pixels = _from_pixels(particles, series)
        for number, axis in enumerate("XYZ"):
            column = f"rlnCenteredCoordinate{axis}Angst"
            pairs.append(
                ("position", Said(column, particles.numbers(column)), Said(f"rlnCoordinate{axis}", pixels[:, number]))
            )
    for column in _ORIGINS_IN_PIXELS:
        if column in particles and "rlnImagePixelSize" in particles:
            pixels = particles.numbers(f"{column}Angst", 0) / particles.numbers("rlnImagePixelSize")
            pairs.append(
                ("origin", Said(f"{column}Angst / pixel size", pixels), Said(column, particles.numbers(column)))
            )
    lines = []
    for what, first, second in pairs:
        known = np.isfinite(np.asarray(second.value))
        if known.any():
            said = [Said(one.source, np.asarray(one.value)[known]) for one in (first, second)]
            lines += all_agree(particles.path, what, said, "export both files again, or mend the one that is wrong")
    return lines


@dataclass(frozen=True)
class _Images:
    """The N images of P particles, in the order of the particles and, for each, of its series."""

    series: Sequence[TiltSeries]  # (P,)
    particle: NDArray[np.int64]  # (N,) row of the particle
    tilt: NDArray[np.int64]  # (N,) number of the tilt in its series, from 0
    names: ImageNames  # valid if the stacks hold the visible tilts alone, as RELION writes them

    def of_tilt(self, field: str) -> NDArray[np.float64]:
        """(N, ...) a field of the tilt series, for every image."""
        unlike = {id(series): series for series in self.series}
        first_of = dict(zip(unlike, np.cumsum([0, *map(len, unlike.values())]), strict=False))
        first = np.array([first_of[id(series)] for series in self.series])
        return np.concatenate([getattr(series, field) for series in unlike.values()])[first[self.particle] + self.tilt]


def _files_of_set(path: Path, datadir: Path | None, strip_prefix: str | None) -> tuple[Path, Path]:
    """The paths of the particles' star and of the tomograms' star."""
    columns = ("rlnTomoParticlesFile", "rlnTomoTomogramsFile")
    table = next((t for t in read_star(path).values() if columns[0] in t), None)
    if table is None or len(table) != 1 or columns[1] not in table:
        raise InputError(
            f"{path}: an optimisation set names one rlnTomoParticlesFile and one rlnTomoTomogramsFile; "
            "export it again with both"
        )
    particles, tomograms = (find_file(table.column(c)[0], path, datadir, strip_prefix, what="file") for c in columns)
    return particles, tomograms


def _read_particle_rows(path: Path) -> Rows:
    rows = read_rows(path, _KEPT, _MANDATORY)
    if (rows.numbers("rlnImageDimensionality", 2) != 2).any():
        raise InputError(f"{path}: 3D subtomograms (rlnImageDimensionality); only 2D stacks are read: extract as those")
    stacks = rows.texts("rlnImageName")
    rows.require(np.array(["@" not in name for name in stacks]), "rlnImageName", stacks, "must name a stack of tilts")
    return rows


def _images(particles: Rows, series: Sequence[TiltSeries]) -> _Images:
    visible = _visible_tilts(particles, np.array([len(one) for one in series]))
    counts = [len(tilts) for tilts in visible]
    particle = np.repeat(np.arange(len(particles)), counts)
    files = particles.texts("rlnImageName")
    number_of_stack = {file: number for number, file in enumerate(dict.fromkeys(files))}
    stack = np.array([number_of_stack[file] for file in files], dtype=np.int32)[particle]
    section = np.concatenate([np.arange(n) for n in counts])
    names = ImageNames(particles.path, tuple(number_of_stack), stack, section)
    return _Images(series, particle, np.concatenate(visible), names)


def _visible_tilts(particles: Rows, n_tilts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """For each particle the numbers, from 0, of the tilts of its series that show it."""
    if "rlnTomoVisibleFrames" not in particles:
        return [np.arange(n) for n in n_tilts]
    texts = particles.texts("rlnTomoVisibleFrames")
    flags = {t: np.array(parse_list(t, str(particles.path), "rlnTomoVisibleFrames")) > 0 for t in dict.fromkeys(texts)}
    fits = np.array([len(flags[text]) for text in texts]) == n_tilts
    particles.require(fits, "rlnTomoVisibleFrames", texts, "must have one entry for each tilt of its tomogram")
    seen = np.array([flags[text].any() for text in texts])
    particles.require(seen, "rlnTomoVisibleFrames", texts, "must leave at least one tilt")
    return [np.flatnonzero(flags[text]) for text in texts]


def _with_sections(images: _Images, facts: StackFacts, particles: Rows) -> ImageNames:
    """Names that fit the stacks, which hold the visible tilts or, from some WarpTools versions, the whole series."""
    shown = np.bincount(images.particle)
    whole = np.array([len(series) for series in images.series])
    first = np.cumsum(shown) - shown  # each particle's first image
    held = np.array(facts.n_images)[images.names.stack[first]]
    wrong = (held != shown) & (held != whole)
    if wrong.any():
        row = int(np.argmax(wrong))
        rule = f"must be {shown[row]}, the visible tilts, or {whole[row]}, all of the series"
        particles.require(~wrong, "the number of images in its stack", held, rule)
    return replace(images.names, section=np.where((held == shown)[images.particle], images.names.section, images.tilt))


def _rows_of_images(particles: Rows, images: _Images) -> Rows:
    """One row for each image, with the columns that single particles have."""
    angles, origin, depth = _geometry(particles, images)
    defocus = np.array([series.defocus_per_depth for series in images.series])[images.particle] * depth
    stacks = particles.texts("rlnImageName")
    names = _particle_names(particles)
    numbers = {
        **{f"rlnAngle{angle}": angles[:, axis] for axis, angle in enumerate(_ANGLES)},
        **{f"rlnOrigin{name}Angst": origin[:, axis] for axis, name in enumerate("XY")},
        "rlnDefocusU": images.of_tilt("defocus_u_in_angstroms") + defocus,
        "rlnDefocusV": images.of_tilt("defocus_v_in_angstroms") + defocus,
        "rlnDefocusAngle": images.of_tilt("defocus_angle_in_degrees"),
        "rlnPhaseShift": images.of_tilt("phase_shift_in_degrees"),
        "rlnCtfScalefactor": images.of_tilt("ctf_scale"),
        "rlnCtfBfactor": images.of_tilt("b_factor_in_square_angstroms"),
        "rlnMicrographPreExposure": images.of_tilt("pre_exposure"),
    }
    table: dict[str, list[str] | array[float]] = {
        "rlnImageName": [f"tilt{t + 1}@{stacks[p]}" for p, t in zip(images.particle, images.tilt, strict=True)],
        "rlnTomoParticleName": [names[p] for p in images.particle],
        **{name: array("d", values.tobytes()) for name, values in numbers.items()},
    }
    for name, values in particles.particles.columns.items():
        if name in KEPT and name not in table and name not in _ORIGINS_IN_PIXELS:
            repeated = [values[p] for p in images.particle]
            table[name] = array("d", repeated) if isinstance(values, array) else repeated
    label = particles.particles.label
    optics_row = particles.optics_row[images.particle]
    return Rows(particles.path, Table(table, label=label), particles.optics, optics_row, KEPT)


def _geometry(particles: Rows, images: _Images) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(N, 3) Euler angles; (N, 2) origins, Å; (N,) depths of the particles' centres along the beam, Å."""
    rotations = images.of_tilt("rotations")
    angles = np.stack([particles.numbers(f"rlnAngle{angle}") for angle in _ANGLES], axis=1)
    subtomogram = [particles.numbers(f"rlnTomoSubtomogram{angle}", 0) for angle in _ANGLES]
    to_tomogram = rotation_matrices(np.stack(subtomogram, axis=1))
    euler = euler_angles(rotations @ (to_tomogram @ rotation_matrices(angles))[images.particle])
    shift = np.einsum("pij,pj->pi", to_tomogram, _vectors(particles, "rlnOrigin{}Angst", 0))
    origin = np.einsum("nij,nj->ni", rotations[:, :2], shift[images.particle])
    centre = _coordinates(particles, images.series) - shift
    depth = np.einsum("ni,ni->n", rotations[:, 2], centre[images.particle])
    return euler, origin, np.where(_depth_is_known(particles, images.series)[images.particle], depth, 0.0)


def _coordinates(particles: Rows, series: Sequence[TiltSeries]) -> NDArray[np.float64]:
    """(P, 3) coordinates in Å from the tomogram's centre, which RELION 5 gives, or from RELION 4's pixels."""
    if "rlnCenteredCoordinateXAngst" in particles:
        return _vectors(particles, "rlnCenteredCoordinate{}Angst")
    found = _from_pixels(particles, series)
    tomograms = particles.texts("rlnTomoName")
    particles.require(np.isfinite(found.sum(axis=1)), "rlnTomoName", tomograms, "must have rlnTomoSizeX, Y and Z")
    return found


def _from_pixels(particles: Rows, series: Sequence[TiltSeries]) -> NDArray[np.float64]:
    """(P, 3) coordinates in Å from the tomogram's centre, by RELION 4's columns; NaN where its size is not given."""
    pixel = np.array([one.pixel_size_in_angstroms for one in series])
    centre = np.stack([one.centre_in_angstroms for one in series])
    return _vectors(particles, "rlnCoordinate{}") * pixel[:, None] - centre


def _depth_is_known(particles: Rows, series: Sequence[TiltSeries]) -> NDArray[np.bool_]:
    """(P,) False for coordinates of an older WarpTools, in pixels of the images, whose hand is always −1.

    Power spectra of such premultiplied images show a defocus that follows the depth, but against that hand.
    """
    if "rlnCenteredCoordinateXAngst" in particles or "rlnImagePixelSize" not in particles:
        return np.ones(len(particles), dtype=np.bool_)
    size = particles.numbers("rlnImagePixelSize")
    same = np.abs(np.array([one.pixel_size_in_angstroms for one in series]) - size) < 1e-3 * size
    return same | ~np.array([one.is_dummy for one in series])


def _vectors(particles: Rows, pattern: str, default: float | None = None) -> NDArray[np.float64]:
    """(P, 3) vectors from the columns for X, Y and Z."""
    return np.stack([particles.numbers(pattern.format(axis), default) for axis in "XYZ"], axis=1)


def _particle_names(particles: Rows) -> list[str]:
    if "rlnTomoParticleName" in particles:
        return particles.texts("rlnTomoParticleName")
    return [f"{name}/{row + 1}" for row, name in enumerate(particles.texts("rlnTomoName"))]
