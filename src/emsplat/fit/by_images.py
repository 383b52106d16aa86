"""Fit of a density model to the images themselves, one batch after another: the classical way of splatting.

A step projects the model into a batch of images, compares, and takes the gradient back through the projection. It works
in rounds of some batches, after each of which the model is densified, the negative log-likelihood of the held-out
images is looked at, and the state is written down. When that no longer falls, the step sizes are annealed on all images
of the half.

The gradient is preconditioned. Slices meet at the origin: of n images, n / (2k) pass within half a voxel of a point at
the radius k, so the curvature of the loss falls as 1/k and coarse detail would be fitted long before fine. The gradient
by each projection is therefore multiplied by the ramp |k|, as in filtered back-projection; its exponent falls to 0
while the steps are annealed, so that the fit ends at the minimum of the loss itself. The scale of each parameter is
left to Adam: the covariance of a batch's gradient is the Fisher information, so its mean square is the curvature's
diagonal, up to a factor.

Several ranks have the same model and go through the same batches; each renders its share of a batch, the gradients are
summed, and all take the same step. What is summed is cut into the same pieces for any number of ranks up to four, and
added in their order, so that these numbers of ranks give the same bits.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emsplat.errors import InputError
from emsplat.fit.by_statistics import FitSettings
from emsplat.fit.state import FitHistory, FitState
from emsplat.imaging.forward import ForwardModel
from emsplat.imaging.likelihood import negative_log_likelihoods, observe
from emsplat.io.images import reading_order
from emsplat.models.densification import DensificationSchedule
from emsplat.models.density_model import DensityModel, Model, propagate
from emsplat.particles.batches import Batches, Images, Loader, Rows
from emsplat.particles.table import Particles
from emsplat.runtime.context import Task
from emsplat.runtime.ranks import World

_AT_ONCE_BYTES = 8 << 20  # size of the images that are rendered together; a step needs this much beside its buffers
_PIECES = 4  # smallest number of pieces of a batch


@dataclass(frozen=True)
class Schedule:
    """The schedule of a fit to images, beyond `FitSettings`."""

    round: int = 25  # batches in a round
    batch: tuple[int, int] = (16, 256)  # fewest and most images; between them, a round takes every image once
    max_rounds: int = 12  # before annealing
    anneal_rounds: int = 10
    anneal_epochs: int = 2  # passes over all images; annealing lasts at least this long
    step_share: float = 0.1  # share of the step sizes of a fit to statistics, whose gradients have no noise
    improvement: float = 2e-3  # relative fall of the held-out images' loss between rounds that counts as one
    patience: int = 2  # rounds without improvement before annealing
    rounds_without_held_out: int = 4  # rounds if nothing says when to stop; so few images need no more
    most_held_out: int = 4096  # largest number of held-out images that are used
    densification: DensificationSchedule = field(
        default_factory=lambda: DensificationSchedule(every=1, first=0)
    )  # counted in rounds


@dataclass(frozen=True)
class HalfSet:
    """The images of one half, and the grid on which they are compared."""

    particles: Particles  # the whole table
    images: Images
    training: Rows
    held_out: Rows  # rows that first decide when to anneal and are then fitted too; may be empty
    noise: NDArray[np.float64]  # (groups, D//2+1) from `noise_spectra`
    box_size: int  # D′ of the working box
    symmetry: NDArray[np.float64]  # (m, 3, 3) operators


class HalfLoss:
    """The negative log-likelihoods of the images of a half as functions of a density model."""

    def __init__(self, half: HalfSet) -> None:
        self._half = half
        ky = np.fft.fftfreq(half.box_size)[:, None]
        self._radius = torch.from_numpy(np.hypot(ky, np.fft.rfftfreq(half.box_size)).astype(np.float32))

    def of(
        self, model: DensityModel, rows: Rows, images: NDArray[np.float32], operators: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """(n,) ``½ ‖W C p‖² − ⟨W² C y, p⟩`` of these images, and (n, D′, D′) the projections.

        Args: operators: (n,) number of the symmetry mate that each image is taken to show.
        """
        half = self._half
        chosen = half.particles.select(rows)
        forward = ForwardModel.of(chosen, half.box_size)
        matrices = forward.matrices @ torch.from_numpy(half.symmetry[operators])
        projections = model.project(matrices, forward.shifts, half.box_size)
        observed = observe(images, chosen, half.noise, half.box_size)
        losses = negative_log_likelihoods(forward.from_projections(projections), forward.transfer, observed)
        return losses, projections

    def ramped(self, residuals: Tensor, exponent: float) -> Tensor:
        """Gradients by projections (n, D′, D′), times a power of |k|, which is 1 at half of Nyquist's radius."""
        if exponent == 0:
            return residuals
        filtered = torch.fft.rfft2(residuals) * (4 * self._radius) ** exponent
        return torch.fft.irfft2(filtered, s=residuals.shape[1:])


def fit_images(
    half: HalfSet, start: Model, settings: FitSettings, schedule: Schedule | None = None, task: Task | None = None
) -> tuple[Model, FitHistory]:
    """Fit a density model to the images of one half.

    Args:
        start: the model before the first step; it is not changed.
        settings: the step sizes and the seed; the numbers of steps are the schedule's.
        task: the ranks that share the work, and the receivers of progress. Its checkpoint (only the first rank's
            counts) is offered the state after every round. A fit that resumes from a loaded state comes to the same
            result. Its progress counts batches, and its watcher is shown the model after every round.
    Returns:
        The fitted model and what the figures show of the fit.
    Raises:
        InputError: the loss of an image is not finite.
    """
    schedule, task = schedule or Schedule(), task or Task()
    world, length = task.world, schedule.round
    sizes = {name: schedule.step_share * size for name, size in settings.step_sizes.items()}
    state = FitState.beginning(start, sizes, settings.seed)
    if saved := world.broadcast(task.checkpoint.load() if world.is_first else None):
        state = FitState.restored(saved, start, sizes)
    history = state.history
    cut = Cut(max(1, _AT_ONCE_BYTES // (4 * half.box_size**2)), world)
    with Loader(half.images, cut.share) as loader:
        loss = _SharedLoss(half, HalfLoss(half), loader, cut)

        # The approach: rounds on the training images, until the loss of the held-out ones no longer falls.
        most = schedule.max_rounds if len(half.held_out) else schedule.rounds_without_held_out
        batches = _batches(half, half.training, schedule, settings.seed)
        stream = loader.stream(batches, state.done * length)
        while state.anneal_from is None:
            for rows, images in islice(stream, length):
                loss.step(state, rows, images, 1.0)
                task.progress(len(history.losses), (most + schedule.anneal_rounds) * length)
            _align(state, world)
            if schedule.densification.is_due(state.done, most):
                state.model.densify(state.optimiser, state.rng)
            state.done += 1
            if len(half.held_out):
                now = loss.of_held_out(state.model, schedule.most_held_out)
                state.check(len(history.losses) - 1, now, schedule.improvement)
            stale = len(half.held_out) > 0 and state.waited >= schedule.patience
            if stale or state.done >= most:
                state.anneal_from, history.anneal_from = state.done, len(history.losses)
                history.stopped_by = "loss of held-out images" if stale else "maximum number of rounds"
            task.watch(state.model)
            task.checkpoint.offer(state.saved)

        # The annealing: steps of falling size on all images.
        batches = _batches(half, np.concatenate([half.training, half.held_out]), schedule, settings.seed + 1)
        total = max(schedule.anneal_rounds * length, schedule.anneal_epochs * batches.per_epoch)
        first = (state.done - state.anneal_from) * length
        stream = loader.stream(batches, first)
        for done, (rows, images) in enumerate(islice(stream, max(total - first, 0)), first):
            loss.step(state, rows, images, 0.5 + 0.5 * math.cos(math.pi * done / total))
            task.progress(len(history.losses), history.anneal_from + total)
            if (done + 1) % length == 0 or done + 1 == total:
                _align(state, world)
                state.done += 1
                task.watch(state.model)
                task.checkpoint.offer(state.saved)
    return state.result(), history


def _batches(half: HalfSet, rows: Rows, schedule: Schedule, seed: int) -> Batches:
    """Batches of these rows, of a size that lets a round see every image once, if it can."""
    fewest, most = schedule.batch
    size = min(max(-(-len(rows) // schedule.round), fewest), most)
    order = reading_order(half.particles)
    return Batches.of(order[np.isin(order, rows)], size, half.particles.box_size, seed)


@dataclass(frozen=True)
class Cut:
    """How images are cut into pieces, each of which is rendered at once by one rank.

    Sums are taken piece by piece, in order: as long as there are at most `_PIECES` ranks the pieces are the same for
    any number of them, and so is each bit of the sum.
    """

    at_once: int  # largest number of images in a piece
    world: World

    def pieces(self, n: int) -> list[slice]:
        """The pieces of n images."""
        number = max(-(-n // self.at_once), min(max(_PIECES, self.world.size), n), 1)
        return [slice(n * piece // number, n * (piece + 1) // number) for piece in range(number)]

    def share(self, n: int) -> slice:
        """The images of this rank's pieces."""
        pieces = self.pieces(n)
        mine = pieces[self.world.share(len(pieces))]
        return slice(mine[0].start, mine[-1].stop) if mine else slice(0, 0)


@dataclass(frozen=True)
class _SharedLoss:
    """The loss of many images, of which every rank evaluates its share, and the steps that lower it."""

    half: HalfSet
    loss: HalfLoss
    loader: Loader
    cut: Cut

    def step(self, state: FitState, rows: Rows, images: NDArray[np.float32], rate: float) -> None:
        """Take one step down the preconditioned gradient of a batch; images: (m, D, D) of this rank's share of it."""
        n, world = len(rows), self.cut.world
        operators = state.rng.integers(len(self.half.symmetry), size=n)
        model, pieces = state.model, self.cut.pieces(n)
        first = self.cut.share(n).start
        leaves = model.leaves
        values = np.zeros(len(pieces))
        gradients = torch.zeros(len(pieces), sum(leaf.numel() for leaf in leaves.values()))
        for number in range(len(pieces))[world.share(len(pieces))]:
            piece = pieces[number]
            some = rows[piece], images[piece.start - first : piece.stop - first], operators[piece]
            losses, projections = self.loss.of(model, *some)
            [residuals] = torch.autograd.grad(losses.sum(), projections, retain_graph=True)
            self._refuse_not_finite(losses.detach() + residuals.sum(dim=(1, 2)), rows[piece])
            propagate(self.loss.ramped(residuals, rate) / n, projections)
            values[number] = float(losses.detach().sum())
            gradients[number] = _taken_gradient(leaves)
        world.sum(values)  # the value of a piece comes from one rank
        world.sum(gradients)
        _set_gradient(leaves, gradients.sum(dim=0))
        state.record(float(values.sum()) / n)
        state.optimiser.step(leaves, rate)
        model.constrain()

    @torch.no_grad()
    def of_held_out(self, model: DensityModel, most: int) -> float:
        """Mean loss of the held-out images, or of at most `most` of them, evenly spread."""
        held_out, world = self.half.held_out, self.cut.world
        rows = held_out[:: -(-len(held_out) // most)]
        pieces = [rows[piece] for piece in self.cut.pieces(len(rows))]
        values, mine = np.zeros(len(pieces)), world.share(len(pieces))
        for number, (block, images) in enumerate(self.loader.sweep(pieces[mine]), mine.start):
            losses, _ = self.loss.of(model, block, images, np.zeros(len(block), dtype=np.int64))
            self._refuse_not_finite(losses, block)
            values[number] = float(losses.sum())
        world.sum(values)
        return float(values.sum()) / len(rows)

    def _refuse_not_finite(self, values: Tensor, rows: Rows) -> None:
        bad = rows[~torch.isfinite(values).numpy()]
        if len(bad):
            raise InputError(
                f"{self.half.particles.ids[bad[0]]}: its negative log-likelihood or the gradient of it is not a finite "
                "number; look at that image and its CTF and remove it from the particle file; the checkpoint before it "
                "stays"
            )


def _taken_gradient(leaves: dict[str, Tensor]) -> Tensor:
    """(length,) gradient of all leaves in one vector; it is removed from the leaves."""
    parts = []
    for leaf in leaves.values():
        parts.append(torch.zeros(leaf.numel()) if leaf.grad is None else leaf.grad.reshape(-1))
        leaf.grad = None
    return torch.cat(parts)


def _set_gradient(leaves: dict[str, Tensor], gradient: Tensor) -> None:
    parts = gradient.split([leaf.numel() for leaf in leaves.values()])
    for leaf, part in zip(leaves.values(), parts, strict=True):
        leaf.grad = part.view_as(leaf)


def _align(state: FitState, world: World) -> None:
    """Give all ranks the state of the first rank if theirs differs, since different machines may round differently."""
    if world.size == 1:
        return
    tensors = state.tensors()
    if len(set(world.gather(tuple(zlib.crc32(tensor.numpy().tobytes()) for tensor in tensors.values())))) > 1:
        state.restore(world.broadcast(tensors))
