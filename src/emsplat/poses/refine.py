"""Local refinement of the pose, shift, contrast and defocus of each image against the map of its own half.

The negative log-likelihood of an image, given a map, is that of `imaging.likelihood`. The values in the file are
treated as a measurement: the true values are normally distributed about them. The width of this distribution is learnt
from the images (by the EM algorithm, block by block), so that correct poses stay where they are, and an image with
little information moves little. For each image, a few Gauss–Newton steps with the damping of Levenberg and Marquardt
minimise

    negative log-likelihood + ½ Σ (change / width)²

from coarse frequencies to the finest that the half maps share. A step that does not lower this sum is not taken.

The images of a half are compared with slices of the transform of their own half's Gaussians on a grid. This is the same
definition as splatting the Gaussians, and many times as fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from emsplat.conventions import electron_wavelength_in_angstroms
from emsplat.fourier import maps
from emsplat.fourier.slices import FourierVolume, fourier_volume
from emsplat.imaging.likelihood import Recorded
from emsplat.io.images import reading_order
from emsplat.optics.aberrations import antisymmetric_factors, symmetric_phases
from emsplat.optics.ctf import ctf_parameters
from emsplat.particles.table import Particles
from emsplat.poses.refine_kernels import N_PARAMETERS, WINDOW, normal_equations, tap_table
from emsplat.runtime.ranks import World
from emsplat.settings import REFINABLE

_COLUMNS = {"poses": (0, 1, 2), "shifts": (3, 4), "contrast": (5,), "defocus": (6,)}
_BANDS = (0.5, 0.75, 1.0)  # shares of the measurable band; each starts from what the coarser ones found
_STEPS = 3  # attempted steps in each band
_WIDTH_UPDATES = 4  # updates of the widths by the EM algorithm with the slopes and curvatures of each step
_START_SHARE = 1 / 3  # initial widths, as a share of the range
_PHASE_OF_CONTRAST = 3.0  # a contrast changes by a third at a step
_LARGEST_PHASE = 1.0  # largest phase in radians by which a step may turn a sample; beyond it, the slopes mean nothing
_CONTRAST_RANGE, _DEFOCUS_RANGE = 0.6, 1500.0  # largest changes of the contrast, which is 1, and of the defocus in Å
_FIRST_DAMPING, _DAMPING_FACTOR = 1e-2, 10.0  # share of the curvature added to itself
_SHELLS_BEYOND = 6  # shells of the map beyond the finest one that is used
_TAP_TABLE = tap_table()


@dataclass(frozen=True)
class Blocks:
    """Sizes of the blocks of images that are refined together."""

    n_bytes: int = 96 << 20  # size of their transforms, within the bounds that follow
    fewest: int = 256  # images; fewer would not determine the widths well
    most: int = 4096  # images
    read_bytes: int = 32 << 20  # size of the images that are read at once

    def images_at_once(self, n_samples: int) -> int:
        """Number of images in a block, for images of so many samples."""
        return int(np.clip(self.n_bytes // (12 * n_samples), self.fewest, self.most))


@dataclass(frozen=True)
class RefineSettings:
    """What is refined, how far it may move, and in which blocks."""

    quantities: tuple[str, ...]  # names from REFINABLE
    range_in_degrees: float
    range_in_angstroms: float
    most_rounds: int = 4
    blocks: Blocks = Blocks()

    @property
    def columns(self) -> list[int]:
        """The columns of these quantities among the seven parameters."""
        return [column for name in REFINABLE if name in self.quantities for column in _COLUMNS[name]]

    @property
    def ranges(self) -> NDArray[np.float64]:
        """(7,) largest changes, in radians, Å, 1 and Å."""
        turn, shift = np.deg2rad(self.range_in_degrees), self.range_in_angstroms
        return np.array([turn] * 3 + [shift] * 2 + [_CONTRAST_RANGE, _DEFOCUS_RANGE])


@dataclass(frozen=True)
class Reference:
    """The map of one half in the form in which its images are compared with it."""

    volume: FourierVolume  # box D′ ≤ D
    limit_shell: int  # the finest shell that is used
    diameter_in_angstroms: float


def reference(
    half_map: NDArray[np.float32], gain: NDArray[np.float64], limit_shell: int, diameter_in_angstroms: float
) -> Reference:
    """The map of a half up to the limit, with each shell multiplied by its gain.

    Args:
        half_map: (D, D, D); gain: (D//2,) the least-squares factor from this map to the truth, shells from 1.
    """
    full = len(half_map)
    # Slices are interpolated, which needs some shells beyond the finest one that is used.
    curve = np.concatenate([gain[:1], gain[:limit_shell], np.full(full // 2 - limit_shell, gain[limit_shell - 1])])
    box_size = min(full, scipy.fft.next_fast_len(2 * (limit_shell + _SHELLS_BEYOND), real=True))
    volume = maps.fourier_resize(maps.radial_filter(half_map, curve), box_size)
    return Reference(fourier_volume(volume, WINDOW), limit_shell, diameter_in_angstroms)


def refine_half(
    recorded: Recorded,
    changes: NDArray[np.float64],
    rows: NDArray[np.int64],
    against: Reference,
    settings: RefineSettings,
    world: World | None = None,
) -> float:
    """Refine the images of one half against its map; arguments as for `refined_blocks`.

    Returns:
        How much the negative log-likelihood of an image fell, on average.
    """
    *_, (_, fallen) = refined_blocks(recorded, changes, rows, against, settings, world)
    return fallen / len(rows)


def refined_blocks(
    recorded: Recorded,
    changes: NDArray[np.float64],
    rows: NDArray[np.int64],
    against: Reference,
    settings: RefineSettings,
    world: World | None = None,
    before: tuple[int, float] = (0, 0.0),
) -> Iterator[tuple[int, float]]:
    """Refine the images of one half against its map, block by block.

    Args:
        recorded: all N images, with the particles as in their file.
        changes: (N, 7) differences from the file: turns about the axes of the image (radians), shift of the particle
            x, y (Å), contrast − 1, defocus (Å). They are the start, and are replaced by the result.
        rows: rows of the half.
        world: the ranks that share the blocks, which are the same for any number of ranks; by default, one.
        before: the last yield of an interrupted earlier call, if `changes` are those of that call.
    Yields:
        After each block, the number of images done, and their total gain in log-likelihood.
    """
    order = rows[reading_order(recorded.particles.select(rows))]
    samples = _samples(against.limit_shell)
    at_once = settings.blocks.images_at_once(len(samples))
    first, fallen = before
    done = 0
    world = world or World()
    blocks = np.array_split(order, -(-len(order) // at_once))
    while done < first:
        done += len(blocks.pop(0))
    while blocks:
        together, blocks = blocks[: world.size], blocks[world.size :]
        found, gains = [np.zeros((len(block), changes.shape[1])) for block in together], np.zeros(len(together))
        if world.rank < len(together):
            block = together[world.rank]
            problem = _Problem(recorded, block, against, samples, settings.blocks.read_bytes)
            found[world.rank], gains[world.rank] = _minimised(problem, changes[block], settings)
        world.sum(gains)
        for block, moved, gain in zip(together, found, gains.tolist(), strict=True):
            world.sum(moved)  # the changes of a block come from one rank
            changes[block] = moved
            fallen += gain
            done += len(block)
        yield done, fallen


def changed(particles: Particles, changes: NDArray[np.float64]) -> Particles:
    """The particles with (N, 7) changes as `refine_half` has them."""
    moved = particles.with_poses(particles.poses.changed(changes[:, :3], changes[:, 3:5]))
    return replace(moved.with_defocus_changed(changes[:, 6]), ctf_scale=particles.ctf_scale * (1 + changes[:, 5]))


def _samples(limit_shell: int) -> NDArray[np.int64]:
    """(m, 2) kx, ky of a half plane within the limit, without the mean; bands in order, neighbours together."""
    k = np.arange(-limit_shell, limit_shell + 1)
    ky, kx = (a.ravel() for a in np.meshgrid(k, k[limit_shell:], indexing="ij"))
    radius = np.hypot(kx, ky)
    chosen = np.flatnonzero((radius > 0) & (radius <= limit_shell))
    band = np.searchsorted(np.multiply(_BANDS, limit_shell), radius[chosen])
    chosen = chosen[np.argsort(band, kind="stable")]
    return np.stack([kx[chosen], ky[chosen]], axis=1)


class _Problem:
    """The negative log-likelihoods of a block of images, whose samples are held in memory."""

    def __init__(
        self,
        recorded: Recorded,
        rows: NDArray[np.int64],
        against: Reference,
        samples: NDArray[np.int64],
        read_bytes: int = Blocks.read_bytes,
    ) -> None:
        """Args: rows: (n,) the images of the block; read_bytes: size of the images that are read at once."""
        particles = recorded.particles.select(rows)
        self.particles, self.samples, self.against = particles, samples, against
        self.poses, self.premultiplied = particles.poses, particles.premultiplied
        voltages = np.array([group.voltage_in_kilovolts for group in particles.optics])[particles.optics_group]
        self.phase_slopes = np.pi * electron_wavelength_in_angstroms(voltages)
        box_size = against.volume.box_size
        at = (slice(None), samples[:, 1] % box_size, samples[:, 0])
        phases, self.symmetric_of = symmetric_phases(particles, box_size)
        self.symmetric = phases[at] if len(phases) else np.zeros((1, len(samples)), dtype=np.float32)
        odd, odd_of = antisymmetric_factors(particles, box_size)
        self.spectra = np.empty((len(particles), len(samples)), dtype=np.complex64)
        self.weights = np.empty((len(particles), len(samples)), dtype=np.float32)
        at_once = max(1, read_bytes // (4 * particles.box_size**2))
        for part in np.array_split(np.arange(len(rows)), -(-len(rows) // at_once)):
            observed = recorded.observe(rows[part], box_size)
            self.spectra[part] = observed.spectra.numpy()[at]
            self.weights[part] = observed.weights.numpy()[at]
        for image in np.flatnonzero(odd_of >= 0):
            self.spectra[image] *= odd[odd_of[image]][at[1:]].conj()

    def evaluate(
        self, changes: NDArray[np.float64], n_samples: int, with_defocus: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(n,) negative log-likelihoods of the coarsest samples, their (n, 7) slopes and (n, 7, 7) curvatures."""
        n, particles = len(changes), self.particles
        turned = self.poses.changed(changes[:, :3], changes[:, 3:5]).rotations
        step = 1 / (particles.box_size * particles.pixel_size_in_angstroms)
        centre = particles.box_size // 2 * particles.pixel_size_in_angstroms
        misfits, slopes = np.empty(n), np.empty((n, N_PARAMETERS))
        curvatures = np.empty((n, N_PARAMETERS, N_PARAMETERS))
        normal_equations(
            self.against.volume.grid, _TAP_TABLE, self.against.volume.box_size, self.samples[:n_samples], self.spectra,
            self.weights, ctf_parameters(particles.with_defocus_changed(changes[:, 6])),
            self.phase_slopes * with_defocus, self.symmetric, self.symmetric_of, self.premultiplied, turned,
            (centre + self.poses.shifts + changes[:, 3:5]) * step, 1 + changes[:, 5], step, misfits, slopes, curvatures,
        )  # fmt: skip
        return misfits, slopes, curvatures


def _minimised(
    problem: _Problem, start: NDArray[np.float64], settings: RefineSettings
) -> tuple[NDArray[np.float64], float]:
    """(n, 7) changes of a block, and its total gain in log-likelihood."""
    against = problem.against
    radius = np.hypot(*problem.samples.T)
    with_defocus = "defocus" in settings.quantities
    at_start = problem.evaluate(start, len(radius), with_defocus)[0]
    prior = _Prior.wide(settings)
    changes = start
    for band in _BANDS:
        limit = band * against.limit_shell
        n_samples = int(np.count_nonzero(radius <= limit))
        measures = _phase_measures(problem, limit, against.diameter_in_angstroms)
        misfits, slopes, curvatures = problem.evaluate(changes, n_samples, with_defocus)
        damping = np.full(len(start), _FIRST_DAMPING)
        for _ in range(_STEPS):
            prior.learn(changes, slopes, curvatures)
            trial = _within(_turned(changes, prior.step(changes, slopes, curvatures, damping, measures)), settings)
            tried = problem.evaluate(trial, n_samples, with_defocus)
            better = tried[0] + prior.misfits(trial) < misfits + prior.misfits(changes)
            changes = np.where(better[:, None], trial, changes)
            misfits = np.where(better, tried[0], misfits)
            slopes = np.where(better[:, None], tried[1], slopes)
            curvatures = np.where(better[:, None, None], tried[2], curvatures)
            damping = np.where(better, damping / _DAMPING_FACTOR, damping * _DAMPING_FACTOR)
    # Changes that suit the coarse bands may suit the whole band less.
    worse = misfits + prior.misfits(changes) > at_start + prior.misfits(start)
    return np.where(worse[:, None], start, changes), float(np.where(worse, 0, at_start - misfits).sum())


class _Prior:
    """The spread of the true values about those of the file, with one width for all axes of a quantity."""

    def __init__(self, settings: RefineSettings, widths: NDArray[np.float64]) -> None:
        """Args: widths: (p,) widths of the parameters that are refined."""
        self.columns, self.widths = settings.columns, widths
        self.least = 1e-3 * widths
        self.largest = settings.ranges[self.columns]
        self.groups = [np.isin(self.columns, _COLUMNS[name]) for name in settings.quantities]

    @staticmethod
    def wide(settings: RefineSettings) -> _Prior:
        return _Prior(settings, _START_SHARE * settings.ranges[settings.columns])

    def misfits(self, changes: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) ½ Σ (change / width)²."""
        return 0.5 * ((changes[:, self.columns] / self.widths) ** 2).sum(axis=1)

    def _posterior(
        self, changes: NDArray[np.float64], slopes: NDArray[np.float64], curvatures: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(n, p) slopes and (n, p, p) curvatures of the negative log-likelihood and the prior together."""
        precision = 1 / self.widths**2
        return (
            slopes[:, self.columns] + precision * changes[:, self.columns],
            curvatures[:, self.columns][:, :, self.columns] + np.diag(precision),
        )

    def learn(self, changes: NDArray[np.float64], slopes: NDArray[np.float64], curvatures: NDArray[np.float64]) -> None:
        """Update the widths to the most likely ones, by the EM algorithm with slopes and curvatures."""
        for _ in range(_WIDTH_UPDATES):
            g, h = self._posterior(changes, slopes, curvatures)
            spread = np.linalg.inv(h)
            mean = changes[:, self.columns] - np.einsum("nij,nj->ni", spread, g)
            square = np.clip(mean, -self.largest, self.largest) ** 2 + np.einsum("nii->ni", spread)
            for group in self.groups:
                self.widths[group] = np.sqrt(square[:, group].mean())
            self.widths = np.clip(self.widths, self.least, self.largest)

    def step(
        self,
        changes: NDArray[np.float64],
        slopes: NDArray[np.float64],
        curvatures: NDArray[np.float64],
        damping: NDArray[np.float64],
        measures: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """(n, 7) damped steps, shortened if they would turn the phase of a sample too far.

        Args:
            damping: (n,); measures: (n, 7) largest phase by which a unit of each parameter turns a sample.
        """
        g, h = self._posterior(changes, slopes, curvatures)
        diagonal = np.einsum("nii->ni", h)
        h = h + (damping[:, None] * diagonal)[:, :, None] * np.eye(len(self.columns))
        steps = np.zeros_like(changes)
        steps[:, self.columns] = -np.linalg.solve(h, g[:, :, None])[:, :, 0]
        phases = np.abs(steps * measures).max(axis=1)
        return steps / np.maximum(phases / _LARGEST_PHASE, 1)[:, None]


def _phase_measures(problem: _Problem, limit: float, diameter_in_angstroms: float) -> NDArray[np.float64]:
    """(n, 7) largest phase in radians by which a unit of each parameter turns a sample at the limit."""
    p = problem.particles
    frequency = limit / (p.box_size * p.pixel_size_in_angstroms)
    per_angstrom = 2 * np.pi * frequency
    common = [per_angstrom * diameter_in_angstroms / 2] * 3 + [per_angstrom] * 2 + [_PHASE_OF_CONTRAST]
    return np.concatenate([np.tile(common, (len(p), 1)), (problem.phase_slopes * frequency**2)[:, None]], axis=1)


def _turned(changes: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Changes after a step: turns are composed, and the rest is added."""
    after = changes + steps
    after[:, :3] = (Rotation.from_rotvec(steps[:, :3]) * Rotation.from_rotvec(changes[:, :3])).as_rotvec()
    return after


def _within(changes: NDArray[np.float64], settings: RefineSettings) -> NDArray[np.float64]:
    """Changes limited to the ranges, whatever their direction."""
    for columns in _COLUMNS.values():
        part, largest = changes[:, columns], settings.ranges[columns[0]]
        changes[:, columns] = part / np.maximum(np.linalg.norm(part, axis=1) / largest, 1)[:, None]
    return changes
