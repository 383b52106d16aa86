"""The ranks of a job as one of them sees them: what it sends to the others and receives from them.

PyTorch's distributed engine carries everything that is exchanged. Large arrays are exchanged in place and in slices, so
that nothing is copied whole. A process on its own is a world of one, which exchanges nothing.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from emsplat.runtime.ranks.watch import Watch

if TYPE_CHECKING:
    from torch import Tensor

_SLICE_BYTES = 64 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 2e-5, 5e-3  # seconds between two looks at whether an exchange is complete

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One of `size` ranks. All ranks call the same exchanges in the same order."""

    rank: int = 0
    size: int = 1
    hosts: tuple[str, ...] = ("",)  # host of every rank
    cores: int | None = None  # this rank's share of the cores of its machine; None: all of them
    watch: Watch | None = None  # the watch over the other ranks

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that decides, writes and speaks."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This rank's contiguous share of n things."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def owner(self, half: int) -> int:
        """The rank that fits half 1 or 2 to its statistics. The two halves are on different machines if possible."""
        return 0 if half == 1 else (self.size + 1) // 2 % self.size

    def sum(self, array: NDArray[Any] | Tensor) -> None:
        """Replace the array by the sum over the ranks, with the same bits on every rank."""
        for part in self._slices(array):
            self._exchange("all_reduce", part)

    def form(self, ranks: tuple[int, ...]) -> Any:
        """A group of ranks for `sum_to`. Every rank calls this, whether it is in the group or not."""
        if len(ranks) < 2:
            return None
        import torch.distributed as dist

        return dist.new_group(list(ranks))

    def sum_to(self, array: NDArray[Any] | Tensor, rank: int, group: Any) -> None:
        """Replace the array of one rank by the sum over a group that includes this rank. The others' become invalid.

        Args: group: a group from `form`; None: this rank is alone.
        """
        if group is not None:
            for part in self._slices(array):
                self._exchange("reduce", part, dst=rank, group=group)

    def broadcast(self, value: T | None, source: int = 0) -> T:
        """The value of one rank, on every rank; the values of the others do not matter."""
        if self.size == 1:
            return value  # type: ignore[return-value]
        buffers: list[pickle.PickleBuffer] = []
        parts: list[NDArray[np.uint8]] = []
        if self.rank == source:
            content = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
            parts = [_bytes(content), *(_bytes(buffer.raw()) for buffer in buffers)]
        count = self._from(source, np.array([len(parts)]))
        sizes = self._from(source, np.array([len(p) for p in parts]) if parts else np.empty(count[0], dtype=np.int64))
        if not parts:
            parts = [np.empty(size, dtype=np.uint8) for size in sizes]
        first, *rest = (self._from(source, part) for part in parts)
        return value if self.rank == source else pickle.loads(first.data, buffers=rest)  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank, on every rank."""
        return [self.broadcast(value, source) for source in range(self.size)]

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.sum(np.zeros(1))

    def _from(self, source: int, array: NDArray[Any]) -> NDArray[Any]:
        for part in self._slices(array):
            self._exchange("broadcast", part, src=source)
        return array

    def _slices(self, values: NDArray[Any] | Tensor) -> Iterator[Tensor]:
        """Views of a contiguous array as real numbers; none in a world of one."""
        if self.size == 1:
            return
        import torch

        tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
        flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).view(-1)  # fails if it would be a copy
        yield from flat.split(_SLICE_BYTES // flat.element_size())

    def _exchange(self, operation: str, tensor: Tensor, **options: Any) -> None:
        """One collective operation, in place. Raises `Lost` as soon as it is known that it cannot be completed."""
        import torch.distributed as dist

        assert self.watch is not None
        try:
            work = getattr(dist, operation)(tensor, async_op=True, **options)
            pause = _FIRST_PAUSE
            while not work.is_completed():  # so that signals and the loss of a rank are noticed meanwhile
                self.watch.check()
                time.sleep(pause)
                pause = min(1.5 * pause, _LONGEST_PAUSE)
            work.wait()
        except RuntimeError as error:  # the connection to some rank broke; the watch finds out which one is gone
            self.watch.explain(error)


def _bytes(content: bytes | memoryview) -> NDArray[np.uint8]:
    array = np.frombuffer(content, dtype=np.uint8)
    return array if array.flags.writeable else array.copy()
