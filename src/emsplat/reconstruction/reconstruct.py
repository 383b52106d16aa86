"""The main job: particle images → Gaussians, maps, and how far they can be trusted.

Read it from top to bottom: read the table, look at a sample, solve for both halves (`solution`), judge, return.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.fourier import maps
from emsplat.imaging.likelihood import Recorded
from emsplat.io import as_asked, read_as_said
from emsplat.io.cache import CachedImages
from emsplat.io.images import ImageSource
from emsplat.models.gaussians import Gaussians, merge
from emsplat.particles.agreement import check_agreement, forward_warnings
from emsplat.particles.batches import Images
from emsplat.particles.parts import HALF_SET_PARTS
from emsplat.particles.table import Particles
from emsplat.poses.rounds import Refinement, check_refinable, refine_settings, refined
from emsplat.reconstruction.device import with_room
from emsplat.reconstruction.given_mask import GivenMask, read_given_mask
from emsplat.reconstruction.halves import Half
from emsplat.reconstruction.identity import identity
from emsplat.reconstruction.job import Job, accumulation_settings
from emsplat.reconstruction.solution import Solution, solve
from emsplat.reconstruction.tuning import Tuning
from emsplat.reconstruction.working_grid import working_box, working_grid
from emsplat.runtime import devices
from emsplat.runtime.checkpoint import NO_CHECKPOINTS, Checkpoints
from emsplat.runtime.context import Context, Task
from emsplat.runtime.memory import give_back_free_memory
from emsplat.runtime.ranks import World
from emsplat.runtime.reporting import Reporter
from emsplat.runtime.threads import threads
from emsplat.settings import MODEL_NAMES, InputSettings, ReconstructSettings
from emsplat.statistics.preview import Preview, look_at_sample, statistics_of_sample
from emsplat.statistics.schedule import ranks_told_apart
from emsplat.symmetry import symmetry_operators
from emsplat.validation.combination import combine
from emsplat.validation.ctf_test import REMEDY as NO_CTF_REMEDY
from emsplat.validation.ctf_test import CtfEvidence, compare_ctfs
from emsplat.validation.local_resolution import LocalResolution, local_resolution
from emsplat.validation.symmetry_test import SymmetryChoice, choose_symmetry, take_sample
from emsplat.validation.uncertainty import standard_error
from emsplat.validation.validate import Validation, validate_combination


@dataclass(frozen=True)
class Reconstruction:
    """The result of a run. Maps are (D, D, D) ``[z, y, x]``, with the origin at voxel D//2."""

    map: NDArray[np.float32]  # average of the half maps, sharpened if asked for
    half_maps: tuple[NDArray[np.float32], NDArray[np.float32]]  # fit and direct inversion of each half, combined
    # The average as a model: both halves' Gaussians with half the masses. None if neural fields were fitted.
    gaussians: Gaussians | None
    halves: tuple[Half, Half]
    mask: NDArray[np.float32]
    validation: Validation
    local_resolution: LocalResolution | None  # None if the job that asked for the reconstruction does not need it
    # Standard error of the map at each voxel of the mask, in its units; 0 outside. None if the map may be wrong.
    standard_error: NDArray[np.float32] | None
    pixel_size_in_angstroms: float
    particles: Particles  # with the half sets used, refined if that was asked for
    poses_shared: bool  # whether no half sets were given, so that the resolution is an upper bound
    refinement: Refinement | None  # the refinement of the particles, if asked for
    b_factor: float | None
    preview: Preview
    symmetry: str  # the point group, in the axes that were used
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
    is_part: bool = False,
    tuning: Tuning | None = None,
) -> Reconstruction:
    """Reconstruct a map from particle images with poses and CTFs.

    Args:
        particles: a particle file, or the table that was read from one.
        settings: options; what is left out is found from the data.
        reporter: receives log lines and progress; by default, it is silent.
        checkpoints: where every stage writes its state, and what it may be resumed from; by default, none.
        world: the ranks that share the work. Each calls this function and gets the same result. By default, one.
        is_part: whether another job has found the poses, and says itself whether they can be trusted. The log then
            tells no resolution, there is no local one, and particles whose map looks dark are accepted, because the
            map may be misleading.
        tuning: sizes of the pieces that the work is cut into; by default, what suits images by the thousand.
    Raises:
        InputError: the input is wrong; one line says what is wrong and what to do.
    """
    settings, reporter = settings or ReconstructSettings(), reporter or Reporter()
    world, tuning = world or World(), tuning or Tuning()
    with threads(settings.threads or world.cores), ExitStack() as stack:
        device = devices.chosen(settings.device, reporter)
        said, table, poses_shared, mask = _read(particles, settings, reporter, world, is_part)
        box_size = working_box(table, settings)
        source, images = _opened(table, box_size, settings, reporter, world, stack)
        checkpoints = checkpoints.belonging_to(
            identity(table, settings, mask) | {"ranks": ranks_told_apart(world.size)}
        )
        check_refinable(table, settings)
        # The noise is measured outside the particle, in images that were not cropped.
        whole = images if box_size == table.box_size else source
        with reporter.stage("symmetry"):
            group = _symmetry(table, whole, settings, reporter, world)
        symmetry = symmetry_operators(group)
        with reporter.stage("preview"):
            if said.has_ctf and not table.has_ctf:
                _check_without_ctf(said, table, whole, symmetry, settings, world)
            preview = world.broadcast(look_at_sample(table, whole, symmetry, settings.seed) if world.is_first else None)
            diameter = _diameter(preview, table, mask, settings, reporter, contrast_is_known=is_part)
        grid = working_grid(table, diameter, symmetry, box_size)
        reporter.line(grid.text())
        accumulation, finest = accumulation_settings(grid, preview, tuning), 2 * grid.pixel_size
        device = with_room(
            device, HALF_SET_PARTS, table.box_size, accumulation, settings.device, finest, reporter, world
        )

        job = Job(images, preview, grid, settings, Context(world, device, reporter, checkpoints), tuning, mask)
        refinement = None
        if settings.refined:
            table, solution, refinement = _refined(job, table, diameter)
        else:
            solution = solve(job, table)
        first, second = solution.halves
        judged = _judged_everywhere(job, solution, table.pixel_size_in_angstroms, is_part)
        checkpoints.tell_cost()
        forward_warnings(reporter, world)
    return Reconstruction(
        map=judged.map,
        half_maps=judged.half_maps,
        gaussians=merge(first.gaussians, second.gaussians) if first.gaussians and second.gaussians else None,
        halves=(first, second),
        mask=solution.mask,
        validation=judged.validation,
        local_resolution=judged.local_resolution,
        standard_error=judged.standard_error,
        pixel_size_in_angstroms=table.pixel_size_in_angstroms,
        particles=table,
        poses_shared=poses_shared,
        refinement=refinement,
        b_factor=judged.b_factor,
        preview=preview,
        symmetry=group,
        settings=settings,
        reporter=reporter,
    )


def _read(
    particles: Path | str | Particles, settings: ReconstructSettings, reporter: Reporter, world: World, is_part: bool
) -> tuple[Particles, Particles, bool, GivenMask | None]:
    """The table with the CTFs that the file gives; the table to be used; whether its halves had to be drawn; the mask.

    Args: is_part: as in `reconstruct`.
    """
    with reporter.stage("read"):
        said = _as_said(particles, settings)
        asked = as_asked(said, settings)
        if is_part:
            asked = replace(asked, warnings=())  # the other job has shown them
        table, poses_shared = _table_with_halves(asked, settings, reporter)
        mask = None if settings.mask is None else read_given_mask(settings.mask, table, reporter)
        check_agreement(table, settings, world, {"content of --mask": mask.digest} if mask else None)
        _check_modelled(table, settings)
    return said, table, poses_shared, mask


def _opened(
    table: Particles, box_size: int, settings: ReconstructSettings, reporter: Reporter, world: World, stack: ExitStack
) -> tuple[ImageSource, Images]:
    """The images as they are, and those that the work reads: the same, or their copies in the cache."""
    source = stack.enter_context(ImageSource(table, settings.invert))
    if world.watch:
        source.watch = world.watch.reading
    if settings.cache is None:
        return source, source
    return source, stack.enter_context(CachedImages(source, box_size, settings.cache, settings.cache_size, reporter))


def _refined(job: Job, table: Particles, diameter: float) -> tuple[Particles, Solution, Refinement]:
    """The refined particles, their solution, and what the refinement did."""
    context, tuning = job.context, job.tuning
    limits = replace(
        refine_settings(job.settings, diameter), most_rounds=tuning.refinement_rounds, blocks=tuning.refinement_blocks
    )
    checkpoint = job.checkpoints.named("refinement", job.world)
    task = Task(job.world, context.device, job.reporter, checkpoint)
    recorded = Recorded(table, job.images, job.preview.noise)
    return refined(recorded, partial(solve, job), limits, diameter, task)


def _as_said(source: Path | str | Particles, settings: ReconstructSettings) -> Particles:
    """The particle table with the CTFs that the file gives."""
    if not isinstance(source, Particles):
        return read_as_said(Path(source), settings)
    of_files = [field for field in fields(InputSettings) if field.name != "no_ctf"]
    idle = [field.name for field in of_files if getattr(settings, field.name) != field.default]
    if idle:
        raise InputError(f"{', '.join(idle)}: act only when a file is read; give them to read_particles")
    return source


def _table_with_halves(table: Particles, settings: ReconstructSettings, reporter: Reporter) -> tuple[Particles, bool]:
    """The particle table with its half sets, and whether they had to be drawn."""
    for warning in table.warnings:
        reporter.warn(warning)
    particles = len(np.unique(table.particle))
    if particles < 2:
        raise InputError(
            f"{table.source}: holds {particles} particle; at least 2 are needed, one for each half set; give more"
        )
    reporter.line(
        f"{len(table):,} images of {particles:,} particles{table.left_out_text()}, box {table.box_size}, "
        f"{table.pixel_size_in_angstroms:.4g} Å/px, {len(table.optics)} optics group(s)"
    )
    given = bool(np.any(table.half_set > 0))
    if given and len(np.unique(table.half_set[table.half_set > 0])) == 1:
        reporter.warn("the half sets put all images into one half, so they are not used")
        table, given = replace(table, half_set=np.zeros_like(table.half_set)), False
    if not given:
        reporter.warn(
            f"half sets are drawn with seed {settings.seed}. The poses came from one reference, "
            "so that the resolution will be an upper bound"
        )
    return table.with_half_sets(settings.seed), not given


def _check_modelled(table: Particles, settings: ReconstructSettings) -> None:
    """InputError where the detail asked for holds aberrations of the table that the program does not model."""
    coarsest = table.modelled_to_in_angstroms
    finest = max(settings.max_resolution or 0.0, 2 * table.pixel_size_in_angstroms)
    if coarsest is not None and finest < coarsest:
        raise InputError(
            f"{table.source}: the table gives aberrations that are not modelled, and beyond {coarsest:.3g} Å they turn "
            f"phases by more than 45°, the same in both halves: look at coarser detail with --max-resolution "
            f"{np.ceil(10 * coarsest) / 10:.1f}, or export the particles with the aberrations refined in RELION"
        )


def _symmetry(table: Particles, images: Images, settings: ReconstructSettings, reporter: Reporter, world: World) -> str:
    """The point group asked for, in the axes that the images show; InputError if they surely do not have it."""
    if len(symmetry_operators(settings.symmetry)) == 1:
        return settings.symmetry
    chosen = None
    if world.is_first:
        chosen = choose_symmetry(take_sample(table, images, settings.seed), settings.symmetry)
    choice: SymmetryChoice = world.broadcast(chosen)
    if choice.refusal:
        raise InputError(f"{table.source}: {choice.refusal}")
    if choice.warning:
        reporter.warn(choice.warning)
    if choice.line:
        reporter.line(choice.line)
    return choice.name


def _check_without_ctf(
    said: Particles,
    table: Particles,
    images: Images,
    symmetry: NDArray[np.float64],
    settings: ReconstructSettings,
    world: World,
) -> None:
    """InputError where the images surely have the CTFs of the file, which the user does not want to be used."""
    found = None
    if world.is_first:
        with ImageSource(said, settings.invert) as others:
            theirs = statistics_of_sample(said, others, symmetry, settings.seed)
        found = compare_ctfs(said, theirs, statistics_of_sample(table, images, symmetry, settings.seed))
    evidence: CtfEvidence = world.broadcast(found)
    if evidence.is_sure:
        raise InputError(
            f"{table.source}: --no-ctf, but the images have the CTFs of the table: {evidence.text()}; {NO_CTF_REMEDY}"
        )


def _diameter(
    preview: Preview,
    table: Particles,
    mask: GivenMask | None,
    settings: ReconstructSettings,
    reporter: Reporter,
    contrast_is_known: bool,
) -> float:
    """The diameter in Å: as asked for, from the sample and the mask, or from the box.

    Particles that are surely dark are refused.
    """
    reporter.line(
        f"contrast from {preview.n_sampled} images: half-sample correlation {preview.correlation:.2f}, "
        f"skewness {preview.skewness:+.2f}"
    )
    if preview.surely_dark and not contrast_is_known:
        raise InputError(
            f"{table.source}: the particles are dark (skewness {preview.skewness:+.2f} of the density); "
            f"they must be white: {'leave out' if settings.invert else 'add'} --invert"
        )
    if not preview.contrast_is_sure and not contrast_is_known:
        reporter.warn("the sample does not show whether particles are white; if the map is inside out, use --invert")
    box = table.box_size * table.pixel_size_in_angstroms
    found = min(_diameter_of_particle(preview, box, settings, reporter), box)
    if mask is None or mask.diameter_in_angstroms <= found:
        return found
    reporter.line(
        f"the mask reaches further, so that the model may too: {mask.diameter_in_angstroms:.0f} Å about the box centre"
    )
    return min(mask.diameter_in_angstroms, box)


def _diameter_of_particle(preview: Preview, box: float, settings: ReconstructSettings, reporter: Reporter) -> float:
    """The diameter in Å: as asked for, from the sample, or from the edge of the box in Å."""
    if settings.mask_diameter is not None:
        return settings.mask_diameter
    if preview.diameter_in_angstroms is None:
        diameter = maps.PARTICLE_SHARE * box
        reporter.line(
            "the sample shows no outline of the particle; its diameter is taken as "
            f"{100 * maps.PARTICLE_SHARE:.0f} % of the box, {diameter:.0f} Å"
        )
        return diameter
    reporter.line(
        f"the particle has a diameter of {preview.diameter_in_angstroms:.0f} Å about the box centre, from the sample"
    )
    return preview.diameter_in_angstroms


@dataclass(frozen=True)
class _Judged:
    """The maps, and how far they can be trusted, as in `Reconstruction`."""

    map: NDArray[np.float32]
    half_maps: tuple[NDArray[np.float32], NDArray[np.float32]]
    validation: Validation
    local_resolution: LocalResolution | None
    standard_error: NDArray[np.float32]
    b_factor: float | None


def _judged_everywhere(job: Job, solution: Solution, pixel_size: float, is_part: bool) -> _Judged:
    """The first rank's judgement of the two halves, on every rank. Args: is_part: as in `reconstruct`."""
    judged = None
    if job.world.is_first:
        judged = _judged(solution, pixel_size, job.settings, job.reporter, is_part)
    with job.reporter.stage("local resolution"):
        return job.world.broadcast(judged)


def _judged(
    solution: Solution, pixel_size: float, settings: ReconstructSettings, reporter: Reporter, is_part: bool
) -> _Judged:
    """Combine the two halves, and judge the result. Args: is_part: as in `reconstruct`."""
    first, second = solution.halves
    with reporter.stage("validation"):
        half_maps, validation = _combined(solution, settings, reporter)
        if not is_part and validation.resolution_kind != "not_measurable":
            reporter.line(f"combination: {validation.sources_text(MODEL_NAMES[settings.model])}")
        result, b_factor = _sharpened(
            0.5 * (half_maps[0] + half_maps[1]), validation.resolution, pixel_size, settings, reporter
        )
        give_back_free_memory()
    # The standard error is found beside the local resolution, because much of its work cannot be shared by threads.
    with reporter.stage("local resolution"), ThreadPoolExecutor(1) as pool:
        errors = pool.submit(_standard_error, solution, half_maps, b_factor, validation.resolution, pixel_size)
        local = None
        if not is_part:
            limit = solution.validation.limit_shell
            local = local_resolution(first.raw, second.raw, *half_maps, solution.mask, pixel_size, limit)
            reporter.line(local.text())
    give_back_free_memory()
    return _Judged(result, half_maps, validation, local, errors.result(), b_factor)


def _standard_error(
    solution: Solution,
    half_maps: tuple[NDArray[np.float32], NDArray[np.float32]],
    b_factor: float | None,
    resolution: float | None,
    pixel_size: float,
) -> NDArray[np.float32]:
    """The standard error of the map, sharpened where that is: against the truth, sharpened alike."""
    volumes = [half.raw for half in solution.halves] + list(half_maps)
    if b_factor is not None:
        volumes = [maps.sharpen(volume, b_factor, pixel_size, resolution) for volume in volumes]
    # Where nothing can be measured, the map ends nowhere, and its whole power is in doubt.
    last = solution.validation.last_shell or len(solution.mask) // 2
    return standard_error((volumes[0], volumes[1]), (volumes[2], volumes[3]), solution.mask, last)


def _combined(
    solution: Solution, settings: ReconstructSettings, reporter: Reporter
) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], Validation]:
    """The final half maps, and the validation of their average."""
    first, second = solution.halves
    found = solution.validation
    if found.resolution_kind == "not_measurable":
        reporter.warn("nothing could be measured: map.mrc is the plain average of the fitted half maps")
        return (first.map, second.map), found
    raw = (first.raw, second.raw)
    combination = combine(raw, (first.map, second.map), solution.mask, found.limit_shell, found.last_shell)
    validation = validate_combination(found, combination, *raw, solution.mask, settings.mask is not None)
    return combination.halves, validation


def _sharpened(
    volume: NDArray[np.float32],
    resolution: float | None,
    pixel_size: float,
    settings: ReconstructSettings,
    reporter: Reporter,
) -> tuple[NDArray[np.float32], float | None]:
    """The final map and the B-factor that was applied to it; without sharpening, the map itself and None."""
    b_factor = settings.sharpen if resolution else None
    if b_factor == "auto":
        b_factor = maps.estimate_b_factor(volume, pixel_size, resolution)
        if b_factor is None:
            reporter.warn("the resolution does not reach far enough to estimate a B-factor; the map is not sharpened")
    if b_factor is None:
        return volume, None
    reporter.line(f"sharpened with a B-factor of {b_factor:.0f} Å²")
    return maps.sharpen(volume, b_factor, pixel_size, resolution), b_factor
