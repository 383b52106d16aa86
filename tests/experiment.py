"""A known truth and half maps of it as a run makes them, without a run."""

from __future__ import annotations

import numpy as np

from emsplat.fourier import maps

Volume = np.ndarray


def noise(rng: np.random.Generator, box_size: int) -> Volume:
    return rng.standard_normal((box_size,) * 3, dtype=np.float32)


def particle(rng: np.random.Generator, box_size: int, falloff: float) -> Volume:
    """Points within a ball of diameter 0.5 D, blurred."""
    places = rng.normal(0, 0.11 * box_size, (500, 3))
    places = np.rint(places[np.linalg.norm(places, axis=1) < 0.25 * box_size]).astype(int) + box_size // 2
    points = np.zeros((box_size,) * 3, dtype=np.float32)
    np.add.at(points, tuple(places.T), 1)
    return maps.radial_filter(points, np.exp(-falloff * (np.arange(box_size) / box_size) ** 2))


class Experiment:
    """A known truth, raw halves with noise, Gaussian halves = filtered raw halves + one error of the prior in both."""

    def __init__(self, box_size: int, falloff: float, half_at: float, prior_error: float, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.box_size, self.shells = box_size, np.arange(box_size)
        self.truth = particle(self.rng, box_size, falloff)
        spectrum = maps.half_spectrum(self.truth)
        power = maps.shell_correlation(spectrum, spectrum, box_size) / maps.shell_size(box_size)
        self.power = np.append(power, np.full(box_size - len(power), power[-1]))
        crossing = int(half_at * box_size / 2)
        self.noise_power = self.power[crossing] * (1 + (self.shells / crossing) ** 2) / 2
        self.prior_power = prior_error * self.power * (2 * self.shells / box_size) ** 2
        self.mask = maps.soft_sphere(box_size, 0.6 * box_size, 4)

    def coloured(self, power: np.ndarray) -> Volume:
        return maps.radial_filter(noise(self.rng, self.box_size), np.sqrt(power) / self.box_size**1.5)

    def run(self) -> tuple[list[Volume], list[Volume]]:
        raw = [self.truth + self.coloured(self.noise_power) for _ in range(2)]
        wiener = self.power / (self.power + 0.5 * self.noise_power)
        shared = self.coloured(self.prior_power)
        support = maps.soft_sphere(self.box_size, 0.56 * self.box_size, 3)
        gaussian = [np.maximum(maps.radial_filter(r, wiener) * support, 0) + shared for r in raw]
        return raw, gaussian
