"""The sufficient statistics of a part of the images: everything they say about the map, and its direct inversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.particles.parts import Part, Split
from emsplat.runtime.checkpoint import State

_REGULARISATION = 0.1  # share of the shell's mean weight that direct inversion adds to every weight


@dataclass(frozen=True)
class Statistics:
    """Sufficient statistics of a part of the images about a map on a D³ grid."""

    backprojection: NDArray[np.float32]  # (D, D, D) b, r from −(D//2)
    kernel: NDArray[np.float32]  # (n, n, n) T, r from −(n//2)
    n_images: int
    sum_of_weights: float  # the images' weights in T; n_images where all weights are 1

    @property
    def box_size(self) -> int:
        return self.backprojection.shape[0]

    @property
    def divisor(self) -> float:
        """Divisor that turns a loss of these images into a loss per image: the sum of their weights.

        Raises:
            ValueError: it is not positive, so that there is no such loss.
        """
        if not self.sum_of_weights > 0:
            raise ValueError(f"a loss needs images whose weights have a positive sum, not {self.sum_of_weights:g}")
        return self.sum_of_weights

    def __add__(self, other: Statistics) -> Statistics:
        """The statistics of two parts together; images that are in both are counted twice."""
        return Statistics(
            self.backprojection + other.backprojection,
            self.kernel + other.kernel,
            self.n_images + other.n_images,
            self.sum_of_weights + other.sum_of_weights,
        )

    def raw_map(self) -> NDArray[np.float32]:
        """Direct inversion ``1.1 b̂ / (max(T̂, 0) + 0.1 × shell mean of T̂)``, (D, D, D); touched by no prior.

        The factor 1.1 restores the scale of a signal, exactly so where T̂ is even over a shell.
        """
        d = self.box_size
        weight = self.transfer(d)
        shell = maps.shell_index(d)
        # Corners beyond the last shell take its mean; they are cut off in the end.
        mean = np.maximum(maps.shell_sum(weight, d) / maps.shell_size(d), 0)[np.minimum(shell, d // 2)]
        weight = np.maximum(weight, 0) + _REGULARISATION * mean.astype(np.float32)
        inside = (maps.radius(d) < d / 2) & (weight > 0)
        spectrum = maps.half_spectrum(self.backprojection)
        spectrum *= np.divide(np.float32(1 + _REGULARISATION), weight, out=np.zeros_like(weight), where=inside)
        return maps.from_half_spectrum(spectrum, d)

    def transfer(self, period: int) -> NDArray[np.float32]:
        """(n, n, n//2+1) real transform of T wrapped on a grid of this period, at most the kernel's own extent."""
        full = self.kernel.shape[0]
        middle = slice(full // 2 - period // 2, full // 2 - period // 2 + period)
        wrapped = scipy.fft.ifftshift(self.kernel[middle, middle, middle])
        return np.ascontiguousarray(scipy.fft.rfftn(wrapped).real)


def saved_statistics(statistics: Mapping[Part, Statistics]) -> State:
    """The statistics of some parts, for a checkpoint."""
    tensors = {
        f"{part.label}.{what}": torch.from_numpy(getattr(s, what))
        for part, s in statistics.items()
        for what in ("backprojection", "kernel")
    }
    facts = [[part.half, int(part.split), part.state, s.n_images, s.sum_of_weights] for part, s in statistics.items()]
    return State(tensors, {"parts": facts})


def restored_statistics(state: State) -> dict[Part, Statistics]:
    """The statistics that `saved_statistics` was given."""
    result = {}
    for half, split, number, n_images, sum_of_weights in state.facts["parts"]:
        part = Part(half, Split(split), number)
        backprojection, kernel = (
            state.tensors[f"{part.label}.{what}"].numpy() for what in ("backprojection", "kernel")
        )
        result[part] = Statistics(backprojection, kernel, n_images, sum_of_weights)
    return result
