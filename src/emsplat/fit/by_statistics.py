"""Fit of a density model to statistics: full-batch minimisation of the quadratic loss.

A step costs one density, two FFTs and one back-propagation, whatever the number of images. The number of steps is what
keeps the noise out, and it is searched for within the half: steps lower the loss of the training images until that of
the held-out images no longer falls. The fit then begins again on all images, and its steps add up to the best number
that the search found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from emsplat.errors import InputError
from emsplat.fit.by_statistics_gpu import DeviceLoss, Replayed, loss_on
from emsplat.fit.state import FitHistory, FitState
from emsplat.models.densification import DensificationSchedule
from emsplat.models.density_model import Model, propagate
from emsplat.runtime.context import Task
from emsplat.statistics.loss import QuadraticLoss
from emsplat.statistics.sufficient import Statistics


@dataclass(frozen=True)
class FitSettings:
    """How a model is fitted; the limits of what it may become belong to the model."""

    max_steps: int = 90
    anneal_steps: int = 18  # last steps, whose size falls to 0; together they are worth half as many whole steps
    approach_steps: int | None = None  # steps before annealing; None: their number is searched for
    check_every: int = 4  # steps of the search between two looks at the held-out images
    improvement: float = 2e-3  # relative fall of the held-out images' loss between checks that counts as one
    patience: int = 2  # checks without an improvement that end the search
    step_sizes: dict[str, float] = field(
        default_factory=lambda: {"centres": 0.6, "log_scales": 0.05, "quaternions": 0.05, "log_masses": 0.07}
    )  # step sizes by the names of the model's leaves
    densification: DensificationSchedule = field(default_factory=DensificationSchedule)
    seed: int = 0

    @property
    def annealing(self) -> int:
        """Number of steps with a falling size."""
        return min(self.anneal_steps, self.max_steps)


def fit_statistics(
    training: Statistics, held_out: Statistics | None, start: Model, settings: FitSettings, task: Task | None = None
) -> tuple[Model, FitHistory]:
    """Fit a density model to the images of one half.

    Args:
        training, held_out: a split of the half for the search; the final fit uses all of it. Without held-out images
            all steps are taken.
        start: the model before the first step; it is not changed.
        settings: the number of steps and their sizes.
        task: the device that does the work, and the receivers of progress. Its checkpoint is offered the state after
            every step. A fit that resumes from a loaded state comes to the same result.
    Returns:
        The fitted model, on the CPU, and what the figures show of the fit.
    Raises:
        InputError: the loss, or a leaf of the model, is no longer finite.
    """
    task = task or Task()
    annealing = settings.annealing
    most = settings.max_steps - annealing
    state = FitState.beginning(start, settings.step_sizes, settings.seed, task.device)
    if saved := task.checkpoint.load():
        state = FitState.restored(saved, start, settings.step_sizes, task.device)
    if state.anneal_from is None and settings.approach_steps is not None:
        state.anneal_from, state.history.stopped_by = settings.approach_steps, "as in the first fit"
    elif state.anneal_from is None and held_out is None:
        state.anneal_from, state.history.stopped_by = most, "no split"

    # The search: whole steps lower the loss of the training images until that of the held-out ones no longer falls.
    if state.anneal_from is None:
        assert held_out
        check = loss_on(task.device, held_out, start.extent)
        descent = _Descent(state, loss_on(task.device, training, start.extent), most, settings, task)
        while state.waited < settings.patience and state.done < most:
            density = descent.step(1.0)
            if state.done % settings.check_every == 0:
                state.check(state.done, float(check.at(density)[0]), settings.improvement)
            descent.end_step(most + annealing)
        waited = state.waited >= settings.patience
        state.history.stopped_by = "loss of held-out images" if waited else "maximum number of steps"
        # A step of the annealing is worth half a whole one on average. At least half of the best number are whole
        # steps, because the first steps fit the strong features, which dominate the loss.
        state.anneal_from = max(state.best_at - annealing // 2, state.best_at // 2)
        state.begin_again(start, settings.seed, task.device)
        del check, descent  # two losses take much memory

    # The fit proper: whole steps on the loss of all images, then steps of falling size.
    state.history.anneal_from = state.anneal_from
    loss = loss_on(task.device, training + held_out if held_out else training, start.extent)
    descent = _Descent(state, loss, state.anneal_from, settings, task)
    while (annealed := state.done - state.anneal_from) < annealing:
        descent.step(0.5 + 0.5 * math.cos(math.pi * max(annealed, 0) / annealing))
        descent.end_step(len(state.history.searched) + state.anneal_from + annealing)
    return state.result(), state.history


class _Descent:
    """Steps that lower one loss; on a graphics card each step is the launch of a recorded graph."""

    def __init__(
        self, state: FitState, loss: QuadraticLoss | DeviceLoss, anneal_from: int, settings: FitSettings, task: Task
    ) -> None:
        self._state, self._anneal_from, self._settings, self._task = state, anneal_from, settings, task
        self._rate = torch.ones((), device=task.device)
        self._launch = Replayed(partial(_step_down, state, loss, self._rate), task.device, task.reporter.line)

    def step(self, share: float) -> Tensor:
        """Take a step with this share of the step sizes; return the density before it."""
        state = self._state
        self._rate.fill_(share)
        value, density = self._launch()
        _refuse_not_finite(float(value), state)
        state.record(float(value))
        if self._settings.densification.is_due(state.done, self._anneal_from):
            state.model.densify(state.optimiser, state.rng)
            self._launch.forget()  # densification has replaced the leaves
        return density

    def end_step(self, total: int) -> None:
        """Count and report the step. Args: total: number of steps of search and fit together, as far as known."""
        self._state.done += 1
        self._task.progress(self._state.history.n_steps, total)
        self._task.watch(self._state.model)
        self._task.checkpoint.offer(self._state.saved)


def _step_down(state: FitState, loss: QuadraticLoss | DeviceLoss, rate: Tensor) -> tuple[float | Tensor, Tensor]:
    """Take one step in a way that a CUDA graph can record; return the loss and the density before it."""
    model, optimiser = state.model, state.optimiser
    for leaf in model.leaves.values():
        leaf.grad = None  # an interrupted step may have left a gradient
    density = model.density()
    value, gradient = loss.at(density.detach())
    propagate(gradient, density)
    optimiser.step(model.leaves, rate)
    model.constrain()
    return value, density.detach()


def _refuse_not_finite(loss: float, state: FitState) -> None:
    if not (math.isfinite(loss) and state.is_finite):
        raise InputError(
            f"step {state.done + 1} of the fit: {'a parameter' if math.isfinite(loss) else 'the loss'} is not a finite "
            "number; some image or its CTF must be odd: look for it with emsplat check and remove it from the particle "
            "file; the checkpoint before it stays"
        )
