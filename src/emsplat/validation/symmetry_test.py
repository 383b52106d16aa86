"""Test of whether the images have the symmetry that is asked for.

With U₁, U₂ the direct inversions of both half sets as the images are, and S₁, S₂ those in which every view is repeated
by the symmetry, the part that the symmetry takes away, U − S, is noise if the particle has the symmetry, and unrelated
between the halves. Where it is related, it is signal, and its share of all signal says how much of the particle the
symmetry would wipe out. The inversions are compared as they stand before their weights are divided out,

    A = T_S b_U − T_U b_S    with b = T t + noise,

so that views that are uneven, or that stay in one asymmetric unit, leave nothing of a symmetric t either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.fourier.background import outside_circle, subtract_background
from emsplat.fourier.cropping import fourier_cropped
from emsplat.imaging.noise import noise_spectra
from emsplat.particles.batches import Images
from emsplat.particles.parts import Part, PartWeights
from emsplat.particles.table import Particles, split_by_particle
from emsplat.statistics.accumulate import AccumulationSettings, Statistics, accumulate
from emsplat.symmetry import describe_axes, named_by, other_axes, parts_of, symmetry_operators
from emsplat.validation.correlation import inverse, votes_of
from emsplat.validation.directions import cells_of, measured_density

_BOX = 64  # voxels at most: the arrangement of subunits shows at 64, and the test is to take seconds
_IMAGES, _BYTES = 8000, 1 << 30  # the most images, and bytes of images, that are read
_INSERTIONS = 120_000  # of slices into a grid for one group, which allows fewer images for a high symmetry
_AT_ONCE = 64 << 20  # bytes of images that are read at once
_NOISE_FROM = 1000  # most images that the noise is measured from
_FIRST_SHELL = 3  # the shells before hold little but the outline
_SURE = np.sqrt(12.0)  # votes of 24, as in `directional_agreement`
_SIGNIFICANCE = 3.0  # standard errors of the correlation of the halves
_LARGEST_CYCLIC = 8  # largest cyclic group that is looked for without being asked for
_ABSENT, _CERTAIN, _DOUBTFUL = 0.3, 0.15, 0.05  # shares of the signal that the symmetry takes away
_REGULARISATION = 1.0  # share of the mean weight: where T is small, what b holds comes from elsewhere
_SOLVER_STEPS, _DAMPING = 10, 0.05  # damping as a share of the mean weight
_NONE = np.eye(3)[None]  # no symmetry


@dataclass(frozen=True)
class SymmetryEvidence:
    """What the images say about a point group."""

    name: str
    share: float  # share of the signal's power between the two resolutions that the symmetry would take away
    votes: float  # how surely that part is signal: above √12 it is
    error: float  # standard error of the share
    coarsest: float  # Å
    finest: float  # Å
    n_images: int

    @property
    def is_measured(self) -> bool:
        """Whether there was any signal to look at."""
        return self.finest < self.coarsest

    @property
    def is_absent(self) -> bool:
        """Whether the images surely lack the symmetry."""
        return self.is_measured and self.votes > _SURE and self.share > _ABSENT

    @property
    def is_doubtful(self) -> bool:
        """Whether part of the signal surely lacks the symmetry."""
        return self.is_measured and self.votes > _SURE and self.share > _DOUBTFUL

    @property
    def is_shown(self) -> bool:
        """Whether the images have the symmetry, as far as they tell."""
        return self.is_measured and not self.is_doubtful and self.share + 2 * self.error < _ABSENT

    @property
    def is_certain(self) -> bool:
        """Whether the images have the symmetry, and would have shown its absence."""
        return self.is_measured and not self.is_doubtful and abs(self.share) + 2 * self.error < _CERTAIN

    def text(self) -> str:
        """The figures in words."""
        if not self.is_measured:
            return f"{self.n_images:,} images do not show whether they have it"
        sure = "" if self.votes > _SURE else ", which may be noise" if self.share > _DOUBTFUL else ""
        return (
            f"in {self.n_images:,} images it takes away {100 * max(self.share, 0):.0f} ± {100 * self.error:.0f} % of "
            f"the signal between {self.coarsest:.3g} and {self.finest:.3g} Å{sure}"
        )


@dataclass(frozen=True)
class _InMemory:
    """Stands in for an `ImageSource`."""

    images: NDArray[np.float32]  # (n, B, B)

    @property
    def box_size(self) -> int:
        return self.images.shape[-1]

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.images[rows]

    def read_into(self, rows: NDArray[np.int64], images: NDArray[np.float32]) -> None:
        images[:] = self.images[rows]


@dataclass(frozen=True)
class SymmetrySample:
    """Small copies of some images, and their direct inversions without symmetry."""

    particles: Particles  # (n rows) as in the file
    images: _InMemory  # cropped to B in Fourier space
    noise: NDArray[np.float64]  # (groups, D//2+1)
    half: NDArray[np.int8]  # (n,) 0 or 1
    plain: tuple[Statistics, Statistics]  # statistics of both halves

    def evidence(self, name: str, carefully: bool = True) -> SymmetryEvidence:
        """What the images say about a point group.

        Args:
            carefully: without it, views in a single asymmetric unit make a symmetry look incomplete.
        """
        operators = symmetry_operators(name)
        affordable = max(1, _INSERTIONS // len(operators))
        half = self.half
        if affordable < len(half):
            half = np.full_like(half, -1)
            some = np.linspace(0, len(half) - 1, affordable).astype(np.int64)
            half[some] = self.half[some]
        symmetric = self._gathered(operators, half)
        return _evidence(name, self.plain, symmetric, operators, self.particles, carefully)

    def _gathered(self, operators: NDArray[np.float64], half: NDArray[np.int8]) -> tuple[Statistics, Statistics]:
        return _gathered(self.particles, self.images, self.noise, operators, half)


def _gathered(
    particles: Particles,
    images: _InMemory,
    noise: NDArray[np.float64],
    operators: NDArray[np.float64],
    half: NDArray[np.int8],
) -> tuple[Statistics, Statistics]:
    box_size = images.box_size
    settings = AccumulationSettings(box_size, 2 * box_size, noise, operators)
    parts = PartWeights.one_part_each([Part(1), Part(2)], half)
    first, second = accumulate(particles, images, parts, settings).values()
    return first, second


@dataclass(frozen=True)
class SymmetryChoice:
    """The point group to work with, and what is to be said of it."""

    name: str  # in RELION's axes
    evidence: SymmetryEvidence
    line: str | None = None  # for the log
    warning: str | None = None
    refusal: str | None = None


def choose_symmetry(sample: SymmetrySample, asked: str) -> SymmetryChoice:
    """The group that is asked for, in the axes in which the images have it; a warning or an error if they lack it.

    The name is first taken as the program that wrote the table means it.
    """
    program = sample.particles.symmetry_axes
    name = named_by(program, asked)
    evidence = sample.evidence(name)
    if not evidence.is_doubtful:
        meant = f", as {program} means it" if name != asked else ""
        return SymmetryChoice(name, evidence, line=f"symmetry {describe_axes(name)}{meant}: {evidence.text()}")
    others = [found for other in other_axes(name) if (found := sample.evidence(other)).is_shown]
    if others:
        best = min(others, key=lambda found: found.share)
        warning = (
            f"symmetry {asked}: the images have it as {describe_axes(best.name)} ({best.text()}), and that is taken, "
            f"not as {describe_axes(name)} ({evidence.text()})"
        )
        return SymmetryChoice(best.name, best, warning=warning)
    if not evidence.is_absent:
        warning = f"the images do not quite have the symmetry {describe_axes(name)}: {evidence.text()}"
        return SymmetryChoice(name, evidence, warning=warning)
    part = next((found for other in parts_of(name) if (found := sample.evidence(other)).is_shown), None)
    remedy = f"give --symmetry {part.name}, which they have" if part else "give --symmetry C1"
    refusal = f"the images do not have the symmetry {describe_axes(name)}: {evidence.text()}; {remedy}"
    return SymmetryChoice(name, evidence, refusal=refusal)


def symmetry_that_shows(sample: SymmetrySample) -> SymmetryEvidence | None:
    """The largest point group that the images surely have; None where they have none, or are round as far as they show.

    Groups are looked for in the axes that `symmetry` knows.
    """
    cyclic = [sample.evidence(f"C{n}", carefully=False) for n in range(2, _LARGEST_CYCLIC + 1)]
    shown = [found for found in cyclic if found.is_certain]
    if len(shown) == len(cyclic):
        return None
    best = max(shown, key=lambda found: len(symmetry_operators(found.name)), default=None)
    names = [f"D{best.name[1:]}", f"D{best.name[1:]}@90"] if best else []
    if best and best.name in ("C2", "C4"):
        names += ["T222", "O", "I1", "I2"]
    if best and best.name in ("C3", "C5"):
        names += ["T", "T@90", "T@180", "T@270"] if best.name == "C3" else ["I3", "I4"]
    if best is None:
        names = ["D1", "D1@90"]
    higher = [found for name in names if (found := sample.evidence(name, carefully=False)).is_certain]
    return max(higher, key=lambda found: len(symmetry_operators(found.name)), default=best)


def take_sample(
    particles: Particles, images: Images, seed: int, noise: NDArray[np.float64] | None = None
) -> SymmetrySample:
    """Reads random images until there are enough for the test.

    Args:
        images: uncropped images.
        noise: (groups, D//2+1); measured where it is not known.
    """
    box_size = particles.box_size
    small = min(box_size, _BOX)
    n = min(len(particles), _IMAGES, max(100, _BYTES // (4 * box_size**2)))
    rows = np.random.default_rng(seed).choice(len(particles), n, replace=False).astype(np.int64)
    window, copies = outside_circle(box_size), np.empty((n, small, small), dtype=np.float32)
    at_once = max(1, _AT_ONCE // (4 * box_size**2))
    for first in range(0, n, at_once):
        here = slice(first, min(first + at_once, n))
        order = np.argsort(rows[here])  # a sweep over the disk
        block = images.read(rows[here][order])
        subtract_background(block, window)
        if noise is None:
            some = slice(0, _NOISE_FROM)
            noise = noise_spectra(block[some], particles.select(rows[here][order][some]))
        copies[here][order] = fourier_cropped(block, small)
    assert noise is not None
    chosen = particles.select(rows)
    half = chosen.half_set - 1 if (chosen.half_set > 0).all() else split_by_particle(chosen.particle, seed)
    return sample_of(chosen, copies, noise, half.astype(np.int8))


def sample_of(
    particles: Particles, images: NDArray[np.float32], noise: NDArray[np.float64], half: NDArray[np.int8]
) -> SymmetrySample:
    """A sample from images in memory.

    Args:
        particles: n rows.
        images: (n, B, B), cropped in Fourier space or not.
        noise: (groups, D//2+1), of the uncropped images.
        half: (n,) 0 or 1.
    """
    in_memory = _InMemory(images)
    plain = _gathered(particles, in_memory, noise, _NONE, half)
    return SymmetrySample(particles, in_memory, noise, half, plain)


def _evidence(
    name: str,
    plain: Sequence[Statistics],
    symmetric: Sequence[Statistics],
    operators: NDArray[np.float64],
    particles: Particles,
    carefully: bool,
) -> SymmetryEvidence:
    box_size = plain[0].box_size
    lost, whole = zip(*(_lost_and_whole(u, s, carefully) for u, s in zip(plain, symmetric, strict=True)), strict=True)
    power = [maps.shell_correlation(x, x, box_size) for x in whole]
    scale = inverse(np.sqrt(power[0] * power[1]))
    terms = maps.shell_size(box_size) / 2
    correlation = maps.shell_correlation(whole[0], whole[1], box_size) * scale
    shells = np.arange(len(scale))
    failing = np.flatnonzero(~(correlation * np.sqrt(terms) > _SIGNIFICANCE) & (shells >= _FIRST_SHELL))
    last = int(failing[0]) - 1 if len(failing) else len(scale) - 2
    used = slice(_FIRST_SHELL, last + 1)
    edge = particles.box_size * particles.pixel_size_in_angstroms
    if last < _FIRST_SHELL:
        nothing = edge / _FIRST_SHELL
        return SymmetryEvidence(name, np.nan, 0.0, np.inf, nothing, nothing, len(particles))
    taken = maps.shell_correlation(lost[0], lost[1], box_size) * scale * terms
    column = np.s_[:, :, 1:]
    votes = votes_of(
        lost[0][column].ravel(),
        lost[1][column].ravel(),
        maps.shell_index(box_size)[column].ravel(),
        cells_of(box_size, operators, measured_density(particles.rotations(), _NONE)).ravel(),
        (_FIRST_SHELL, last),
    )
    return SymmetryEvidence(
        name,
        share=float(taken[used].sum() / (correlation * terms)[used].sum()),
        votes=float(votes.sum() * inverse(np.sqrt(np.square(votes).sum()))),
        error=float(np.sqrt(terms[used].sum()) / (correlation * terms)[used].sum()),
        coarsest=edge / _FIRST_SHELL,
        finest=edge / (last + 0.5),
        n_images=len(particles),
    )


def _lost_and_whole(
    plain: Statistics, symmetric: Statistics, carefully: bool
) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """Half spectra, weighted alike: what the symmetry takes away, and the inversion before that."""
    box_size = plain.box_size
    shell = np.minimum(maps.shell_index(box_size), box_size // 2)
    inside = maps.radius(box_size) < box_size / 2

    def weights(of: Statistics) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        t = np.maximum(of.transfer(box_size), 0)
        mean = maps.shell_sum(t, box_size) / maps.shell_size(box_size)
        floor = _REGULARISATION * mean[shell].astype(np.float32)
        by = np.divide(inside, t + floor, out=np.zeros_like(t), where=inside & (t + floor > 0))
        return t, by, t * by

    (t_plain, by_plain, measured), (t_symmetric, by_symmetric, _) = weights(plain), weights(symmetric)
    common = by_plain * by_symmetric * measured * measured
    whole = maps.half_spectrum(plain.backprojection) * (common * t_symmetric)
    # Where views are few, b holds what T carries there from all over the box; a product of transforms does not say so.
    # The symmetric map's share of that is taken off; it has no part in what the symmetry takes away.
    kernel = symmetric.transfer(2 * box_size)  # T extends over twice the box, so that the convolution is exact
    expected = _solved(symmetric, kernel, _SOLVER_STEPS if carefully else 0)
    lost = plain.backprojection - _convolved(plain.transfer(2 * box_size), expected)
    lost_of_mates = symmetric.backprojection - _convolved(kernel, expected)
    lost_spectrum = maps.half_spectrum(lost) * (common * t_symmetric)
    lost_spectrum -= maps.half_spectrum(lost_of_mates) * (common * t_plain)
    return lost_spectrum, whole


def _solved(of: Statistics, kernel: NDArray[np.float32], n_steps: int) -> NDArray[np.float32]:
    """(D, D, D) the map V that solves T ∗ V = b, by conjugate gradients from the direct inversion."""
    found: NDArray = of.raw_map()
    damping = np.float32(_DAMPING * kernel.mean())
    residual: NDArray = of.backprojection - _convolved(kernel, found) - damping * found
    direction, power = residual, float(np.vdot(residual, residual))
    for _ in range(n_steps):
        ahead = _convolved(kernel, direction) + damping * direction
        step = np.float32(power / float(np.vdot(direction, ahead)))
        found = found + step * direction
        residual = residual - step * ahead
        before, power = power, float(np.vdot(residual, residual))
        direction = residual + np.float32(power / before) * direction
    return found


def _convolved(kernel: NDArray[np.float32], volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """(D, D, D) T ∗ V of a map (D, D, D); kernel: the transform of T with the period 2 D."""
    box_size = len(volume)
    spectrum = scipy.fft.rfftn(volume, s=(2 * box_size,) * 3, workers=numba.get_num_threads())
    spectrum *= kernel
    whole = scipy.fft.irfftn(spectrum, s=(2 * box_size,) * 3, workers=numba.get_num_threads(), overwrite_x=True)
    return whole[:box_size, :box_size, :box_size].astype(np.float32, copy=False)
