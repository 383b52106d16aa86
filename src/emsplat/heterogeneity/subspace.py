"""A linear subspace of maps from the images of one half: probabilistic PCA with the CTF of each image.

``y_i = c_i C_i P_i (V₀ + Σ_k z_ik U_k + pose errors) + noise``, ``z ~ N(0, I)``. It is learnt by EM. The E-step finds
the latents from the inner products of slices (`posterior`); the M-step moves the components U along the gradient of the
expected log-likelihood, divided by its curvature in Fourier space. With whitened latents that curvature is the same T
for all components, so one such step nearly solves the M-step. Frequencies are added in stages, from coarse to fine.

Two effects look like motion and are not: a contrast that differs between images, which is integrated out, and errors
of the poses. The derivatives of V₀ by an image's pose and shift make five more columns of the linear model. Their
variances are learnt from the images; the components need not explain what these columns explain.

Noise looks like variability, too. A component holds many more voxels than there are images, so that it contains the
noise of each image that it is compared with, and a latent would grow on its own noise. The E-step therefore knows how
uncertain the components are (variational Bayes): ``E[UᵀAU] = ÛᵀAÛ + δ``, where δ of an image is its share of the number
of voxels that all images determine. This takes off a latent exactly what its own noise has added. Once the components
are learnt, latents are found without δ, because the bins need sharp ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.fourier.insertion import SliceGrid
from emsplat.heterogeneity.observations import Observations, blocks_of_particles
from emsplat.heterogeneity.posterior import (
    BETWEEN_CONTRASTS,
    ContrastPrior,
    ContrastStep,
    Posterior,
    inner_products,
    posterior_of_particles,
)
from emsplat.heterogeneity.slices import Volumes, add_pose_columns, residual_slices

STAGES = ((16, 6, 12), (24, 10, 8), (32, 15, 5), (48, 23, 6))  # box, last shell, iterations
_BLOCK = 256  # images whose slices are held at once
_PRIOR_POWER = 1.0  # prior power of the components in every shell, as a share of V₀'s
_START_TURN, _START_SHIFT = np.deg2rad(1.0), 0.1  # standard deviations: radians, and voxels of the first stage
# Last shell of the stages in which the variances of pose errors are learnt. Beyond it, a movement of a pixel is not
# a small phase, and the derivatives of a map that errors have blurred explain less and less of them.
_POSES_UP_TO = 10
_LEAST_TURN, _LEAST_SHIFT = np.deg2rad(0.01), 0.002  # least standard deviations: radians, and voxels
_LARGEST_CHANGE = 4.0  # largest factor by which an iteration changes a variance of pose errors


class Diverged(ArithmeticError):
    """The iterations led to numbers that are not finite."""


@dataclass(frozen=True)
class Stage:
    """A working box, the last shell of the images that is used, and the number of iterations."""

    box_size: int
    limit_shell: int
    iterations: int


def stages(box_size: int, limit_shell: int) -> list[Stage]:
    """The stages that fit the images' box and the finest shell that is used; the last one ends with this shell."""
    found: list[Stage] = []
    for box, last, iterations in STAGES:
        at_end = last >= limit_shell
        last = min(last, limit_shell)
        box = min(box_size, max(16, scipy.fft.next_fast_len(2 * last + 2, real=True)) if at_end else box)
        found.append(Stage(box, min(last, (box - 1) // 2), iterations))
        if at_end:
            break
    return found


@dataclass(frozen=True)
class Subspace:
    """A linear model of one half's maps, on a working box D′."""

    mean: NDArray[np.float32]  # (D′, D′, D′) V₀
    components: NDArray[np.float32]  # (K, D′, D′, D′), scaled so that latents have unit variance
    contrast: ContrastPrior
    turn_sigma: float  # radians: standard deviation of the pose errors about each axis
    shift_sigma: float  # voxels of the box D′: standard deviation of the shift errors

    @property
    def count(self) -> int:
        return len(self.components)

    @property
    def box_size(self) -> int:
        return len(self.mean)

    @property
    def greatest_power(self) -> float:
        """The power of the strongest component, as a share of V₀'s."""
        of_map = np.square(self.mean - self.mean.mean(dtype=np.float64)).sum(dtype=np.float64)
        return max((float(np.square(u).sum(dtype=np.float64) / of_map) for u in self.components), default=0.0)

    def variances(self) -> NDArray[np.float64]:
        """(K + 6,) variances of the prior of all columns except V₀."""
        pose = [self.turn_sigma**2] * 3 + [self.shift_sigma**2] * 2
        return np.concatenate([np.ones(self.count), pose, [BETWEEN_CONTRASTS**2]])

    def resized(self, box_size: int) -> Subspace:
        """The same space with maps of another number of voxels."""
        return replace(
            self,
            mean=maps.fourier_resize(self.mean, box_size),
            components=np.array([maps.fourier_resize(u, box_size) for u in self.components]).reshape(
                -1, *(box_size,) * 3
            ),
            shift_sigma=self.shift_sigma * box_size / self.box_size,
        )


def learn(
    observe: Callable[[Stage], Observations],
    mean: NDArray[np.float32],
    mask: NDArray[np.float32],
    count: int,
    schedule: Sequence[Stage],
    seed: int,
    start: Subspace | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Subspace:
    """The subspace that the images of one half show.

    Args:
        observe: reads the half's images for a stage.
        mean: (D, D, D) V₀, the half's consensus on the scale of the images.
        mask: (D, D, D) soft mask outside which components are 0.
        count: K.
        seed: seed of the random latents from which the first step sketches the components, unless there is a start.
    Raises:
        Diverged: the iterations led to numbers that are not finite, as they may where poses are far off.
    """
    total, done = sum(stage.iterations for stage in schedule), 0
    rng = np.random.default_rng(seed)
    space = start
    for stage in schedule:
        observations = observe(stage)
        box_size = stage.box_size
        soft = np.clip(maps.fourier_resize(mask, box_size), 0, 1)
        v0 = maps.fourier_resize(mean, box_size)
        if space is None:
            empty = np.zeros((count, box_size, box_size, box_size), dtype=np.float32)
            space = Subspace(v0, empty, ContrastPrior(), _START_TURN, _START_SHIFT)
        space = _on(space, v0, stage)
        step = _Step(observations, stage, soft, v0)
        for _ in range(stage.iterations):
            space = _finite(step, space, rng)
            done += 1
            progress(done, total)
    assert space is not None
    return space


def embed(space: Subspace, observations: Observations) -> Posterior:
    """The latents of images; the first K of each moment belong to the components."""
    volumes = volumes_of(space)
    parts = [_posterior(space, columns_of(volumes, part), part) for part in parts_of(observations)]
    return Posterior(*(np.concatenate([getattr(p, name) for p in parts]) for name in Posterior.__dataclass_fields__))


def _posterior(
    space: Subspace, columns: NDArray[np.float32], part: Observations, uncertainty: NDArray[np.float32] | None = None
) -> Posterior:
    """The latents of images.

    Args:
        uncertainty: (D′//2+1,) variance of a sample of a component's slice, in each shell; None: nothing is uncertain.
    """
    inner = inner_products(columns, part)
    if uncertainty is not None:
        of_components = np.arange(1, 1 + space.count)
        delta = part.weights @ (uncertainty[_shells(part.samples)] * part.multiplicity)
        inner.gram[:, of_components, of_components] += delta[:, None]
    return posterior_of_particles(inner, space.variances(), space.contrast, part.particle, space.count)


def _shells(samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """(m,) the shell of each sample."""
    return np.rint(np.hypot(*samples.T)).astype(np.int64)


def _on(space: Subspace, mean: NDArray[np.float32], stage: Stage) -> Subspace:
    """The space on a stage's box; V₀ is kept where it was learnt, and taken from the mean at new frequencies."""
    resized = space.resized(stage.box_size)
    old, new = maps.half_spectrum(resized.mean), maps.half_spectrum(mean)
    learnt = maps.radius(stage.box_size) <= 0.5 * space.box_size - 2
    if space.box_size == stage.box_size:
        learnt[:] = True
    return replace(resized, mean=maps.from_half_spectrum(np.where(learnt, old, new), stage.box_size))


class _Step:
    """One EM iteration on the images of a stage."""

    def __init__(
        self, observations: Observations, stage: Stage, mask: NDArray[np.float32], mean: NDArray[np.float32]
    ) -> None:
        self.observations, self.stage, self.mask = observations, stage, mask
        box_size = stage.box_size
        weights = SliceGrid.empty(box_size, box_size, np.float32)
        for part in parts_of(observations):
            weights.insert(_half_planes(part.weights, part.samples, box_size), part.matrices)
        transfer = np.maximum(scipy.fft.rfftn(scipy.fft.ifftshift(weights.backprojection())).real, 0)
        radius = maps.radius(box_size)
        shell = np.minimum(np.rint(radius).astype(int), box_size // 2)
        size = maps.shell_size(box_size)
        mean_transfer = maps.shell_sum(transfer, box_size) / size
        power = maps.shell_correlation(maps.half_spectrum(mean), maps.half_spectrum(mean), box_size) / size
        self.prior = (box_size**3 / np.maximum(_PRIOR_POWER * power, 1e-30))[shell].astype(np.float32)
        # Where views are few, the value of T may be far below what the mask makes of its neighbours.
        self.transfer = np.maximum(transfer, 0.5 * mean_transfer[shell]).astype(np.float32)
        self.uncertainty = self._uncertainty(observations)
        self.band = radius <= stage.limit_shell + 0.5
        self.reference = np.where(self.band & (radius > 0), maps.half_spectrum(mean), 0)

    def _uncertainty(self, observations: Observations) -> NDArray[np.float32]:
        """As in `_posterior`; the sum of δ over all images is the number of voxels that they determine."""
        box_size = self.stage.box_size
        determined = maps.shell_sum(self.transfer / (self.transfer + self.prior), box_size)
        determined *= np.square(self.mask, dtype=np.float64).mean()  # a mask leaves so much freedom to a spectrum
        weights = np.zeros(len(determined))
        of_samples = observations.weights.sum(axis=0, dtype=np.float64) * observations.multiplicity
        np.add.at(weights, _shells(observations.samples), of_samples)
        return np.divide(determined, weights, out=np.zeros_like(weights), where=weights > 0).astype(np.float32)

    def taken(self, space: Subspace, rng: np.random.Generator) -> Subspace:
        """The space after one iteration."""
        box_size, count = self.stage.box_size, space.count
        blank = not space.components.any()
        volumes = volumes_of(space)
        grids = [SliceGrid.empty(box_size, box_size, np.complex64) for _ in range(count + 1)]
        moments, average, number = np.zeros((count, count)), np.zeros(count), 0
        contrast = ContrastStep(space.contrast)
        pose = _PoseVariances(space)
        for part in parts_of(self.observations):
            columns = columns_of(volumes, part)
            found = _posterior(space, columns, part, self.uncertainty)
            if blank:
                found = _random(found, count, part.particle, rng)
            self._insert_residuals(grids, columns, part, found)
            second = found.second_moment
            moments += second[:, :count, :count].sum(axis=0)
            if not blank:
                average += found.mean[:, :count].sum(axis=0)
                pose.add(found)
            contrast.add(found)
            number += len(part)
        average /= number
        mean = self._moved_mean(space.mean, grids[0], np.einsum("k,kzyx->zyx", average, space.components))
        components = np.array(
            [self._moved(u, grid, self.prior) * self.mask for u, grid in zip(space.components, grids[1:], strict=True)]
        )
        learns = not blank and self.stage.limit_shell <= _POSES_UP_TO
        turn, shift = pose.sigmas() if learns else (space.turn_sigma, space.shift_sigma)
        return replace(
            space,
            mean=mean,
            components=_principal(components, moments / number - np.outer(average, average)),
            contrast=contrast.prior(),
            turn_sigma=turn,
            shift_sigma=shift,
        )

    def _insert_residuals(
        self, grids: Sequence[SliceGrid], columns: NDArray[np.float32], part: Observations, found: Posterior
    ) -> None:
        """Add the residuals of a block of images to the grids of V₀ and of the components."""
        count, box_size = len(grids) - 1, self.stage.box_size
        # V₀ is also the last column, so its coefficient in an image is c (1 + z_last).
        of_data = np.concatenate([(found.c + found.cz[:, -1])[:, None], found.cz[:, :count]], axis=1)
        of_mean = np.concatenate([(found.cc + found.ccz[:, -1])[:, None], found.ccz + found.cczz[:, -1]], axis=1)
        of_components = np.concatenate([found.ccz[:, :count, None], found.cczz[:, :count]], axis=2)
        of_columns = np.concatenate([of_mean[:, None], of_components], axis=1)
        residuals = np.zeros((count + 1, len(part), box_size, box_size // 2 + 1), dtype=np.complex64)
        residual_slices(
            columns, part.samples, part.spectra, part.weights, of_data.astype(np.float32),
            of_columns.astype(np.float32), residuals,
        )  # fmt: skip
        for grid, slices in zip(grids, residuals, strict=True):
            grid.insert(slices, part.matrices)

    def _moved(
        self, volume: NDArray[np.float32], gradient: SliceGrid, prior: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """A map after one preconditioned step within the band; frequencies beyond the band are unchanged."""
        spectrum = maps.half_spectrum(volume)
        step = maps.half_spectrum(gradient.backprojection()) - prior * spectrum
        spectrum += _quotient(step, self.transfer + prior, self.band)
        return maps.from_half_spectrum(spectrum, self.stage.box_size)

    def _moved_mean(
        self, volume: NDArray[np.float32], gradient: SliceGrid, shift: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """V₀ after a step, on the scale of the consensus.

        The step is half of a preconditioned one, and leaves the mean of the map, which no image tells, as it is: no
        mask steadies V₀, and larger steps swing with growing amplitude. Without a fixed scale, that of V₀ and those of
        all contrasts drift apart.

        Args:
            shift: (D′, D′, D′) mean of what the components add to V₀. If it stayed with the components, they would be
                mixtures of what varies and of what V₀ lacks, and the latter is the same in both halves.
        """
        spectrum = maps.half_spectrum(volume) + np.where(
            self.reference != 0, maps.half_spectrum(shift.astype(np.float32)), 0
        )
        step = maps.half_spectrum(gradient.backprojection())
        spectrum += np.float32(0.5) * _quotient(step, self.transfer, self.reference != 0)
        along = np.vdot(self.reference, spectrum).real
        scale = np.vdot(self.reference, self.reference).real / along if along > 0 else 1.0
        return maps.from_half_spectrum(
            np.where(self.reference != 0, np.float32(scale) * spectrum, spectrum), self.stage.box_size
        )


def _finite(step: _Step, space: Subspace, rng: np.random.Generator) -> Subspace:
    """The space after one iteration; Diverged if it holds a number that is not finite."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # their results are looked for below
            found = step.taken(space, rng)
    except np.linalg.LinAlgError as error:  # the eigenvalues of matrices that are not finite
        raise Diverged(str(error)) from error
    if not (np.isfinite(found.mean).all() and np.isfinite(found.components).all()):
        raise Diverged("a map holds numbers that are not finite")
    return found


class _PoseVariances:
    """The variances of pose errors, by a step of Fisher's scoring from the posteriors of the images.

    EM would stay near its start for very long, because one image says little of its pose errors.
    """

    def __init__(self, space: Subspace) -> None:
        self.space = space
        self.prior = space.variances()[space.count : -1]
        self.excess, self.information = np.zeros_like(self.prior), np.zeros_like(self.prior)

    def add(self, found: Posterior) -> None:
        """Add images: E[x²] less the prior's variance, and the square of the share of it that an image determines."""
        columns = slice(self.space.count, -1)
        left = np.einsum("nkk->nk", found.covariance)[:, columns]
        self.excess += (left + found.mean[:, columns] ** 2 - self.prior).sum(axis=0)
        self.information += ((1 - np.minimum(left / self.prior, 1)) ** 2).sum(axis=0)

    def sigmas(self) -> tuple[float, float]:
        """Standard deviations of turns (radians) and shifts (voxels)."""
        found = []
        for columns, sigma, least in (
            (slice(3), self.space.turn_sigma, _LEAST_TURN),
            (slice(3, None), self.space.shift_sigma, _LEAST_SHIFT),
        ):
            step = self.excess[columns].sum() / max(self.information[columns].sum(), 1e-12)
            variance = np.clip(sigma**2 + step, sigma**2 / _LARGEST_CHANGE, sigma**2 * _LARGEST_CHANGE)
            found.append(max(float(np.sqrt(variance)), float(least)))
        return found[0], found[1]


def _quotient(
    step: NDArray[np.complex64], curvature: NDArray[np.float32], within: NDArray[np.bool_]
) -> NDArray[np.complex64]:
    """The quotient, and 0 elsewhere or where no image tells anything."""
    return np.divide(step, curvature, out=np.zeros_like(step), where=within & (curvature > 0))


def _random(found: Posterior, count: int, particle: NDArray[np.int64], rng: np.random.Generator) -> Posterior:
    """Random latents with unchanged poses, with which the first step sketches the residual covariance."""
    names, of_image = np.unique(particle, return_inverse=True)
    z = np.zeros_like(found.mean)
    z[:, :count] = rng.standard_normal((len(names), count))[of_image]
    square = z[:, :, None] * z[:, None, :]
    c = found.contrast
    return replace(
        found, mean=z, covariance=np.zeros_like(square), cz=c[:, None] * z, ccz=c[:, None] ** 2 * z,
        cczz=c[:, None, None] ** 2 * square,
    )  # fmt: skip


def _principal(components: NDArray[np.float32], moments: NDArray[np.float64]) -> NDArray[np.float32]:
    """Components rotated and scaled so that latents have unit second moments; the strongest one comes first.

    Args: moments: (K, K) mean E[z zᵀ] of the latents of the given components.
    """
    flat = components.reshape(len(components), -1).astype(np.float64)
    values, vectors = np.linalg.eigh(moments)
    root = vectors * np.sqrt(np.maximum(values, 1e-12)) @ vectors.T
    flat = root @ flat  # Uᵀz = (R^½ U)ᵀ (R^−½ z)
    _, rotation = np.linalg.eigh(flat @ flat.T)
    return (rotation[:, ::-1].T @ flat).astype(np.float32).reshape(components.shape)


def volumes_of(space: Subspace) -> Volumes:
    """V₀, the components, and x·V₀, y·V₀, z·V₀, from which the derivatives of V₀ are made."""
    x = (np.arange(space.box_size) - space.box_size // 2).astype(np.float32)
    v0 = space.mean
    return Volumes.of([v0, *space.components, v0 * x, v0 * x[:, None], v0 * x[:, None, None]])


def columns_of(volumes: Volumes, part: Observations) -> NDArray[np.float32]:
    """(n, m, 2, 1 + K + 5 + 1) columns of the linear model; the last is V₀ again, for contrasts off the grid."""
    slices = volumes.slices(part.matrices, part.samples)
    out = np.empty((*slices.shape[:3], slices.shape[3] + 3), dtype=np.float32)
    add_pose_columns(slices, part.matrices, part.samples, volumes.box_size, out[..., :-1])
    out[..., -1] = slices[..., 0]
    return out


def _half_planes(values: NDArray, samples: NDArray[np.int64], box_size: int) -> NDArray:
    """(n, D, D//2+1) half planes, ky in fft order, of values at one of each pair ±k."""
    planes = np.zeros((len(values), box_size, box_size // 2 + 1), dtype=values.dtype)
    kx, ky = samples.T
    planes[:, ky % box_size, kx] = values
    edge = kx == 0
    planes[:, -ky[edge] % box_size, 0] = values[:, edge].conj()
    return planes


def parts_of(observations: Observations) -> list[Observations]:
    """The observations in blocks that divide no particle."""
    return [observations.part(block) for block in blocks_of_particles(observations.particle, _BLOCK)]
