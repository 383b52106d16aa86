"""Do poses and images belong together? What a map of one half of the sample explains of the images of the other.

Image i is compared with the projection P V of the other half's map along its pose. With W the whitening by the noise,
the matched filter ``e = ⟨W y_i, W C_i P_i V⟩ / ‖W C_i P_i V‖`` has variance 1 if there is only noise. Then it is
compared with the same map along the poses of K other images. If poses say nothing about images, the own pose of an
image is as good as any other: its rank among the K + 1 is uniform, and the mean rank of n images is normal with the
variance (K + 2) / (12 K n). That is the test. It needs no assumption about the noise, and what all poses share (a round
blob) does not count. Both halves are scored, but n is that of the smaller half, because the two scores are not
independent. A threshold of 4 σ accepts meaningless poses once in 30,000 cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from emsplat.check.findings import Finding, fine, note, problem
from emsplat.check.inversion import SmallData, expected_map, gather_parts
from emsplat.fourier.slices import central_slices, fourier_volume
from emsplat.imaging.forward import ForwardModel
from emsplat.imaging.likelihood import observe, slice_statistics
from emsplat.statistics.sufficient import Statistics
from emsplat.validation.correlation import Curve, fsc

OTHERS = 8  # K
SHUFFLES = 4  # number of curves with shuffled poses that are drawn
SURE = 4.0  # standard deviations of the mean rank
_FEWEST_TO_SAY_NO = 500  # images; a weak signal may hide in fewer


@dataclass(frozen=True)
class Agreement:
    """How much the poses explain of the images."""

    own: NDArray[np.float64]  # (n,) matched filter of each image with its own pose, noise 1
    others: NDArray[np.float64]  # (n,) mean of the filter over the poses of K other images
    rank: float  # mean share of other poses that the own pose beats; 0.5 if poses mean nothing
    significance: float  # significance of the rank in standard deviations

    @property
    def is_sure(self) -> bool:
        return self.significance > SURE

    def numbers(self) -> str:
        """The rank and its significance in words."""
        return (
            f"an image's own pose beats {100 * self.rank:.1f} % of other images' poses "
            f"(50 % if they mean nothing; {self.significance:.1f} σ)"
        )


class MatchedFilter:
    """The images of a table, centred and weighted, for comparison with any map along any poses."""

    def __init__(self, data: SmallData) -> None:
        table, box_size = data.particles, data.particles.box_size
        observed = observe(data.images, table, data.noise, box_size)
        forward = ForwardModel.of(table)
        images, weights = slice_statistics(forward, observed)
        self._box_size, self._matrices = box_size, forward.matrices.numpy()
        self._images, self._weights = images.numpy(), weights.numpy()

    def slices(self, volume: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.complex64]:
        """(n, d, d//2+1) slices of a map (d, d, d) along the poses of these rows."""
        origin = np.full((len(rows), 2), self._box_size // 2, dtype=np.float64)  # no phase: images are centred as well
        return central_slices(fourier_volume(volume), self._matrices[rows], origin)

    def scores(self, slices: NDArray[np.complex64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) matched filter of the images of these rows, with one slice for each."""
        images = self._images[rows]
        product = np.einsum("nyx,nyx->n", images.real, slices.real) + np.einsum("nyx,nyx->n", images.imag, slices.imag)
        power = np.einsum("nyx,nyx->n", self._weights[rows], np.square(slices.real) + np.square(slices.imag))
        return product.astype(np.float64) / np.sqrt(np.maximum(power, np.finfo(np.float32).tiny))


def crossed_maps(
    part: NDArray[np.int8], parts: list[Statistics]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The rows of each half, with the map of the other half."""
    for rows, (first, second) in ((part < 2, parts[2:]), (part >= 2, parts[:2])):
        yield np.flatnonzero(rows), expected_map(first, second)


def measure_agreement(
    data: SmallData, part: NDArray[np.int8], parts: list[Statistics], seed: int, progress: Callable[[], None]
) -> Agreement:
    """Own poses against others, image by image.

    Args:
        part: (n,) quarter of each image; parts: the quarters' statistics.
        progress: called after each half.
    """
    rng = np.random.default_rng(seed)
    matched = MatchedFilter(data)
    n = len(part)
    own, others, beaten = np.empty(n), np.zeros(n), np.zeros(n)
    for rows, volume in crossed_maps(part, parts):
        slices = matched.slices(volume, rows)
        own[rows] = matched.scores(slices, rows)
        for _ in range(OTHERS):
            other = matched.scores(slices[_derangement(len(rows), rng)], rows)
            others[rows] += other / OTHERS
            beaten[rows] += (own[rows] > other) / OTHERS
        progress()
    rank = float(beaten.mean())
    n_independent = min(np.sum(part < 2), np.sum(part >= 2))
    deviation = np.sqrt((OTHERS + 2) / (12 * OTHERS * n_independent))
    return Agreement(own, others, rank, float((rank - 0.5) / deviation))


def shuffled_half_maps(
    data: SmallData, part: NDArray[np.int8], symmetry: NDArray[np.float64], seed: int, progress: Callable[[], None]
) -> tuple[Curve, ...]:
    """FSC of half maps of the same images with shuffled poses, several times, for the picture."""
    rng = np.random.default_rng(seed)
    curves = []
    for _ in range(SHUFFLES):
        angles = rng.permutation(data.particles.euler_angles_in_degrees)
        shuffled = replace(data, particles=replace(data.particles, euler_angles_in_degrees=angles))
        halves = gather_parts(shuffled, (part >= 2).astype(np.int8), symmetry)
        curves.append(fsc(*(half.raw_map() for half in halves)))
        progress()
    return tuple(curves)


def _derangement(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(n,) a permutation without fixed points: a random cycle through all."""
    order = rng.permutation(n)
    result = np.empty(n, dtype=np.int64)
    result[order] = np.roll(order, 1)
    return result


def predict(data: SmallData, volume: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, d, d) images that the forward model makes of a map (d, d, d) for these rows."""
    forward = ForwardModel.of(data.particles.select(rows))
    return forward.images(forward.from_volume(fourier_volume(volume))).numpy()


# --- verdict ----------------------------------------------------------------------------------------------------------


def agreement_finding(agreement: Agreement) -> Finding:
    """Whether the poses carry signal."""
    n = len(agreement.own)
    if agreement.is_sure:
        return fine("poses", f"poses and images belong together: {agreement.numbers()}")
    if n < _FEWEST_TO_SAY_NO:
        text = f"{n:,} images are too few to tell whether poses carry signal: {agreement.numbers()}"
        return note("poses", text)
    advice = "check that stack and table have the same order and age; was the stack sorted, or extracted again?"
    return problem("poses", f"the poses explain nothing of the images: {agreement.numbers()}", advice)
