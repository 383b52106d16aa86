"""Everything that a fit to statistics or to images is resumed from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Generic

import numpy as np
import torch
from torch import Tensor

from emsplat.models.density_model import Model
from emsplat.models.optimiser import Adam
from emsplat.runtime.checkpoint import State
from emsplat.runtime.devices import CPU

_PARAMETERS = "parameters."  # prefix of the names of a model's leaves in a checkpoint


@dataclass
class FitHistory:
    """What the log and the figures show of a fit. Losses are per image."""

    losses: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    searched: list[float] = field(default_factory=list)  # losses of the search for the number of steps
    checks: list[tuple[int, float]] = field(default_factory=list)  # step, loss of the held-out images
    anneal_from: int = 0
    stopped_by: str = "maximum number of steps"

    @property
    def n_steps(self) -> int:
        """Number of all steps, including those of the search."""
        return len(self.searched) + len(self.losses)

    @staticmethod
    def restored(saved: dict) -> FitHistory:
        """The history that `asdict` and JSON have saved; JSON has no tuples, so they are restored here."""
        history = FitHistory(**saved)
        history.checks = [(step, value) for step, value in history.checks]
        return history


@dataclass
class FitState(Generic[Model]):
    """Everything that a fit is resumed from; every step changes it."""

    model: Model
    optimiser: Adam
    rng: np.random.Generator
    history: FitHistory = field(default_factory=FitHistory)
    done: int = 0  # number of steps, or of rounds
    anneal_from: int | None = None  # step or round at which annealing starts; None: not yet known
    best: float = math.inf  # least loss of the held-out images
    best_at: int = 0  # step or round at which it was found
    waited: int = 0  # checks since the last sufficient improvement

    @staticmethod
    def beginning(start: Model, step_sizes: dict[str, float], seed: int, device: torch.device = CPU) -> FitState[Model]:
        """The state before the first step; `start` is copied to the device."""
        model = _with_gradients(start, {name: leaf.detach().clone() for name, leaf in start.leaves.items()}, device)
        optimiser = Adam(model.leaves, step_sizes, model.gradient_floors)
        return FitState(model, optimiser, np.random.default_rng(seed))

    def begin_again(self, start: Model, seed: int, device: torch.device) -> None:
        """Return to the state before the first step; the history and the best number of steps are kept."""
        fresh = FitState.beginning(start, self.optimiser.step_sizes, seed, device)
        self.model, self.optimiser, self.rng, self.done = fresh.model, fresh.optimiser, fresh.rng, 0
        self.history.searched, self.history.losses, self.history.counts = self.history.losses, [], []

    def record(self, loss: float) -> None:
        """Add a step to the history."""
        self.history.losses.append(loss)
        self.history.counts.append(len(self.model))

    def check(self, step: int, loss: float, least_improvement: float) -> None:
        """Record the held-out images' loss; `waited` returns to 0 if the relative improvement is large enough."""
        checks = self.history.checks
        checks.append((step, loss))
        improved = not checks[1:] or loss < self.best - least_improvement * abs(self.best)
        self.waited = 0 if improved else self.waited + 1
        if loss < self.best:
            self.best, self.best_at = loss, self.done

    @property
    def is_finite(self) -> bool:
        """Whether all leaves of the model are finite numbers."""
        return bool(torch.stack([torch.isfinite(leaf).all() for leaf in self.model.leaves.values()]).all())

    def result(self) -> Model:
        """The model as it is now, on the CPU and without gradients."""
        return self.model.with_leaves({name: leaf.detach().to(CPU) for name, leaf in self.model.leaves.items()})

    def tensors(self) -> dict[str, Tensor]:
        """The leaves and the optimiser's memory, by name."""
        leaves = {_PARAMETERS + name: leaf.detach() for name, leaf in self.model.leaves.items()}
        return leaves | self.optimiser.tensors()

    def restore(self, tensors: dict[str, Tensor], device: torch.device = CPU) -> None:
        """Restore what `tensors` returned."""
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        names = [name for name in tensors if name.startswith(_PARAMETERS)]
        self.model = _with_gradients(self.model, {n.removeprefix(_PARAMETERS): tensors[n] for n in names}, device)
        self.optimiser.restore(tensors)

    def saved(self) -> State:
        """The state as a checkpoint stores it."""
        facts = {name: getattr(self, name) for name in ("done", "anneal_from", "best", "best_at", "waited")}
        return State(self.tensors(), facts | {"rng": self.rng.bit_generator.state, "history": asdict(self.history)})

    @staticmethod
    def restored(
        saved: State, start: Model, step_sizes: dict[str, float], device: torch.device = CPU
    ) -> FitState[Model]:
        """The state that `saved` was taken from, on this device. Args: start: a model of the same kind."""
        facts = dict(saved.facts)
        rng = np.random.default_rng()
        rng.bit_generator.state = facts.pop("rng")
        history = FitHistory.restored(facts.pop("history"))
        optimiser = Adam(start.leaves, step_sizes, start.gradient_floors)
        state = FitState(start, optimiser, rng, history, **facts)
        state.restore(saved.tensors, device)
        return state


def _with_gradients(model: Model, leaves: dict[str, Tensor], device: torch.device) -> Model:
    return model.with_leaves({name: leaf.to(device).requires_grad_() for name, leaf in leaves.items()})
