"""The pose, shift and CTF of each simulated image, drawn at random or taken from a star."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from emsplat.conventions import euler_angles, rotation_matrices
from emsplat.errors import InputError
from emsplat.io.relion_aberrations import ABERRATION_COLUMNS, aberration_columns, with_aberrations
from emsplat.io.star import Table, read_star
from emsplat.particles.table import OpticsGroup, Particles, split_by_particle
from emsplat.settings import SimulationSettings

# "uneven": three quarters of the views gather about one direction, as where particles stick to the air-water interface
_PREFERRED_ROT_AND_TILT = (40.0, 70.0)
_PREFERRED_SHARE = 0.75
_PREFERRED_SPREAD = 0.35  # standard deviation of each coordinate added to the unit vector: about 20°


def acquire(settings: SimulationSettings, star: Path, stack: Path) -> Particles:
    """The particles of a simulation. Row i is image i of `stack`; half sets are drawn at random."""
    rng = np.random.default_rng([settings.seed, 0])
    values = _drawn(settings, rng) if settings.like is None else _taken(settings, settings.like, rng)
    n = settings.n_images
    return Particles(
        source=star,
        stacks=(stack,),
        ids=np.array([f"{i + 1:06d}@{stack.name}" for i in range(n)]),
        stack=np.zeros(n, dtype=np.int32),
        section=np.arange(n),
        pre_exposure=np.zeros(n),
        particle=np.arange(n),
        half_set=(1 + split_by_particle(np.arange(n), settings.seed)).astype(np.int8),
        **values,
    )


def with_pose_errors(particles: Particles, settings: SimulationSettings) -> Particles:
    """The particles with errors like those of a pose search: each image is turned and shifted a little by itself."""
    angle, shift = settings.angle_error_in_degrees, settings.shift_error_in_angstroms
    if angle == 0 and shift == 0:
        return particles
    rng = np.random.default_rng([settings.seed, 3])
    n = len(particles)
    turns = Rotation.from_rotvec(np.deg2rad(angle) * rng.normal(size=(n, 3))).as_matrix()
    return replace(
        particles,
        euler_angles_in_degrees=euler_angles(turns @ particles.rotations()),
        origin_in_angstroms=particles.origin_in_angstroms + shift * rng.normal(size=(n, 2)),
    )


def star_tables(particles: Particles) -> dict[str, Table]:
    """The two blocks of RELION 3.1 for the particles of a simulation."""
    optics = {
        "rlnOpticsGroupName": [group.name for group in particles.optics],
        "rlnOpticsGroup": [str(i + 1) for i in range(len(particles.optics))],
        "rlnVoltage": _text("%.6g", [group.voltage_in_kilovolts for group in particles.optics]),
        "rlnSphericalAberration": _text("%.6g", [g.spherical_aberration_in_millimetres for g in particles.optics]),
        "rlnAmplitudeContrast": _text("%.6g", [group.amplitude_contrast for group in particles.optics]),
        "rlnImagePixelSize": _text("%.6f", [group.pixel_size_in_angstroms for group in particles.optics]),
        "rlnImageSize": [str(group.box_size) for group in particles.optics],
        "rlnImageDimensionality": ["2"] * len(particles.optics),
        **aberration_columns(particles.optics),
    }
    rot, tilt, psi = particles.euler_angles_in_degrees.T
    x, y = particles.origin_in_angstroms.T
    rows = {
        "rlnImageName": [str(name) for name in particles.ids],
        "rlnOpticsGroup": _text("%d", particles.optics_group + 1),
        "rlnAngleRot": _text("%.6f", rot),
        "rlnAngleTilt": _text("%.6f", tilt),
        "rlnAnglePsi": _text("%.6f", psi),
        "rlnOriginXAngst": _text("%.6f", x),
        "rlnOriginYAngst": _text("%.6f", y),
        "rlnDefocusU": _text("%.6f", particles.defocus_u_in_angstroms),
        "rlnDefocusV": _text("%.6f", particles.defocus_v_in_angstroms),
        "rlnDefocusAngle": _text("%.6f", particles.defocus_angle_in_degrees),
        "rlnPhaseShift": _text("%.6f", particles.phase_shift_in_degrees),
        "rlnCtfBfactor": _text("%.6f", particles.b_factor_in_square_angstroms),
        "rlnCtfScalefactor": _text("%.6f", particles.ctf_scale),
        "rlnRandomSubset": _text("%d", particles.half_set),
    }
    return {"optics": Table(optics), "particles": Table(rows)}


def _text(form: str, values) -> list[str]:
    return [form % value for value in values]


def _optics(settings: SimulationSettings, name: str, voltage: float, cs: float, contrast: float) -> OpticsGroup:
    return OpticsGroup(name, settings.pixel_size_in_angstroms, settings.box_size, voltage, cs, contrast)


def _drawn(settings: SimulationSettings, rng: np.random.Generator) -> dict:
    """The fields of Particles that the microscope determines, drawn at random."""
    n = settings.n_images
    lowest, highest = settings.defocus_range_in_angstroms
    mean_defocus = rng.uniform(lowest, highest, n)
    half_astigmatism = 0.5 * np.abs(rng.normal(0, settings.astigmatism_in_angstroms, n))
    return {
        "optics": (
            _optics(
                settings,
                "simulated",
                settings.voltage_in_kilovolts,
                settings.spherical_aberration_in_millimetres,
                settings.amplitude_contrast,
            ),
        ),
        "optics_group": np.zeros(n, dtype=np.int32),
        "euler_angles_in_degrees": _orientations(settings, rng),
        "origin_in_angstroms": rng.normal(0, settings.shift_sigma_in_angstroms, (n, 2)),
        "defocus_u_in_angstroms": mean_defocus + half_astigmatism,
        "defocus_v_in_angstroms": mean_defocus - half_astigmatism,
        "defocus_angle_in_degrees": rng.uniform(0, 180, n),
        "phase_shift_in_degrees": np.full(n, settings.phase_shift_in_degrees),
        "b_factor_in_square_angstroms": np.zeros(n),
        "ctf_scale": np.ones(n),
    }


def _orientations(settings: SimulationSettings, rng: np.random.Generator) -> NDArray[np.float64]:
    """(N, 3) rot, tilt, psi; the viewing direction (rot, tilt) is spread over the sphere evenly or not."""
    n = settings.n_images
    view = _unit(rng.normal(size=(n, 3)))
    if settings.orientations == "uneven":
        preferred = rotation_matrices([*_PREFERRED_ROT_AND_TILT, 0.0])[2]  # the row of A that is the line of sight
        about = _unit(preferred + _PREFERRED_SPREAD * rng.normal(size=(n, 3)))
        view = np.where(rng.uniform(size=(n, 1)) < _PREFERRED_SHARE, about, view)
    rot = np.rad2deg(np.arctan2(view[:, 1], view[:, 0]))
    tilt = np.rad2deg(np.arccos(np.clip(view[:, 2], -1, 1)))
    return np.stack([rot, tilt, rng.uniform(-180, 180, n)], axis=-1)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _taken(settings: SimulationSettings, star: Path, rng: np.random.Generator) -> dict:
    """The same fields from a RELION 3.0 or 3.1 star, whose images need not exist.

    If there are fewer images than rows, rows are drawn at random and kept in the order of the star. If there are more,
    the rows are repeated.
    """
    blocks = read_star(star)
    table = _particle_table(blocks, star)
    if len(table) == 0:
        raise InputError(f"{star}: holds no particles to take poses from; give a RELION particle star")
    n = settings.n_images
    rows = np.arange(n) % len(table)
    if n < len(table):
        rows = np.sort(rng.choice(len(table), n, replace=False))

    def column(name: str, default: float | None = None) -> NDArray[np.float64]:
        if default is not None and name not in table:
            return np.full(n, default)
        return _finite(table, name)[rows]

    defocus_u = column("rlnDefocusU")
    optics, group = _taken_optics(settings, blocks, table, rows)
    return {
        "optics": optics,
        "optics_group": group,
        "euler_angles_in_degrees": np.stack([column(f"rlnAngle{a}") for a in ("Rot", "Tilt", "Psi")], axis=-1),
        "origin_in_angstroms": _origins(table, star)[rows],
        "defocus_u_in_angstroms": defocus_u,
        "defocus_v_in_angstroms": column("rlnDefocusV") if "rlnDefocusV" in table else defocus_u,
        "defocus_angle_in_degrees": column("rlnDefocusAngle", 0.0),
        "phase_shift_in_degrees": column("rlnPhaseShift", 0.0),
        "b_factor_in_square_angstroms": column("rlnCtfBfactor", 0.0),
        "ctf_scale": column("rlnCtfScalefactor", 1.0),
    }


def _particle_table(blocks: dict[str, Table], star: Path) -> Table:
    if "particles" in blocks:
        return blocks["particles"]
    others = [table for name, table in blocks.items() if name != "optics" and "rlnAngleRot" in table]
    if not others:
        raise InputError(f"{star}: no table with rlnAngleRot to take poses from; give a RELION particle star")
    return others[0]


def _taken_optics(
    settings: SimulationSettings, blocks: dict[str, Table], table: Table, rows: NDArray[np.int64]
) -> tuple[tuple[OpticsGroup, ...], NDArray[np.int32]]:
    """Optics groups and (n,) the group of each image: from the optics table, else one per distinct set of values."""
    constants = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
    if "optics" in blocks and "rlnOpticsGroup" in table:
        source, group = blocks["optics"], _rows_of_optics(blocks["optics"], table, rows)
        chosen = np.arange(len(source))
    else:
        source = table
        columns = [table.column(name) for name in (*constants, *ABERRATION_COLUMNS) if name in table]
        first: dict[tuple[str, ...], int] = {}  # the row where a set of values occurs first
        own = [first.setdefault(tuple(column[row] for column in columns), row) for row in rows.tolist()]
        chosen, group = np.unique(own, return_inverse=True)
    voltage, aberration, contrast = (_finite(source, name) for name in constants)
    if not (voltage > 0).all():
        raise InputError(f"{table.label}: rlnVoltage is {voltage.min():g}; it must be a positive number of kV: mend it")
    if not ((contrast >= 0) & (contrast <= 1)).all():
        raise InputError(f"{table.label}: rlnAmplitudeContrast must be within 0 and 1: mend it")
    optics = tuple(
        with_aberrations(
            _optics(settings, f"group{number}", float(voltage[row]), float(aberration[row]), float(contrast[row])),
            {name: source.column(name)[row] for name in ABERRATION_COLUMNS if name in source},
            f"{source.label}, row {row + 1}",
        )
        for number, row in enumerate(chosen.tolist(), start=1)
    )
    return optics, group.reshape(-1).astype(np.int32)


def _rows_of_optics(optics: Table, table: Table, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) the row of the optics table of each image."""
    wanted = table.integers("rlnOpticsGroup")[rows]
    same = wanted[:, None] == optics.integers("rlnOpticsGroup")
    if not same.any(axis=1).all():
        missing = wanted[~same.any(axis=1)][0]
        raise InputError(f"{table.label}: optics group {missing} is not in the optics table; add it there")
    return np.argmax(same, axis=1)


def _finite(table: Table, name: str) -> NDArray[np.float64]:
    """(rows,) a column of the table, all of whose values are finite."""
    values = table.floats(name)
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise InputError(
            f"{table.label}, row {row + 1}: {name} is {values[row]}; it must be finite: mend or remove the row"
        )
    return values


def _origins(table: Table, star: Path) -> NDArray[np.float64]:
    """(rows, 2) x, y in Å; RELION 3.0 writes pixels of detector pixel size / magnification; absent means 0."""
    if "rlnOriginXAngst" in table:
        return np.stack([_finite(table, "rlnOriginXAngst"), _finite(table, "rlnOriginYAngst")], axis=-1)
    if "rlnOriginX" not in table:
        return np.zeros((len(table), 2))
    if "rlnDetectorPixelSize" not in table or "rlnMagnification" not in table:
        raise InputError(f"{star}: origins in pixels, but no rlnDetectorPixelSize and rlnMagnification to scale them")
    magnification = _finite(table, "rlnMagnification")
    if not (magnification > 0).all():
        raise InputError(f"{table.label}: rlnMagnification is {magnification.min():g}; it must be positive: mend it")
    pixel_size = 1e4 * _finite(table, "rlnDetectorPixelSize") / magnification
    return pixel_size[:, None] * np.stack([_finite(table, "rlnOriginX"), _finite(table, "rlnOriginY")], axis=-1)
