"""A look at all shifts: particles that lie far from where they were thought to lie are found, and the others stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import blobs
from emsplat.abinitio import centring, full, volume
from emsplat.abinitio.full import FullSettings
from emsplat.abinitio.polar import PolarGrid, PolarImages
from emsplat.abinitio.stochastic import StageSettings

GRID = PolarGrid.of(6, 0.7)
N_IMAGES = 60
SETTINGS = FullSettings(5, 96, 18, 384, 36, 1.0, 0.5, fewest_rounds=2, most_rounds=6)
FAR = np.arange(N_IMAGES) < 15  # these particles lie 3.5 pixels from the middle, and the others near it


@pytest.fixture(scope="module")
def data() -> tuple[PolarImages, np.ndarray, StageSettings]:
    """Images of 100 nats, the true centres, and the settings of a stage."""
    rng = np.random.default_rng(4)
    signal = blobs.signal_power(GRID, np.random.default_rng(0))
    angle = rng.uniform(0, 2 * np.pi, N_IMAGES)
    distance = np.where(FAR, 3.5, 0.3)
    centres = distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    weight = 200 / (2 * np.pi * GRID.radii * signal).sum()
    rotations = Rotation.random(N_IMAGES, random_state=rng).as_matrix()
    images = blobs.images_of(GRID, rotations, centres, weight, rng)
    return images, centres, StageSettings(blobs.BOX, 0.7, signal, np.eye(3)[None], max_shift=6.0, shift_sigma=3.0)


def test_far_particles_are_moved_and_near_ones_are_not(data: tuple[PolarImages, np.ndarray, StageSettings]) -> None:
    images, true, stage = data
    map_ = blobs.map_of(volume.map_box(GRID))
    thought = np.where(FAR[:, None], -true / 2, 0.2)
    found, moved = centring.recentred(images, map_, thought, stage, SETTINGS, np.random.default_rng(1))
    errors = np.linalg.norm(found - true, axis=1)
    assert moved == pytest.approx(FAR.mean(), abs=0.05)
    assert np.median(errors[FAR]) < 1.0 and np.mean(errors[FAR] < 2.0) > 0.9
    near = np.all(found[~FAR] == thought[~FAR], axis=1)
    assert near.mean() > 0.95


def test_no_particle_goes_beyond_the_largest_shift(data: tuple[PolarImages, np.ndarray, StageSettings]) -> None:
    images, true, stage = data
    map_ = blobs.map_of(volume.map_box(GRID))
    narrow = replace(stage, max_shift=0.0)
    found, moved = centring.recentred(images, map_, np.zeros_like(true), narrow, SETTINGS, np.random.default_rng(1))
    assert moved == 0 and not found.any()
    narrow = replace(stage, max_shift=2.7)
    found, _ = centring.recentred(images, map_, true, narrow, SETTINGS, np.random.default_rng(1))
    assert np.linalg.norm(found, axis=1).max() < 3.6


def test_a_search_from_a_right_map_looks_again_only_where_it_helps(
    data: tuple[PolarImages, np.ndarray, StageSettings],
) -> None:
    images, true, stage = data
    rounds = full.Rounds(blobs.map_of(volume.map_box(GRID)), np.zeros((N_IMAGES, 2)))
    after = []
    centring.search_fully(
        images, rounds, stage, SETTINGS, np.random.default_rng(2), lambda: after.append(len(rounds.looks))
    )
    assert rounds.looks[0] > 0.15 and rounds.looks[-1] < 0.1
    assert after[0] == 1 and len(after) == len(rounds.trace.evidence)
    assert np.median(np.linalg.norm(rounds.centres - true, axis=1)[FAR]) < 1.0
