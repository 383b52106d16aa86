from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import blobs
from emsplat.abinitio import volume
from emsplat.abinitio.polar import PolarGrid, read_polar
from emsplat.abinitio.transfer import own_ctfs_win
from emsplat.optics.ctf import ctf
from emsplat.particles.table import Particles
from phantom import ImagesInMemory, imagined_particles

N = 300
GRID = PolarGrid.of(12, 0.8)


def test_images_are_likelier_with_their_own_ctfs_only_if_the_table_has_them() -> None:
    rng = np.random.default_rng(3)
    particles = imagined_particles(N, blobs.BOX, pixel_size=3.0)
    rotations = Rotation.random(N, random_state=rng).as_matrix()
    ky, kx = np.meshgrid(np.fft.fftfreq(32, 1 / 32), np.arange(17), indexing="ij")
    points = np.einsum("yxc,ncv->nyxv", np.stack([kx, ky], axis=-1), rotations[:, :2])
    to_middle = np.exp(-2j * np.pi * (blobs.BOX // 2) * (kx + ky) / blobs.BOX)
    clean = np.fft.irfft2(ctf(particles) * blobs.transform_at(points) * to_middle)
    noisy = clean + 2 * clean.std() * rng.normal(size=clean.shape)
    noise = np.full((1, 17), 4 * clean.var() * blobs.BOX**2)
    map_ = blobs.map_of(volume.map_box(GRID))

    def value(table: Particles) -> float:
        arguments = (ImagesInMemory(noisy.astype(np.float32)), np.arange(N), noise, GRID, 30.0)
        signal = read_polar(table, *arguments)[1].signal
        tilted = Rotation.from_rotvec(0.05 * rng.normal(size=(N, 3))).as_matrix() @ rotations  # poses are not exact
        return own_ctfs_win(table, *arguments, 0.8 * map_, tilted, np.zeros((N, 2)), signal, np.random.default_rng(0))

    shuffled = rng.permutation(N)
    wrong = replace(
        particles,
        defocus_u_in_angstroms=particles.defocus_u_in_angstroms[shuffled],
        defocus_v_in_angstroms=particles.defocus_v_in_angstroms[shuffled],
    )
    assert value(particles) > 0.6
    assert value(wrong) < 0.2
    assert value(particles.without_ctf()) == pytest.approx(1.0)  # all CTFs are one: nothing can be said
