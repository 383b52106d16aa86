"""From "000001@path" to a stack on this disk and a section in it, checked against the headers of the stacks."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.io.find_files import Finder
from emsplat.io.mrc import StackReader
from emsplat.particles.table import Particles

_LARGEST_DISAGREEMENT = 0.01  # relative difference of two pixel sizes for the same images


@dataclass(frozen=True)
class ImageNames:
    """The places of N images according to their metadata file."""

    source: Path
    stacks: tuple[str, ...]  # names as written
    stack: NDArray[np.int32]  # (N,) index into stacks
    section: NDArray[np.int64]  # (N,) from 0


@dataclass(frozen=True)
class StackFacts:
    """The facts in the headers of a set of stacks."""

    box_size: int
    pixel_sizes_in_angstroms: tuple[float | None, ...]  # one a stack; None = unset
    n_images: tuple[int, ...] = ()  # one a stack; empty where no header was read


def parse_image_names(names: Sequence[str], source: Path) -> ImageNames:
    """Split RELION's image names; InputError names the row whose name is not "number from 1 @ stack"."""
    number_of_stack: dict[str, int] = {}
    stack = np.empty(len(names), dtype=np.int32)
    section = np.empty(len(names), dtype=np.int64)
    for row, name in enumerate(names):
        index, at, file = name.partition("@")
        is_number = index.isdecimal() and index.isascii() and len(index) < 20
        if not (at and file and is_number and 0 < int(index) < 2**31):
            raise InputError(
                f"{source}, row {row + 1}: rlnImageName is {name!r}; it must read number@stack, numbers from 1: "
                "mend or remove the row"
            )
        stack[row] = number_of_stack.setdefault(file, len(number_of_stack))
        section[row] = int(index) - 1
    return ImageNames(source, tuple(number_of_stack), stack, section)


def find_stacks(names: ImageNames, datadir: Path | None, strip_prefix: str | None = None) -> tuple[Path, ...]:
    """The path of each stack, looked for as `find_files.Finder` does.

    Args:
        datadir: the folder that names are relative to, if the user gives one.
        strip_prefix: leading text of the stacks' names that is no longer part of their path.
    Raises:
        InputError: a stack that is nowhere or could be two different files, two stacks of one name that only one file
            could stand for, or a prefix that no stack's name starts with.
    """
    if strip_prefix and not any(name.startswith(strip_prefix) for name in names.stacks):
        raise InputError(
            f"{names.source}: no stack's name starts with --strip-prefix {strip_prefix} (the first is "
            f"{names.stacks[0]}); give the leading text as it is written there, or leave it out"
        )
    finder = Finder(names.source, datadir, strip_prefix)
    paths: list[Path] = []
    guessed: dict[Path, str] = {}  # paths that only the end of a name led to
    exact: set[Path] = set()
    for name in names.stacks:
        found = finder.find(name, "stack")
        paths.append(found.path)
        if found.as_written:
            exact.add(found.path)
            continue
        other = guessed.setdefault(found.path, name)
        if os.path.normpath(other) != os.path.normpath(name) or found.path in exact:
            raise InputError(
                f"{names.source}: stacks {other} and {name} would both be {found.path}; "
                "give the folder above both with --datadir"
            )
    return tuple(paths)


def find_file(name: str, source: Path, datadir: Path | None, strip_prefix: str | None, *, what: str) -> Path:
    """The file that `source` calls `name`, looked for as by `find_stacks`; InputError where there is none.

    Args:
        what: what error messages call the file.
    """
    return Finder(source, datadir, strip_prefix).find(name, what).path


def check_stacks(names: ImageNames, paths: Sequence[Path]) -> StackFacts:
    """Open every stack once; InputError for an image beyond the end, images that are not square, or two box sizes."""
    highest = np.full(len(paths), -1, dtype=np.int64)
    np.maximum.at(highest, names.stack, names.section)
    shapes: list[tuple[int, int]] = []
    pixel_sizes: list[float | None] = []
    counts: list[int] = []
    for path, last in zip(paths, highest, strict=True):
        with StackReader(path) as reader:
            count, *shape = reader.shape
            shapes.append((shape[0], shape[1]))
            pixel_sizes.append(reader.pixel_size_in_angstroms)
            counts.append(count)
        if last >= count:
            raise InputError(
                f"{names.source}: stack {path} holds {count} images, the table asks for number {last + 1}; "
                "is this the stack that belongs to it?"
            )
        if shape[0] != shape[1]:
            raise InputError(f"{path}: images of {shape[1]} × {shape[0]} pixels; they must be square: extract again")
        if shapes[-1] != shapes[0]:
            raise InputError(
                f"{names.source}: two box sizes: {shapes[0][0]} in {paths[0]}, {shape[0]} in {path}; "
                "all images must share one: extract again or reconstruct them apart"
            )
    return StackFacts(shapes[0][0], tuple(pixel_sizes), tuple(counts))


def agreed_pixel_size(
    source: Path,
    override: float | None,
    said: float | None,
    said_by: str,
    stacks: Sequence[Path],
    facts: StackFacts,
) -> float:
    """Pixel size in Å: the override, else what the metadata file says in `said_by`, else the stacks' headers.

    Raises:
        InputError: no source gives one, two differ by more than 1 %, or the override is no pixel size.
    """
    if override is not None:
        if not (np.isfinite(override) and override > 0):
            raise InputError(f"--pixel-size {override}: it must be a positive number of Å; give that")
        return float(override)
    size = said
    for stack, header in zip(stacks, facts.pixel_sizes_in_angstroms, strict=True):
        if header is None:
            continue
        if size is None:
            size, said_by = header, str(stack)
        elif abs(header / size - 1) > _LARGEST_DISAGREEMENT:
            raise InputError(
                f"{source}: pixel size {size:.5g} Å ({said_by}) against {header:.5g} Å ({stack}); "
                "they may differ by 1 %: say which is right with --pixel-size"
            )
    if size is None:
        raise InputError(
            f"{source}: no pixel size, neither in the table ({said_by}) nor in the stacks' headers "
            "(0 and 1 mean unset); give it with --pixel-size"
        )
    return size


@dataclass(frozen=True)
class StackRead:
    """A stack whose images were used, as it lay on the disk."""

    path: str  # absolute path
    n_images: int  # number of images that were used
    size_in_bytes: int | None  # None: the file is gone
    modified: str | None

    def line(self) -> str:
        """The stack as a line of the log."""
        size = "gone" if self.size_in_bytes is None else f"{self.size_in_bytes:,} bytes, of {self.modified}"
        return f"{self.path}: {self.n_images:,} images, {size}"


def stacks_read(particles: Particles) -> list[StackRead]:
    """The stacks that the images of a table come from, with sizes and dates: a record of which files they were."""
    counts = np.bincount(particles.stack, minlength=len(particles.stacks))
    found = []
    for path, n in zip(particles.stacks, counts.tolist(), strict=True):
        if n == 0:
            continue
        try:
            stat = os.stat(path)
        except OSError:
            found.append(StackRead(str(path.absolute()), n, None, None))
            continue
        modified = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(stat.st_mtime))
        found.append(StackRead(str(path.absolute()), n, stat.st_size, modified))
    return found
