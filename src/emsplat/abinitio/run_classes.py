"""The job that finds several maps at once in images of different particles, some of which show none.

Each half is searched with all classes by itself. Then every class is finished as if its images had been all there are:
with the agreement of its halves, its own refinement and reconstruction, and its own verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.abinitio.classes import Matching, labels_of, of_class
from emsplat.abinitio.halves import Start, compare
from emsplat.abinitio.job import FEWEST_IMAGES, Job
from emsplat.abinitio.run import AbInitio, Searched, finished, job_of, searched
from emsplat.errors import InputError
from emsplat.particles.table import Particles
from emsplat.runtime.checkpoint import NO_CHECKPOINTS, Checkpoints
from emsplat.runtime.ranks.world import World
from emsplat.runtime.reporting import Reporter
from emsplat.settings import AbInitioSettings


@dataclass(frozen=True)
class Classified:
    """The classes that were found, the largest first."""

    classes: tuple[AbInitio, ...]
    particles: Particles  # all of them, with half sets
    labels: NDArray[np.int64]  # (N,) class of each image, from 1; 0: shows no particle; −1: of a class too small
    posteriors: NDArray[np.float32]  # (N, K+1) of the classes in this order, of those too small, and of no particle
    agreed: tuple[float, ...]  # share of the images of each class on which the halves agree
    seconds: tuple[dict[str, float], ...]  # of each class: times of its own stages, without the search that all share
    settings: AbInitioSettings
    reporter: Reporter

    @property
    def n_junk(self) -> int:
        """Number of images that probably show no particle."""
        return int(np.count_nonzero(self.labels == 0))


def ab_initio_classes(
    source: Path | str | Particles,
    settings: AbInitioSettings,
    reporter: Reporter | None = None,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
    world: World | None = None,
) -> Classified:
    """Find several maps, and the images that belong to each of them; see `run.ab_initio`.

    Raises:
        InputError: as there; or no class has enough images.
    """
    reporter = reporter or Reporter()
    if settings.classes is None:
        raise InputError("ab_initio_classes: classes is missing; give their number, or use ab_initio for one map")
    with job_of(source, settings, reporter, checkpoints, world or World()) as job:
        found = searched(job)
        assert found.matching is not None
        labels, posteriors = _labelled(job, found.starts, found.matching)
        large, small = _by_size(labels, job.table.half_set, settings.classes)
        for number in small:
            n, fewest = np.count_nonzero(labels == number), _fewest(labels, job.table.half_set, number)
            reporter.warn(f"a class of {n:,} images has {fewest} in one half, too few for a map")
        classes: list[AbInitio] = []
        agreed: list[float] = []
        seconds: list[dict[str, float]] = []
        final = np.full(len(labels), -1)
        final[labels == settings.classes] = 0
        for number in large:
            rows = np.flatnonzero(labels == number)
            name = f"class{len(classes) + 1}"
            reporter.line(f"{name}: {len(rows):,} images")
            before = dict(reporter.seconds)
            classes.append(_finished(job, found, number, rows, name))
            since = {stage: took - before.get(stage, 0.0) for stage, took in reporter.seconds.items()}
            seconds.append({stage: took for stage, took in since.items() if took > 0})
            agreed.append(found.matching.agreed(number))
            final[rows] = len(classes)
        if not classes:
            remedy = "search for fewer --classes" if settings.classes > 1 else "look at the images with emsplat check"
            raise InputError(f"{job.table.source}: no class has {FEWEST_IMAGES} images in each half; {remedy}")
        places = [*large, *small, settings.classes]
        of_classes = tuple(classes), job.table, final, posteriors[:, places], tuple(agreed), tuple(seconds)
        return Classified(*of_classes, settings, reporter)


def _labelled(
    job: Job, starts: tuple[Start, Start], matching: Matching
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(N,) class of each image with the first half's numbers, K for none, and (N, K+1) posteriors."""
    first, second = starts
    n_classes = len(first.map)
    labels, posteriors = np.empty(len(job.table), np.int64), np.empty((len(job.table), n_classes + 1), np.float32)
    for start, rows, places in (
        (first, job.rows[0], np.arange(n_classes)),
        (second, job.rows[1], matching.partners),
    ):
        number = np.empty(n_classes + 1, np.int64)
        number[places], number[n_classes] = np.arange(n_classes), n_classes
        labels[rows] = number[labels_of(start.found)]
        posteriors[rows] = np.concatenate([start.found.classes[:, places], start.found.junk[:, None]], axis=1)
    return labels, posteriors


def _by_size(labels: NDArray[np.int64], half_set: NDArray[np.int8], n_classes: int) -> tuple[list[int], list[int]]:
    """The classes with enough images in both halves for a map, and the others; the largest first."""
    order = np.argsort([-np.count_nonzero(labels == number) for number in range(n_classes)], kind="stable").tolist()
    large = [number for number in order if _fewest(labels, half_set, number) >= FEWEST_IMAGES]
    return large, [number for number in order if number not in large]


def _fewest(labels: NDArray[np.int64], half_set: NDArray[np.int8], number: int) -> int:
    """Number of images of a class in the half that has fewer of them."""
    return min(int(np.count_nonzero(half_set[labels == number] == half)) for half in (1, 2))


def _finished(job: Job, found: Searched, number: int, rows: NDArray[np.int64], name: str) -> AbInitio:
    """One class from the comparison of its halves to its verdict. Args: rows: its images."""
    assert found.matching is not None
    part = job.part(rows, name)
    with job.reporter.stage("polar images"):
        halves, spectra = part.read(job.scales.fine_rings)
    search, _ = part.search(halves, spectra)
    numbers = number, int(found.matching.partners[number])
    places = [np.flatnonzero(np.isin(of_half, rows)) for of_half in job.rows]
    first, second = (
        of_class(start, k, some, search.fine.signal)
        for start, k, some in zip(found.starts, numbers, places, strict=True)
    )
    with job.reporter.stage("search"):
        rng = np.random.default_rng((job.settings.seed, 300, number))
        agreement = compare(halves, (first, second), search, rng)
    searched_class = replace(found, starts=(first, second), agreement=agreement, matching=None)
    return finished(part, searched_class, (found.matching.criterion(number),))
