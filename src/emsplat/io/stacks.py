"""From "000001@path" to a stack on this disk and a section in it, checked against the stacks' headers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.io.mrc import StackReader


@dataclass(frozen=True)
class ImageNames:
    """Where N images lie, as their metadata file says."""

    source: Path
    stacks: tuple[str, ...]  # as written
    stack: NDArray[np.int32]  # (N,) index into stacks
    section: NDArray[np.int64]  # (N,) from 0


@dataclass(frozen=True)
class StackFacts:
    """What the headers of a set of stacks say together."""

    box_size: int
    pixel_sizes_in_angstroms: tuple[float | None, ...]  # one a stack; None = unset


def parse_image_names(names: Sequence[str], source: Path) -> ImageNames:
    """Splits RELION's image names; InputError names the row whose name is not "number from 1 @ stack"."""
    number_of_stack: dict[str, int] = {}
    stack = np.empty(len(names), dtype=np.int32)
    section = np.empty(len(names), dtype=np.int64)
    for row, name in enumerate(names):
        index, at, file = name.partition("@")
        if not (at and file and index.isdecimal() and index.isascii() and 0 < int(index) < 2**31):
            raise InputError(
                f"{source}, row {row + 1}: rlnImageName is {name!r}; it must read number@stack, numbers from 1: "
                "mend or remove the row"
            )
        stack[row] = number_of_stack.setdefault(file, len(number_of_stack))
        section[row] = int(index) - 1
    return ImageNames(source, tuple(number_of_stack), stack, section)


def find_stacks(names: ImageNames, datadir: Path | None) -> tuple[Path, ...]:
    """The path of each stack: below `datadir`, the star's folder, then the working directory.

    Raises:
        InputError: a stack that is nowhere, or two stacks of one name that only one file could stand for.
    """
    paths: list[Path] = []
    name_of: dict[Path, str] = {}
    for name in names.stacks:
        path = next((p for p in _candidates(name, names.source, datadir) if p.is_file()), None)
        if path is None:
            raise InputError(
                f"{names.source}: stack {name} not found (looked {_places(names.source, datadir)}); "
                "say where the stacks are with --datadir"
            )
        other = name_of.setdefault(path, name)
        if os.path.normpath(other) != os.path.normpath(name):
            raise InputError(
                f"{names.source}: stacks {other} and {name} would both be {path}; "
                "give the folder above both with --datadir"
            )
        paths.append(path)
    return tuple(paths)


def _candidates(name: str, source: Path, datadir: Path | None) -> Iterator[Path]:
    for folder in ([datadir] if datadir else []) + [source.parent]:
        yield folder / name
        yield folder / Path(name).name
    yield Path(name)


def _places(source: Path, datadir: Path | None) -> str:
    folders = ([str(datadir)] if datadir else []) + [str(source.parent), "the working directory"]
    return "in " + ", ".join(dict.fromkeys(folders))


def check_stacks(names: ImageNames, paths: Sequence[Path]) -> StackFacts:
    """Opens every stack once; InputError for an image beyond the end, images not square, or two box sizes."""
    highest = np.full(len(paths), -1, dtype=np.int64)
    np.maximum.at(highest, names.stack, names.section)
    shapes: list[tuple[int, int]] = []
    pixel_sizes: list[float | None] = []
    for path, last in zip(paths, highest, strict=True):
        with StackReader(path) as reader:
            count, *shape = reader.shape
            shapes.append((shape[0], shape[1]))
            pixel_sizes.append(reader.pixel_size_in_angstroms)
        if last >= count:
            raise InputError(
                f"{names.source}: stack {path} holds {count} images, the star asks for number {last + 1}; "
                "is this the stack that belongs to it?"
            )
        if shape[0] != shape[1]:
            raise InputError(f"{path}: images of {shape[1]} × {shape[0]} pixels; they must be square: extract again")
        if shapes[-1] != shapes[0]:
            raise InputError(
                f"{names.source}: two box sizes: {shapes[0][0]} in {paths[0]}, {shape[0]} in {path}; "
                "all images must share one: extract again or reconstruct them apart"
            )
    return StackFacts(shapes[0][0], tuple(pixel_sizes))
