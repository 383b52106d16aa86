"""The samples of many images on a disk, so that memory does not grow with the number of images.

They are read and written and not mapped, because the pages of a mapped file count as memory of the process.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.runtime.files import reason

_ITEM_BYTES = 8  # complex64


@dataclass(frozen=True)
class StoredSamples:
    """(n, R, Q) complex64 in an unnamed file, which goes with the last reference to it. It is indexed by rows alone."""

    file: Any  # an open temporary file
    n: int
    stored_rings: int  # rings of every image in the file
    n_rings: int  # R: the first ones, which are read
    n_angles: int
    place: Path  # the folder that the file lies in

    @staticmethod
    def empty(n: int, n_rings: int, n_angles: int, folder: Path | None = None) -> StoredSamples:
        """Room for the samples of n images. Args: folder: where the file lies; by default where temporary files do."""
        try:
            place = folder or Path(tempfile.gettempdir())
            file = tempfile.TemporaryFile(dir=place, buffering=0)  # noqa: SIM115 (closed with its last reference)
        except OSError as error:
            raise InputError(f"{folder or 'TMPDIR'}: no temporary file: {reason(error)}") from None
        return StoredSamples(file, n, n_rings, n_rings, n_angles, place)

    def __len__(self) -> int:
        return self.n

    def first_rings(self, n_rings: int) -> StoredSamples:
        """The samples on the first rings alone, in the same file."""
        return replace(self, n_rings=min(n_rings, self.n_rings))

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.complex64]:
        found = np.empty((len(rows), self.n_rings, self.n_angles), np.complex64)
        for row, into in zip(rows, found.reshape(len(rows), -1).view(np.uint8), strict=True):
            got = os.preadv(self.file.fileno(), [into.data], int(row) * self._bytes)
            assert got == len(into), "a temporary file has been cut short"
        return found

    def __setitem__(self, rows: NDArray[np.int64], values: NDArray[np.complex64]) -> None:
        of_images = np.ascontiguousarray(values, np.complex64).reshape(len(rows), -1).view(np.uint8)
        try:
            for row, data in zip(rows, of_images, strict=True):
                written = os.pwrite(self.file.fileno(), data.data, int(row) * self._bytes)
                if written < len(data):
                    raise OSError("no space left on device")
        except OSError as error:
            raise InputError(
                f"{self.place}: no room for {self.n * self._bytes / 1e9:.2f} GB of temporary data "
                f"({reason(error)}); name a folder on another disk with --cache, or set TMPDIR"
            ) from None

    @property
    def _bytes(self) -> int:
        return self.stored_rings * self.n_angles * _ITEM_BYTES
