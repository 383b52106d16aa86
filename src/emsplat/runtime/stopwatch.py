"""How the time of a job is spent: seconds by activity, on the processor or on a graphics card."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Adds up seconds by name. On a graphics card, which works asynchronously, it uses events."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._seconds: dict[str, float] = {}
        self._device = device if device is not None and device.type == "cuda" else None
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """Count the time of the block on the processor."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def working(self, name: str) -> Iterator[None]:
        """Count the time that the device takes for what the block asks it to do."""
        if self._device is None:
            with self.waiting(name):
                yield
            return
        stream = torch.cuda.current_stream(self._device)
        start = stream.record_event(torch.cuda.Event(enable_timing=True))
        yield
        self._events.append((name, start, stream.record_event(torch.cuda.Event(enable_timing=True))))

    def seconds(self) -> dict[str, float]:
        """Seconds by name, in the order of first use; waits for the device."""
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        for name, start, end in self._events:
            self._seconds[name] = self._seconds.get(name, 0.0) + start.elapsed_time(end) / 1e3
        self._events.clear()
        return dict(self._seconds)

    def text(self) -> str:
        """The seconds as text, such as "waiting for images 1.2 s, insertion 3.4 s"."""
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds().items())
