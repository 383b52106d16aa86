"""Poses that mean nothing are called that, those that do are seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.fft

from emsplat.check.agreement import (
    SURE,
    Agreement,
    agreement_finding,
    measure_agreement,
    predict,
)
from emsplat.check.inversion import SmallData, gather_parts, quarters
from emsplat.check.run import check
from emsplat.check.settings import CheckSettings
from emsplat.fourier.slices import fourier_volume
from emsplat.io.mrc import read_map
from emsplat.optics.ctf import ctf
from emsplat.simulation.run import signal_images

ALONE = np.eye(3)[None]


def agreement_of(data: SmallData, seed: int = 0) -> Agreement:
    part = quarters(data.particles.particle, seed)
    return measure_agreement(data, part, gather_parts(data, part, ALONE), seed, lambda: None)


def shuffled(data: SmallData, seed: int) -> SmallData:
    angles = np.random.default_rng(seed).permutation(data.particles.euler_angles_in_degrees)
    return replace(data, particles=replace(data.particles, euler_angles_in_degrees=angles))


def few(data: SmallData, n: int) -> SmallData:
    return replace(data, particles=data.particles.select(np.arange(n)), images=data.images[:n])


def test_poses_of_a_simulation_carry_signal(small: SmallData) -> None:
    found = agreement_of(small)
    assert found.significance > 15
    assert found.rank > 0.9
    assert found.own.mean() > found.others.mean() + 1
    finding = agreement_finding(found)
    assert finding.verdict == "fine"


@pytest.mark.parametrize("kind", ["noise", "shuffled"])
def test_poses_without_meaning_have_the_distribution_stated(
    kind: str, small: SmallData, noise_like: Callable[[int], SmallData]
) -> None:
    """Over independent trials the significance is a standard normal variable, or narrower: never surely positive."""
    n, trials = 160, 20
    z = []
    for seed in range(trials):
        data = noise_like(seed) if kind == "noise" else shuffled(small, seed)
        z.append(agreement_of(few(data, n), seed).significance)
    assert abs(np.mean(z)) < 4 / np.sqrt(trials)
    assert 0.3 < np.std(z) < 1.45  # the upper end has a chance of 1e-3 where the standard deviation is 1
    assert max(z) < SURE


def test_the_matched_filter_of_noise_has_variance_one(noise_like: Callable[[int], SmallData]) -> None:
    own = agreement_of(noise_like(1)).own
    assert own.std() == pytest.approx(1, abs=0.1)


def test_few_images_give_no_verdict_many_do(small: SmallData, noise_like: Callable[[int], SmallData]) -> None:
    finding = agreement_finding(agreement_of(few(noise_like(0), 40)))
    assert finding.verdict == "note"
    finding = agreement_finding(agreement_of(shuffled(small, 1)))
    assert finding.verdict == "problem"


@pytest.mark.parametrize("premultiplied", [False, True])
def test_predicted_images_are_those_a_simulation_makes(premultiplied: bool, tiny: Path, small: SmallData) -> None:
    table = small.particles
    truth = read_map(tiny / "truth.mrc").values
    rows = np.array([3, 77])
    expected = signal_images(fourier_volume(truth), table.select(rows))
    if premultiplied:
        optics = tuple(replace(group, premultiplied=True) for group in table.optics)
        small = replace(small, particles=replace(table, optics=optics))
        expected = scipy.fft.irfft2(scipy.fft.rfft2(expected) * ctf(table.select(rows)), s=expected.shape[1:])
    assert np.abs(predict(small, truth, rows) - expected).max() < 1e-4 * np.abs(expected).max()


# --- real images ------------------------------------------------------------------------------------------------------


def test_real_tilted_ribosomes(shared_data: Path) -> None:
    """White, CTF-premultiplied, 1,430 images of 40 particles: the poses carry signal; shuffled ones do not."""
    found = check(shared_data / "real/ribosome-tilts/particles.star", CheckSettings(threads=2))
    assert found.problems == []
    assert found.inversion is not None
    assert found.inversion.agreement.is_sure
    assert found.inversion.quick.contrast_is_sure and found.inversion.quick.skewness > 0
    assert not agreement_of(shuffled(found.inversion.data, 1)).is_sure


def test_real_subtomogram_ribosomes_are_white(shared_data: Path) -> None:
    """219 images whose star has no usable pixel size: 8 × 1.82 Å, as the stack's name says."""
    path = shared_data / "real/ribosome-sta/sta_testing_bin8.star"
    found = check(path, CheckSettings(pixel_size=14.56, threads=2))
    assert found.problems == []
    assert found.inversion is not None
    assert found.inversion.agreement.is_sure
    assert found.inversion.quick.contrast_is_sure and found.inversion.quick.skewness > 0
