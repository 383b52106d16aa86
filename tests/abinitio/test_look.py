"""The particle's outline is seen in the variance of the images, whether or not some of them show neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.abinitio import look

BOX = 32


def spots(n: int, farthest: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """(n, B, B) images with six spots each, which lie within a distance of the middle."""
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    images = np.zeros((n, BOX, BOX), np.float32)
    for image in images:
        for _ in range(6):
            angle, distance = rng.uniform(0, 2 * np.pi), farthest * np.sqrt(rng.random())
            across, down = distance * np.cos(angle), distance * np.sin(angle)
            image += np.exp(-((x - across) ** 2 + (y - down) ** 2) / 2).astype(np.float32)
    return images


@pytest.mark.parametrize("neighbours", [0.0, 0.4])
def test_the_outline_is_that_of_the_particle(neighbours: float) -> None:
    rng = np.random.default_rng(4)
    images = spots(1200, 6.0, rng)
    for image in images[: round(neighbours * len(images))]:
        angle = rng.uniform(0, 2 * np.pi)
        off = np.rint(rng.uniform(10, 14) * np.array([np.sin(angle), np.cos(angle)])).astype(int)
        image += np.roll(spots(1, 6.0, rng)[0], off, axis=(0, 1))
    images += 0.3 * rng.normal(size=images.shape).astype(np.float32)
    assert look._outline(images) == pytest.approx(2 * 7.5, abs=3.1)


def test_noise_has_no_outline() -> None:
    noise = np.random.default_rng(5).normal(size=(800, BOX, BOX)).astype(np.float32)
    assert look._outline(noise) is None
