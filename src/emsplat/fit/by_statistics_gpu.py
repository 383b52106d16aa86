"""The parts of a fit to statistics that differ on a graphics card: the loss stays there, and a step is one launch.

A step is a hundred small launches, which the processor requests more slowly than the card does them. Between two rounds
of densification they are always the same, so that they are recorded as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from emsplat.runtime.devices import CPU
from emsplat.splat.bandlimit import boost
from emsplat.statistics.loss import QuadraticLoss, fitting_period
from emsplat.statistics.sufficient import Statistics

T = TypeVar("T")

# Devices that failed to record. They are not tried again, because torch's allocator counts a failed recording as one
# that is still running.
_REFUSED: set[torch.device] = set()
_WARM_UP = 2  # steps before the recorded one, because what is made at first use must not be part of the recording


def loss_on(device: torch.device, statistics: Statistics, extent: int) -> QuadraticLoss | DeviceLoss:
    """The loss of densities in a cube of this edge, in the form that suits the device."""
    period = fitting_period(extent)
    if device == CPU:
        return QuadraticLoss(statistics, extent, period)
    return DeviceLoss(statistics, extent, period, device)


class DeviceLoss:
    """`loss.QuadraticLoss` in torch, of volumes on a device."""

    def __init__(self, statistics: Statistics, extent: int, period: int, device: torch.device) -> None:
        self.extent, self.period = extent, min(period, statistics.kernel.shape[0])
        share, box_size, n = 1 / statistics.divisor, statistics.box_size, self.period
        first = statistics.kernel.shape[0] // 2 - n // 2
        middle = torch.from_numpy(statistics.kernel).to(device)[(slice(first, first + n),) * 3]
        self._transfer = torch.fft.rfftn(torch.fft.ifftshift(middle)).real * _boost(n, device).square() * share
        spectrum = torch.fft.rfftn(torch.from_numpy(statistics.backprojection).to(device)) * _boost(box_size, device)
        first = box_size // 2 - extent // 2
        cube = (slice(first, first + extent),) * 3
        self.backprojection = torch.fft.irfftn(spectrum, s=(box_size,) * 3)[cube].contiguous() * share

    def convolve(self, volume: Tensor) -> Tensor:
        """T∗V on the cube; the zeros of the padding are never transformed."""
        d, n = self.extent, self.period
        f = torch.fft.rfft(volume, n=n, dim=2)
        f = torch.fft.fft(f, n=n, dim=1)
        f = torch.fft.fft(f, n=n, dim=0)
        f *= self._transfer
        f = torch.fft.ifft(f, dim=0)[:d]
        f = torch.fft.ifft(f, dim=1)[:, :d]
        return torch.fft.irfft(f, n=n, dim=2)[:, :, :d]

    def at(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """The loss as a tensor without dimensions, and ``T∗V − b`` of shape (d, d, d)."""
        convolved = self.convolve(volume)
        return (volume * (0.5 * convolved - self.backprojection)).sum(), convolved - self.backprojection

    def best_mass(self, volume: Tensor) -> float:
        """The factor on this volume that minimises the loss."""
        return float((self.backprojection * volume).sum() / (volume * self.convolve(volume)).sum())


@lru_cache(maxsize=2)
def _boost(period: int, device: torch.device) -> Tensor:
    return torch.from_numpy(boost(period)).to(device)


class Replayed(Generic[T]):
    """Repeated work, which is recorded as a CUDA graph after the first few times and then replayed.

    The work must not wait for anything, must work in place on tensors that stay, and returns tensors, which the next
    call overwrites. On devices other than graphics cards the work is simply done.
    """

    def __init__(self, work: Callable[[], T], device: torch.device, say: Callable[[str], None]) -> None:
        self._work, self._device, self._say = work, device, say
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.forget()

    def forget(self) -> None:
        """Forget the recording, because the work uses other tensors now."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: T | None = None
        self._done = 0

    def __call__(self) -> T:
        if self._stream is None or self._device in _REFUSED:
            return self._work()
        if self._graph is None and self._done < _WARM_UP:
            self._done += 1
            return self._aside()
        if self._graph is None and not self._record():
            return self._work()
        assert self._graph is not None
        assert self._result is not None
        self._graph.replay()
        return self._result

    def _aside(self) -> T:
        """Do the work on a stream of its own, which PyTorch requires before a recording."""
        current = torch.cuda.current_stream(self._device)
        assert self._stream is not None
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._work()
        current.wait_stream(self._stream)
        return result

    def _record(self) -> bool:
        """Record the work, without doing it. Returns False, after a line in the log, if it cannot be recorded.

        The stream is that of the earlier calls, where torch's libraries have their memory. Calls of other threads, such
        as those of NCCL's watchdog, do not spoil the recording.
        """
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local")
        here = torch.cuda.current_stream(self._device)
        try:
            with torch.cuda.stream(here), recording:  # a failed recording does not return from its own stream
                self._result = self._work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._result = None
            _REFUSED.add(self._device)
            said, _, _ = str(error).partition("\n")
            self._say(f"steps are launched one by one: {said}")
            return False
        self._graph = graph
        return True
