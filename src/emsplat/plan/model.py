"""The cost model: what each stage of a job takes, from the size of the job and the speed of a machine.

docs/scaling.md derives the formulas. A process that shares the cores of its machine has its share of their speed.
Reading and working overlap, so that a stage takes as long as the slowest of disk, processor, card and network, which is
said to limit it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emsplat.fourier.insertion import OVERSAMPLING, WIDTH, grid_period, grid_shape
from emsplat.particles.parts import HALF_SET_PARTS
from emsplat.plan.cluster import Cluster
from emsplat.poses.refine import RefineSettings
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.validation.local_resolution import frequency_bands

if TYPE_CHECKING:
    from emsplat.plan.rates import Card, Rates

STEPS = 35  # steps of a fit, including its share of the search; 28 to 41 were seen, and 90 are possible
FIGURES_SECONDS = 4.0  # seconds for figures and report; 2 to 5 were seen
ROW_BYTES = 250  # bytes of an image beside its row in the table, for matrices, CTF and order
REFINEMENT_PASSES = 16  # number of times that the normal equations of an image are evaluated in a round
MAPS_WRITTEN = 8
DISK, PROCESSOR, CARD, NETWORK, ONE = "disk", "processor", "GPU", "network", "one process alone"


@dataclass(frozen=True)
class Job:
    """The size of a job, with lengths in voxels of the working box unless said otherwise."""

    n_images: int
    box: int  # box of the images in pixels
    working_box: int
    extent: int  # edge of the cube that Gaussians live in
    reach: int  # of the convolution's kernel
    n_gaussians: int  # Gaussians of a fit
    n_fits: int  # fits of a half
    sigma: float  # σ of a typical Gaussian
    n_symmetry: int
    refined: bool = False
    cached: bool = False
    by_images: bool = False


@dataclass(frozen=True)
class Stage:
    """What a stage needs."""

    name: str
    parts: dict[str, float]  # seconds by resource
    memory_bytes: float = 0.0  # memory of the largest process beyond what it holds all the time
    disk_bytes: float = 0.0  # bytes that stay on the disk
    card_bytes: float = 0.0
    extra: float = 0.0  # seconds that overlap with nothing
    extra_of: str = field(default=ONE)

    @property
    def seconds(self) -> float:
        """Time of the slowest part, and of what overlaps with none."""
        return max(self.parts.values(), default=0.0) + self.extra

    @property
    def limited_by(self) -> str:
        """The resource whose increase would help most."""
        name, most = max(self.parts.items(), key=lambda part: part[1], default=(self.extra_of, 0.0))
        return name if most >= self.extra else self.extra_of


def volume_work(edge: int) -> float:
    """Work of the transform of a cube, in units of the rates: n³ log₂ n."""
    return edge**3 * math.log2(max(edge, 2))


def grid_bytes(box: int, reach: int) -> float:
    """Of the two grids of a subset: complex for b, real for T."""
    b, t = (grid_shape(grid_period(extent, box, OVERSAMPLING)) for extent in (box, max(reach, box)))
    return 8 * math.prod(b) + 4 * math.prod(t)


def grids_work(box: int, reach: int) -> float:
    """Of inverting the two grids of a subset."""
    return volume_work(math.ceil(OVERSAMPLING * box)) + volume_work(math.ceil(OVERSAMPLING * max(reach, box)))


def stages(job: Job, cluster: Cluster, rates: Rates, card: Card | None) -> list[Stage]:
    """All stages in their order."""
    loading = Stage("loading", {}, extra=rates.loading_seconds)
    found = [loading, _read(job, rates), Stage("preview", {}, extra=rates.preview_seconds, memory_bytes=2.5 * 96e6)]
    found += [_pass(job, cluster, rates, card), _inversion(job, cluster, rates), _fit(job, cluster, rates, card)]
    if job.refined:
        found.append(_refinement(job, cluster, rates, found[3:]))
    return [*found, _validation(job, rates), _local(job, rates), _writing(job, rates)]


def held_bytes(job: Job, rates: Rates) -> float:
    """Bytes that a process holds all the time, for the program and the table."""
    return rates.base_bytes + job.n_images * (rates.table_bytes_per_image + ROW_BYTES)


def slowness(cluster: Cluster, at_work: int | None = None) -> int:
    """Factor by which a process is slower than its machine, since all active processes share the cores."""
    return min(cluster.processes_of_a_machine, at_work or cluster.ranks)


def storage(cluster: Cluster, rates: Rates) -> float:
    """Bytes per second that the file system delivers to all machines together."""
    return 1e9 * cluster.storage if cluster.storage else rates.disk_bytes_per_second * cluster.machines


def _read(job: Job, rates: Rates) -> Stage:
    """Every process reads the whole table."""
    return Stage("read", {}, extra=job.n_images * rates.table_seconds_per_image)


def _pass(job: Job, cluster: Cluster, rates: Rates, card: Card | None) -> Stage:
    each = job.n_images / cluster.ranks
    parts = {DISK: job.n_images * rates.disk_bytes_per_image / storage(cluster, rates)}
    load, transform = rates.load_seconds_per_image, rates.transform_seconds_per_image
    insert = rates.insert_seconds_per_image * (job.working_box / rates.pass_box) ** 2
    grids = HALF_SET_PARTS * grid_bytes(job.working_box, job.reach)
    work, then = grids_work(job.working_box, job.reach), grids_work(rates.pass_box, rates.pass_reach)
    # If there are two processes, each has one half.
    extra = rates.grids_seconds * work / then / min(cluster.ranks, 2) * slowness(cluster, 2)
    if card:
        parts[PROCESSOR] = each * load * slowness(cluster)
        parts[CARD] = each * _card_seconds(job, card)
        extra = HALF_SET_PARTS * work * card.transform_seconds / min(cluster.ranks, 2)
    else:
        parts[PROCESSOR] = each * (load + transform + insert) * slowness(cluster)
    extra_of = CARD if card else PROCESSOR
    if cluster.ranks > 1:
        exchange = 2 * grids * (cluster.ranks - 1) / cluster.ranks / (1e9 / 8 * cluster.network)
        extra, extra_of = extra + exchange, NETWORK if exchange > extra else extra_of
    block = AccumulationSettings.block_bytes
    blocks = 2 * block + block * (job.working_box / job.box) ** 2 * 2
    cached = job.n_images * (12 + 2 * job.working_box**2) / cluster.machines if job.cached else 0.0
    inverted = 8 * (OVERSAMPLING * job.reach / 2 + 1) * job.reach**2
    return Stage(
        "pass", parts, blocks + inverted + (0 if card else grids), cached, grids if card else 0.0, extra, extra_of
    )


def _card_seconds(job: Job, card: Card) -> float:
    """Seconds of an image: its way to the card, its transform, and a read and a write of all taps of all samples."""
    pixels = 2 * job.working_box**2 if job.cached else 4 * job.box**2
    samples = math.pi * job.working_box**2 / 8 * job.n_symmetry
    traffic = 6 * 4 * job.box**2 + 2 * samples * WIDTH**3 * (8 + 4)
    return pixels / card.link_bytes_per_second + traffic / card.bytes_per_second


def _inversion(job: Job, cluster: Cluster, rates: Rates) -> Stage:
    """Both halves, one after the other or on two processes."""
    seconds = 2 / min(cluster.ranks, 2) * rates.inversion_seconds * volume_work(job.working_box)
    volume = 4 * job.working_box**3
    return Stage("inversion", {PROCESSOR: seconds * slowness(cluster, 2)}, 6 * volume + 2 * 4 * job.reach**3)


def _fit(job: Job, cluster: Cluster, rates: Rates, card: Card | None) -> Stage:
    fits = 2 * job.n_fits / min(cluster.ranks, 2)
    memory = 2 * (4 * job.working_box**3 + 4 * job.reach**3) + 4 * 4 * job.reach**3 + 400 * job.n_gaussians
    if card:
        voxels = 4 / 3 * math.pi * (3 * job.sigma) ** 3
        splat = job.n_gaussians * voxels * 16 / card.bytes_per_second
        step = 2 * volume_work(job.reach) * card.transform_seconds + splat
        return Stage("fit", {CARD: fits * STEPS * step}, memory, card_bytes=memory)
    step = rates.convolution_seconds * volume_work(job.reach) + rates.splat_seconds_per_gaussian * job.n_gaussians
    return Stage("fit", {PROCESSOR: fits * STEPS * step * slowness(cluster, 2)}, memory)


def _refinement(job: Job, cluster: Cluster, rates: Rates, solving: list[Stage]) -> Stage:
    """Rounds of normal equations, which cost as much as some insertions, and of accumulation and fits.

    All rounds are taken to be as slow as the first.
    """
    each = rates.load_seconds_per_image + rates.transform_seconds_per_image
    each += REFINEMENT_PASSES * rates.insert_seconds_per_image * (job.working_box / rates.pass_box) ** 2 / 2
    again = sum(stage.seconds for stage in solving)
    work = RefineSettings.most_rounds * job.n_images / cluster.ranks * each * slowness(cluster)
    return Stage(
        "refinement",
        {PROCESSOR: work},
        96e6 * 2,
        extra=RefineSettings.most_rounds * again,
        extra_of="accumulation and fits again",
    )


def _validation(job: Job, rates: Rates) -> Stage:
    return Stage("validation", {}, 12 * 4 * job.box**3, extra=rates.validation_seconds * volume_work(job.box))


def _local(job: Job, rates: Rates) -> Stage:
    bands = len(frequency_bands(job.working_box // 2 - 2))
    seconds = rates.local_seconds * bands * volume_work(job.box)
    return Stage("local resolution", {}, 12 * 4 * job.box**3, extra=seconds)


def _writing(job: Job, rates: Rates) -> Stage:
    size = MAPS_WRITTEN * 4 * job.box**3 + 3 * 2 * job.n_fits * 44 * job.n_gaussians + 10e6
    return Stage("writing", {DISK: size / rates.disk_bytes_per_second}, 4 * 4 * job.box**3, size, extra=FIGURES_SECONDS)
