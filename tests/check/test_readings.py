"""Every wrong reading of a table is found, and none where there is nothing wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy.fft

from emsplat.check.agreement import Agreement, measure_agreement
from emsplat.check.inversion import SmallData, gather_parts, quarters
from emsplat.check.readings import Reading, alternatives, compare, reading_finding
from emsplat.conventions import euler_angles
from emsplat.optics.ctf import ctf

ALONE = np.eye(3)[None]
PIXEL_SIZE = 5.0  # Å, of `tiny`


def with_shifts(data: SmallData, factor: float) -> SmallData:
    origin = factor * data.particles.origin_in_angstroms
    return replace(data, particles=replace(data.particles, origin_in_angstroms=origin))


def unshifted_images(data: SmallData) -> SmallData:
    """Images moved to the centre, the table left as it was."""
    n = data.particles.box_size
    origin = data.particles.origin_in_angstroms / data.particles.pixel_size_in_angstroms
    k = np.fft.fftfreq(n)
    phase = origin[:, 1, None, None] * k[:, None] + origin[:, 0, None, None] * k
    moved = np.fft.ifft2(np.fft.fft2(data.images) * np.exp(-2j * np.pi * phase)).real
    return replace(data, images=moved.astype(np.float32))


def inverted_poses(data: SmallData) -> SmallData:
    angles = euler_angles(data.particles.rotations().transpose(0, 2, 1))
    return replace(data, particles=replace(data.particles, euler_angles_in_degrees=angles))


def upside_down(data: SmallData) -> SmallData:
    """Rows −y for y about the centre; an even box's first row has no counterpart and stays at the border."""
    return replace(data, images=np.roll(data.images[:, ::-1], 1 - data.particles.box_size % 2, axis=1).copy())


def phase_flipped(data: SmallData) -> SmallData:
    flipped = scipy.fft.irfft2(scipy.fft.rfft2(data.images) * np.sign(ctf(data.particles)), s=data.images.shape[1:])
    return replace(data, images=flipped.astype(np.float32))


WRONG = {
    "shifts of the other sign": lambda data: with_shifts(data, -1),
    "no shifts": unshifted_images,
    "shifts taken as pixels": lambda data: with_shifts(data, 1 / PIXEL_SIZE),
    "shifts scaled twice": lambda data: with_shifts(data, PIXEL_SIZE),
    "the inverse rotations": inverted_poses,
    "images upside down": upside_down,
    "phases flipped already": phase_flipped,
}


def readings_of(data: SmallData, about: tuple[str, ...] = ("",)) -> tuple[list[Reading], Agreement]:
    """The readings whose name holds one of these words, and what the table itself explains."""
    part = quarters(data.particles.particle, 0)
    agreement = measure_agreement(data, part, gather_parts(data, part, ALONE), 0, lambda: None)
    tried = [a for a in alternatives(data, PIXEL_SIZE, multiplied=False) if any(word in a.name for word in about)]
    return compare(data, part, agreement.own, tried, ALONE, lambda: None), agreement


def test_a_right_table_has_no_better_reading(small: SmallData) -> None:
    found, agreement = readings_of(small)
    assert {reading.alternative.name for reading in found} == set(WRONG)
    assert not any(reading.is_better for reading in found)
    assert reading_finding(found, agreement) is None


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str, small: SmallData) -> None:
    about = ("shift",) if "shift" in name else ("rotations", "upside", "phases")
    finding = reading_finding(*readings_of(WRONG[name](small), about))
    assert finding is not None and finding.verdict == "problem"
    assert finding.text.startswith(name)


def test_noise_has_no_better_reading(noise_like: Callable[[int], SmallData]) -> None:
    assert not any(reading.is_better for reading in readings_of(noise_like(0))[0])
