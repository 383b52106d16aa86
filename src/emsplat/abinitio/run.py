"""The job that finds poses for particle images, and decides whether to believe them.

The code reads from top to bottom: it reads the table, looks at a sample, searches each half by itself, compares them,
refines locally and searches again in turn, reconstructs, and judges.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.abinitio import growing
from emsplat.abinitio.alignment import Alignment
from emsplat.abinitio.alternation import own_ctfs, refined
from emsplat.abinitio.classes import Matching, classes_in_words, matched, of_class
from emsplat.abinitio.ending import compared_again
from emsplat.abinitio.full import Found
from emsplat.abinitio.halves import Agreement, Search, Start, compare, start
from emsplat.abinitio.imitation import Imitation
from emsplat.abinitio.job import Halves, Job, cached, diameter_of, identity, said_of, table_of, with_poses
from emsplat.abinitio.look import Look, look_at
from emsplat.abinitio.modes import Modes
from emsplat.abinitio.polar import PolarImages
from emsplat.abinitio.stochastic import Trace
from emsplat.abinitio.symmetric import onto_axes
from emsplat.abinitio.unsymmetric import symmetry_holds
from emsplat.abinitio.verdict import REMEDY, Criterion, Ending, Verdict, judged
from emsplat.errors import InputError
from emsplat.io.images import ImageSource
from emsplat.particles.table import Particles
from emsplat.reconstruction.reconstruct import Reconstruction
from emsplat.runtime import devices
from emsplat.runtime.checkpoint import NO_CHECKPOINTS, Checkpoints
from emsplat.runtime.context import Context
from emsplat.runtime.packing import packed, unpacked
from emsplat.runtime.ranks.world import World
from emsplat.runtime.reporting import Reporter
from emsplat.runtime.threads import threads
from emsplat.settings import AbInitioSettings
from emsplat.statistics.schedule import ranks_told_apart
from emsplat.validation.local_resolution import local_resolution

_HOPELESS = 0.3  # nats per image; where maps explain less, no further start is made


@dataclass(frozen=True)
class AbInitio:
    """The result of a run."""

    reconstruction: Reconstruction  # reconstruction from the poses that were found
    verdict: Verdict
    agreement: Agreement
    starts: tuple[Start, Start]  # the starts with which the run continued
    n_starts: tuple[int, int]  # number of starts of each half
    moved: tuple[float, ...]  # share of the images that each search on refined maps moved
    certainty: NDArray[np.float32]  # (N,) largest posterior of each image in the first search
    shown: NDArray[np.bool_]  # (N,) whether each image probably shows a particle
    look: Look
    diameter_in_angstroms: float
    settings: AbInitioSettings
    hand: str = "undetermined: projections of a map and of its mirror image are the same; emsplat flip writes the other"
    found: dict[str, Any] = field(default_factory=dict)  # the settings found from the data

    @property
    def status(self) -> str:
        """The status of the verdict: converged, uncertain or failed."""
        return self.verdict.status

    def summary(self) -> dict[str, Any]:
        """The entries of summary.json under ab_initio."""
        modes = self.agreement.modes
        return {
            **self.verdict.summary(),
            "doubts": self.verdict.doubts,
            "what_to_try": None if self.status == "converged" else REMEDY,
            "hand": self.hand,
            "starts_of_halves": list(self.n_starts),
            "log_likelihood_of_halves": [round(s.evidence, 3) for s in self.starts],
            "correlation_of_halves": [round(float(c), 4) for c in self.agreement.correlations],
            "mates": [round(float(share), 3) for share in modes.shares[:12]],
            "imitation": {
                "log_likelihood": round(self.agreement.imitation.evidence, 3),
                "recovered": round(self.agreement.imitation.recovered, 3),
                "median_error_in_degrees": round(self.agreement.imitation.median_error_in_degrees, 2),
            },
            "n_without_particle": int(np.count_nonzero(~self.shown)),
            "moved_by_searches": [round(share, 4) for share in self.moved],
            "found": self.found,
        }


@dataclass(frozen=True)
class Searched:
    """The result of the search without initial poses, as it is kept to be resumed."""

    starts: tuple[Start, Start]
    agreement: Agreement | None  # None for several classes, which are compared one by one
    n_starts: tuple[int, int]
    nats: float  # information of an image
    batch: int
    iterations: int
    weight: float = 1.0  # the job's factor on all log-likelihoods
    matching: Matching | None = None  # of several classes


def ab_initio(
    source: Path | str | Particles,
    settings: AbInitioSettings,
    reporter: Reporter | None = None,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
    world: World | None = None,
) -> AbInitio:
    """Find the poses of particle images without initial poses.

    Args:
        source: a particle file, whose poses are ignored, or the table read from one.
        settings: values that are not given are found from the data.
        reporter: receiver of progress; silent by default.
        checkpoints: where every stage writes its state, and what it may be resumed from; by default, none.
        world: the ranks that share the work. Each calls this function and gets the same result. By default, one.
    Raises:
        InputError: one line on what is wrong with the input and what to do.
    """
    if settings.classes is not None:
        raise InputError("ab_initio: finds one map of all images; use ab_initio_classes, or leave out classes")
    with job_of(source, settings, reporter or Reporter(), checkpoints, world or World()) as job:
        return finished(job, searched(job))


@contextmanager
def job_of(
    source: Path | str | Particles,
    settings: AbInitioSettings,
    reporter: Reporter,
    checkpoints: Checkpoints,
    world: World,
) -> Iterator[Job]:
    """The job of a search, whose images can be read in the block."""
    with threads(settings.threads or world.cores), ExitStack() as stack:
        with reporter.stage("read"):
            said = said_of(source, settings)
            table = table_of(said, settings, reporter)
        checkpoints = checkpoints.belonging_to(identity(table, settings) | {"ranks": ranks_told_apart(world.size)})
        images = stack.enter_context(ImageSource(table, settings.invert))
        if world.watch:
            images.watch = world.watch.reading
        with reporter.stage("preview"):
            look = world.broadcast(look_at(table, images, settings.seed) if world.is_first else None)
            diameter = diameter_of(look, table, settings, reporter)
        device = devices.chosen(settings.device, reporter)
        if {device.type} != set(world.gather(device.type)):
            reporter.warn("searching on the CPU, because not every rank has a graphics card that it can use")
            device = devices.CPU
        context = Context(world, device, reporter, checkpoints)
        unused = said if said.has_ctf and not table.has_ctf else None
        yield Job(table, cached(images, table, settings, reporter, stack), look, diameter, settings, context, unused)


def finished(job: Job, found: Searched, more: tuple[Criterion, ...] = ()) -> AbInitio:
    """Refine and search in turn, reconstruct, and judge. Args: more: further criteria of the verdict."""
    reporter, starts, agreement = job.reporter, found.starts, found.agreement
    assert agreement is not None
    of_search = agreement
    table, certainty, shown = _posed(job, starts, agreement)
    if not shown.all():
        reporter.line(f"{np.count_nonzero(~shown):,} images probably show no particle; they stay in the reconstruction")
    so_far = judged(starts, agreement, None, job.symmetry)
    reconstruction, moved = refined(job, table, so_far)
    last = starts
    if moved and so_far.status != "converged":
        with reporter.stage("search"):
            last, agreement = compared_again(job, reconstruction, starts, agreement)
        reporter.line(f"refined {_agreement_in_words(agreement)}")
    with reporter.stage("search"):
        with_own_ctfs = own_ctfs(job, reconstruction)
    ending = Ending(
        moved=moved[-1] if moved else None,
        measurable=reconstruction.validation.limit_shell / job.scales.coarse_rings,
        own_ctfs=with_own_ctfs,
        looks_dark=reconstruction.preview.surely_dark,
    )
    verdict = judged(last, agreement, ending, job.symmetry)
    if verdict.status == "converged" and len(job.symmetry) > 1:
        more = (*more, symmetry_holds(job, starts, of_search))
    verdict = replace(verdict, criteria=(*verdict.criteria, *more))
    reporter.line(f"ab initio: {verdict.text()}")
    if verdict.status == "converged":
        reconstruction = _with_local_resolution(job, reconstruction)
    else:
        reporter.warn(f"ab initio {verdict.status}: no resolution is claimed; {REMEDY}")
    return AbInitio(
        reconstruction, verdict, agreement, starts, found.n_starts, moved, certainty, shown,
        job.look, job.diameter_in_angstroms, job.settings,
        found={
            "diameter_in_angstroms": round(job.diameter_in_angstroms, 1),
            "rings": [job.scales.coarse_rings, job.scales.fine_rings],
            "step_in_degrees": [round(job.scales.coarse_step, 2), round(job.scales.coarse_step / 2, 2)],
            "nats_an_image": round(found.nats, 2),
            "batch": found.batch,
            "iterations": found.iterations,
            "rounds_of_halves": [len(s.second.evidence) for s in starts],
            "contrast_in_standard_errors": round(job.look.contrast, 1),
        },
    )  # fmt: skip


def _with_local_resolution(job: Job, found: Reconstruction) -> Reconstruction:
    """The reconstruction with its local resolution, which is not looked at unless the poses can be trusted."""
    world, local = job.context.world, None
    with job.reporter.stage("local resolution"):
        if world.is_first:
            raw = found.halves[0].raw, found.halves[1].raw
            pixel_size, limit = found.pixel_size_in_angstroms, found.validation.limit_shell
            local = local_resolution(*raw, *found.half_maps, found.mask, pixel_size, limit)
            job.reporter.line(local.text())
        return replace(found, local_resolution=world.broadcast(local))


def searched(job: Job) -> Searched:
    """The search without initial poses, which is done or else resumed."""
    checkpoint = job.context.checkpoints.named("search", job.context.world)
    state = checkpoint.load()
    if state is not None:
        kinds = Start, Found, Trace, Agreement, Alignment, Modes, Imitation
        kept: Searched = unpacked(state, Searched, Matching, *kinds)
        job.weight = kept.weight  # found anew, it could differ, because later stages use other rings
        return kept
    with job.reporter.stage("polar images"):
        halves, spectra = job.read(job.scales.fine_rings)
    search, nats = job.search(halves, spectra)
    sizes = search.stochastic.batch, search.stochastic.iterations, job.weight
    with job.reporter.stage("search"):
        if job.settings.classes is None:
            starts, agreement, n_starts = _independent_starts(job, halves, search)
            found = Searched(starts, agreement, n_starts, nats, *sizes)
        else:
            starts, matching, n_starts = _starts_of_classes(job, halves, search)
            found = Searched(starts, None, n_starts, nats, *sizes, matching)
    if checkpoint.offer(lambda: packed(found)):
        checkpoint.remove_others()
    return found


def _independent_starts(
    job: Job, halves: Halves, search: Search
) -> tuple[tuple[Start, Start], Agreement, tuple[int, int]]:
    """The best starts of both halves, their agreement, and the numbers of starts."""
    best: list[Start] = []
    seed = job.settings.seed
    for attempt in range(job.settings.starts):
        _start_again(job, halves, search, attempt, best)
        first, second = best
        agreement = compare(halves, (first, second), search, np.random.default_rng((seed, attempt, 2)))
        verdict = judged((first, second), agreement, None, job.symmetry)
        job.reporter.line(f"{_agreement_in_words(agreement)}; {verdict.status} so far")
        if verdict.status == "converged" or _is_hopeless(best):
            break
    return (first, second), agreement, (attempt + 1, attempt + 1)


def _agreement_in_words(agreement: Agreement) -> str:
    """How far the halves agree, in words for the log."""
    modes = agreement.modes
    return (
        f"halves agree on {100 * modes.agreed:.0f} % of the poses"
        + (f", on {modes.number} mates of a symmetry" if not modes.is_one_place and modes.number > 1 else "")
        + f"; correlation {agreement.correlations.mean():.2f}"
    )


def _starts_of_classes(
    job: Job, halves: Halves, search: Search
) -> tuple[tuple[Start, Start], Matching, tuple[int, int]]:
    """The best starts of both halves with several classes, how these belong together, and the numbers of starts."""
    best: list[Start] = []
    for attempt in range(job.settings.starts):
        _start_again(job, halves, search, attempt, best)
        first, second = best
        with job.reporter.bar("comparing the classes", "images") as advance:
            rng = np.random.default_rng((job.settings.seed, attempt, 2))
            matching = matched(halves[1], (first, second), search, rng, advance)
        job.reporter.line(matching.text())
        if matching.is_good or _is_hopeless(best):
            break
    return (first, second), matching, (attempt + 1, attempt + 1)


def _is_hopeless(starts: list[Start]) -> bool:
    """Whether the maps of both halves explain so little of the images that another start would not help."""
    return max(start.evidence for start in starts) < _HOPELESS


def _start_again(job: Job, halves: Halves, search: Search, attempt: int, best: list[Start]) -> None:
    """One more start of each half; `best` keeps that of the highest likelihood of either.

    If one map of all images is wanted, each image is weighted by the probability that it shows a particle. Images
    without one hide what tells the mates of a pseudo-symmetry apart: both halves then come to maps that mix them up.

    Under a symmetry, every second start imposes it from the beginning; the others find the axes in the map of a first
    stage without it.
    """
    one_map = job.settings.classes is None
    if one_map:
        search = search.weighted()
    if attempt % 2 == 1:
        search = replace(search, free=None)
    for number in (0, 1):
        found = _start(job, halves[number], search, attempt, number)
        if one_map:
            found = of_class(found, 0, np.arange(len(halves[number])), search.fine.signal)
        classes = "" if one_map and found.shown.all() else f"; {classes_in_words(found)}"
        job.reporter.line(f"half {number + 1}, start {attempt + 1}: {_in_words(found)}{classes}")
        if len(best) == number:
            best.append(found)
        elif found.evidence > best[number].evidence:
            best[number] = found


def _start(job: Job, images: PolarImages, search: Search, attempt: int, number: int) -> Start:
    """One start of one half, 0 or 1, which is done or else resumed."""
    title = f"half {number + 1}, start {attempt + 1}"
    on_the_way = job.context.checkpoints.named(f"half{number + 1}-start{attempt + 1}", job.context.world)
    done = on_the_way.piece("done")
    state = done.load()
    if state is not None:
        kept: Start = unpacked(state, Start, Found, Trace)
        return kept
    rng = np.random.default_rng((job.settings.seed, attempt, number))
    box = job.table.box_size * job.table.pixel_size_in_angstroms
    show = partial(growing.show, job.reporter, number + 1, box_in_angstroms=box)
    found = start(images, search, rng, title, job.reporter, on_the_way, show)
    done.offer(lambda: packed(found))
    return found


def _in_words(found: Start) -> str:
    """The result of a start in words, for the log."""
    first, second = found.first, found.second
    faults, rounds = len(first.steps_back) + len(second.steps_back), len(second.evidence)
    return (
        f"log-likelihood {first.evidence[0]:.2f} → {first.evidence[-1]:.2f} → {found.evidence:.2f} an image in "
        f"{rounds} round{'s' * (rounds > 1)}, top posterior {second.top[-1]:.2f}, map power {second.power[-1]:.2f} of "
        "the images'" + f", stepped back {faults} time{'s' * (faults > 1)}" * bool(faults)
    )


def _posed(
    job: Job, starts: tuple[Start, Start], agreement: Agreement
) -> tuple[Particles, NDArray[np.float32], NDArray[np.bool_]]:
    """The particles with the poses of their own half's search, in the first half's frame.

    Returns:
        The particles, (N,) certainty of their poses, and (N,) whether they probably show a particle.
    """
    n, box_size = len(job.table), job.table.box_size
    rotations, centres, certainty = np.empty((n, 3, 3)), np.empty((n, 2)), np.empty(n, np.float32)
    shown = np.empty(n, np.bool_)
    alignment = onto_axes(agreement.alignment, job.symmetry)
    scale = box_size / len(starts[0].map)
    for number, rows in enumerate(job.rows):
        found: Found = starts[number].found
        posed = found.rotations, found.centres
        rotations[rows], centres[rows] = posed if number == 0 else alignment.poses(*posed, scale)
        certainty[rows] = found.top * (1 - found.junk)
        shown[rows] = starts[number].shown
    return with_poses(job.table, rotations, centres), certainty, shown
