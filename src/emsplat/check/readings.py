"""What the table might have meant: shifts with the opposite sign or another unit, inverse rotations, flipped images.

Each alternative is read, mapped and scored like the table itself (`agreement`), and compared with it image by image. A
correct alternative explains the images better by many standard deviations; a correct table has no better one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.check.agreement import Agreement, MatchedFilter, crossed_maps
from emsplat.check.findings import Finding, problem
from emsplat.check.inversion import SmallData, gather_parts
from emsplat.optics.ctf import ctf
from emsplat.particles.poses import Poses

_BETTER, _BETTER_BY = 6.0, 0.015  # standard deviations and relative gain of a reading that is better than the table's
_LEAST_SHIFT = 0.1  # rms shift in pixels of the small copies below which shifts cannot be distinguished from none
_LEAST_FACTOR = 1.15  # ratio of pixels and Å below which the two cannot be distinguished


@dataclass(frozen=True)
class Alternative:
    """Another way to read the table or its images."""

    name: str
    advice: str  # what to do if this alternative is the right one
    read: Callable[[], SmallData]


@dataclass(frozen=True)
class Reading:
    """How much better an alternative explains the images."""

    alternative: Alternative
    gain: float  # gain of the mean matched filter, relative to that of the table
    significance: float  # significance of the difference in standard deviations

    @property
    def is_better(self) -> bool:
        return self.significance > _BETTER and self.gain > _BETTER_BY


def alternatives(data: SmallData, pixel_size: float, multiplied: bool) -> list[Alternative]:
    """Every other reading that could show a difference.

    Args:
        pixel_size: pixel size of the file in Å.
        multiplied: whether the images were multiplied with the CTF, so that their phases are flipped.
    """
    table, rotations = data.particles, data.particles.poses.rotations
    found = [
        Alternative(
            "the inverse rotations",
            "invert the rotations: (rot, tilt, psi) → (−psi, −tilt, −rot)",
            lambda: _turned(data, rotations.transpose(0, 2, 1)),
        ),
        Alternative(
            "images upside down",
            "flip the images in y, because they were written from the other end",
            lambda: _turned(data, np.diag([1.0, -1.0, -1.0]) @ rotations, flip_shifts=True),
        ),
    ]
    if table.has_ctf and not multiplied:
        advice = "set rlnCtfDataArePhaseFlipped to 1 in the optics table"
        name = "phases flipped already"
        if all(group.phase_flipped for group in table.optics):
            name = "phases not flipped, though the table says so"
            advice = "set rlnCtfDataArePhaseFlipped to 0 in the optics table"
        found.append(Alternative(name, advice, lambda: _unflipped(data)))
    shift_rms = float(np.sqrt(np.mean(table.origin_in_angstroms**2)) / table.pixel_size_in_angstroms)
    return found + _alternative_shifts(data, shift_rms, pixel_size)


def _alternative_shifts(data: SmallData, shift_rms: float, pixel_size: float) -> list[Alternative]:
    factors = {}
    if shift_rms > _LEAST_SHIFT:
        factors["shifts of the other sign"] = -1.0, "negate the shifts in the particle file"
        factors["no shifts"] = 0.0, "set the shifts to 0: the images seem to be centred already"
    if shift_rms * max(pixel_size, 1) > _LEAST_SHIFT and max(pixel_size, 1 / pixel_size) > _LEAST_FACTOR:
        factors["shifts taken as pixels"] = pixel_size, f"convert the shifts: times {pixel_size:.4g}"
        factors["shifts scaled twice"] = 1 / pixel_size, f"convert the shifts: divided by {pixel_size:.4g}"
    return [Alternative(name, advice, partial(_shifted, data, factor)) for name, (factor, advice) in factors.items()]


def _shifted(data: SmallData, factor: float) -> SmallData:
    origin = factor * data.particles.origin_in_angstroms
    return replace(data, particles=replace(data.particles, origin_in_angstroms=origin))


def _turned(data: SmallData, rotations: NDArray[np.float64], flip_shifts: bool = False) -> SmallData:
    """The data with other rotations. An image upside down shows the particle turned by 180° about its x axis."""
    shifts = data.particles.poses.shifts * np.array([1.0, -1.0 if flip_shifts else 1.0])
    return replace(data, particles=data.particles.with_poses(Poses(rotations, shifts)))


def _unflipped(data: SmallData) -> SmallData:
    """The data with its phases flipped back, so that |C| becomes C."""
    spectra = scipy.fft.rfft2(data.images) * np.sign(ctf(data.particles))
    return replace(data, images=scipy.fft.irfft2(spectra, s=data.images.shape[1:]).astype(np.float32, copy=False))


def compare(
    data: SmallData,
    part: NDArray[np.int8],
    own: NDArray[np.float64],
    tried: list[Alternative],
    symmetry: NDArray[np.float64],
    progress: Callable[[], None],
) -> list[Reading]:
    """Score each alternative as the table was scored: (n,) `own` of an `Agreement`; calls progress after each."""
    found = []
    for alternative in tried:
        read = alternative.read()
        matched = MatchedFilter(read)
        score = np.empty(len(own))
        for rows, volume in crossed_maps(part, gather_parts(read, part, symmetry)):
            score[rows] = matched.scores(matched.slices(volume, rows), rows)
        difference = score - own
        # Half the images, as in the test of the poses.
        error = max(float(difference.std() / np.sqrt(len(own) / 2)), 1e-12)
        gain = float(difference.mean() / max(abs(float(own.mean())), 1e-12))
        found.append(Reading(alternative, gain, float(difference.mean() / error)))
        progress()
    return found


# --- verdict ----------------------------------------------------------------------------------------------------------


def reading_finding(readings: list[Reading], agreement: Agreement) -> Finding | None:
    """The best alternative, if it is better than the table."""
    better = max((reading for reading in readings if reading.is_better), key=lambda r: r.gain, default=None)
    if better is None:
        return None
    text = f"{better.alternative.name} would fit {100 * better.gain:.0f} % better ({better.significance:.0f} σ)"
    return problem("poses", f"{text}; as given, {agreement.numbers()}", better.alternative.advice)
