"""What every stage of a job needs beside its data: the ranks, the device, the reporter and the checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

import torch

from emsplat.runtime.checkpoint import NO_CHECKPOINTS, UNKEPT, Checkpoint, Checkpoints
from emsplat.runtime.devices import CPU
from emsplat.runtime.ranks.world import World
from emsplat.runtime.reporting import Reporter

Progress = Callable[[int, int], None]  # called with the amount done and the total


def ignore(*_: Any) -> None:
    """Accept any arguments and do nothing."""


@dataclass(frozen=True)
class Task:
    """One piece of work within a job: where it is done, what it is resumed from, and who watches it."""

    world: World = field(default_factory=World)  # the ranks that do the work together
    device: torch.device = CPU
    reporter: Reporter = field(default_factory=Reporter)
    # The state is offered to it whenever the work could be resumed from it.
    checkpoint: Checkpoint = field(default_factory=lambda: UNKEPT)
    progress: Progress = ignore
    watch: Callable[[Any], None] = ignore  # called with the model after every step of a fit; the next step changes it


@dataclass(frozen=True)
class Context:
    """The surroundings of a whole job. By default, one process works on the CPU in silence and keeps nothing."""

    world: World = field(default_factory=World)
    device: torch.device = CPU
    reporter: Reporter = field(default_factory=Reporter)
    checkpoints: Checkpoints = NO_CHECKPOINTS
    given_up: Event = field(default_factory=Event)  # set by a thread of the job when the others should end

    def within(self, part: str) -> Context:
        """The context of a part of the job whose stages have the same names as those of other parts."""
        return replace(self, checkpoints=self.checkpoints.within(part))

    @contextmanager
    def task(
        self,
        title: str,
        unit: str,
        checkpoint: Checkpoint = UNKEPT,
        watch: Callable[[Any], None] = ignore,
    ) -> Iterator[Task]:
        """A task with a progress bar. It ends with its next progress if another thread has given up the job.

        Args:
            title, unit: title of the bar, and what it counts.
        """
        with self.reporter.bar(title, unit) as advance:

            def progress(done: int, total: int) -> None:
                advance(done, total)
                if self.given_up.is_set():
                    raise CancelledError

            yield Task(self.world, self.device, self.reporter, checkpoint, progress, watch)
