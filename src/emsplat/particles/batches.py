"""Mini-batches of images in a random order, read in the order of the disk.

Images that lie together are read together, in runs. Every epoch deals the runs into new buffers. Each buffer is read in
one sweep while the previous one is worked on, and its images are shuffled. Two buffers are in memory, whatever the
number of particles. The order follows from the seed and the epoch alone, so that a fit can be resumed anywhere in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

_BUFFER_BYTES = 96 << 20
_RUN_BYTES = 1 << 20  # bytes of a run, enough for the full speed of a disk
_FEWEST_BATCHES = 4  # smallest number of batches in a buffer, if there are as many

Rows = NDArray[np.int64]
Block = tuple[Rows, NDArray[np.float32]]  # (n,) rows and the images (n, D, D) of these rows, or of a share of them
T = TypeVar("T")
U = TypeVar("U")


class Images(Protocol):
    """A reader of images: `io.images.ImageSource`, or a substitute for it."""

    @property
    def box_size(self) -> int:
        """B of the images: the box of the table, or less if they are cropped in Fourier space."""
        ...

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """(n, B, B) images of these rows."""
        ...

    def read_into(self, rows: Rows, images: NDArray[np.float32]) -> None:
        """Read the images of these rows into (n, B, B) memory. The caller may have to check whether they are valid."""
        ...


@dataclass(frozen=True)
class Batches:
    """The division of rows into batches. A batch holds positions in `rows`."""

    rows: Rows  # (N,) in reading order
    size: int  # images of a batch; some batches have one fewer
    run: int  # images that stay together on the way into a buffer
    buffer: int  # images of a buffer; some buffers have a few fewer
    seed: int

    @staticmethod
    def of(rows: Rows, size: int, box_size: int, seed: int) -> Batches:
        """Batches of these rows, which are in reading order, with buffers of a bounded number of bytes."""
        image_bytes = 4 * box_size**2
        buffer = max(_FEWEST_BATCHES * size, _BUFFER_BYTES // image_bytes)
        return Batches(rows, size, max(1, _RUN_BYTES // image_bytes), buffer, seed)

    @property
    def per_epoch(self) -> int:
        """Number of batches that contain every row once."""
        return sum(self._batches_in(len(part)) for part in self._parts(self.rows))

    def epoch(self, number: int) -> list[list[Rows]]:
        """The batches of every buffer."""
        rng = np.random.default_rng((self.seed, number))
        positions = np.arange(len(self.rows))
        runs = np.array_split(positions, -(-len(positions) // self.run))
        dealt = np.concatenate([runs[i] for i in rng.permutation(len(runs))])
        return [np.array_split(rng.permutation(part), self._batches_in(len(part))) for part in self._parts(dealt)]

    def buffers_from(self, first: int) -> Iterator[list[Rows]]:
        """The batches of buffer after buffer, epoch after epoch without end, without the `first` batches."""
        epoch, skipped = divmod(first, self.per_epoch)
        for number in count(epoch):
            for buffer in self.epoch(number):
                if skipped < len(buffer):
                    yield buffer[skipped:]
                skipped = max(0, skipped - len(buffer))

    def _parts(self, positions: Rows) -> list[Rows]:
        return np.array_split(positions, -(-len(positions) // self.buffer))

    def _batches_in(self, n: int) -> int:
        return -(-n // self.size)


class Loader:
    """Reads images ahead of their use, in a thread of its own, because an ImageSource serves one thread at a time."""

    def __init__(self, images: Images, share: Callable[[int], slice] = lambda n: slice(n)) -> None:
        """Args: share: the part of a batch of n images that belongs to this process."""
        self._images, self._share = images, share
        self._thread = ThreadPoolExecutor(1)

    def stream(self, batches: Batches, first: int = 0) -> Iterator[Block]:
        """The rows of batch after batch without end, from number `first` on, and the images of this process's share."""

        def read(buffer: list[Rows]) -> tuple[list[Rows], Rows, NDArray[np.float32]]:
            positions = np.sort(np.concatenate([batch[self._share(len(batch))] for batch in buffer]))
            return buffer, positions, self._images.read(batches.rows[positions])

        for buffer, positions, block in self._ahead(read, batches.buffers_from(first)):
            for batch in buffer:
                mine = batch[self._share(len(batch))]
                yield batches.rows[batch], block[np.searchsorted(positions, mine)]

    def sweep(self, blocks: Iterable[Rows]) -> Iterator[Block]:
        """The rows of each block, once, and their images."""
        yield from self._ahead(lambda block: (block, self._images.read(block)), blocks)

    def _ahead(self, read: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
        """The results of `read` for the items; the next item is read while one is worked on."""
        following = None
        for item in items:
            ready, following = following, self._thread.submit(read, item)
            if ready:
                yield ready.result()
        if following:
            yield following.result()

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
