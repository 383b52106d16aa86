"""Finds images that cannot be right, or are unlike the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.check.findings import Finding, fine, note, problem
from emsplat.check.sample import ImageStatistics, Sample
from emsplat.particles.table import Particles

_FAR = 8.0  # robust standard deviations from the median of the optics group
_FEWEST = 20  # images of a group that are needed to know what is usual
_SHARE = 0.01  # share of the images from which on odd ones are a problem
_NAMED = 3  # number of ids that are named
_STEEP = 0.5  # rise of the background over the box that is worth a word; white noise makes .1 in a box of 48²
_BLANK = 0.97  # share of the variance within the circle of the particle that means that the outside is blank


@dataclass(frozen=True)
class Odd:
    """Rows of the table whose mean or deviation is unlike that of the others in their optics group."""

    by_mean: NDArray[np.int64]
    by_deviation: NDArray[np.int64]

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.union1d(self.by_mean, self.by_deviation)


def find_odd_images(statistics: ImageStatistics, particles: Particles) -> Odd:
    """The odd ones among the usable images."""
    rows = statistics.rows[statistics.usable]
    group = particles.optics_group[rows]
    far = [_far_off(values[statistics.usable], group) for values in (statistics.mean, np.log(statistics.deviation))]
    return Odd(rows[far[0]], rows[far[1]])


def _far_off(values: NDArray[np.float64], group: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(n,) whether a value is more than eight robust standard deviations from the median of its group."""
    far = np.zeros(len(values), dtype=bool)
    for number in np.unique(group):
        rows = np.flatnonzero(group == number)
        if len(rows) < _FEWEST:
            continue
        distance = np.abs(values[rows] - np.median(values[rows]))
        # In normalised images all but the rounding is equal, which is no reason to call an image odd.
        spread = max(1.4826 * float(np.median(distance)), 1e-4)
        far[rows] = distance > _FAR * spread
    return far


def odd_list(statistics: ImageStatistics, odd: Odd, particles: Particles) -> list[tuple[str, str]]:
    """The id of every image that is unusable or odd, each once and in the order of the table, and the reason."""
    reasons: dict[int, str] = {}
    why = (("mean", odd.by_mean), ("contrast", odd.by_deviation))
    for row in odd.rows.tolist():
        reasons[row] = "unlike the others in its " + " and ".join(what for what, rows in why if row in rows)
    reasons |= dict.fromkeys(statistics.rows[~statistics.usable].tolist(), "cannot be used: blank, or not finite")
    names: dict[str, str] = {}
    for row in sorted(reasons):
        names.setdefault(str(particles.ids[row]), reasons[row])
    return list(names.items())


def image_findings(statistics: ImageStatistics, odd: Odd, particles: Particles) -> list[Finding]:
    """Unusable and odd images, the first of them by name."""
    n = len(statistics.rows)
    seen = f"all {n:,} images" if n == len(particles) else f"{n:,} of {len(particles):,} images"
    found: list[Finding] = []
    if statistics.unusable:
        first = "; ".join(statistics.unusable[:_NAMED])
        text = f"{len(statistics.unusable):,} cannot be used among {seen}: {first}"
        found.append(problem("images", text, "leave them out with --drop and the list of this check, odd.csv"))
    if len(odd.rows):
        names = ", ".join(str(name) for name in particles.ids[odd.rows[:_NAMED]])
        text = (
            f"{len(odd.rows):,} among {seen} are unlike the others ({len(odd.by_mean):,} in their mean, "
            f"{len(odd.by_deviation):,} in their contrast): {names}{' …' * (len(odd.rows) > _NAMED)}"
        )
        many = len(odd.rows) > _SHARE * n
        advice = "look at them, and leave them out with --drop and the list of this check, odd.csv"
        found.append(problem("images", text, advice) if many else note("images", text, advice))
    return found or [fine("images", f"{seen}: finite, none blank, none unlike the others")]


def ramp_findings(statistics: ImageStatistics) -> list[Finding]:
    """Whether the images are brighter on one side, as micrographs are and as extraction usually mends."""
    rise = float(np.sqrt(np.mean(np.square(statistics.ramp[statistics.usable])))) if statistics.usable.any() else 0.0
    if rise < _STEEP:
        return []
    text = (
        f"the background rises by {rise:.1f} standard deviations (root mean square) from one side of an image to the "
        "other; every command subtracts a plane, fitted outside the particle"
    )
    return [note("background", text, "extract with normalisation, if other programs are to read these images")]


def masked_findings(sample: Sample) -> list[Finding]:
    """The verdict on whether there is noise beside the particle."""
    if sample.signal_share < _BLANK:
        return []
    text = f"they are almost blank beside the particle: {100 * sample.signal_share:.0f} % of the variance is inside"
    return [problem("images", text, "use images that were not masked, because the noise is measured there")]
