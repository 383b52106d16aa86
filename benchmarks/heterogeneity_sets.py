"""The sets of the benchmark of heterogeneity: images of known conformations, and images of a single one."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformations import maps_of
from emsplat.io import read_map
from emsplat.settings import SimulationSettings
from emsplat.simulation import simulate

_BASE = SimulationSettings(b_factor_in_square_angstroms=60.0)


@dataclass(frozen=True)
class Set:
    """Images of several conformations."""

    name: str
    conformations: str  # name of the function of `conformations` that makes them
    number: int
    box_size: int
    pixel_size: float
    n_images: int
    snr: float
    populations: tuple[float, ...] | None = None
    kind: str = "discrete"  # or "circle", or "continuous"


_UNEQUAL = (20.0, 8.0, 15.0, 5.0, 18.0, 10.0, 14.0, 10.0)
SETS = (
    Set("8 compositions 64²", "compositions", 8, 64, 3.5, 8000, 0.05, _UNEQUAL),
    Set("hinge circle 64²", "circle", 36, 64, 6.0, 10_000, 0.05, kind="circle"),
    Set("MsbA 70/30 64²", "two_states", 2, 64, 3.0, 6000, 0.05, (70, 30)),
    Set("bend and twist 64²", "bend_and_twist", 50, 64, 4.0, 6000, 0.05, kind="continuous"),
    Set("two-angle hinge 64²", "two_angles", 50, 64, 6.0, 10_000, 0.05, kind="continuous"),
    Set("hinge circle 64², SNR .01", "circle", 36, 64, 6.0, 10_000, 0.01, kind="circle"),
    Set("8 compositions 64², SNR .01", "compositions", 8, 64, 3.5, 8000, 0.01, _UNEQUAL),
    Set("MsbA 70/30 64², SNR .01", "two_states", 2, 64, 3.0, 6000, 0.01, (70, 30)),
    Set("bend and twist 64², SNR .01", "bend_and_twist", 50, 64, 4.0, 6000, 0.01, kind="continuous"),
    Set("two-angle hinge 64², SNR .01", "two_angles", 50, 64, 6.0, 10_000, 0.01, kind="continuous"),
    Set("hinge circle 128²", "circle", 36, 128, 3.0, 10_000, 0.035, kind="circle"),
)
SMALL = (
    Set("8 compositions 48²", "compositions", 8, 48, 4.67, 4000, 0.05, _UNEQUAL),
    Set("hinge circle 48²", "circle", 36, 48, 8.0, 4000, 0.05, kind="circle"),
    Set("MsbA 70/30 48²", "two_states", 2, 48, 4.0, 3000, 0.05, (70, 30)),
    Set("bend and twist 48²", "bend_and_twist", 24, 48, 5.3, 3000, 0.05, kind="continuous"),
    Set("hinge circle 48², SNR .01", "circle", 36, 48, 8.0, 4000, 0.01, kind="circle"),
    Set("two-angle hinge 48²", "two_angles", 24, 48, 8.0, 3000, 0.05, kind="continuous"),
    Set("8 compositions 48², SNR .01", "compositions", 8, 48, 4.67, 4000, 0.01, _UNEQUAL),
    Set("MsbA 70/30 48², SNR .01", "two_states", 2, 48, 4.0, 3000, 0.01, (70, 30)),
    Set("bend and twist 48², SNR .01", "bend_and_twist", 24, 48, 5.3, 3000, 0.01, kind="continuous"),
    Set("two-angle hinge 48², SNR .01", "two_angles", 24, 48, 8.0, 3000, 0.01, kind="continuous"),
)
QUICK = (Set("8 compositions 32²", "compositions", 8, 32, 7.0, 800, 0.2, _UNEQUAL),)
NULL = Set("one state", "compositions", 8, 64, 3.5, 4000, 0.05)
SMALL_NULL = Set("one state", "compositions", 8, 48, 4.67, 1500, 0.05)
QUICK_NULL = Set("one state", "compositions", 8, 32, 7.0, 800, 0.2)
NULLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "contrast ±20 %": {"contrast_sigma": 0.2},
    "junk 20 %": {"junk": 0.2},
    "coloured noise": {"noise": "coloured"},
    "uneven views": {"orientations": "uneven"},
    "poses off by 2°, .6 px": {"angle_error_in_degrees": 2.0},
    "the same, refined": {"angle_error_in_degrees": 2.0, "refine": "poses,shifts"},
}
_SHIFT_ERROR_IN_PIXELS = 0.6


def simulated(one: Set, work: Path, seed: int) -> Path:
    """The star of a set, made once."""
    settings = replace(_BASE, **_common(one), seed=seed, populations=one.populations)
    models = maps_of(one.conformations, one.number, one.box_size, one.pixel_size, work)
    return _made(f"{one.name}-{one.n_images}-{seed}", models, settings, work)


def simulated_null(kind: str, one: Set, work: Path, seed: int) -> Path:
    """The star of a set of one state, made once."""
    options = {name: value for name, value in NULLS[kind].items() if name != "refine"}
    if "angle_error_in_degrees" in options:
        options["shift_error_in_angstroms"] = _SHIFT_ERROR_IN_PIXELS * one.pixel_size
    model = maps_of(one.conformations, one.number, one.box_size, one.pixel_size, work)[0]
    name = f"null-{'-'.join(f'{k}-{v}' for k, v in options.items())}-{one.box_size}-{one.n_images}-{seed}"
    return _made(name, model, replace(_BASE, **_common(one), **options, seed=seed), work)


def _common(one: Set) -> dict[str, Any]:
    return {
        "n_images": one.n_images, "box_size": one.box_size, "pixel_size_in_angstroms": one.pixel_size, "snr": one.snr,
    }  # fmt: skip


def _made(name: str, models: Path | list[Path], settings: SimulationSettings, work: Path) -> Path:
    folder = work / name.replace(" ", "-").replace(",", "")
    if not (folder / "particles.star").exists():
        simulate(models, folder, settings, overwrite=True)
    return folder / "particles.star"


def states_of(star: Path) -> NDArray[np.int64]:
    """(N,) conformation of each image, from 0."""
    with star.with_name("labels.csv").open(newline="") as file:
        return np.array([int(row["state"]) - 1 for row in csv.DictReader(file)])


def truths_of(star: Path) -> list[NDArray[np.float32]]:
    """The map of each conformation."""
    return [read_map(path).values for path in sorted(star.with_name("truths").glob("*.mrc"))]


def coordinates(one: Set, truths: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """(S, t) coordinates that a latent should tell of each conformation.

    They are points of a circle; the coordinates along the two strongest components of the true maps, with unit
    variance; or, for discrete states, one that is 1 for the state and 0 for the others.
    """
    if one.kind == "circle":
        angle = 2 * np.pi * np.arange(one.number) / one.number
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if one.kind == "discrete":
        return np.eye(one.number)
    flat = np.stack([truth.ravel() for truth in truths]).astype(np.float64)
    values, vectors = np.linalg.eigh((flat - flat.mean(axis=0)) @ (flat - flat.mean(axis=0)).T)
    return vectors[:, np.argsort(values)[-2:]] * np.sqrt(len(truths))


def latent_error(one: Set, guess: NDArray[np.float64], labels: NDArray[np.int64], true: NDArray[np.float64]) -> float:
    """The error of guessed coordinates, (n, t).

    It is the median error in degrees on a circle, the percentage of wrong states, or the root mean square error of a
    coordinate of unit variance in percent.
    """
    if one.kind == "circle":
        apart = np.arctan2(*guess.T[::-1]) - np.arctan2(*true[labels].T[::-1])
        return float(np.rad2deg(np.median(np.abs(np.angle(np.exp(1j * apart))))))
    if one.kind == "discrete":
        return float(100 * np.mean(guess.argmax(axis=1) != labels))
    return float(100 * np.sqrt(np.mean((guess - true[labels]) ** 2)))
