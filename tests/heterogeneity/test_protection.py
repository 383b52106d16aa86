"""Tests of latents: what they must not encode is found when they do, and not when they do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emsplat.heterogeneity.latents import Latents
from emsplat.heterogeneity.protection import explained, explained_by_groups, leaks
from emsplat.particles.table import Particles
from particles.test_table import some_particles

_IMAGES = 3000


def imaged(seed: int) -> tuple[Particles, Latents]:
    """A table of images from all sides, on 60 micrographs, and latents that know nothing of it."""
    rng = np.random.default_rng(seed)
    n = _IMAGES
    defocus = rng.uniform(8000, 25_000, n)
    table = replace(
        some_particles(n),
        euler_angles_in_degrees=np.stack(
            [rng.uniform(0, 360, n), np.rad2deg(np.arccos(rng.uniform(-1, 1, n))), rng.uniform(0, 360, n)], axis=1
        ),
        defocus_u_in_angstroms=defocus + 300,
        defocus_v_in_angstroms=defocus - 300,
        origin_in_angstroms=rng.normal(0, 4, (n, 2)),
        stack=np.sort(rng.integers(0, 60, n)).astype(np.int32),
    )
    latents = Latents.empty(table, 3)
    latents.mean[:] = rng.normal(size=(n, 3))
    latents.contrast[:] = rng.normal(1, 0.2, n)
    return table, latents


def carriers(table: Particles, latents: Latents) -> dict[str, np.ndarray]:
    """Of each quantity, a function of it with unit variance."""
    rng = np.random.default_rng(9)
    view = table.rotations()[:, 2]
    values = {
        "viewing direction": view[:, 0] * view[:, 1],  # the same from both sides
        "defocus": table.defocus_u_in_angstroms,
        "contrast": latents.contrast,
        "shift": table.origin_in_angstroms @ (0.6, -0.8),
        "micrograph": rng.normal(size=60)[table.stack],
    }
    return {name: (v - v.mean()) / v.std() for name, v in values.items()}


@pytest.mark.parametrize("seed", range(3))
def test_latents_that_encode_nothing_worry_nobody(seed: int) -> None:
    found = leaks(*imaged(seed))
    assert {leak.what for leak in found} == {"viewing direction", "defocus", "contrast", "shift", "micrograph"}
    assert all(abs(leak.r_squared) < 4 * leak.error and not leak.is_worrying for leak in found)


@pytest.mark.parametrize("what", ["viewing direction", "defocus", "contrast", "shift", "micrograph"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_what_one_latent_of_three_encodes_is_measured_and_named(what: str, share: float) -> None:
    table, latents = imaged(5)
    carrier = carriers(table, latents)[what]
    latents.mean[:, 1] = np.sqrt(share) * carrier + np.sqrt(1 - share) * latents.mean[:, 1]
    for leak in leaks(table, latents):
        if leak.what == what:
            assert leak.r_squared == pytest.approx(share, abs=0.04)
        assert leak.is_worrying == (leak.what == what), leak


def test_images_without_a_particle_do_not_count() -> None:
    table, latents = imaged(6)
    latents.mean[:500] = 9 * latents.contrast[:500, None]
    latents.junk[:500] = 1
    assert not any(leak.is_worrying for leak in leaks(table, latents))


def test_chance_explains_nothing() -> None:
    rng = np.random.default_rng(0)
    found = [explained(rng.normal(size=(300, 8)), rng.normal(size=(300, 1))) for _ in range(200)]
    assert np.mean([f.share for f in found]) == pytest.approx(0, abs=0.005)
    assert np.std([f.share for f in found]) == pytest.approx(found[0].error, rel=0.15)
    found = [explained_by_groups(np.arange(300) % 60, rng.normal(size=(300, 1))) for _ in range(200)]
    assert np.mean([f.share for f in found]) == pytest.approx(0, abs=0.01)
    assert np.std([f.share for f in found]) == pytest.approx(found[0].error, rel=0.15)


def test_a_constant_predicts_nothing() -> None:
    assert explained(np.ones((50, 2)), np.random.default_rng(0).normal(size=(50, 1))).share == 0
