"""Images of particle rows, read in any order from any number of stacks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray

from emsplat.errors import InputError
from emsplat.io.mrc import StackReader
from emsplat.optics.ctf import ctf
from emsplat.particles.table import Particles

_FLIPPED_AT_ONCE = 64  # images whose phases are flipped back together


def reading_order(particles: Particles) -> NDArray[np.int64]:
    """(N,) rows sorted by stack, then section: the order in which reading is one sweep over the disk."""
    return np.lexsort((particles.section, particles.stack)).astype(np.int64)


class ImageSource:
    """Reads the images of a particle table; stacks are opened when first needed. One thread may use it at a time."""

    def __init__(self, particles: Particles, invert: bool = False, most_open: int = 16) -> None:
        """Read the images of these particles.

        Args:
            invert: flip the sign, for images with dark particles, beyond what `particles.dark` says.
            most_open: stacks that are open at a time. A data set may have tens of thousands, and a process some
                hundreds of open files.
        """
        self.particles = particles
        self._most_open = most_open
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
        self.read_into(rows, images)
        _check_each(self.particles, rows, images)
        return images

    def read_into(self, rows: NDArray[np.int64], images: NDArray[np.float32]) -> None:
        """Put the images of these rows into (n, D, D) memory, unchecked: whoever uses them calls `check_images`."""
        stacks = self.particles.stack[rows]
        for stack in np.unique(stacks):
            here = np.flatnonzero(stacks == stack)
            self.watch(self.particles.stacks[stack])
            sections = self.particles.section[rows[here]]
            if here[-1] - here[0] == len(here) - 1:  # consecutive images need no copy
                self._reader(int(stack)).read(sections, images[here[0] : here[-1] + 1])
            else:
                images[here] = self._reader(int(stack)).read(sections)
            self.watch(None)
        negated = self.negated(rows)
        if negated.any():
            np.negative(images, out=images, where=negated[:, None, None])
        flipped = np.flatnonzero(self.phase_flipped(rows))
        for first in range(0, len(flipped), _FLIPPED_AT_ONCE):
            here = flipped[first : first + _FLIPPED_AT_ONCE]
            images[here] = flipped_back(images[here], self.particles.select(rows[here]))
        if self.particles.added_noise > 0:
            _check_each(self.particles, rows, images)  # a blank image would pass as one of noise
            for image, stack, section in zip(images, stacks, self.particles.section[rows], strict=True):
                rng = np.random.default_rng((int(stack), int(section)))  # the same whenever the image is read
                image += self.particles.added_noise * rng.standard_normal(image.shape, dtype=np.float32)

    def phase_flipped(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether the phases of these images are flipped in the file, and flipped back when it is read."""
        return self.particles.phase_flipped[rows]

    def negated(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether the sign of these images is flipped."""
        dark = self.particles.dark
        return np.full(len(rows), self.invert) if dark is None else dark[rows] != self.invert

    def _reader(self, stack: int) -> StackReader:
        if stack not in self._readers:
            while len(self._readers) >= self._most_open:
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

    def close(self) -> None:
        while self._readers:
            self._readers.popitem()[1].close()

    def __enter__(self) -> ImageSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def flipped_back(images: NDArray[np.float32], particles: Particles) -> NDArray[np.float32]:
    """(n, D, D) images with the sign of the CTF that phase flipping took away: C in place of |C|.

    It is the CTF of the table, with which the phases were flipped, whatever is refined later.
    """
    plain = replace(particles, ctf_scale=np.ones(len(particles)))
    spectra = scipy.fft.rfft2(images) * np.where(ctf(plain) < 0, np.float32(-1), np.float32(1))
    return scipy.fft.irfft2(spectra, s=images.shape[1:]).astype(np.float32, copy=False)


def _check_each(particles: Particles, rows: NDArray[np.int64], images: NDArray[np.float32]) -> None:
    """InputError naming one of these rows, (n,), whose image shows nothing; images are (n, D, D)."""
    if len(rows):
        check_images(particles, rows, images.min(axis=(1, 2)), images.max(axis=(1, 2)))


def check_images(
    particles: Particles, rows: NDArray[np.int64], lowest: NDArray[np.float32], highest: NDArray[np.float32]
) -> None:
    """InputError naming an image whose lowest and highest pixel, (n,), show it to be no image.

    These two suffice: NaN shows in both, infinity is one of them, and a constant image makes them equal.
    """
    finite = np.isfinite(lowest) & np.isfinite(highest)
    if not finite.all():
        refuse_images(particles, rows[~finite], "NaN or infinite pixels")
    if (lowest == highest).any():
        refuse_images(particles, rows[lowest == highest], "a constant image (all pixels equal)")


def refuse_images(particles: Particles, rows: NDArray[np.int64], what: str) -> None:
    """Raise InputError naming the first of these rows."""
    more = f" (and {len(rows) - 1} more in this block)" if len(rows) > 1 else ""
    raise InputError(
        f"{particles.ids[rows[0]]}{more}: {what}; every image must be finite and vary: leave it out with "
        "--drop (emsplat check --every-image lists such images), or extract it again"
    )
