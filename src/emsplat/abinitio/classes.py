"""Several classes of particles, and one of images that show none: which classes of the two halves belong together.

The halves find their classes independently. Images of the second half are compared with all maps of the first one; the
classes that share most of them belong together. That is decided by likelihoods alone, so that the frames and hands of
the maps do not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from emsplat.abinitio import full
from emsplat.abinitio.full import Found, shares_of
from emsplat.abinitio.halves import Search, Start
from emsplat.abinitio.polar import PolarImages
from emsplat.abinitio.stochastic import power_share
from emsplat.abinitio.verdict import Criterion

_COMPARED = 2000  # largest number of images of the second half that are compared with the first one's maps
_GOOD, _POOR = 0.7, 0.5  # shares of a class that the halves agree on, for a class that is real, and for one that is not


@dataclass(frozen=True)
class Matching:
    """Which class of the second half belongs to each class of the first one."""

    partners: NDArray[np.int64]  # (K,)
    counts: NDArray[np.int64]  # (K+1, K+1) images of the second half; rows: class in the first half's maps; last: junk

    def agreed(self, number: int) -> float:
        """Share of the images in either half's version of a class (number in the first half) that are in both."""
        both = self.counts[number, self.partners[number]]
        either = self.counts[number].sum() + self.counts[:, self.partners[number]].sum() - both
        return float(both / either) if either else 0.0

    def criterion(self, number: int) -> Criterion:
        """The criterion of the verdict on a class of the first half."""
        what = "the share of a class's images that both halves put there"
        return Criterion("classes", self.agreed(number), _GOOD, _POOR, what)

    @property
    def is_good(self) -> bool:
        """Whether all classes are the same in both halves."""
        return all(self.agreed(number) >= _GOOD for number in range(len(self.partners)))

    def text(self) -> str:
        """The agreement in one line for the log."""
        shares = ", ".join(f"{100 * self.agreed(number):.0f} %" for number in range(len(self.partners)))
        return f"the halves agree on {shares} of the images of the classes"


def labels_of(found: Found) -> NDArray[np.int64]:
    """(n,) the most probable class of each image, from 0; K for images that show no particle."""
    return np.concatenate([found.classes, found.junk[:, None]], axis=1).argmax(axis=1)


def classes_in_words(start: Start) -> str:
    """The sizes of the classes of a start."""
    counts = np.bincount(labels_of(start.found), minlength=start.found.classes.shape[1] + 1)
    images = "images in classes" if len(counts) > 2 else "images with a particle"
    return f"{images}: {', '.join(f'{count:,}' for count in counts[:-1])}, without a particle: {counts[-1]:,}"


def matched(
    images: PolarImages,
    starts: tuple[Start, Start],
    settings: Search,
    rng: np.random.Generator,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Matching:
    """Which classes belong together. Args: images: those of the second half."""
    first, second = starts
    n_classes = len(first.map)
    rows = np.sort(rng.permutation(len(images))[:_COMPARED])
    own = second.found.select(rows)
    what = images.select(rows), first.map, own.centres.copy(), settings.fine, settings.full, rng
    there = full.round_of(*what, advance=advance, shares=shares_of(first.found))
    counts = np.zeros((n_classes + 1, n_classes + 1), np.int64)
    np.add.at(counts, (labels_of(there), labels_of(own)), 1)
    return Matching(linear_sum_assignment(-counts[:-1, :-1])[1], counts)


def of_class(start: Start, number: int, rows: NDArray[np.int64], signal: NDArray[np.float64]) -> Start:
    """The start as if it had been that of one class, with these of its images. Args: signal: (R,) S."""
    map_ = start.map[number]
    return Start(
        map_,
        start.inversion[number],
        start.found.select(rows),
        start.first,
        replace(start.second, power=[power_share(map_, signal)]),
        [picture[number] for picture in start.pictures],
    )
