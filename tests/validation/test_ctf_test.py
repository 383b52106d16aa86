"""Whether images have the CTFs of their file is found from the images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emsplat.fourier.slices import fourier_volume
from emsplat.imaging.forward import ForwardModel
from emsplat.particles.table import Particles
from emsplat.statistics.preview import statistics_of_sample
from emsplat.validation.ctf_test import CtfEvidence, compare_ctfs
from phantom import ImagesInMemory, imagined_particles, lopsided_map

N, BOX, ALONE = 400, 32, np.eye(3)[None]


def images_of(particles: Particles, noise: float, seed: int = 0) -> ImagesInMemory:
    """Images of a particle, with noise of so many times their standard deviation."""
    model = ForwardModel.of(particles)
    clean = model.images(model.from_volume(fourier_volume(lopsided_map(BOX))))
    clean = clean.numpy() if isinstance(clean, torch.Tensor) else clean
    rng = np.random.default_rng(seed)
    return ImagesInMemory((clean + noise * clean.std() * rng.normal(size=clean.shape)).astype(np.float32))


def evidence(particles: Particles, images: ImagesInMemory) -> CtfEvidence:
    tables = (particles, particles.without_ctf())
    return compare_ctfs(particles, *(statistics_of_sample(table, images, ALONE, 0) for table in tables))


@pytest.mark.parametrize("noise", [1.0, 3.0])
def test_images_with_the_ctfs_of_their_table(noise: float) -> None:
    particles = imagined_particles(N, BOX, pixel_size=4.0)
    assert evidence(particles, images_of(particles, noise)).is_sure


def test_images_without_a_ctf_with_those_of_others_and_noise() -> None:
    particles = imagined_particles(N, BOX, pixel_size=4.0)
    assert not evidence(particles, images_of(particles.without_ctf(), 2.0)).is_sure
    shuffled = particles.select(np.random.default_rng(1).permutation(N))
    others = images_of(particles.without_ctf(), 2.0)
    assert not evidence(
        particles.with_defocus_changed(shuffled.defocus_u_in_angstroms - particles.defocus_u_in_angstroms), others
    ).is_sure
    noise = np.random.default_rng(2).normal(size=(N, BOX, BOX)).astype(np.float32)
    assert not evidence(particles, ImagesInMemory(noise)).is_sure
