"""Gaussians from the images themselves, one batch after another: the classical way of splatting.

A step renders the Gaussians into a batch of images, compares, and takes the gradient back through the splat. It works
in rounds of some batches, after each of which the density is controlled, the misfit of images kept aside is looked at,
and the state is written down. When that misfit no longer falls, the step sizes are annealed on all of the half.

The gradient is preconditioned. Slices meet at the origin: of n images, n / (2k) pass within half a voxel of a point at
the radius k, so the curvature of the loss falls as 1/k and coarse detail would be fitted long before fine. The gradient
by each projection is therefore multiplied by the ramp |k|, as in filtered back-projection; its exponent falls to 0
while the steps are annealed, so that the fit ends at the minimum of the misfit itself. The scale of each parameter is
left to Adam: the covariance of a batch's gradient is the Fisher information, so its mean square is the curvature's
diagonal, up to a factor.

Several ranks have the same Gaussians and go through the same batches; each renders its share of a batch, the gradients
are summed, and all take the same step. What is summed is cut into the same pieces for any number of ranks up to four,
and added in their order, so that these come to the same bits.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emsplat.errors import InputError
from emsplat.fit.by_statistics import FitSettings, confine
from emsplat.fit.state import FitHistory, FitState
from emsplat.imaging.aberrations import slice_matrices
from emsplat.imaging.forward import (
    contrast_transfer,
    image_spectra,
    misfits,
    observe,
    projection_factors,
    shifts_in_pixels,
)
from emsplat.io.images import reading_order
from emsplat.models.densification import DensitySettings, control, is_due
from emsplat.models.parameters import NAMES, Adam, Parameters
from emsplat.particles.batches import Batches, Images, Loader, Rows
from emsplat.particles.table import Particles
from emsplat.runtime.checkpoint import UNKEPT, Checkpoint
from emsplat.runtime.ranks import World
from emsplat.splat import project

_AT_ONCE_BYTES = 8 << 20  # of the images that are rendered together: what a step needs beside its buffers
_PIECES = 4  # of a batch, at least


@dataclass(frozen=True)
class Schedule:
    """When things happen, beyond `FitSettings`."""

    round: int = 25  # batches
    batch: tuple[int, int] = (16, 256)  # images at least and at most; between, a round sees every image once
    max_rounds: int = 12  # before annealing
    anneal_rounds: int = 10
    anneal_epochs: int = 2  # of all images, where that is more
    step_share: float = 0.1  # of the step sizes of a fit to statistics, whose gradients have no noise
    improvement: float = 2e-3  # of the misfit of unseen images that counts as one, relative, between rounds
    patience: int = 2  # rounds without improvement before annealing
    rounds_without_unseen: int = 4  # nothing tells when to stop, and so few images need no more
    most_unseen: int = 4096  # images that are enough to tell
    density: DensitySettings = field(default_factory=lambda: DensitySettings(every=1, first=0))  # in rounds


@dataclass(frozen=True)
class HalfSet:
    """The images of one half, and how they are looked at."""

    particles: Particles  # the whole table
    images: Images
    seen: Rows
    unseen: Rows  # only decide when to anneal, then join in; may be none
    noise: NDArray[np.float64]  # (groups, D//2+1) from `noise_spectra`
    box_size: int  # D′ of the working box
    extent: int  # edge of the cube, in voxels, in which the Gaussians live
    symmetry: NDArray[np.float64]  # (m, 3, 3) operators


class Misfit:
    """The misfits of images as functions of the Gaussians, and what they ask for."""

    def __init__(self, half: HalfSet, cutoff: float) -> None:
        self._half, self._cutoff = half, cutoff
        self._matrices = slice_matrices(half.particles)
        self._shifts = shifts_in_pixels(half.particles, half.box_size)
        ky = np.fft.fftfreq(half.box_size)[:, None]
        self._radius = torch.from_numpy(np.hypot(ky, np.fft.rfftfreq(half.box_size)).astype(np.float32))

    def of(
        self, parameters: Parameters, rows: Rows, images: NDArray[np.float32], operators: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """(n,) ``½ ‖W C p‖² − ⟨W² C y, p⟩`` of these images, and (n, D′, D′) the projections."""
        half, p = self._half, parameters
        chosen = half.particles.select(rows)
        matrices = torch.from_numpy(self.matrices(rows, operators))
        projections = project(
            p.centres, p.log_scales, p.quaternions, p.log_masses,
            matrices, self._shifts[rows], half.box_size, self._cutoff,
        )  # fmt: skip
        spectra = image_spectra(projections, projection_factors(chosen, half.box_size, widened=True))
        observed = observe(images, chosen, half.noise, half.box_size)
        return misfits(spectra, contrast_transfer(chosen, half.box_size), observed), projections

    def matrices(self, rows: Rows, operators: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, 3, 3) of `aberrations.slice_matrices`, each image seen as one of its symmetry mates."""
        return self._matrices[rows] @ self._half.symmetry[operators]

    def ramped(self, residuals: Tensor, exponent: float) -> Tensor:
        """Gradients by projections (n, D′, D′), times |k| to this power, 1 at half of Nyquist's radius."""
        if exponent == 0:
            return residuals
        filtered = torch.fft.rfft2(residuals) * (4 * self._radius) ** exponent
        return torch.fft.irfft2(filtered, s=residuals.shape[1:])


def fit_images(
    half: HalfSet,
    start: Parameters,
    settings: FitSettings,
    schedule: Schedule | None = None,
    checkpoint: Checkpoint = UNKEPT,
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Callable[[Parameters], None] = lambda parameters: None,
    world: World | None = None,
) -> tuple[Parameters, FitHistory]:
    """Fit Gaussians to the images of one half.

    Args:
        start: from `fit.initial_gaussians`.
        settings: of the model; of the numbers of steps only the schedule's count.
        checkpoint: is offered the state after every round; the fit goes on from the one it loads, to the same result.
            Only the first rank's counts.
        progress: called with the batches done and to do.
        watch: called after every round with the Gaussians, which the next one changes.
        world: the ranks that do this together; by default, one.
    Raises:
        InputError: an image whose misfit is not finite.
    """
    schedule = schedule or Schedule()
    sizes = {name: schedule.step_share * size for name, size in settings.step_sizes.items()}
    world = world or World()
    saved = world.broadcast(checkpoint.load() if world.is_first else None)
    if saved:
        state = FitState.restored(saved, sizes)
    else:
        state = FitState(Adam(start, sizes), np.random.default_rng(settings.seed))
    cut = Cut(max(1, _AT_ONCE_BYTES // (4 * half.box_size**2)), world)
    with Loader(half.images, cut.share) as loader:
        fit = _Fit(
            half, settings, schedule, Misfit(half, settings.cutoff), loader, checkpoint, progress, watch, world, cut
        )
        fit.approach(state)
        fit.anneal(state)
    return state.optimiser.parameters, state.history


@dataclass(frozen=True)
class Cut:
    """How images are cut into pieces, each of which one rank renders at once.

    Sums are taken piece by piece, in order: as long as there are at most `_PIECES` ranks the pieces are the same for
    any number of them, and so is each bit of the sum.
    """

    at_once: int  # images at most
    world: World

    def pieces(self, n: int) -> list[slice]:
        """Of n images."""
        number = max(-(-n // self.at_once), min(max(_PIECES, self.world.size), n), 1)
        return [slice(n * piece // number, n * (piece + 1) // number) for piece in range(number)]

    def share(self, n: int) -> slice:
        """The images of this rank's pieces."""
        pieces = self.pieces(n)
        mine = pieces[self.world.share(len(pieces))]
        return slice(mine[0].start, mine[-1].stop) if mine else slice(0, 0)


def _length(parameters: Parameters) -> int:
    return sum(getattr(parameters, name).numel() for name in NAMES)


def _gradient(parameters: Parameters) -> Tensor:
    """(length,) taken from the leaves, which have none then."""
    parts = []
    for leaf in (getattr(parameters, name) for name in NAMES):
        parts.append(torch.zeros(leaf.numel()) if leaf.grad is None else leaf.grad.reshape(-1))
        leaf.grad = None
    return torch.cat(parts)


def _set_gradient(parameters: Parameters, gradient: Tensor) -> None:
    leaves = [getattr(parameters, name) for name in NAMES]
    for leaf, part in zip(leaves, gradient.split([leaf.numel() for leaf in leaves]), strict=True):
        leaf.grad = part.view_as(leaf)


@dataclass(frozen=True)
class _Fit:
    """What does not change during a fit, and the two parts of it."""

    half: HalfSet
    settings: FitSettings
    schedule: Schedule
    misfit: Misfit
    loader: Loader
    checkpoint: Checkpoint
    progress: Callable[[int, int], None]
    watch: Callable[[Parameters], None]
    world: World
    cut: Cut

    def approach(self, state: FitState) -> None:
        """Rounds on the seen images, until the misfit of the unseen ones no longer falls."""
        half, schedule = self.half, self.schedule
        most = schedule.max_rounds if len(half.unseen) else schedule.rounds_without_unseen
        stream = self.loader.stream(self._batches(half.seen, self.settings.seed), state.done * schedule.round)
        while state.anneal_from is None:
            for rows, images in islice(stream, schedule.round):
                self._step(state, rows, images, 1.0)
                self.progress(len(state.history.losses), (most + schedule.anneal_rounds) * schedule.round)
            self._align(state)
            if is_due(state.done, most, schedule.density):
                control(state.optimiser, self.settings.n_gaussians, schedule.density, state.rng)
            state.done += 1
            stale = len(half.unseen) > 0 and self._is_stale(state)
            if stale or state.done >= most:
                state.anneal_from = state.done
                state.history.anneal_from = len(state.history.losses)
                state.history.stopped_by = "misfit of unseen images" if stale else "maximum number of rounds"
            self._end_round(state)

    def anneal(self, state: FitState) -> None:
        """Falling steps on all images."""
        assert state.anneal_from is not None
        length = self.schedule.round
        batches = self._batches(np.concatenate([self.half.seen, self.half.unseen]), self.settings.seed + 1)
        total = max(self.schedule.anneal_rounds * length, self.schedule.anneal_epochs * batches.per_epoch)
        first = (state.done - state.anneal_from) * length
        for done, (rows, images) in enumerate(islice(self.loader.stream(batches, first), max(total - first, 0)), first):
            self._step(state, rows, images, 0.5 + 0.5 * math.cos(math.pi * done / total))
            self.progress(len(state.history.losses), state.history.anneal_from + total)
            if (done + 1) % length == 0 or done + 1 == total:
                self._align(state)
                state.done += 1
                self._end_round(state)

    def _batches(self, rows: Rows, seed: int) -> Batches:
        fewest, most = self.schedule.batch
        size = min(max(-(-len(rows) // self.schedule.round), fewest), most)
        order = reading_order(self.half.particles)
        return Batches.of(order[np.isin(order, rows)], size, self.half.particles.box_size, seed)

    def _step(self, state: FitState, rows: Rows, images: NDArray[np.float32], rate: float) -> None:
        """One step along the preconditioned gradient of a batch; images: (m, D, D) of this rank's share of the rows."""
        n = len(rows)
        operators = state.rng.integers(len(self.half.symmetry), size=n)
        parameters, pieces = state.optimiser.parameters, self.cut.pieces(n)
        first = self.cut.share(n).start
        values, gradients = np.zeros(len(pieces)), torch.zeros(len(pieces), _length(parameters))
        for number in range(len(pieces))[self.world.share(len(pieces))]:
            piece = pieces[number]
            some = rows[piece], images[piece.start - first : piece.stop - first], operators[piece]
            losses, projections = self.misfit.of(parameters, *some)
            [residuals] = torch.autograd.grad(losses.sum(), projections, retain_graph=True)
            self._refuse_not_finite(losses.detach() + residuals.sum(dim=(1, 2)), rows[piece])
            projections.backward(self.misfit.ramped(residuals, rate) / n)
            values[number] = float(losses.detach().sum())
            gradients[number] = _gradient(parameters)
        self.world.sum(values)  # a piece's comes from one rank
        self.world.sum(gradients)
        _set_gradient(parameters, gradients.sum(dim=0))
        state.history.losses.append(float(values.sum()) / n)
        state.history.counts.append(len(state.optimiser.parameters))
        state.optimiser.step(rate)
        confine(state.optimiser.parameters, self.half.extent, self.settings.max_scale)

    @torch.no_grad()
    def _is_stale(self, state: FitState) -> bool:
        """Whether the misfit of the unseen images, or of enough of them, has ceased to fall."""
        rows = self.half.unseen[:: -(-len(self.half.unseen) // self.schedule.most_unseen)]
        pieces = [rows[piece] for piece in self.cut.pieces(len(rows))]
        values, mine = np.zeros(len(pieces)), self.world.share(len(pieces))
        for number, (block, images) in enumerate(self.loader.sweep(pieces[mine]), mine.start):
            losses, _ = self.misfit.of(state.optimiser.parameters, block, images, np.zeros(len(block), dtype=np.int64))
            self._refuse_not_finite(losses, block)
            values[number] = float(losses.sum())
        self.world.sum(values)
        now = float(values.sum()) / len(rows)
        state.history.checks.append((len(state.history.losses) - 1, now))
        improved = not state.history.checks[1:] or now < state.best - self.schedule.improvement * abs(state.best)
        state.waited = 0 if improved else state.waited + 1
        state.best = min(state.best, now)
        return state.waited >= self.schedule.patience

    def _align(self, state: FitState) -> None:
        """Let all ranks go on from the first one's state where theirs differs, as machines of two makes may round."""
        if self.world.size == 1:
            return
        tensors = state.optimiser.tensors()
        if len(set(self.world.gather(tuple(zlib.crc32(tensor.numpy().tobytes()) for tensor in tensors.values())))) > 1:
            tensors = self.world.broadcast(tensors)
            state.optimiser = Adam.restored(tensors, state.optimiser.step_sizes)

    def _refuse_not_finite(self, values: Tensor, rows: Rows) -> None:
        bad = rows[~torch.isfinite(values).numpy()]
        if len(bad):
            raise InputError(
                f"{self.half.particles.ids[bad[0]]}: its misfit or its gradient is not a finite number; look at that "
                "image and its CTF and remove it from the particle file; the checkpoint before it stays"
            )

    def _end_round(self, state: FitState) -> None:
        self.watch(state.optimiser.parameters)
        self.checkpoint.offer(state.saved)
