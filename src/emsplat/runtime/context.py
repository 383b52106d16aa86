"""What every stage of a job needs beside its data: the ranks, the device, who is told, and where states are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from emsplat.runtime.checkpoint import NO_CHECKPOINTS, UNKEPT, Checkpoint, Checkpoints
from emsplat.runtime.devices import CPU
from emsplat.runtime.ranks.world import World
from emsplat.runtime.reporting import Reporter

Progress = Callable[[int, int], None]  # done, to do


def ignore(*_: Any) -> None:
    """Listen to what nobody asked for."""


@dataclass(frozen=True)
class Task:
    """One piece of work within a job: where it is done, what it goes on from, and who watches it."""

    world: World = field(default_factory=World)  # the ranks that do it together
    device: torch.device = CPU
    reporter: Reporter = field(default_factory=Reporter)  # told what there is to say
    checkpoint: Checkpoint = field(
        default_factory=lambda: UNKEPT
    )  # is offered the state as often as the work could go on from it
    progress: Progress = ignore
    watch: Callable[[Any], None] = ignore  # shown the model after every step of a fit, whose next step changes it


@dataclass(frozen=True)
class Context:
    """The surroundings of a whole job; by default one process that works on the CPU in silence and keeps nothing."""

    world: World = field(default_factory=World)
    device: torch.device = CPU
    reporter: Reporter = field(default_factory=Reporter)
    checkpoints: Checkpoints = NO_CHECKPOINTS

    def within(self, part: str) -> Context:
        """The same for a part of the job whose stages are called the same as others'."""
        return replace(self, checkpoints=self.checkpoints.within(part))

    @contextmanager
    def task(
        self,
        title: str,
        unit: str,
        checkpoint: Checkpoint = UNKEPT,
        watch: Callable[[Any], None] = ignore,
    ) -> Iterator[Task]:
        """A task with a progress bar. Args: title, unit: of the bar."""
        with self.reporter.bar(title, unit) as advance:
            yield Task(self.world, self.device, self.reporter, checkpoint, advance, watch)
