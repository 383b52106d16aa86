"""What each simulated image shows beyond its pose and CTF: its conformation and contrast, or junk."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.particles.table import Particles
from emsplat.runtime.files import replacing
from emsplat.settings import SimulationSettings
from emsplat.simulation.conformations import Conformations

PARTICLE, EMPTY, NEIGHBOURS = 0, 1, 2
_KINDS = ("", "empty", "neighbours")
_LEAST_CONTRAST = 0.1
_NEIGHBOUR_DISTANCE = (0.3, 0.45)  # distance of neighbours from the centre, in units of the box's edge


@dataclass(frozen=True)
class Labels:
    """The truth about N images."""

    state: NDArray[np.int32]  # (N,) conformation, from 0
    contrast: NDArray[np.float64]  # (N,) scale of the signal
    junk: NDArray[np.int8]  # (N,) PARTICLE, EMPTY or NEIGHBOURS

    @property
    def say_something(self) -> bool:
        """Whether any image differs from the others by more than its pose and CTF."""
        return bool(self.state.any() or self.junk.any() or (self.contrast != 1).any())


def draw_labels(conformations: Conformations, settings: SimulationSettings) -> Labels:
    """The labels of a simulation's images; half of the junk is empty, half shows neighbours."""
    n = settings.n_images
    rng = np.random.default_rng([settings.seed, 2])
    contrast = np.maximum(rng.normal(1, settings.contrast_sigma, n), _LEAST_CONTRAST)
    junk = np.zeros(n, dtype=np.int8)
    chosen = rng.choice(n, round(settings.junk * n), replace=False)
    junk[chosen] = np.where(np.arange(len(chosen)) % 2 == 0, EMPTY, NEIGHBOURS)
    return Labels(conformations.of_images(n), contrast, junk)


def neighbours(particles: Particles, rows: NDArray[np.int64], seed: int, which: int) -> Particles:
    """The particles of these rows with other poses and far from the centre; `which` numbers several neighbours."""
    places = [_place(particles, np.random.default_rng([seed, 4, which, row])) for row in rows.tolist()]
    angles, origins = (np.array(values).reshape(len(rows), -1) for values in zip(*places, strict=True))
    return replace(particles.select(rows), euler_angles_in_degrees=angles, origin_in_angstroms=origins)


def _place(particles: Particles, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Angles in degrees and an origin in Å."""
    edge = particles.box_size * particles.pixel_size_in_angstroms
    rot, psi, direction = rng.uniform(-180, 180, 3)
    distance = edge * rng.uniform(*_NEIGHBOUR_DISTANCE)
    turn = np.deg2rad(direction)
    tilt = np.rad2deg(np.arccos(rng.uniform(-1, 1)))
    return np.array([rot, tilt, psi]), distance * np.array([np.cos(turn), np.sin(turn)])


def write_labels(path: Path, labels: Labels, conformations: Conformations, particles: Particles) -> None:
    """Write a row for each image in the order of the star: what it shows, and its true pose (degrees, Å)."""
    header = ("image", "state", "model", "contrast", "junk", "rot", "tilt", "psi", "origin_x", "origin_y")
    poses = np.concatenate([particles.euler_angles_in_degrees, particles.origin_in_angstroms], axis=1)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for name, state, contrast, junk, pose in zip(
            particles.ids, labels.state.tolist(), labels.contrast.tolist(), labels.junk.tolist(), poses, strict=True
        ):
            model = conformations.states[state].name
            writer.writerow([name, state + 1, model, f"{contrast:.6f}", _KINDS[junk], *(f"{x:.6f}" for x in pose)])
