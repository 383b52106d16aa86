"""The verdict on whether to believe the result: `converged`, `uncertain` or `failed`, and why.

No single number decides. Half maps that agree can share an error, the likelihood can rise on a wrong map, and a map can
be right to a resolution at which poses mean little. A run has therefore converged only if every criterion holds; it has
failed if one is missed by far; anything between is uncertain. Each criterion has a value, the least value for
`converged`, and the least value that is not `failed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from emsplat.abinitio import grids
from emsplat.abinitio.halves import Agreement, Start
from emsplat.abinitio.modes import Modes
from emsplat.particles.coverage import measure_coverage

_ON_A_CIRCLE = 0.5  # largest evenness of turns that spread along a circle
_LEAST_EXPECTED = 0.1  # of the images' power; where halves correlate less, the power of a map tells nothing

_DIRECTIONS = 400  # with which the coverage of one asymmetric unit is measured
_NO_SYMMETRY = np.eye(3)[None]

MATES = "mates"

Status = Literal["converged", "uncertain", "failed"]
REMEDY = (
    "try more images, another --mask-diameter, the particle's --symmetry, or fewer junk images (2D classes); "
    "check pixel size, CTFs and contrast (emsplat check)"
)


@dataclass(frozen=True)
class Criterion:
    """One number of the evidence."""

    name: str
    value: float
    converged: float  # least value for converged
    failed: float  # values below this mean failed
    what: str  # the number in words

    @property
    def status(self) -> Status:
        """The status that this number alone implies."""
        if not self.value >= self.failed:
            return "failed"
        return "converged" if self.value >= self.converged else "uncertain"

    def summary(self) -> dict[str, Any]:
        """The entries of summary.json."""
        return {
            "value": round(self.value, 4),
            "converged_from": self.converged,
            "failed_below": self.failed,
            "status": self.status,
        }


@dataclass(frozen=True)
class Verdict:
    """The status, and the evidence for it."""

    criteria: tuple[Criterion, ...]

    @property
    def status(self) -> Status:
        """The worst status of the criteria."""
        found = {criterion.status for criterion in self.criteria}
        return "failed" if "failed" in found else "uncertain" if "uncertain" in found else "converged"

    @property
    def is_beyond_refinement(self) -> bool:
        """Whether refinement cannot help: what has failed is more than the choice between the mates of a symmetry.

        Mates of a pseudo-symmetry that halves mix up may be told apart by their refined maps.
        """
        return any(c.status == "failed" and c.name != MATES for c in self.criteria)

    @property
    def doubts(self) -> list[str]:
        """The reasons against believing the result, one phrase each."""
        return [
            f"{c.what} is {c.value:.3g} (converged from {c.converged:.3g}, failed below {c.failed:.3g})"
            for c in self.criteria
            if c.status != "converged"
        ]

    def text(self) -> str:
        """The verdict in one line for the log."""
        if self.status == "converged":
            return "converged: both halves found the same map and the same poses from independent starts"
        return f"{self.status}: {'; '.join(self.doubts)}"

    def summary(self) -> dict[str, Any]:
        """The entries of summary.json."""
        return {"status": self.status, "criteria": {c.name: c.summary() for c in self.criteria}}


@dataclass(frozen=True)
class Ending:
    """The evidence from refinement and reconstruction."""

    moved: float | None  # share of the images that the last global search moved to another pose; None: there was none
    measurable: float  # finest shell that the final half maps share, divided by the finest ring of the first stage
    own_ctfs: float  # how much likelier images are with their own CTFs, from `transfer.own_ctfs_win`
    looks_dark: bool  # whether the final map surely shows a dark particle, although the images do not


def judged(
    starts: tuple[Start, Start],
    agreement: Agreement,
    ending: Ending | None,
    symmetry: NDArray[np.float64] = _NO_SYMMETRY,
) -> Verdict:
    """The verdict on two halves that were searched independently.

    Args:
        ending: the evidence from the rest of the run; None during the search.
        symmetry: (m, 3, 3) operators that were imposed.
    """
    imitation = agreement.imitation
    rings = len(agreement.correlations)
    middle = agreement.correlations[rings // 4 : rings // 2 + 1]
    power = min(s.second.power[-1] for s in starts) if all(s.second.power for s in starts) else 0.0
    power /= max(agreement.expected_power, _LEAST_EXPECTED)
    other = agreement.other_evidence
    criteria = [
        Criterion("information", other, 2.0, 0.3, "the log-likelihood an image has under the other half's map"),
        Criterion("correlation", float(middle.mean()), 0.9, 0.5, "the correlation of the halves at medium resolution"),
        Criterion("poses", agreement.modes.agreed, 0.85, 0.25, "the share of poses on which the halves agree"),
        Criterion(
            MATES,
            evenness(agreement.modes, agreement.modes_before),
            0.7,
            0.3,
            "the evenness of the poses' shares on symmetry mates",
        ),
        Criterion("top_posterior", agreement.top, 0.25, 0.08, "the mean largest posterior of an image"),
        Criterion("map_power", power, 0.25, 0.1, "the map's power over that of a correct map"),
        Criterion(
            "generalisation",
            other / max(agreement.own_evidence, 1e-6) if agreement.own_evidence > 0 else 0.0,
            0.7,
            0.3,
            "the likelihood under the other half's map over that under an image's own",
        ),
        Criterion(
            "likeness",
            other / max(imitation.evidence, 1e-6) if imitation.evidence > 0 else 0.0,
            0.75,
            0.4,
            "the images' likelihood over that of imitated images of the map",
        ),
        Criterion("particles", _particles(starts), 0.5, 0.1, "the share of the images that show a particle"),
        Criterion("views", _views(starts, symmetry), 0.7, 0.3, "the share of Fourier space that the views cover"),
        Criterion("recovery", imitation.recovered, 0.5, 0.2, "the share of the map's own images that are found again"),
    ]
    if ending is not None:
        what = "the finest shell that the final halves share, over the finest of the first search"
        criteria.append(Criterion("measurable", ending.measurable, 1.0, 0.0, what))
        what = "the likelihood that images lose with other images' CTFs, over what they should lose"
        criteria.append(Criterion("ctf", ending.own_ctfs, 0.4, 0.2, what))
        dark = 0.0 if ending.looks_dark else 1.0
        criteria.append(Criterion("contrast", dark, 1.0, 0.5, "the agreement of the map's sign with the images'"))
    if ending is not None and ending.moved is not None:
        left = 1 - ending.moved
        criteria.append(Criterion("settled", left, 0.9, 0.5, "the share of images the last search left in place"))
    return Verdict(tuple(criteria))


def _particles(starts: tuple[Start, Start]) -> float:
    """Share of the images of the worse half that probably show a particle."""
    return min(float(start.shown.mean()) for start in starts)


def _views(starts: tuple[Start, Start], symmetry: NDArray[np.float64]) -> float:
    """Share of Fourier space that the views of the worse half cover; maps of a single view would always agree.

    Mates of an imposed symmetry do not count as views, because a few views and their mates would cover all. Views from
    everywhere in one asymmetric unit are all that there can be, so that their share counts as 1.
    """
    everywhere = grids.frames(grids.directions(_DIRECTIONS, np.eye(3), symmetry))
    return min(1.0, min(_covered(start.found.rotations) for start in starts) / _covered(everywhere))


def _covered(rotations: NDArray[np.float64]) -> float:
    """Share of Fourier space that views cover. Args: rotations: (n, 3, 3)."""
    return 1 - measure_coverage(rotations, _NO_SYMMETRY, 0).empty


def evenness(now: Modes, before: Modes | None = None) -> float:
    """1 if poses gather in one place, or evenly on several as under a symmetry; less for an uneven spread.

    Images mix unevenly between the mates of a pseudo-symmetry, and evenly between those of a true symmetry. Where most
    of them have found one place, and the others have not yet, there is doubt but no failure. There is doubt, too, if
    the turns spread along a circle: maps that are wrongly round about an axis agree like that.

    Args:
        before: the modes before refinement, if the others are those after it.
    """
    # Refinement that tells mates apart leaves fewer of them. More even shares of as many mates prove nothing.
    if before is None or now.number < before.number or now.is_one_place:
        return _even(now)
    return min(_even(now), _even(before))


def _even(modes: Modes) -> float:
    """The value of the criterion for modes by themselves."""
    if not len(modes.shares):
        return 0.0
    if modes.is_one_place:
        return 1.0
    large = modes.shares[modes.shares > 0.1 * modes.shares[0]]
    even = float(large.mean() / large.max()) if len(large) > 1 else 0.0
    if modes.is_circle:
        even = min(even, _ON_A_CIRCLE)
    return max(even, 0.9 * modes.main / max(modes.total, 1e-6))
