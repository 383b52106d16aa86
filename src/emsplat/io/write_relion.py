"""Writes particles of any source as a RELION 3.1 star, which RELION 3.1, 4 and 5 read.

Source: the label definitions of RELION 3.1 (``relion_refine --print_metadata_labels``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.io.relion_aberrations import aberration_columns
from emsplat.io.star import Table, write_star
from emsplat.particles.table import Particles


def write_relion(particles: Particles, path: str | Path, project: str | Path | None = None) -> None:
    """Write particles as a star with an optics block.

    Args:
        project: the folder that RELION is started in; by default the working directory. Image names are relative to it
            if the stacks lie below it, and otherwise absolute, because RELION looks nowhere else.
    """
    names = [_stack_name(stack, Path(project or ".").absolute()) for stack in particles.stacks]
    write_star(path, {"optics": _optics_table(particles), "particles": _particle_table(particles, names)})


def _stack_name(stack: Path, project: Path) -> str:
    """The name by which RELION finds a stack. A name without .mrcs is marked, or RELION would take it for a map."""
    name = os.path.relpath(stack, project)
    if name.startswith(".."):
        name = str(stack.absolute())
    return name if name.endswith(".mrcs") else f"{name}:mrcs"


def _particle_table(particles: Particles, stack_names: Sequence[str]) -> Table:
    p = particles
    columns: dict[str, list[str]] = {
        "rlnImageName": [
            f"{section + 1:06d}@{stack_names[stack]}" for section, stack in zip(p.section, p.stack, strict=True)
        ],
        "rlnOpticsGroup": [str(group + 1) for group in p.optics_group],
    }
    numbers = {
        "rlnAngleRot": p.euler_angles_in_degrees[:, 0],
        "rlnAngleTilt": p.euler_angles_in_degrees[:, 1],
        "rlnAnglePsi": p.euler_angles_in_degrees[:, 2],
        "rlnOriginXAngst": p.origin_in_angstroms[:, 0],
        "rlnOriginYAngst": p.origin_in_angstroms[:, 1],
        "rlnCtfScalefactor": p.ctf_scale,
    }
    if p.has_ctf:
        numbers |= {
            "rlnDefocusU": p.defocus_u_in_angstroms,
            "rlnDefocusV": p.defocus_v_in_angstroms,
            "rlnDefocusAngle": p.defocus_angle_in_degrees,
            "rlnPhaseShift": p.phase_shift_in_degrees,
            "rlnCtfBfactor": p.b_factor_in_square_angstroms,
        }
    if p.pre_exposure.any():
        numbers["rlnMicrographPreExposure"] = p.pre_exposure
    columns |= {name: _decimals(values) for name, values in numbers.items()}
    if p.half_set.any():
        columns["rlnRandomSubset"] = [str(half) for half in p.half_set]
    if len(np.unique(p.particle)) < len(p):
        columns["rlnTomoParticleName"] = [f"particle/{number + 1:08d}" for number in p.particle]
    return Table(columns)


def _decimals(values: NDArray[np.float64]) -> list[str]:
    return [f"{value:.6f}" for value in values.tolist()]


def _optics_table(particles: Particles) -> Table:
    groups = particles.optics
    columns = {
        "rlnOpticsGroup": [str(number) for number in range(1, len(groups) + 1)],
        "rlnOpticsGroupName": [group.name for group in groups],
    }
    if particles.has_ctf:
        columns |= {
            "rlnVoltage": [str(g.voltage_in_kilovolts) for g in groups],
            "rlnSphericalAberration": [str(g.spherical_aberration_in_millimetres) for g in groups],
            "rlnAmplitudeContrast": [str(g.amplitude_contrast) for g in groups],
        }
    columns |= {
        "rlnImagePixelSize": [str(g.pixel_size_in_angstroms) for g in groups],
        "rlnImageSize": [str(g.box_size) for g in groups],
        "rlnImageDimensionality": ["2"] * len(groups),
        "rlnCtfDataAreCtfPremultiplied": [str(int(g.premultiplied)) for g in groups],
    }
    if any(g.phase_flipped for g in groups):
        columns["rlnCtfDataArePhaseFlipped"] = [str(int(g.phase_flipped)) for g in groups]
    return Table(columns | aberration_columns(groups))
