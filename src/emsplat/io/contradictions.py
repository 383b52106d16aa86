"""Facts that a file states in two places: they are compared, and reported where they differ.

A difference that matters is refused, because nobody can tell which of the two values is right; a small difference is
a warning. `--pixel-size` settles a contradiction about the pixel size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Limits for a difference: below the first it is rounding, above the second it is refused."""

    unit: str
    rounding: float
    refused: float
    relative: bool = False


LIMITS = {
    "pixel size": Limits("Å", 1e-3, 0.01, relative=True),
    "voltage": Limits("kV", 1e-3, 0.01, relative=True),
    "spherical aberration": Limits("mm", 0.01, 0.1),
    "amplitude contrast": Limits("", 1e-3, 0.05),
    "origin": Limits("pixels", 0.05, 0.5),
    "defocus": Limits("Å", 10.0, 300.0),
    "phase shift": Limits("degrees", 0.1, 10.0),
    "position": Limits("Å", 10.0, math.inf),  # pixels may be those of another binning, and RELION takes the Å
    "view": Limits("degrees", 0.1, 2.0),
}


@dataclass(frozen=True)
class Said:
    """A value, or one for each row, and the place that states it."""

    source: str
    value: float | NDArray[np.float64]


def disagreement(path: Path, what: str, first: Said, second: Said, remedy: str) -> list[str]:
    """A warning where two places differ a little, nothing where they agree.

    Args:
        what: a key of `LIMITS`.
        remedy: what the user can do about it.
    Raises:
        InputError: they differ by so much that it matters.
    """
    limits = LIMITS[what]
    a, b = np.broadcast_arrays(np.asarray(first.value, np.float64), np.asarray(second.value, np.float64))
    difference = np.abs(a - b).ravel()
    if limits.relative:
        difference = difference / np.maximum(np.minimum(np.abs(a), np.abs(b)).ravel(), 1e-12)
    worst = int(np.argmax(difference))
    if not difference[worst] > limits.rounding:
        return []
    n = int((difference > limits.rounding).sum())
    rows = f" for {n} of {len(difference)} rows" if a.size > 1 else ""
    unit = f" {limits.unit}" if limits.unit else ""
    text = (
        f"two values of the {what}{rows}: {a.ravel()[worst]:.5g}{unit} ({first.source}) against "
        f"{b.ravel()[worst]:.5g}{unit} ({second.source})"
    )
    if difference[worst] > limits.refused:
        raise InputError(f"{path}: {text}; {remedy}")
    return [f"{text}; the first is taken"]


def all_agree(path: Path, what: str, said: Sequence[Said], remedy: str) -> list[str]:
    """Warnings where places differ a little from the first of them; see `disagreement`."""
    return [line for other in said[1:] for line in disagreement(path, what, said[0], other, remedy)]
