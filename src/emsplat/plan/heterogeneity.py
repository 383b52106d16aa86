"""What a search for heterogeneity takes after its consensus: the rates of its stages, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.heterogeneity.bins import period_of_bins
from emsplat.heterogeneity.observations import Observations, observe
from emsplat.heterogeneity.point_maps import PointMaps
from emsplat.heterogeneity.rounds import MOST_ROUNDS, bins_and_points
from emsplat.heterogeneity.slices import Volumes
from emsplat.heterogeneity.states import states_of
from emsplat.heterogeneity.subspace import Stage as Frequencies
from emsplat.heterogeneity.subspace import Subspace, embed, learn, stages
from emsplat.heterogeneity.trajectories import N_POINTS
from emsplat.heterogeneity.work import FINEST_SHELL, GRID_BYTES, LEARNT_FROM, SOUGHT, box_of_rounds
from emsplat.io.images import ImageSource, reading_order
from emsplat.particles.table import Particles
from emsplat.plan.cluster import Cluster
from emsplat.plan.model import DISK, PROCESSOR, Job, Stage, grid_bytes, grids_work, storage, volume_work
from emsplat.plan.rates import Rates, best_of
from emsplat.statistics.preview import Preview

_SAMPLE = 512  # images that are measured with
_BASIS = 32  # maps of which those of all points are combinations; 10 to 60 were seen
BINS_OF_AN_IMAGE = 2.0  # bins that an image has a share in; 1.7 to 2.3 were seen
_STEPS = (45, *[20] * MOST_ROUNDS)  # of a variant in each round, with the looks at held-out images; 20 to 60 were seen
_ANNEALING = 12
_VARIANTS = (2, 2, *[1] * (MOST_ROUNDS - 1))  # that are tried in each round
_FIGURES_SECONDS = 6.0


@dataclass(frozen=True)
class Search:
    """The size of a search, with lengths in voxels of the working box."""

    consensus: Job
    n_components: int
    limit_shell: int

    @property
    def frequencies(self) -> list[Frequencies]:
        """The stages in which components are learnt."""
        return stages(self.consensus.box, self.limit_shell)

    @property
    def n_bins(self) -> int:
        return bins_and_points(self.n_components, self.consensus.n_images)[0]

    @property
    def n_points(self) -> int:
        return bins_and_points(self.n_components, self.consensus.n_images)[1]

    @property
    def learnt_from(self) -> int:
        """Images of a half from which components are learnt."""
        return min(LEARNT_FROM, self.consensus.n_images // 2)


@dataclass(frozen=True)
class SearchRates:
    """Rates of this machine with all cores at work."""

    observe_seconds_per_image: float  # reading, transforming and weighting for the last frequencies
    iteration_seconds_per_image: tuple[float, ...]  # of EM, at each of the frequencies
    embed_seconds_per_image: float
    compare_seconds_per_image: float  # with the maps of all points


def search_of(job: Job, n_components: int, table: Particles, finest_in_angstroms: float | None) -> Search:
    """The size of a search, before there is a consensus that would say how far its signal reaches."""
    edge = table.box_size * table.pixel_size_in_angstroms
    finest = finest_in_angstroms or 2 * table.pixel_size_in_angstroms
    return Search(job, n_components, max(2, min(FINEST_SHELL, table.box_size // 2 - 1, int(edge / finest))))


def measured_search(particles: Particles, images: ImageSource, preview: Preview, search: Search) -> SearchRates:
    """Rates from real work on a few real images."""
    rows = reading_order(particles)[:_SAMPLE]
    last = search.frequencies[-1]
    rng = np.random.default_rng(0)
    box = particles.box_size
    sphere = maps.soft_sphere(box, 0.7 * box, 0.05 * box)
    mean = 1e-3 * sphere * (1 + 0.1 * rng.standard_normal((box,) * 3, dtype=np.float32))
    observing = best_of(lambda: observe(particles, images, rows, preview.noise, last.box_size, last.limit_shell))
    iterations = []
    for at in search.frequencies:
        seen = observe(particles, images, rows, preview.noise, at.box_size, at.limit_shell)
        one = Frequencies(at.box_size, at.limit_shell, 1)  # a second one could diverge, since the mean is no map
        iterations.append(_per_image(seen, partial(_learnt, mean, sphere, SOUGHT, one)))
    space = _learnt(mean, sphere, search.n_components, one, seen)
    basis = Volumes.of([maps.fourier_resize(mean, last.box_size)] * _BASIS)
    of_points = PointMaps(basis, np.ones((search.n_points, _BASIS)))
    return SearchRates(
        observing / len(rows),
        tuple(iterations),
        _per_image(seen, lambda part: embed(space, part)),
        _per_image(seen, of_points.inner),
    )


def _per_image(observations: Observations, work: Callable[[Observations], object]) -> float:
    """Seconds that an image adds to some work, without what the work takes anyway."""
    few = observations.part(slice(0, len(observations) // 4))
    less, more = (best_of(partial(work, part), 3) for part in (few, observations))
    return max((more - less) / (len(observations) - len(few)), 1e-7)


def _learnt(
    mean: NDArray[np.float32], sphere: NDArray[np.float32], count: int, at: Frequencies, observations: Observations
) -> Subspace:
    return learn(lambda _: observations, mean, sphere, count, [at], 0)


def search_stages(search: Search, cluster: Cluster, rates: Rates, own: SearchRates) -> list[Stage]:
    """The stages after the consensus, in their order."""
    job = search.consensus
    shared, halves = job.n_images / cluster.ranks, 2 / min(cluster.ranks, 2)
    disk = job.n_images * rates.disk_bytes_per_image / storage(cluster, rates)
    samples = np.pi * search.limit_shell**2 / 2
    observed = 12 * samples * search.learnt_from
    iterations = sum(
        seconds * at.iterations for seconds, at in zip(own.iteration_seconds_per_image, search.frequencies, strict=True)
    )
    # The chosen components are learnt for four more iterations.
    iterations += 4 * own.iteration_seconds_per_image[-1] * search.n_components / SOUGHT
    reading = own.observe_seconds_per_image * (len(search.frequencies) + 2)
    subspace = halves * search.learnt_from * (iterations + reading)
    embedding = shared * (own.observe_seconds_per_image + own.embed_seconds_per_image)
    rounds = MOST_ROUNDS + 1
    compare = rounds * shared * (own.observe_seconds_per_image + own.compare_seconds_per_image)
    return [
        Stage("subspace", {PROCESSOR: subspace}, observed),
        Stage("latents", {PROCESSOR: embedding, DISK: disk}, 12 * samples * 4096),
        _bins(search, cluster, rates, disk, rounds),
        _decoder(search, rates, halves),
        Stage("posterior", {PROCESSOR: compare, DISK: rounds * disk}, _bytes_of_posteriors(search)),
        _of_states(search, cluster, rates, disk),
        _writing_states(search, rates),
    ]


def _passes(search: Search, n_grids: int) -> int:
    """How often images are read while grids are filled some at a time."""
    job = search.consensus
    at_once = max(1, int(GRID_BYTES // grid_bytes(job.working_box, job.reach)))
    return -(-n_grids // at_once)


def _filling(search: Search, cluster: Cluster, rates: Rates, n_grids: int, images: float, entries: float) -> float:
    """Seconds of an accumulation of soft parts. Args: n_grids: pairs of grids; images: all of them are read."""
    job = search.consensus
    insert = rates.insert_seconds_per_image * (job.working_box / rates.pass_box) ** 2
    load = rates.load_seconds_per_image + rates.transform_seconds_per_image
    reads = min(_passes(search, n_grids), entries)  # an image is read in those passes that fill a grid of its own
    grids = rates.grids_seconds / 4 * n_grids * grids_work(job.working_box, job.reach)
    grids /= grids_work(rates.pass_box, rates.pass_reach)
    return images / cluster.ranks * (reads * load + entries * insert) + grids


def _bins(search: Search, cluster: Cluster, rates: Rates, disk: float, rounds: int) -> Stage:
    job, n_grids = search.consensus, 2 * search.n_bins
    coarse = _of_rounds(search)
    per_round = [2 * _filling(s, cluster, rates, n_grids, job.n_images / 2, BINS_OF_AN_IMAGE) for s in (coarse, search)]
    seconds = rounds * per_round[0] + (per_round[1] if coarse is not search else 0.0)
    period = period_of_bins(job.extent)
    losses = n_grids * (2 * period**3 + 4 * job.extent**3)
    memory = max(GRID_BYTES, grid_bytes(job.working_box, job.reach)) + losses
    return Stage("bins", {PROCESSOR: seconds, DISK: rounds * BINS_OF_AN_IMAGE * disk}, memory)


def _decoder(search: Search, rates: Rates, halves: float) -> Stage:
    job, coarse = search.consensus, _of_rounds(search)

    def step(on: Search) -> float:
        period = period_of_bins(on.consensus.extent)
        return (
            rates.convolution_seconds * volume_work(period)
            + rates.splat_seconds_per_gaussian * job.n_gaussians * job.n_fits
        )

    of_rounds = [n * steps + 2 * _ANNEALING for n, steps in zip(_VARIANTS, _STEPS, strict=True)]
    seconds = sum(of_rounds) * step(coarse) + (of_rounds[-1] * step(search) if coarse is not search else 0.0)
    losses = 2 * search.n_bins * (2 * period_of_bins(job.extent) ** 3 + 4 * job.extent**3)
    return Stage("decoder", {PROCESSOR: halves * search.n_bins * seconds}, losses)


def _of_rounds(search: Search) -> Search:
    """The search on the grid of its rounds; itself if this is the working box."""
    job = search.consensus
    box = box_of_rounds(search.frequencies[-1].box_size, job.working_box)
    if box == job.working_box:
        return search
    share = box / job.working_box
    smaller = replace(
        job, working_box=box, extent=min(box, int(np.ceil(share * job.extent))), reach=int(np.ceil(share * job.reach))
    )
    return replace(search, consensus=smaller)


def _bytes_of_posteriors(search: Search) -> float:
    """The posteriors of all images, of a round and of the one before, and what one half's posterior is made from."""
    n = search.consensus.n_images
    return 2 * 4 * n * search.n_points + n / 2 * search.n_points * 12


def _of_states(search: Search, cluster: Cluster, rates: Rates, disk: float) -> Stage:
    job = search.consensus
    n_states = states_of(job.n_images)
    seconds = _filling(search, cluster, rates, 2 * n_states, job.n_images, BINS_OF_AN_IMAGE)
    validation = n_states * rates.validation_seconds * volume_work(job.box)
    volumes = 4 * job.box**3
    memory = max(GRID_BYTES, grid_bytes(job.working_box, job.reach)) + n_states * 8 * volumes + 12 * volumes
    return Stage(
        "states",
        {PROCESSOR: seconds + validation, DISK: BINS_OF_AN_IMAGE * disk},
        memory + 4 * job.n_images * search.n_points,
    )


def _writing_states(search: Search, rates: Rates) -> Stage:
    job = search.consensus
    n_maps = 8 * states_of(job.n_images) + N_POINTS * search.n_components
    size = n_maps * 4 * job.box**3 + 60 * job.n_images * (1 + search.n_components)
    seconds = _FIGURES_SECONDS + 1e-5 * job.n_images
    return Stage("writing states", {DISK: size / rates.disk_bytes_per_second}, 0.0, size, extra=seconds)
