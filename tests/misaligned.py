"""Particles whose poses, shifts, contrasts and defoci are wrong by known amounts, for the tests of the refinement."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from emsplat.fourier.slices import fourier_volume
from emsplat.particles.table import Particles
from emsplat.poses import refine
from emsplat.poses.refine import reference
from emsplat.simulation.run import signal_images
from phantom import ImagesInMemory, imagined_particles, lopsided_map

BOX, PIXEL_SIZE, LIMIT = 48, 3.0, 16
DIAMETER = 0.7 * BOX * PIXEL_SIZE
RANGES = (10.0, 15.0)
COLUMNS = {"poses": [0, 1, 2], "shifts": [3, 4], "contrast": [5], "defocus": [6]}
SPREAD = np.array([0.03] * 3 + [3.0] * 2 + [0.15, 300.0])  # radians, Å, 1, Å
KINDS = {
    "plain": {},
    "premultiplied": {"premultiplied": True},
    "aberrated": {
        "beam_tilt_in_milliradians": (3.0, -2.0),
        "even_zernike": (0.0, 0.0, 40.0, 300.0),
        "magnification": (1.02, 0.01, 0.01, 0.97),
    },
}


def particles_of(n: int, **optics: object) -> Particles:
    """Every other image in a group of another voltage, with optics of its own."""
    particles = imagined_particles(n, BOX, PIXEL_SIZE)
    second = replace(particles.optics[0], name="other", voltage_in_kilovolts=200.0, **optics)
    groups = np.arange(n, dtype=np.int32) % 2
    return replace(particles, optics=(*particles.optics, second), optics_group=groups)


def recorded(particles: Particles, snr: float, seed: int = 1) -> tuple[ImagesInMemory, NDArray[np.float64]]:
    """Images of the phantom, and the power of their noise."""
    images = signal_images(fourier_volume(lopsided_map(BOX)), particles)
    sigma = float(np.sqrt(images.var() / snr))
    images += sigma * np.random.default_rng(seed).standard_normal(images.shape, dtype=np.float32)
    return ImagesInMemory(images), np.full((len(particles.optics), BOX // 2 + 1), sigma**2 * BOX**2)


def true_reference(limit: int = LIMIT) -> refine.Reference:
    return reference(lopsided_map(BOX), np.ones(BOX // 2), limit, DIAMETER)


def drawn(n: int, quantities: tuple[str, ...], seed: int = 2) -> NDArray[np.float64]:
    changes = np.zeros((n, 7))
    for name in quantities:
        columns = COLUMNS[name]
        changes[:, columns] = SPREAD[columns] * np.random.default_rng(seed).normal(size=(n, len(columns)))
    return changes


def rms(values: NDArray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def errors(particles: Particles, true: Particles) -> dict[str, NDArray[np.float64]]:
    """By quantity, from the particles' own columns: degrees, Å, 1, Å."""
    between = particles.rotations() @ true.rotations().transpose(0, 2, 1)
    return {
        "poses": np.rad2deg(Rotation.from_matrix(between).magnitude()),
        "shifts": np.linalg.norm(particles.origin_in_angstroms - true.origin_in_angstroms, axis=1),
        "contrast": particles.ctf_scale / true.ctf_scale - 1,
        "defocus": 0.5
        * (
            particles.defocus_u_in_angstroms
            + particles.defocus_v_in_angstroms
            - true.defocus_u_in_angstroms
            - true.defocus_v_in_angstroms
        ),
    }
