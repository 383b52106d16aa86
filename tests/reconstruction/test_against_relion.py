"""RELION as the judge of signs, axes and units: `relion_reconstruct --ctf` on the star and stack we read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.fourier.maps import soft_sphere
from emsplat.fourier.slices import fourier_volume
from emsplat.io.images import ImageSource
from emsplat.io.mrc import StackWriter, read_map
from emsplat.io.relion import read_relion
from emsplat.io.star import write_star
from emsplat.simulation.acquisition import star_tables
from emsplat.simulation.run import noise_images, signal_images
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.validation.correlation import fsc
from phantom import accumulated, imagined_particles, lopsided_map
from relion import run_relion

BOX, PIXEL_SIZE, IMAGES = 48, 4.0, 1500

REACH = int(0.8 * BOX / 2)
SPHERE = soft_sphere(BOX, 38.0, 4.0)  # RELION blanks what is outside the sphere inscribed in the box; we do not


def both_maps(folder: Path, snr: float) -> tuple[NDArray, NDArray, NDArray]:
    """The truth, our raw map and RELION's, from the same files; shifts, astigmatism and a phase shift in them."""
    truth = lopsided_map(BOX)
    particles = imagined_particles(IMAGES, BOX, PIXEL_SIZE)
    particles = replace(particles, ids=np.array([f"{i + 1:06d}@images.mrcs" for i in range(IMAGES)]))
    images = signal_images(fourier_volume(truth), particles)
    noise = noise_images(np.random.default_rng(0), IMAGES, BOX, PIXEL_SIZE, "coloured")
    images += np.float32(np.sqrt(images.var(axis=(1, 2)).mean() / snr)) * noise
    with StackWriter(folder / "images.mrcs", BOX, PIXEL_SIZE) as writer:
        writer.append(images)
    write_star(folder / "images.star", star_tables(particles))
    run_relion("relion_reconstruct", "--i", "images.star", "--o", "relion.mrc", "--ctf", folder=folder)

    found = read_relion(folder / "images.star")
    # RELION's reconstruction does not whiten either.
    settings = AccumulationSettings(BOX, BOX, np.ones((1, BOX // 2 + 1)), np.eye(3)[None])
    with ImageSource(found) as source:
        [s] = accumulated(found, source, np.zeros(IMAGES, dtype=np.int8), settings)
    return truth, s.raw_map(), read_map(folder / "relion.mrc").values


@pytest.fixture(scope="module")
def maps_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], tuple[NDArray, NDArray, NDArray]]:
    known: dict[float, tuple[NDArray, NDArray, NDArray]] = {}

    def get(snr: float) -> tuple[NDArray, NDArray, NDArray]:
        if snr not in known:
            known[snr] = both_maps(tmp_path_factory.mktemp("relion"), snr)
        return known[snr]

    return get


@pytest.mark.parametrize("snr", [np.inf, 0.1])
def test_our_raw_map_is_relions(maps_of: Callable, snr: float) -> None:
    _, ours, relions = maps_of(snr)
    assert fsc(ours, relions, SPHERE)[:REACH].min() > 0.99


def test_the_judge_sees_the_truth_and_its_hand(maps_of: Callable) -> None:
    truth, ours, relions = maps_of(np.inf)
    assert fsc(relions, truth, SPHERE)[:REACH].min() > 0.99
    for mirrored in (np.roll(ours[:, :, ::-1], 1, axis=2), np.roll(ours[::-1], 1, axis=0)):
        assert fsc(mirrored, relions, SPHERE)[3:REACH].max() < 0.9


def test_our_units_are_the_truths(maps_of: Callable) -> None:
    """A map's values are sums over its voxels; the raw inversion is short of them by its regularisation."""
    truth, ours, _ = maps_of(np.inf)
    scale = np.vdot(ours, truth) / np.vdot(truth, truth)
    assert 0.85 < scale < 1.0
