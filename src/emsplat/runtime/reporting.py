"""What a long job reports while it runs, from all of its threads. The job does not know who listens."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Watcher = Callable[[int, Any, float], None]  # half, parameters of its model, Å per pixel


class Reporter:
    """Keeps the log and the times, and shows nothing. The reporter of the command line shows them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_memory_in_bytes: dict[str, int] = {}  # peak from the start of the process to the end of each stage
        self.log: list[str] = []  # lines with time stamps
        self.warnings: list[str] = []
        self.current = "start"  # the current stage
        self.watcher: Watcher | None = None  # called with the Gaussians while they are fitted
        self.resumed = False  # whether the job was resumed from a checkpoint
        self._actions: dict[str, Callable[[], None]] = {}  # by the stage that they wait for
        self._inside: dict[str, tuple[int, float]] = {}  # by stage: how often it was entered, and since when
        self._outside = self.current  # the current stage when no block of a stage runs
        self._lock = threading.RLock()

    def when(self, stage: str, action: Callable[[], None]) -> None:
        """Carry out an action, which must be short, when this stage next begins."""
        self._actions[stage] = action

    def line(self, text: str) -> None:
        """Write a line to the log."""
        self.log.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}")

    def warn(self, text: str) -> None:
        """Write a warning, which the user should not miss."""
        self.warnings.append(text)
        self.line(f"warning: {text}")

    def watch(self, half: int, parameters: Any, pixel_size: float) -> None:
        """Show the current Gaussians of a half to the watcher, which copies what it keeps; `pixel_size` in Å.

        A watcher cannot disturb the fit: if it fails, there is a warning, and it is not called again.
        """
        if self.watcher is None:
            return
        try:
            self.watcher(half, parameters, pixel_size)
        except Exception as error:
            self.watcher = None
            self.warn(f"the fit can no longer be watched ({type(error).__name__}: {error}); it continues")

    @contextmanager
    def bar(self, title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """Show a progress bar. Yields a function that takes the numbers done and in total."""
        del title, unit
        yield lambda done, total: None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage. The times of stages with the same name add up; those at the same time count once."""
        with self._lock:
            if not self._inside:
                self._outside = self.current
            self.current = name
            others, since = self._inside.get(name, (0, time.perf_counter()))
            self._inside[name] = others + 1, since
            action = self._actions.pop(name, None)
        if action:
            action()
        try:
            yield
        finally:
            with self._lock:
                entered, since = self._inside.pop(name)
                if entered > 1:
                    self._inside[name] = entered - 1, since
                else:
                    self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - since
                self.current = next(reversed(self._inside), self._outside)
                self.peak_memory_in_bytes[name] = peak_memory_in_bytes()


def peak_memory_in_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes
