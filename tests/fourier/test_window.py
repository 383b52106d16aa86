from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from emsplat.fourier.window import Window

WINDOWS = [Window.for_oversampling(4, 1.5), Window.for_oversampling(6, 2.0), Window.for_oversampling(4, 5.0)]


@pytest.mark.parametrize("window", WINDOWS)
def test_the_transform_is_the_windows(window: Window) -> None:
    def value(u: float) -> float:
        return float(np.i0(window.beta * np.sqrt(1 - (2 * u / window.width) ** 2)))

    for frequency in (0.0, 0.1, 0.25, 0.4, 0.7, 1.1):  # on both sides of where the root turns imaginary
        expected, _ = quad(
            lambda u, f=frequency: value(u) * np.cos(2 * np.pi * f * u), -window.width / 2, window.width / 2
        )
        assert window.transform(np.array([frequency]))[0] == pytest.approx(expected, rel=1e-6, abs=1e-7 * value(0))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("steps", "tolerance"), [(512, 5e-6), (4096, 2e-7)])
def test_interpolated_taps_are_the_windows(window: Window, steps: int, tolerance: float) -> None:
    x = np.random.default_rng(0).uniform(-20, 20, 1000)
    first = np.ceil(x - window.width / 2)
    position = (first - x + window.width / 2) * steps
    row = position.astype(int)
    table = window.taps(steps)
    got = table[row] + (position - row)[:, None] * (table[row + 1] - table[row])
    u = first[:, None] + np.arange(window.width) - x[:, None]
    assert np.abs(u).max() <= window.width / 2
    expected = np.i0(window.beta * np.sqrt(1 - (2 * u / window.width) ** 2))
    assert np.abs(got - expected).max() < tolerance * np.i0(window.beta)


@pytest.mark.parametrize(("width", "oversampling", "tolerance"), [(4, 1.5, 3e-3), (4, 2.0, 1e-3), (6, 2.0, 1e-5)])
def test_the_taps_carry_a_wave(width: int, oversampling: float, tolerance: float) -> None:
    """What the window is for: φ̂(f) exp(2πi f x) ≈ Σ_j φ(j − x) exp(2πi f j) for every f in use, over all x."""
    window = Window.for_oversampling(width, oversampling)
    frequency = np.linspace(-0.5, 0.5, 41) / oversampling
    errors = []
    for x in np.linspace(0.01, 0.99, 25):
        j = np.ceil(x - width / 2) + np.arange(width)
        values = np.i0(window.beta * np.sqrt(1 - (2 * (j - x) / width) ** 2))
        wave = (values * np.exp(2j * np.pi * frequency[:, None] * j)).sum(axis=1) / window.transform(frequency)
        errors.append(np.abs(wave - np.exp(2j * np.pi * frequency * x)))
    assert np.sqrt(np.mean(np.square(errors))) < tolerance
