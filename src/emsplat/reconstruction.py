"""The main job: particle images → Gaussians, maps and what can be believed of them.

Read it top to bottom: look at a sample, stream over the images once, fit each half, validate.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray

from emsplat import devices, maps
from emsplat.batches import Images
from emsplat.checkpoint import NO_CHECKPOINTS, UNKEPT, Checkpoint, Checkpoints, State, fingerprint, identity
from emsplat.count import FEWEST, automatic_count
from emsplat.errors import InputError
from emsplat.fit import FitSettings, fit_gaussians, fitting_period, gaussians_of, initial_gaussians
from emsplat.fit_images import HalfSet, fit_images
from emsplat.fit_state import FitHistory
from emsplat.gaussians import Gaussians, merge
from emsplat.io import read_input
from emsplat.io.cache import CachedImages
from emsplat.io.images import ImageSource, reading_order
from emsplat.local_resolution import LocalResolution, local_resolution
from emsplat.parameters import Parameters
from emsplat.particles import Particles
from emsplat.preview import Preview, look_at_sample
from emsplat.ranks import World
from emsplat.ranks.agreement import check_agreement, forward_warnings
from emsplat.refinement import Refinement, check_refinable, refine_settings, refined
from emsplat.reporting import Reporter
from emsplat.settings import InputSettings, ReconstructSettings
from emsplat.shared_pass import gather_shared
from emsplat.statistics import PassSettings, Statistics, restored_statistics, saved_statistics
from emsplat.stopwatch import Stopwatch
from emsplat.symmetry import symmetry_operators
from emsplat.threads import threads
from emsplat.validation import Validation, final_map, validate

_UNSEEN_SHARE = 5  # one particle in five of a half is kept from its fit until the annealing
_FEWEST_TO_SPLIT = 40  # images of a half below which nothing is kept back
_STEPS_WITHOUT_SPLIT = 30  # nothing tells when to stop, and so few images need no more
_BOX_WITHOUT_SPLIT = 96  # voxels: nothing can be measured of so few images' fine detail
FITS = 2  # of a half, averaged: as much better than one as they cost
_SUBSETS = 4  # at most: a part of each half is kept aside
_MARGIN = 3  # voxels around the particle's sphere in which Gaussians may live


_Solver = Callable[
    [int, Parameters, FitSettings, Callable[[int, int], None], Checkpoint], tuple[Parameters, FitHistory]
]


@dataclass(frozen=True)
class Half:
    """One half set's result on the particles' own grid."""

    gaussians: Gaussians  # the average of its fits
    histories: tuple[FitHistory, ...]  # of its fits
    raw: NDArray[np.float32]  # (D, D, D) direct inversion
    map: NDArray[np.float32]  # (D, D, D) the Gaussians on the grid

    def saved(self) -> State:
        """For a checkpoint."""
        tensors = {f"gaussians.{field.name}": getattr(self.gaussians, field.name) for field in fields(Gaussians)}
        volumes = {"raw": torch.from_numpy(self.raw), "map": torch.from_numpy(self.map)}
        return State(tensors | volumes, {"histories": [asdict(history) for history in self.histories]})

    @staticmethod
    def restored(state: State) -> Half:
        """What `saved` was taken from."""
        gaussians = Gaussians(*(state.tensors[f"gaussians.{field.name}"] for field in fields(Gaussians)))
        raw, density = (state.tensors[name].numpy() for name in ("raw", "map"))
        histories = tuple(FitHistory.restored(history) for history in state.facts["histories"])
        return Half(gaussians, histories, raw, density)

    @property
    def history(self) -> FitHistory:
        """Of the first fit; the others look alike."""
        return self.histories[0]


@dataclass(frozen=True)
class Solution:
    """Both half maps, and what can be believed of them."""

    halves: tuple[Half, Half]
    mask: NDArray[np.float32]  # (D, D, D)
    validation: Validation


@dataclass(frozen=True)
class Reconstruction:
    """What a run hands back; maps are (D, D, D) ``[z, y, x]``, the origin at voxel D//2."""

    map: NDArray[np.float32]  # average of the halves, weighted by the measured gain, sharpened if asked for
    gaussians: Gaussians  # the average as a model: both halves' Gaussians with half the masses
    halves: tuple[Half, Half]
    mask: NDArray[np.float32]
    validation: Validation
    local_resolution: LocalResolution
    pixel_size_in_angstroms: float
    particles: Particles  # with the half sets used, refined if that was asked for
    poses_shared: bool  # half sets were not given: the resolution is an upper bound
    refinement: Refinement | None  # of the particles, if asked for
    b_factor: float | None
    preview: Preview
    settings: ReconstructSettings
    reporter: Reporter  # the log, the warnings and the seconds of every stage

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every stage."""
        return self.reporter.seconds

    @property
    def n_images(self) -> int:
        """Number of images used."""
        return len(self.particles)


def reconstruct(
    particles: Path | str | Particles,
    settings: ReconstructSettings | None = None,
    reporter: Reporter | None = None,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
    world: World | None = None,
) -> Reconstruction:
    """Reconstruct a map from particle images with poses and CTFs.

    Args:
        particles: a particle file, or the table read from one.
        settings: defaults are found from the data.
        reporter: told of progress; silent by default.
        checkpoints: where every stage writes its state down, and may go on from; by default, nowhere.
        world: the ranks that share the work, each of which calls this and is given the same; by default, one.
    Raises:
        InputError: one line on what is wrong with the input and what to do.
    """
    settings = settings or ReconstructSettings()
    reporter = reporter or Reporter()
    world = world or World()
    with threads(settings.threads or world.cores), ExitStack() as stack:
        device = devices.chosen(settings.device, reporter)
        with reporter.stage("read"):
            table, poses_shared = _table_with_halves(particles, settings, reporter)
            check_agreement(table, settings, world)
        source = stack.enter_context(ImageSource(table, settings.invert))
        if world.watch:
            source.watch = world.watch.reading
        box_size = working_box(table, settings)
        images: Images = source
        if settings.cache is not None:
            images = stack.enter_context(CachedImages(source, box_size, settings.cache, settings.cache_size, reporter))
        checkpoints = checkpoints.belonging_to(identity(table, settings) | {"ranks": world.size})
        symmetry = symmetry_operators(settings.symmetry)
        check_refinable(table, settings)
        with reporter.stage("preview"):
            # The noise is measured outside the particle: in images that were not cropped.
            whole = images if box_size == table.box_size else source
            preview = world.broadcast(look_at_sample(table, whole, symmetry, settings.seed) if world.is_first else None)
            diameter = _diameter(preview, table, settings, reporter)
        grid = working_grid(table, diameter, symmetry, box_size)
        reporter.line(
            f"working box {grid.box_size} voxels of {grid.pixel_size:.4g} Å, "
            f"Gaussians within {grid.extent * grid.pixel_size:.0f} Å"
        )
        device = _with_room(device, grid, preview, settings, reporter, world)

        def solve(current: Particles) -> Solution:
            return _solve(current, images, preview, grid, device, settings, reporter, checkpoints, world)

        refinement = None
        if settings.refined:
            limits = refine_settings(settings, diameter)
            kept = checkpoints.named("refinement", world)
            table, solution, refinement = refined(
                table, solve, images, preview.noise, limits, diameter, reporter, kept, world
            )
        else:
            solution = solve(table)
        first, second = solution.halves
        result, b_factor, local = world.broadcast(
            _judged(solution, table.pixel_size_in_angstroms, settings, reporter) if world.is_first else None
        )
        checkpoints.tell_cost()
        forward_warnings(reporter, world)
    return Reconstruction(
        map=result,
        gaussians=merge(first.gaussians, second.gaussians),
        halves=(first, second),
        mask=solution.mask,
        validation=solution.validation,
        local_resolution=local,
        pixel_size_in_angstroms=table.pixel_size_in_angstroms,
        particles=table,
        poses_shared=poses_shared,
        refinement=refinement,
        b_factor=b_factor,
        preview=preview,
        settings=settings,
        reporter=reporter,
    )


def _table_with_halves(
    source: Path | str | Particles, settings: ReconstructSettings, reporter: Reporter
) -> tuple[Particles, bool]:
    """The particle table, its half sets, and whether they had to be drawn."""
    if isinstance(source, Particles):
        idle = [field.name for field in fields(InputSettings) if getattr(settings, field.name) != field.default]
        if idle:
            raise InputError(f"{', '.join(idle)}: of use only when a file is read; give them to read_particles")
        table = source
    else:
        table = read_input(Path(source), settings)
    for warning in table.warnings:
        reporter.warn(warning)
    particles = len(np.unique(table.particle))
    if particles < 2:
        raise InputError(f"{table.source}: {particles} particle; at least 2 are needed, one for each half set")
    reporter.line(
        f"{len(table):,} images of {particles:,} particles, box {table.box_size}, "
        f"{table.pixel_size_in_angstroms:.4g} Å/px, {len(table.optics)} optics group(s)"
    )
    given = bool(np.any(table.half_set > 0))
    if given and len(np.unique(table.half_set[table.half_set > 0])) == 1:
        reporter.warn("the half sets put all images into one half, so they are not used")
        table, given = replace(table, half_set=np.zeros_like(table.half_set)), False
    if not given:
        reporter.warn(
            f"half sets are drawn with seed {settings.seed}. The poses came from one reference, "
            "so the resolution will be an upper bound"
        )
    return table.with_half_sets(settings.seed), not given


def _diameter(preview: Preview, table: Particles, settings: ReconstructSettings, reporter: Reporter) -> float:
    """Å; as asked for, else as the sample shows it, else the box. Refuses particles that are surely dark."""
    reporter.line(
        f"contrast from {preview.n_sampled} images: half-sample correlation {preview.correlation:.2f}, "
        f"skewness {preview.skewness:+.2f}"
    )
    if preview.surely_dark:
        raise InputError(
            f"{table.source}: the particles are dark (skewness {preview.skewness:+.2f} of the density); "
            f"they must be white: {'leave out' if settings.invert else 'add'} --invert"
        )
    if not preview.contrast_is_sure:
        reporter.warn("the sample does not show whether particles are white; if the map is inside out, use --invert")
    box = table.box_size * table.pixel_size_in_angstroms
    if settings.mask_diameter is not None:
        return min(settings.mask_diameter, box)
    if preview.diameter_in_angstroms is None:
        reporter.line(
            f"no particle outline in the sample; its diameter is taken as 85 % of the box, {0.85 * box:.0f} Å"
        )
        return 0.85 * box
    reporter.line(f"particle diameter {preview.diameter_in_angstroms:.0f} Å about the box centre, from the sample")
    return min(preview.diameter_in_angstroms, box)


@dataclass(frozen=True)
class Grid:
    """Where the work is done; lengths in voxels of the working box unless said otherwise."""

    full_box_size: int  # of the images
    box_size: int
    pixel_size: float  # Å
    extent: int  # edge of the cube in which Gaussians live
    diameter_in_angstroms: float
    symmetry: NDArray[np.float64]  # (m, 3, 3)


def working_box(table: Particles, settings: ReconstructSettings) -> int:
    """The box that just holds the finest resolution asked for.

    Where none is asked for, it is Nyquist's, unless there are only some tens of images.
    """
    full = table.box_size
    if settings.max_resolution is None:
        return full if _can_split(table, 1) or _can_split(table, 2) else min(full, _BOX_WITHOUT_SPLIT)
    needed = 2 * full * table.pixel_size_in_angstroms / settings.max_resolution
    return min(full, max(16, scipy.fft.next_fast_len(int(np.ceil(needed)), real=True)))


def working_grid(table: Particles, diameter_in_angstroms: float, symmetry: NDArray[np.float64], box_size: int) -> Grid:
    """The working box, and the cube that just holds the particle."""
    full = table.box_size
    pixel_size = table.pixel_size_in_angstroms * full / box_size
    needed = int(np.ceil(diameter_in_angstroms / pixel_size)) + 2 * _MARGIN
    extent = min(scipy.fft.next_fast_len(needed, real=True), box_size)
    return Grid(full, box_size, pixel_size, extent, diameter_in_angstroms, symmetry)


def _pass_settings(grid: Grid, preview: Preview) -> PassSettings:
    return PassSettings(grid.box_size, fitting_period(grid.extent), preview.noise, grid.symmetry)


def _with_room(
    device: torch.device, grid: Grid, preview: Preview, settings: ReconstructSettings, reporter: Reporter, world: World
) -> torch.device:
    """The device, if its memory is enough for the pass, which takes most of it, and every rank has one of its kind."""
    if device.type == "cuda":
        from emsplat.statistics_gpu import bytes_needed  # only where there is a card is Triton, too

        needed = bytes_needed(_SUBSETS, grid.full_box_size, _pass_settings(grid, preview))
        device = devices.with_room(device, needed, settings.device, 2 * grid.pixel_size, reporter)
    if {device.type} != set(world.gather(device.type)):
        reporter.warn("working on the CPU: not every rank has a graphics card it can use")
        return devices.CPU
    return device


def _solve(
    table: Particles,
    images: Images,
    preview: Preview,
    grid: Grid,
    device: torch.device,
    settings: ReconstructSettings,
    reporter: Reporter,
    checkpoints: Checkpoints,
    world: World,
) -> Solution:
    """One pass over the images, a fit to each half, and how far to believe them; the same on every rank."""
    checkpoints = checkpoints.within(fingerprint(table))
    subset = _subsets(table, settings)
    pass_settings = _pass_settings(grid, preview)
    order = reading_order(table)

    def join_in(
        job: tuple[int, Parameters, FitSettings] | None,
        advance: Callable[[int, int], None] = lambda done, total: None,
        checkpoint: Checkpoint = UNKEPT,
    ) -> tuple[Parameters, FitHistory] | None:
        """A fit to the images by all ranks, as the first one gives it; None when that has no more."""
        job = world.broadcast(job)
        if job is None:
            return None
        number, start, fit_settings = job
        seen, unseen = (order[subset[order] == 2 * (number - 1) + part] for part in (0, 1))
        half = HalfSet(table, images, seen, unseen, preview.noise, grid.box_size, grid.extent, grid.symmetry)
        watch = _watch(number, grid, reporter)
        return fit_images(half, start, fit_settings, checkpoint=checkpoint, progress=advance, watch=watch, world=world)

    def by_images(
        number: int,
        start: Parameters,
        fit_settings: FitSettings,
        advance: Callable[[int, int], None],
        checkpoint: Checkpoint,
    ) -> tuple[Parameters, FitHistory]:
        found = join_in((number, start, fit_settings), advance, checkpoint)
        assert found
        return found

    solver = by_images if settings.solver == "images" else None
    gatherer = {half: world.owner(half) for half in (1, 2)}
    # All ranks fit to the images of one half after the other, and the first one leads.
    owner = dict.fromkeys((1, 2), 0) if solver else gatherer
    mine = {half: kept for half in (1, 2) if owner[half] == world.rank and (kept := _kept_half(half, checkpoints))}
    needed = [half for half in (1, 2) if not world.broadcast(half in mine, owner[half])]
    statistics = _statistics(
        table, subset, images, pass_settings, device, reporter, gatherer, needed, world, checkpoints
    )
    if solver:
        everywhere = {half: world.broadcast(statistics.get(half), gatherer[half]) for half in needed}
        statistics = everywhere if world.is_first else {}
    for number in sorted(statistics):
        # A half's statistics go as soon as it is fitted: they are the largest thing in memory.
        mine[number] = _fit_half(number, statistics.pop(number), grid, device, settings, reporter, solver, checkpoints)
    if solver:
        with reporter.stage("fit"):
            while join_in(None):  # what the first rank has begun; it has no more itself
                pass
    first, second = (world.broadcast(mine.get(number), owner[number]) for number in (1, 2))
    if not world.is_first:
        return world.broadcast(None)
    with reporter.stage("validation"):
        pixel_size = table.pixel_size_in_angstroms
        mask = maps.soft_mask(0.5 * (first.map + second.map), pixel_size, grid.diameter_in_angstroms)
        validation = validate(first.raw, second.raw, first.map, second.map, mask, pixel_size, settings.seed)
    return world.broadcast(Solution((first, second), mask, validation))


def _subsets(table: Particles, settings: ReconstructSettings) -> NDArray[np.int8]:
    """(N,) 0 and 1: the seen and the unseen part of half 1; 2 and 3: of half 2."""
    subset = np.zeros(len(table), dtype=np.int8)
    for half in (1, 2):
        rows = table.half_set == half
        subset[rows] = 2 * (half - 1)
        if _can_split(table, half):
            subset[rows] += _unseen(table.particle[rows], settings.seed + half)
    return subset


def _kept_half(number: int, checkpoints: Checkpoints) -> Half | None:
    """One that was finished before the job was ended."""
    state = checkpoints.named(f"half{number}").load()
    return Half.restored(state) if state else None


def _statistics(
    table: Particles,
    subset: NDArray[np.int8],
    images: Images,
    pass_settings: PassSettings,
    device: torch.device,
    reporter: Reporter,
    owner: dict[int, int],
    needed: list[int],
    world: World,
    checkpoints: Checkpoints,
) -> dict[int, tuple[Statistics, Statistics | None]]:
    """By half that is needed, and that this rank owns: `_gather`'s, or kept since before the job was ended."""
    mine = [half for half in needed if owner[half] == world.rank]
    kept = {half: state for half in mine if (state := checkpoints.named(f"statistics{half}").load())}
    if all(world.gather(len(kept) == len(mine))):
        return {half: restored_statistics(state) for half, state in kept.items()}
    del kept
    checkpoint = checkpoints.named("pass" if world.size == 1 else f"pass-rank{world.rank}of{world.size}")
    found = _gather(table, subset, images, pass_settings, device, reporter, owner, world, checkpoint)
    statistics = {half: found[half] for half in mine}
    written = [
        checkpoint.followed_by(f"statistics{half}").offer(partial(saved_statistics, *statistics[half])) for half in mine
    ]
    if all(world.gather(all(written))):
        checkpoint.remove()
    return statistics


def _gather(
    table: Particles,
    subset: NDArray[np.int8],
    images: Images,
    pass_settings: PassSettings,
    device: torch.device,
    reporter: Reporter,
    owner: dict[int, int],
    world: World,
    checkpoint: Checkpoint,
) -> dict[int, tuple[Statistics, Statistics | None]]:
    """By half this rank owns, of 1 and 2: the statistics of its seen and of its unseen part, which may be None."""
    owners = {number: owner[1 + number // 2] for number in np.unique(subset).tolist()}
    stopwatch = Stopwatch(device)
    with reporter.stage("pass"), reporter.bar("reading images", "images") as advance:
        found = gather_shared(
            table, images, subset, pass_settings, owners, world, device, advance, reporter.line, stopwatch, checkpoint
        )
    reporter.line(f"the pass: {stopwatch.text()}")
    return {half: (found[2 * half - 2], found.get(2 * half - 1)) for half in (1, 2) if owner[half] == world.rank}


def _can_split(table: Particles, half: int) -> bool:
    """Whether a half has enough images, of more than one particle, to keep some of them from its fit."""
    rows = table.half_set == half
    return bool(np.sum(rows) >= _FEWEST_TO_SPLIT and len(np.unique(table.particle[rows])) > 1)


def _unseen(particle: NDArray[np.int64], seed: int) -> NDArray[np.int8]:
    """(n,) 1 for the images of one particle in five."""
    names, inverse = np.unique(particle, return_inverse=True)
    chosen = np.arange(len(names)) % _UNSEEN_SHARE == 0
    np.random.default_rng(seed).shuffle(chosen)
    return chosen[inverse].astype(np.int8)


def _fit_half(
    number: int,
    statistics: tuple[Statistics, Statistics | None],
    grid: Grid,
    device: torch.device,
    settings: ReconstructSettings,
    reporter: Reporter,
    by_images: _Solver | None,
    checkpoints: Checkpoints,
) -> Half:
    """Fit one half's Gaussians, some times over, and put their average, and the raw inversion, on the particles' grid.

    Args:
        by_images: fits to the images instead of the statistics.
    """
    seen, unseen = statistics
    whole = seen + unseen if unseen else seen
    with reporter.stage("inversion"):
        raw = whole.raw_map()
        mask = maps.soft_mask(raw, grid.pixel_size, grid.diameter_in_angstroms)
    del whole
    n_fits = settings.n_fits or (1 if by_images else FITS)
    count = settings.n_gaussians
    if count is None:
        count, reason = _count(seen, unseen, mask, grid, n_fits)
        of = f", {n_fits} fits each" if n_fits > 1 else ""
        reporter.line(f"half {number}: up to {count:,} Gaussians{of}, {reason}")
    fit_settings = FitSettings.for_particle(count, float(mask.sum()), settings.isotropic, settings.seed + number)
    if unseen is None:
        fit_settings = replace(fit_settings, max_steps=_STEPS_WITHOUT_SPLIT)
    each = [replace(fit_settings, seed=fit_settings.seed + 2 * fit) for fit in range(n_fits)]
    if by_images:
        device = devices.CPU  # they are projected there
    with reporter.stage("fit"):
        starts = [initial_gaussians(seen, mask, grid.extent, one, grid.symmetry, device) for one in each]
    if by_images:
        del seen, unseen, statistics
    models, histories = [], []
    for fit, (start, one) in enumerate(zip(starts, each, strict=True), start=1):
        checkpoint = checkpoints.named(f"fit{number}-{fit}")
        title = f"half {number}" + (f", fit {fit}" if n_fits > 1 else "")
        with reporter.stage("fit"), reporter.bar(f"fitting {title}", "steps") as advance:
            if by_images:
                parameters, history = by_images(number, start, one, advance, checkpoint)
            else:
                parameters, history = fit_gaussians(
                    seen,
                    unseen,
                    start,
                    grid.extent,
                    one,
                    advance,
                    device,
                    reporter.line,
                    _watch(number, grid, reporter),
                    checkpoint,
                )
        models.append(gaussians_of(parameters, grid.pixel_size))
        histories.append(history)
        reporter.line(
            f"{title}: {len(parameters):,} Gaussians after {len(history.losses)} steps, "
            f"annealed from step {history.anneal_from} ({history.stopped_by})"
        )
    with reporter.stage("fit"):
        gaussians = merge(*models)
        density = gaussians.voxelise(grid.box_size, grid.pixel_size)
    if grid.box_size != grid.full_box_size:
        raw, density = (maps.fourier_resize(v, grid.full_box_size) for v in (raw, density))
    half = Half(gaussians, tuple(histories), raw, density)
    if checkpoint.followed_by(f"half{number}").offer(half.saved):
        for name in (f"statistics{number}", *(f"fit{number}-{fit}" for fit in range(1, n_fits + 1))):
            checkpoints.named(name).remove()
    return half


def _watch(number: int, grid: Grid, reporter: Reporter) -> Callable[[Parameters], None]:
    return lambda parameters: reporter.watch(number, parameters, grid.pixel_size)


def _count(
    seen: Statistics, unseen: Statistics | None, mask: NDArray[np.float32], grid: Grid, n_fits: int
) -> tuple[int, str]:
    """The automatic number of Gaussians of a fit, and why."""
    if unseen is None:
        return FEWEST, "too few images to measure what they hold"
    count, shell = automatic_count(seen, unseen, mask, n_fits)
    volume = float(mask.sum()) * grid.pixel_size**3
    finest = grid.box_size * grid.pixel_size / shell
    return count, f"for {volume / 1e3:,.0f} nm³ that its images show down to {finest:.3g} Å"


def _judged(
    solution: Solution, pixel_size: float, settings: ReconstructSettings, reporter: Reporter
) -> tuple[NDArray[np.float32], float | None, LocalResolution]:
    """The map handed out, the B-factor applied to it, and the local resolution."""
    first, second = solution.halves
    with reporter.stage("validation"):
        mean = 0.5 * (first.map + second.map)
        result, b_factor = _finished(mean, solution.validation, pixel_size, settings, reporter)
    with reporter.stage("local resolution"):
        four = (first.raw, second.raw, first.map, second.map)
        local = local_resolution(*four, solution.mask, pixel_size, solution.validation.limit_shell)
        reporter.line(local.text())
    return result, b_factor, local


def _finished(
    mean: NDArray[np.float32],
    validation: Validation,
    pixel_size: float,
    settings: ReconstructSettings,
    reporter: Reporter,
) -> tuple[NDArray[np.float32], float | None]:
    """The map handed out and the B-factor applied to it."""
    if validation.resolution_kind == "not_measurable":
        reporter.warn("nothing could be measured: map.mrc is the plain average of the Gaussian half maps")
        return mean, None
    weighted = final_map(mean, validation)
    b_factor = settings.sharpen
    if b_factor == "auto":
        b_factor = maps.estimate_b_factor(weighted, pixel_size, validation.resolution)
        if b_factor is None:
            reporter.warn("the resolution does not reach far enough to estimate a B-factor; the map is not sharpened")
    if b_factor is None:
        return weighted, None
    reporter.line(f"sharpened with a B-factor of {b_factor:.0f} Å²")
    return maps.sharpen(weighted, b_factor, pixel_size, validation.resolution), b_factor
