"""What a long job tells while it runs; the job does not know who listens."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Watcher = Callable[[int, Any, float], None]  # half, parameters of its model, Å per pixel


class Reporter:
    """Keeps the log and the times, and shows nothing; the command line's listener shows them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_memory_in_bytes: dict[str, int] = {}  # by the end of a stage, since the process began
        self.log: list[str] = []  # with time stamps
        self.warnings: list[str] = []
        self.current = "start"  # the stage it is at
        self.watcher: Watcher | None = None  # is shown the Gaussians while they are fitted
        self.resumed = False  # the job goes on from a checkpoint

    def line(self, text: str) -> None:
        """A statement for the log."""
        self.log.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}")

    def warn(self, text: str) -> None:
        """A statement the user should not miss."""
        self.warnings.append(text)
        self.line(f"warning: {text}")

    def watch(self, half: int, parameters: Any, pixel_size: float) -> None:
        """The Gaussians of a half as a fit has them now, for a watcher, who copies what it keeps; Å a pixel.

        No watcher can disturb the fit: one that fails is warned of, and not shown any more.
        """
        if self.watcher is None:
            return
        try:
            self.watcher(half, parameters, pixel_size)
        except Exception as error:
            self.watcher = None
            self.warn(f"the fit cannot be watched any longer ({type(error).__name__}: {error}); it goes on")

    @contextmanager
    def bar(self, title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar; yields a function of (done, total)."""
        del title, unit
        yield lambda done, total: None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage; times of stages with one name add up."""
        start = time.perf_counter()
        before, self.current = self.current, name
        try:
            yield
        finally:
            self.current = before
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.peak_memory_in_bytes[name] = peak_memory_in_bytes()


def peak_memory_in_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes
