"""All that a fit, to statistics or to images, goes on from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from emsplat.models.parameters import NAMES, Adam
from emsplat.runtime.checkpoint import State
from emsplat.runtime.devices import CPU


@dataclass
class FitHistory:
    """What the log and the figures show of a fit; losses are per image."""

    losses: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    searched: list[float] = field(default_factory=list)  # losses of the search for the number of steps
    checks: list[tuple[int, float]] = field(default_factory=list)  # step, loss on the unseen images
    anneal_from: int = 0
    stopped_by: str = "maximum number of steps"

    @property
    def n_steps(self) -> int:
        """All that were taken."""
        return len(self.searched) + len(self.losses)

    @staticmethod
    def restored(saved: dict) -> FitHistory:
        """From what `asdict` made, by way of JSON, which has no tuples."""
        history = FitHistory(**saved)
        history.checks = [(step, value) for step, value in history.checks]
        return history


@dataclass
class FitState:
    """All that a fit goes on from."""

    optimiser: Adam
    rng: np.random.Generator
    history: FitHistory = field(default_factory=FitHistory)
    done: int = 0  # steps, or rounds of them
    anneal_from: int | None = None  # step or round; None: not yet known
    best: float = math.inf  # loss on unseen images
    best_at: int = 0  # step it was found at
    waited: int = 0  # checks since one was better by enough

    @property
    def is_finite(self) -> bool:
        """Whether all parameters of the Gaussians are finite numbers."""
        parameters = self.optimiser.parameters
        return bool(torch.stack([torch.isfinite(getattr(parameters, name)).all() for name in NAMES]).all())

    def saved(self) -> State:
        """For a checkpoint."""
        facts = {name: getattr(self, name) for name in ("done", "anneal_from", "best", "best_at", "waited")}
        return State(
            self.optimiser.tensors(), facts | {"rng": self.rng.bit_generator.state, "history": asdict(self.history)}
        )

    @staticmethod
    def restored(state: State, step_sizes: dict[str, float], device: torch.device = CPU) -> FitState:
        """What `saved` was taken from, on this device."""
        facts = dict(state.facts)
        rng = np.random.default_rng()
        rng.bit_generator.state = facts.pop("rng")
        history = FitHistory.restored(facts.pop("history"))
        tensors = {name: tensor.to(device) for name, tensor in state.tensors.items()}
        return FitState(Adam.restored(tensors, step_sizes), rng, history, **facts)
