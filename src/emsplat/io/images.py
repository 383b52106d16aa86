"""Images of particle rows, from however many stacks, in any order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emsplat.errors import InputError
from emsplat.io.mrc import StackReader
from emsplat.particles import Particles

_OPEN_STACKS = 16  # a data set may have tens of thousands, a process some hundreds of open files


def reading_order(particles: Particles) -> NDArray[np.int64]:
    """(N,) rows sorted by stack, then section: the order in which reading is one sweep over the disk."""
    return np.lexsort((particles.section, particles.stack)).astype(np.int64)


class ImageSource:
    """Reads the images of a particle table; stacks are opened when first needed. For one thread at a time."""

    def __init__(self, particles: Particles, invert: bool = False) -> None:
        """Args: invert: flip the sign, for images with dark particles, beyond what `particles.dark` says."""
        self.particles = particles
        self.invert = invert
        self.watch: Callable[[Path | None], None] = lambda path: None  # told what is being read, and of its end
        self._readers: OrderedDict[int, StackReader] = OrderedDict()  # the least recently used first

    @property
    def box_size(self) -> int:
        """D of the images that are read."""
        return self.particles.box_size

    def read(self, rows: ArrayLike) -> NDArray[np.float32]:
        """(n, D, D) the images of these rows (numbers or a mask), in that order.

        Raises:
            InputError: an image with NaN or infinite pixels, or one whose pixels are all equal; it names the image.
        """
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        box_size = self.particles.box_size
        images = np.empty((len(rows), box_size, box_size), dtype=np.float32)
        stacks = self.particles.stack[rows]
        for stack in np.unique(stacks):
            here = np.flatnonzero(stacks == stack)
            self.watch(self.particles.stacks[stack])
            block = self._reader(int(stack)).read(self.particles.section[rows[here]])
            self.watch(None)
            if len(here) == len(rows):
                images = block  # the usual case, without a copy
            else:
                images[here] = block
        self._check(images, rows)
        negated = self.negated(rows)
        return np.negative(images, out=images, where=negated[:, None, None]) if negated.any() else images

    def negated(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether the sign of these images is flipped."""
        dark = self.particles.dark
        return np.full(len(rows), self.invert) if dark is None else dark[rows] != self.invert

    def _reader(self, stack: int) -> StackReader:
        if stack not in self._readers:
            while len(self._readers) >= _OPEN_STACKS:
                self._readers.popitem(last=False)[1].close()
            self._readers[stack] = self._opened(self.particles.stacks[stack])
        self._readers.move_to_end(stack)
        return self._readers[stack]

    def _opened(self, path: Path) -> StackReader:
        reader = StackReader(path)
        box_size = self.particles.box_size
        if reader.shape[1:] != (box_size, box_size):
            reader.close()
            _, rows, columns = reader.shape
            raise InputError(
                f"{path}: images of {columns} × {rows} pixels where the table was read with {box_size}; "
                "was it changed meanwhile?"
            )
        return reader

    def _check(self, images: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Lowest and highest pixel say all: NaN goes through both, infinity is one, a constant makes them equal."""
        if len(rows) == 0:
            return
        lowest, highest = images.min(axis=(1, 2)), images.max(axis=(1, 2))
        finite = np.isfinite(lowest) & np.isfinite(highest)
        if not finite.all():
            self._refuse(rows[~finite], "NaN or infinite pixels")
        if (lowest == highest).any():
            self._refuse(rows[lowest == highest], "a constant image (all pixels equal)")

    def _refuse(self, rows: NDArray[np.int64], what: str) -> None:
        more = f" (and {len(rows) - 1} more in this block)" if len(rows) > 1 else ""
        raise InputError(
            f"{self.particles.ids[rows[0]]}{more}: {what}; every image must be finite and vary: "
            "remove it from the particle file or extract it again"
        )

    def close(self) -> None:
        while self._readers:
            self._readers.popitem()[1].close()

    def __enter__(self) -> ImageSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
