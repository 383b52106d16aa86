"""A cache of images on a local disk, cropped to the working box and stored in float16. It is filled as images are read.

It is meant for stacks on a shared file system that is slower than the work. The file of a data set is a row of records
of the same size, one for each image in reading order: a checksum, the mean and standard deviation in float32, and the
pixels in units of these, which do not overflow float16. What has not been read yet is a hole in the file. A record
depends on no other, every run writes the same bytes, and an incomplete record has a wrong checksum. Runs may therefore
share a data set, and may be killed at any moment. The name of a data set contains everything that decides its content
(`_name`), so that a stack that has changed is another data set.

float16 rounds a pixel by at most 2⁻¹² of its value, and by 2·10⁻⁴ on average: 10⁻⁷ times the noise of the image.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from emsplat.errors import InputError
from emsplat.fourier.background import outside_circle, subtract_background
from emsplat.fourier.cropping import fourier_cropped
from emsplat.io.cache_folder import place
from emsplat.io.images import ImageSource, reading_order
from emsplat.io.mrc import consecutive_runs
from emsplat.runtime.files import reason
from emsplat.runtime.reporting import Reporter

_FORMAT = "emsplat image cache 2"
_LARGEST_READ_IN_BYTES = 8 << 20
_CHECKSUM_BYTES = 4


class CachedImages:
    """An `ImageSource` that keeps what it has read, for one thread at a time.

    Images are cropped in Fourier space: the transform of an image of B² pixels is the middle of that of the recorded
    image of D² pixels, whose background is subtracted first. All images are rounded as in the cache, whether they come
    from it or not.
    """

    def __init__(
        self, source: ImageSource, box_size: int, folder: Path, most_gigabytes: float | None, reporter: Reporter
    ) -> None:
        """Args: box_size: B ≤ D; most_gigabytes: limit of all data sets together; None: the free space of the disk.

        Raises:
            InputError: the folder is not a folder or cannot be written, or its disk is too small.
        """
        self.box_size = box_size
        self._source, self._folder, self._reporter = source, folder, reporter
        self._record = _record(box_size)
        n = len(source.particles)
        order = reading_order(source.particles)
        self._slot = np.empty(n, dtype=np.int64)  # slot of each row
        self._slot[order] = np.arange(n)
        most = np.inf if most_gigabytes is None else 1e9 * most_gigabytes
        name = _name(source, order, box_size)
        found = place(folder, name, n, self._record.itemsize, most, reporter.line)
        self._file, self._most = found.descriptor, found.most_images
        self._from_cache = self._from_source = self._damaged = 0
        self._writable = True
        reporter.line(
            f"cache {folder}: images of {box_size}² in float16, {n * self._record.itemsize / 1e9:.3g} GB, about "
            f"{100 * found.present_share:.0f} % of which exist already"
        )
        if self._most < n:
            reporter.warn(
                f"cache {folder}: within --cache-size there is room for {self._most:,} of {n:,} images; the others "
                "are read from their stacks each time"
            )

    def read(self, rows: ArrayLike) -> NDArray[np.float32]:
        """(n, B, B) images of these rows (numbers or a mask), in that order; InputError as in `ImageSource.read`."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        images = np.empty((len(rows), self.box_size, self.box_size), dtype=np.float32)
        self.read_into(rows, images)
        return images

    def read_into(self, rows: NDArray[np.int64], images: NDArray[np.float32]) -> None:
        """Put the images of these rows into (n, B, B) memory. They were checked when their stacks were read."""
        missing = self._read_kept(self._slot[rows], images)
        if len(missing):
            recorded = self._source.read(rows[missing])
            if self.box_size < recorded.shape[-1]:  # what cropping leaves of a plane is a plane no more
                subtract_background(recorded, outside_circle(recorded.shape[-1]))
            recorded = fourier_cropped(recorded, self.box_size)
            records = self._encoded(recorded, self._slot[rows[missing]])
            images[missing] = _decoded(records)
            self._keep(self._slot[rows[missing]], records)
        self._from_cache += len(rows) - len(missing)
        self._from_source += len(missing)

    def _read_kept(self, slots: NDArray[np.int64], images: NDArray[np.float32]) -> NDArray[np.int64]:
        """Fill in the images that the cache has for these slots, and return the places of the others."""
        missing = np.flatnonzero(slots >= self._most)
        kept = np.flatnonzero(slots < self._most)
        order = kept[np.argsort(slots[kept], kind="stable")]
        longest = max(1, _LARGEST_READ_IN_BYTES // self._record.itemsize)
        lost = [missing]
        damaged: list[int] = []
        for run in consecutive_runs(order, slots[order], longest):
            records = np.zeros(len(run), dtype=self._record)
            self._fill(records, int(slots[run[0]]))
            whole = records["checksum"] == self._checksums(records, slots[run])
            images[run[whole]] = _decoded(records[whole])
            lost.append(run[~whole])
            damaged += [int(place) for place in run[~whole & (records["checksum"] != 0)]]
        self._tell_damaged(slots, damaged)
        return np.sort(np.concatenate(lost))

    def _fill(self, records: NDArray, first: int) -> None:
        """Read records from slot `first` on. What the file does not hold or the disk does not deliver stays 0."""
        target = records.view(np.uint8).data
        offset, filled = first * self._record.itemsize, 0
        while filled < len(target):
            try:
                got = os.preadv(self._file, [target[filled:]], offset + filled)
            except OSError:
                return
            if got == 0:
                return
            filled += got

    def _keep(self, slots: NDArray[np.int64], records: NDArray) -> None:
        """Write records to their slots, as long as the disk takes them."""
        kept = np.flatnonzero(slots < self._most)
        order = kept[np.argsort(slots[kept], kind="stable")]
        for run in consecutive_runs(order, slots[order], len(order)):
            if not self._writable:
                return
            try:
                _write_all(self._file, records[run], int(slots[run[0]]) * self._record.itemsize)
            except OSError as error:
                self._writable = False
                self._reporter.warn(
                    f"cache {self._folder}: cannot be written ({reason(error).split(';')[0]}); images that it lacks "
                    "are read from the stacks"
                )

    def _encoded(self, images: NDArray[np.float32], slots: NDArray[np.int64]) -> NDArray:
        records = np.zeros(len(images), dtype=self._record)
        mean = images.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
        deviations = images - mean[:, None, None]
        # The deviations are scaled before they are squared, so that float32 cannot overflow.
        largest = np.maximum(np.abs(deviations).max(axis=(1, 2)), np.finfo(np.float32).tiny)
        deviations /= largest[:, None, None]
        spread = np.sqrt(np.square(deviations).mean(axis=(1, 2)))
        deviations /= np.maximum(spread, 1 / self.box_size)[:, None, None]  # the least spread where one deviation is 1
        records["mean"], records["scale"] = mean, spread * largest
        records["pixels"] = torch.from_numpy(deviations).half().numpy()
        records["checksum"] = self._checksums(records, slots)
        return records

    def _checksums(self, records: NDArray, slots: NDArray[np.int64]) -> NDArray[np.uint32]:
        """(n,) checksums, never 0, of the other fields and the slot, so that misplaced records are found."""
        content = records.view(np.uint8).reshape(len(records), -1)[:, _CHECKSUM_BYTES:]
        return np.array(
            [max(zlib.crc32(line.data, int(slot)), 1) for line, slot in zip(content, slots, strict=True)],
            dtype=np.uint32,
        )

    def _tell_damaged(self, slots: NDArray[np.int64], places: list[int]) -> None:
        if places and not self._damaged:
            row = np.flatnonzero(self._slot == slots[places[0]])[0]
            self._reporter.warn(
                f"cache {self._folder}: holds damaged or half-written images (the first: "
                f"{self._source.particles.ids[row]}); these are read from their stacks again"
            )
        self._damaged += len(places)

    def close(self) -> None:
        """Report where the images came from. Other runs may remove the data set from now on."""
        damaged = f", {self._damaged:,} of them because of damage" if self._damaged else ""
        self._reporter.line(
            f"cache {self._folder}: {self._from_cache:,} images read from it, {self._from_source:,} from the "
            f"stacks{damaged}"
        )
        os.close(self._file)

    def __enter__(self) -> CachedImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _record(box_size: int) -> np.dtype:
    return np.dtype([("checksum", "<u4"), ("mean", "<f4"), ("scale", "<f4"), ("pixels", "<f2", (box_size, box_size))])


def _decoded(records: NDArray) -> NDArray[np.float32]:
    """(n, B, B) images of whole records."""
    images = records["pixels"].astype(np.float32)
    images *= records["scale"][:, None, None]
    images += records["mean"][:, None, None]
    return images


def _write_all(file: int, records: NDArray, offset: int) -> None:
    data = records.view(np.uint8).data
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], offset + written)


def _name(source: ImageSource, order: NDArray[np.int64], box_size: int) -> str:
    """A name from everything that decides the records: path, size and time of the stacks, images, signs and box."""
    particles = source.particles
    digest = hashlib.sha256(f"{_FORMAT} {particles.box_size} {box_size}".encode())
    for path in particles.stacks:
        try:
            stat = os.stat(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}; check the path") from None
        digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    for column in (particles.stack, particles.section, source.negated(np.arange(len(particles)))):
        digest.update(np.ascontiguousarray(column[order]).tobytes())
    flipped = source.phase_flipped(order)
    if flipped.any():  # their phases are flipped back with this CTF
        digest.update(flipped.tobytes() + particles.select(order[flipped]).fingerprint().encode())
    return digest.hexdigest()[:20]
