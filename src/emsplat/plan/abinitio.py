"""What a search for poses costs, measured on the real images, beside the reconstructions in it that `model` knows of.

The cost of a round depends on how sure images are of their poses, which nobody knows before the search. Rounds are
therefore measured with imitated images of a map that has the power which the real images show: against that map, as in
late rounds, and against another map, as in early ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from emsplat.abinitio import full, volume
from emsplat.abinitio.alignment import align
from emsplat.abinitio.centring import recentred
from emsplat.abinitio.imitation import images_of
from emsplat.abinitio.job import Job as SearchJob
from emsplat.abinitio.polar import MOST_IN_MEMORY, PolarGrid, PolarImages, read_polar
from emsplat.abinitio.stochastic import StageSettings, first_stage
from emsplat.fourier import maps
from emsplat.plan.cluster import Cluster
from emsplat.plan.model import DISK, PROCESSOR, Job, Stage, slowness, stages, storage
from emsplat.plan.rates import Rates, best_of
from emsplat.poses.refine import RefineSettings

EARLY_ROUNDS, LATE_ROUNDS = 3, 5  # rounds of the second stage of one start: 4 to 14 were seen, and 40 are possible
LOOKS = 3  # looks at all shifts in one start; 2 to 6 are made
SEARCHES = 1  # searches on refined maps; 1 to 3 are made
COMPARED = 4600  # largest number of images of one half that are posed in the map of the other, or imitated
_SAMPLE, _FEW = 160, 4  # images; a round of few images takes the time that does not depend on their number
_LEAST_SHARE = 0.1  # least share of the time of a round that depends on its images; a busy machine may show less
_RINGS_AGAIN = 1.5  # rings of a search on refined maps, over those of the search before
SEARCH_BYTES = 600e6  # memory of the scores and coefficients of a block of images


@dataclass(frozen=True)
class PoseRates:
    """Rates of this machine at a search, with all cores at work."""

    look_seconds: float
    polar_seconds_per_image: float  # reading an image and its transform on the polar grid
    batch_seconds: float
    n_batches: int  # of one start
    round_seconds: float  # of a round, for slices of the map and their insertion, which do not depend on the images
    early_seconds_per_image: float  # beyond this, in a round against a map that is wrong
    late_seconds_per_image: float  # beyond this, in a round against the right map
    shifts_seconds_per_image: float  # in a look at all shifts
    alignment_seconds: float
    samples_bytes_per_image: int
    n_classes: int = 1

    def lines(self) -> list[str]:
        """The rates in words."""
        early, late = 1e3 * self.early_seconds_per_image, 1e3 * self.late_seconds_per_image
        return [
            f"an image takes {1e3 * self.polar_seconds_per_image:.2g} ms for its polar transform, and {early:.2g} ms "
            f"in an early and {late:.2g} ms in a late round of the search, measured with images imitated at the power "
            f"of these; every round takes {self.round_seconds:.2g} s besides",
            f"one start of each half suffices, with {self.n_batches} batches and then {EARLY_ROUNDS} early and "
            f"{LATE_ROUNDS} late rounds, and so does one search on refined maps; each of {LOOKS} looks at all shifts "
            f"takes {1e3 * self.shifts_seconds_per_image:.2g} ms an image",
            *(
                [f"every one of the {self.n_classes} classes has the same number of images"]
                if self.n_classes > 1
                else []
            ),
        ]


def measured_pose_search(job: SearchJob, look_seconds: float) -> PoseRates:
    """The rates of a search for poses of these images. Each is the better of two times."""
    rng = np.random.default_rng(0)
    n = len(job.table)
    rows = np.sort(rng.choice(n, min(n, _SAMPLE), replace=False))
    grid = PolarGrid.of(job.scales.fine_rings, job.diameter)
    what = job.table, job.images, rows, job.look.noise, grid, job.circle
    polar_seconds = best_of(lambda: read_polar(*what)) / len(rows)
    polar, spectra = read_polar(*what)
    search, _ = job.search((polar, polar), spectra)

    def batches(number: int) -> None:
        settings = replace(search.stochastic, iterations=number)
        first = polar.coarser(search.full.coarse_rings)
        first_stage(first, np.zeros((len(polar), 2)), search.coarse, settings, np.random.default_rng(0))

    # The first batch is in random poses, and knows no scores.
    batch = (best_of(lambda: batches(4)) - best_of(lambda: batches(1))) / 3
    n_classes = job.settings.classes or 1
    right, wrong = (_map_of_power(search.fine, grid, rng) for _ in range(2))
    others = [_map_of_power(search.fine, grid, rng) for _ in range(n_classes - 1)]
    rotations = Rotation.random(len(polar), random_state=rng).as_matrix()
    imitated = images_of(polar, right, rotations, np.zeros((len(polar), 2)), job.table.box_size, rng)
    maps_of = [np.stack([map_, *others]) if others else map_ for map_ in (right, wrong)]
    late, early = (_round_seconds(imitated, map_, search.fine, search.full) for map_ in maps_of)
    of_a_round = _round_seconds(imitated.select(np.arange(_FEW)), maps_of[0], search.fine, search.full)

    def per_image(seconds: float) -> float:
        return max(seconds - of_a_round, _LEAST_SHARE * seconds) / (len(imitated) - _FEW)

    return PoseRates(
        look_seconds=look_seconds,
        polar_seconds_per_image=polar_seconds,
        batch_seconds=max(batch, 1e-4),
        n_batches=search.stochastic.iterations,
        round_seconds=of_a_round,
        early_seconds_per_image=per_image(max(early, late)),
        late_seconds_per_image=per_image(late),
        shifts_seconds_per_image=_look_seconds(imitated, maps_of[0], search.fine, search.full) / len(imitated),
        alignment_seconds=best_of(lambda: align(right, wrong, grid.n_rings), 1),
        samples_bytes_per_image=8 * grid.n_rings * grid.n_angles,
        n_classes=n_classes,
    )


def _round_seconds(
    images: PolarImages, map_: NDArray[np.float32], stage: StageSettings, settings: full.FullSettings
) -> float:
    """Seconds of a round against a map, or the maps of all classes."""

    def once() -> None:
        centres, sums = np.zeros((len(images), 2)), volume.SliceSums.like(map_)
        full.round_of(images, map_, centres, stage, settings, np.random.default_rng(0), sums)

    return best_of(once)


def _look_seconds(
    images: PolarImages, map_: NDArray[np.float32], stage: StageSettings, settings: full.FullSettings
) -> float:
    """Seconds of a look at all shifts against a map, or the maps of all classes, for particles near the middle."""
    return best_of(
        lambda: recentred(images, map_, np.zeros((len(images), 2)), stage, settings, np.random.default_rng(0))
    )


def _map_of_power(stage: StageSettings, grid: PolarGrid, rng: np.random.Generator) -> NDArray[np.float32]:
    """(N, N, N) noise in the particle's sphere whose projections have the power that images show."""
    edge = volume.map_box(grid)
    noise = rng.normal(size=(edge,) * 3).astype(np.float32) * volume.sphere(edge, stage.diameter)
    factors = np.zeros(edge // 2 + 1)
    factors[1 : grid.n_rings + 1] = np.sqrt(stage.signal / volume.shell_powers(noise, grid.n_rings))
    return maps.radial_filter(noise, factors)


def pose_search_stages(job: Job, cluster: Cluster, rates: Rates, search: PoseRates) -> list[Stage]:
    """All stages of `emsplat abinitio` in their order. Args: job: its last reconstruction, with refinement."""
    n, share, classes = job.n_images, slowness(cluster) / cluster.ranks, search.n_classes
    loading, read, *_ = stages(job, cluster, rates, None)
    of_class = replace(job, n_images=n // classes)
    last = [
        stage for stage in stages(of_class, cluster, rates, None) if stage.name not in ("loading", "read", "preview")
    ]
    rest = [_times(stage, classes / (_ROUNDS if stage.name == "refinement" else 1)) for stage in last]
    on_the_way = stages(replace(of_class, n_fits=1), cluster, rates, None)
    solving = [stage for stage in on_the_way if stage.name not in _ONCE]
    samples = 2 * min(search.samples_bytes_per_image * n / 2, MOST_IN_MEMORY)
    early, late = EARLY_ROUNDS * search.early_seconds_per_image, LATE_ROUNDS * search.late_seconds_per_image
    looks = LOOKS * search.shifts_seconds_per_image
    rounds = 2 * (EARLY_ROUNDS + LATE_ROUNDS) * search.round_seconds
    compared = classes * 2 * (search.alignment_seconds + search.round_seconds)
    compared += min(classes * COMPARED, n) * search.late_seconds_per_image
    again = 2 * search.polar_seconds_per_image + _RINGS_AGAIN**2 * search.late_seconds_per_image
    again += search.shifts_seconds_per_image
    of_disk = {DISK: n * rates.disk_bytes_per_image / storage(cluster, rates)}
    room = samples + SEARCH_BYTES
    return [
        loading,
        read,
        Stage("preview", {}, extra=search.look_seconds, memory_bytes=2.5 * 192e6),
        Stage("polar images", of_disk | {PROCESSOR: n * search.polar_seconds_per_image * share}, samples + 300e6),
        Stage("first stage", {PROCESSOR: 2 * search.n_batches * search.batch_seconds * share}, room),
        Stage("second stage", {PROCESSOR: n * (early + late + looks) * share + rounds}, room),
        Stage("comparison", {PROCESSOR: compared}, room),
        Stage(
            "refinement on the way",
            {PROCESSOR: classes * SEARCHES * sum(stage.seconds for stage in solving)},
            max(stage.memory_bytes for stage in solving),
        ),
        Stage("search again", {PROCESSOR: SEARCHES * (n * again * share + 2 * classes * search.round_seconds)}, room),
        *rest,
    ]


def _times(stage: Stage, factor: float) -> Stage:
    """A stage that takes so many times as long."""
    parts = {resource: factor * seconds for resource, seconds in stage.parts.items()}
    return replace(stage, parts=parts, extra=factor * stage.extra, disk_bytes=factor * stage.disk_bytes)


# Stages that a reconstruction on the way does not have.
_ONCE = ("loading", "read", "preview", "local resolution", "writing")
# Of a refinement; the last one has a single round if the search before it moved hardly any image.
_ROUNDS = RefineSettings.most_rounds
