"""Whether images have the CTFs that their file gives, where the user does not want them to be used.

A map of images whose CTFs are ignored is wrong in both half sets alike, and no correlation of half maps shows it. The
CTFs are therefore tried. Let V be the map of one half of a sample, and b, T the statistics of the other half, made with
the CTFs of the file or with CTFs of 1. V raises the log-likelihood of the other half's images by
``⟨b, V⟩ − ½ ⟨V, T∗V⟩``. Only shells count in which the CTFs of the file are unlike 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.optics.ctf import ctf
from emsplat.particles.table import Particles
from emsplat.statistics.sufficient import Statistics
from emsplat.validation.correlation import Curve, normalised

Halves = tuple[Statistics, Statistics]

_ALIKE = 0.7  # share of a shell's signal that a CTF of 1 transmits in place of the file's, from which on it counts
_LEAST_GAIN = 20.0  # nats
_LEAST_SHARE = 0.25  # of the gain that the CTFs of the file add
_CTFS = 300  # of images spread over the table
_FIRST_SHELL = 3
REMEDY = "leave out --no-ctf"


@dataclass(frozen=True)
class CtfEvidence:
    """Gains in log-likelihood, in nats, of the images of a sample by the map of its other half."""

    with_ctf: float
    without: float

    @property
    def is_sure(self) -> bool:
        """Whether the images surely have the CTFs of the file."""
        return self.with_ctf - self.without > max(_LEAST_GAIN, _LEAST_SHARE * self.with_ctf)

    def text(self) -> str:
        """The figures in words."""
        return (
            f"in shells where these are unlike 1, the log-likelihood of a sample gains {self.with_ctf:,.0f} by a map "
            f"with them and {self.without:,.0f} without"
        )


def compare_ctfs(said: Particles, with_ctf: Halves, without: Halves) -> CtfEvidence:
    """What the images say about the CTFs of the file.

    Args:
        said: the particles with the CTFs of the file.
        with_ctf, without: the statistics of both halves of a sample, with these CTFs and with CTFs of 1.
    """
    unlike = _alike(said, with_ctf[0].box_size) < _ALIKE
    unlike[:_FIRST_SHELL] = False
    return CtfEvidence(*(float(_gain(*halves)[unlike].sum()) for halves in (with_ctf, without)))


def _gain(first: Statistics, second: Statistics) -> Curve:
    """(d//2,) gain over shells 1 .. d//2 of the images of each half by the map of the other, noise filtered out."""
    box_size = first.box_size
    raw = [maps.half_spectrum(one.raw_map()) for one in (first, second)]
    backprojection = [maps.half_spectrum(one.backprojection) for one in (first, second)]
    transfer = [np.maximum(one.transfer(box_size), 0) for one in (first, second)]

    def total(values: NDArray) -> Curve:
        return maps.shell_sum(values, box_size)

    power = [total(np.square(np.abs(one))) for one in raw]
    agreement = normalised(total((raw[0] * raw[1].conj()).real), *power)
    share = np.clip(np.nan_to_num(np.convolve(agreement, np.full(3, 1 / 3), "same")), 1e-3, 0.999)
    shell = np.minimum(maps.shell_index(box_size), box_size // 2)
    gain = np.zeros(box_size // 2 + 1)
    for own, other in ((0, 1), (1, 0)):
        mean = total(transfer[own]) / maps.shell_size(box_size)
        map_ = backprojection[own] / np.maximum(transfer[own] + (mean * (1 - share) / share)[shell], 1e-30)
        gain += total((backprojection[other] * map_.conj()).real)
        gain -= 0.5 * total(transfer[other] * np.square(np.abs(map_)))
    return gain[1:] / box_size**3


def _alike(particles: Particles, box_size: int) -> Curve:
    """(d//2,) ⟨C⟩² over ⟨C²⟩ in shells 1 .. d//2 of a box of d pixels with the field of view of the images."""
    rows = np.unique(np.linspace(0, len(particles) - 1, _CTFS).astype(np.int64))
    chosen = ctf(particles.select(rows)).astype(np.float64)
    full = particles.box_size
    ky, kx = np.meshgrid(np.fft.fftfreq(full, 1 / full), np.arange(full // 2 + 1), indexing="ij")
    shell = np.rint(np.hypot(kx, ky)).astype(np.intp).ravel()
    n = full // 2 + 1
    count = np.maximum(np.bincount(shell, minlength=n)[:n], 1)
    mean, square = (
        np.bincount(shell, values.ravel(), minlength=n)[:n] / count
        for values in (chosen.mean(axis=0), np.square(chosen).mean(axis=0))
    )
    return (np.square(mean) / np.maximum(square, 1e-12))[1 : box_size // 2 + 1]
