"""What a fit costs, and how near it is to the truth while it runs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emsplat.runtime.memory import give_back_free_memory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Recorder:
    """Processor seconds and resident memory of a fit, without what it costs to look at it."""

    def __init__(self, quality: Callable[[Any], float] | None, every: int = 1) -> None:
        """Args: quality: F of a model; every: steps between two looks."""
        self._quality, self._every = quality, every
        self._points: list[tuple[int, float, float]] = []  # step, seconds, F
        self._steps, self._watched = 0, 0.0
        self.seconds = 0.0
        self.memory: float | None = None  # largest resident memory above that at the start, bytes; None if not known

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record the fit that runs in this block."""
        gc.collect()
        give_back_free_memory()  # so that the fit has to ask for its own
        before = _resident("VmRSS") if _forget_peak() else None
        self._start = time.process_time()
        yield
        self.seconds = time.process_time() - self._start - self._watched
        peak = _resident("VmHWM")
        self.memory = peak - before if before is not None and peak is not None else None

    def watch(self, model: Any) -> None:
        """Look at the model after a step."""
        self._steps += 1
        if self._quality is None or self._steps % self._every:
            return
        now = time.process_time()
        self._points.append((self._steps, now - self._start - self._watched, self._quality(model)))
        self._watched += time.process_time() - now

    def curve(self, searched: int) -> list[tuple[float, float, str]]:
        """The seconds, F and part of the fit of each look. Args: searched: steps of the search."""
        return [(seconds, f, "search" if step <= searched else "fit") for step, seconds, f in self._points]


def _forget_peak() -> bool:
    """Let the kernel forget the peak of the resident memory; False where it cannot (it can on Linux)."""
    try:
        _CLEAR.write_text("5")
        return True
    except OSError:
        return False


def _resident(name: str) -> float | None:
    """Bytes of this entry of /proc/self/status."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(name + ":")), None)
