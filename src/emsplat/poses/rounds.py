"""Rounds of local refinement: the images of each half against its own map, then new maps from the refined images.

Between the rounds the halves share two numbers and a curve, as other refinement programs do: how far the direct
inversions agree, whether another round is worthwhile, and how much of each shell of a half's map is signal. No half
ever uses the images or the map of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.imaging.likelihood import Recorded
from emsplat.particles.table import Particles
from emsplat.poses.refine import RefineSettings, changed, reference, refined_blocks
from emsplat.runtime.checkpoint import State
from emsplat.runtime.context import Task
from emsplat.settings import ReconstructSettings
from emsplat.validation.validate import Validation

_WORTH_ANOTHER = 0.1  # share of the first round's gain in likelihood
_DEFAULT_RANGE_IN_DEGREES = 10.0


class _Half(Protocol):
    @property
    def map(self) -> NDArray[np.float32]: ...


class _Solution(Protocol):
    """What the refinement needs to know of a pair of half maps."""

    @property
    def halves(self) -> Sequence[_Half]: ...

    @property
    def validation(self) -> Validation: ...


Solution = TypeVar("Solution", bound=_Solution)


@dataclass(frozen=True)
class Refinement:
    """What the rounds have done."""

    settings: RefineSettings
    changes: NDArray[np.float64]  # (N, 7) changes from the values in the file, as in `refine.refine_half`
    gains: tuple[float, ...]  # gain of each round in log-likelihood per image

    def moved(self) -> dict[str, NDArray[np.float64]]:
        """(N,) changes of the quantities of each image, by name and unit."""
        moved = {
            "poses": ("poses_in_degrees", np.rad2deg(np.linalg.norm(self.changes[:, :3], axis=1))),
            "shifts": ("shifts_in_angstroms", np.linalg.norm(self.changes[:, 3:5], axis=1)),
            "contrast": ("contrast", self.changes[:, 5]),
            "defocus": ("defocus_in_angstroms", self.changes[:, 6]),
        }
        return dict(named for quantity, named in moved.items() if quantity in self.settings.quantities)

    def summary(self, half_set: NDArray[np.int8]) -> dict[str, Any]:
        """The allowed ranges, the gains, and the root mean square changes of both halves."""
        halves = [half_set == half for half in (1, 2)]
        return {
            "quantities": list(self.settings.quantities),
            "range_in_degrees": self.settings.range_in_degrees,
            "range_in_angstroms": round(self.settings.range_in_angstroms, 3),
            "log_likelihood_gains": [round(gain, 4) for gain in self.gains],
            "rms_changes_of_halves": {
                name: [round(float(np.sqrt(np.mean(values[half] ** 2))), 4) for half in halves]
                for name, values in self.moved().items()
            },
        }


def refine_settings(settings: ReconstructSettings, diameter_in_angstroms: float) -> RefineSettings:
    """The requested settings. The default range is 10°, and the distance by which 10° move the particle's rim."""
    if settings.refine_range is not None:
        degrees, angstroms = settings.refine_range
    else:
        degrees = _DEFAULT_RANGE_IN_DEGREES
        angstroms = float(np.deg2rad(degrees)) * diameter_in_angstroms / 2
    return RefineSettings(settings.refined, degrees, angstroms)


def check_refinable(particles: Particles, settings: ReconstructSettings) -> None:
    """InputError if the images do not contain what is to be refined."""
    if "defocus" in settings.refined and not particles.has_ctf:
        raise InputError(
            f"--refine {settings.refine}: the CTF is taken as 1, which has no defocus to refine; leave defocus out"
        )
    fixed = [name for name in settings.refined if name in ("contrast", "defocus")]
    if fixed and particles.premultiplied.any():
        raise InputError(
            f"--refine {settings.refine}: the images are premultiplied with their CTF, so its {' and '.join(fixed)} "
            "can no longer change; refine poses,shifts, or extract the images without premultiplication"
        )


@dataclass
class _Progress:
    """Everything that a refinement is resumed from, besides the maps at the beginning of its current round."""

    changes: NDArray[np.float64]  # (N, 7) changes so far
    start: NDArray[np.float64]  # (N, 7) changes from which the present maps were made
    gains: list[float] = field(default_factory=list)  # gains of the finished rounds
    half: int = 1  # the half that is being refined
    images: int = 0  # number of its images that are done
    fallen: float = 0.0  # fall of the sum of their negative log-likelihoods
    fallen_before: float = 0.0  # the same for the half before

    def next_half(self, fallen: float) -> None:
        self.half, self.images, self.fallen, self.fallen_before = self.half + 1, 0, 0.0, self.fallen_before + fallen

    def next_round(self) -> None:
        self.gains.append(self.fallen_before / len(self.changes))
        self.start = self.changes.copy()
        self.half, self.images, self.fallen, self.fallen_before = 1, 0, 0.0, 0.0

    def saved(self) -> State:
        """The progress as the state of a checkpoint."""
        facts = {name: getattr(self, name) for name in ("gains", "half", "images", "fallen", "fallen_before")}
        return State({name: torch.from_numpy(getattr(self, name)) for name in ("changes", "start")}, facts)

    @staticmethod
    def restored(state: State | None, n: int) -> _Progress:
        """The progress that a state was made from, or the start for n unchanged particles if there is no state."""
        if state is None:
            return _Progress(np.zeros((n, 7)), np.zeros((n, 7)))
        return _Progress(state.tensors["changes"].numpy(), state.tensors["start"].numpy(), **state.facts)


def refined(
    recorded: Recorded,
    solve: Callable[[Particles], Solution],
    settings: RefineSettings,
    diameter_in_angstroms: float,
    task: Task | None = None,
) -> tuple[Particles, Solution, Refinement]:
    """Solve, refine and solve in turn, with two to four refinements.

    Args:
        recorded: the images, and the particles with half sets.
        solve: makes half maps from particles.
        task: the ranks that share the work, each with the same half maps. The changes are offered to its checkpoint
            repeatedly, and the refinement resumes from those it loads.
    """
    task, particles = task or Task(), recorded.particles
    reporter, half_set = task.reporter, particles.half_set
    progress = _Progress.restored(task.checkpoint.load(), len(particles))
    gains = progress.gains
    reporter.line(
        f"refining {', '.join(settings.quantities)} within {settings.range_in_degrees:.3g}° "
        f"and {settings.range_in_angstroms:.3g} Å of the values in the file"
    )
    current = particles
    if gains:
        current = changed(particles, _with_mean_contrast_1(progress.start, half_set))
    solution = solve(current)
    while len(gains) < settings.most_rounds and (not gains or gains[-1] > _WORTH_ANOTHER * gains[0]):
        limit = solution.validation.limit_shell
        if limit == 0:
            reporter.warn("nothing is measurable against which images could be refined; they stay as they are")
            break
        with reporter.stage("refinement"):
            _round(recorded, progress, solution, settings, diameter_in_angstroms, task)
        reporter.line(
            f"refinement round {len(gains)}: to {1 / solution.validation.frequency[limit - 1]:.3g} Å, "
            f"log-likelihood +{gains[-1]:.3g} an image"
        )
        current = changed(particles, _with_mean_contrast_1(progress.changes, half_set))
        solution = solve(current)
    result = Refinement(settings, _with_mean_contrast_1(progress.changes, half_set), tuple(gains))
    for name, (first, second) in result.summary(half_set)["rms_changes_of_halves"].items():
        reporter.line(f"root mean square change in halves 1 and 2: {name.replace('_', ' ')} {first:.3g}, {second:.3g}")
    return current, solution, result


def _with_mean_contrast_1(changes: NDArray[np.float64], half_set: NDArray[np.int8]) -> NDArray[np.float64]:
    """The changes with a mean contrast of 1 in each half, because a common factor belongs to the map."""
    changes = changes.copy()
    for half in (1, 2):
        factors = 1 + changes[half_set == half, 5]
        changes[half_set == half, 5] = factors / factors.mean() - 1
    return changes


def _round(
    recorded: Recorded,
    progress: _Progress,
    solution: _Solution,
    settings: RefineSettings,
    diameter_in_angstroms: float,
    task: Task,
) -> None:
    """Refine both halves against their maps, from the current state of the round in `progress`, which is updated."""
    v = solution.validation
    # ⟨V₁,t⟩/⟨V₁,V₁⟩ for halves of equal power: the gain of their average, times the average's share of that power.
    to_truth = np.nan_to_num(v.gain * 0.5 * (1 + v.gaussian_half))
    while progress.half <= 2:
        half = progress.half
        rows = np.flatnonzero(recorded.particles.half_set == half)
        against = reference(solution.halves[half - 1].map, to_truth, v.limit_shell, diameter_in_angstroms)
        before, fallen = (progress.images, progress.fallen), progress.fallen
        what = recorded, progress.changes, rows, against, settings
        with task.reporter.bar(f"refining half {half}", "images") as advance:
            for done, fallen in refined_blocks(*what, task.world, before):
                progress.images, progress.fallen = done, fallen
                advance(done, len(rows))
                task.checkpoint.offer(progress.saved)
        progress.next_half(fallen)
    progress.next_round()
    if task.checkpoint.offer(progress.saved):
        task.checkpoint.remove_others()  # the maps at the beginning of the round, and what they were made from
