"""Do the images have the symmetry that is asked for, or one that nobody has asked for?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.check.findings import Finding, fine, note, problem
from emsplat.check.inversion import SmallData
from emsplat.symmetry import describe_axes, symmetry_operators
from emsplat.validation.symmetry_test import (
    SymmetryChoice,
    SymmetryEvidence,
    choose_symmetry,
    sample_of,
    symmetry_that_shows,
)


@dataclass(frozen=True)
class Symmetric:
    """What was found of the symmetry."""

    name: str  # of the group to work with
    choice: SymmetryChoice | None  # None: no symmetry was asked for
    unasked: SymmetryEvidence | None  # a symmetry that the images have though none was asked for


def look_for_symmetry(data: SmallData, part: NDArray[np.int8], asked: str) -> Symmetric:
    """Args: part: (n,) quarter of each image, 0 and 1 in one half."""
    sample = sample_of(data.particles, data.images, data.noise, (part >= 2).astype(np.int8))
    if len(symmetry_operators(asked)) == 1:
        return Symmetric(asked, None, symmetry_that_shows(sample))
    choice = choose_symmetry(sample, asked)
    return Symmetric("C1" if choice.refusal else choice.name, choice, None)


def symmetry_findings(found: Symmetric, asked: str) -> list[Finding]:
    """A verdict where a symmetry was asked for, or where there is one."""
    if found.choice is None:
        if found.unasked is None:
            return []
        name = found.unasked.name
        text = f"the images look as if they had {describe_axes(name)}: {found.unasked.text()}"
        return [note("symmetry", text, f"if the particle is known to have it, give --symmetry {name}")]
    choice = found.choice
    text, _, advice = (choice.refusal or choice.warning or choice.line or "").partition("; give ")
    if choice.refusal:
        return [problem("symmetry", text, f"give {advice}")]
    if choice.warning:
        return [problem("symmetry", text, f"look at a map without symmetry before you impose {asked}")]
    text = text.removeprefix("symmetry ")
    return [fine("symmetry", text) if choice.evidence.is_shown else note("symmetry", text)]
