"""The whole job: consensus, subspace, number of components, rounds of bins and decoder, states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.heterogeneity.agreement import Seen, seen_by
from emsplat.heterogeneity.alignment import aligned, canonical_correlations
from emsplat.heterogeneity.kept import of_both_halves
from emsplat.heterogeneity.latents import Latents
from emsplat.heterogeneity.protection import leaks
from emsplat.heterogeneity.result import Components, Half, Heterogeneity
from emsplat.heterogeneity.rounds import embedded, run_rounds
from emsplat.heterogeneity.states import make_states
from emsplat.heterogeneity.subspace import Diverged, Stage, Subspace, learn
from emsplat.heterogeneity.work import GRID_BYTES, SOUGHT, Work, identity, make_work
from emsplat.io.images import ImageSource
from emsplat.io.masks import GridOfMap, check_mask, read_mask
from emsplat.io.mrc import read_map
from emsplat.particles.parts import Kind
from emsplat.particles.table import Particles
from emsplat.reconstruction.device import with_room
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.runtime import devices
from emsplat.runtime.checkpoint import NO_CHECKPOINTS, Checkpoints
from emsplat.runtime.context import Context
from emsplat.runtime.ranks import World
from emsplat.runtime.reporting import Reporter
from emsplat.runtime.threads import threads
from emsplat.settings import HeterogeneitySettings

CONSENSUS = "consensus"  # the folder of the consensus' checkpoints, within that of the job
_FEWEST_IMAGES = 200  # smallest number of images in a half
_FEWEST_PARTICLES = 50  # smallest number of particles in a half, where several images show one
# Standard deviations in pixels, of the rim's movement by turns and of shifts, above which poses look wrong. With exact
# poses, 0.03 and 0.00 were learnt; with errors of 2° and 0.45 pixels, 0.14 and 0.38.
_RIM_WARNING, _SHIFT_WARNING = 0.4, 0.2
# Largest power of a component, as a share of the map's. Two unlike maps in equal numbers have 1, and components of the
# benchmark's sets 0.02 to 0.1; one that grows without bounds passes any limit.
_MOST_POWER = 4.0
_DIVERGED = (
    "the components of a half set grew without bounds, as they may if poses are far off; refine the poses first, here "
    "with --refine poses,shifts"
)


def find_heterogeneity(
    particles: Path | str | Particles,
    settings: HeterogeneitySettings | None = None,
    reporter: Reporter | None = None,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
    world: World | None = None,
) -> Heterogeneity:
    """Latents of all particles, the maps of their states, and a decoder for both.

    Args:
        checkpoints: where finished stages are kept, and what the job may be resumed from; by default, none.
        world: the ranks that share the work. Each calls this function and gets the same result. By default, one.
    Raises:
        InputError: one line on what is wrong with the input and what to do.
    """
    settings, reporter, world = settings or HeterogeneitySettings(), reporter or Reporter(), world or World()
    if settings.mask is not None:  # a bad mask is refused before any work
        check_mask(settings.mask, read_map(settings.mask, cubic=False).values)
    consensus = reconstruct(particles, settings.for_consensus(), reporter, checkpoints.nested(CONSENSUS), world)
    table = consensus.particles
    focus = None if settings.mask is None else _focus(settings.mask, table, reporter)
    checkpoints = checkpoints.belonging_to(identity(table, settings, focus, world))
    with threads(settings.threads or world.cores), ImageSource(table, settings.invert) as images:
        work = make_work(images, consensus, focus, settings, Context(world, reporter=reporter, checkpoints=checkpoints))
        found = _found(replace(work, context=replace(work.context, device=_device(work))))
        checkpoints.tell_cost()
    return found


def _focus(path: Path, table: Particles, reporter: Reporter) -> NDArray[np.float32]:
    """(D, D, D) the mask within which variability is sought."""
    mask, line = read_mask(path, GridOfMap(table.box_size, table.pixel_size_in_angstroms))
    if line:
        reporter.line(line)
    return mask


def _device(work: Work) -> torch.device:
    """The device that fills the grids of bins; the consensus has already told the user about it."""
    asked, accumulation = work.settings.device, work.accumulation
    at_once = max(1, GRID_BYTES // sum(accumulation.bytes_of(kind) for kind in Kind))
    finest = 2 * work.grid.pixel_size
    device = devices.chosen(asked, Reporter())
    return with_room(device, at_once, work.table.box_size, accumulation, asked, finest, work.reporter, work.world)


def _found(work: Work) -> Heterogeneity:
    reporter = work.reporter
    fewest = min(len(work.rows(half)) for half in (1, 2))
    if fewest < _FEWEST_IMAGES:
        return _not_sought(work, f"{fewest} images in a half set are too few; use {_FEWEST_IMAGES}")
    particles = min(len(np.unique(work.table.particle[work.rows(half)])) for half in (1, 2))
    if particles < _FEWEST_PARTICLES:
        return _not_sought(work, f"{particles} particles in a half set are too few; use {_FEWEST_PARTICLES}")
    _tell_of_copies(work)
    if work.limit_shell < 2:
        return _not_sought(work, "nothing can be measured of the consensus")
    first, second = _subspaces(work)
    if first is None or second is None:
        return _not_sought(work, _DIVERGED)
    spaces = first, second
    components = _components(work, spaces)
    _warn_of_pose_errors(work, components)
    if components.count == 0:
        reporter.line("no heterogeneity found: " + components.why_none)
        return _nothing(work, components)
    return _with_components(work, spaces, components)


def _tell_of_copies(work: Work) -> None:
    """Say what is made of several rows that show one particle, and of symmetry."""
    particles, latents, rows = len(np.unique(work.table.particle)), len(np.unique(work.latent)), len(work.table)
    if latents < rows:
        work.reporter.line("the tilts of a particle share one latent")
    if particles < latents:
        work.reporter.line(
            f"{rows:,} rows show {particles:,} particles, as after the expansion of a symmetry or the subtraction of "
            "signal; the copies of a particle are in one half set, and each has a latent of its own. If they are "
            "tilts instead, name them by rlnTomoParticleName, so that they share one"
        )
    if 2 * particles > latents:
        work.reporter.line(
            "no symmetry is assumed; if the particle has one, expand the symmetry of the particle file first"
        )


def _subspaces(work: Work) -> tuple[Subspace | None, Subspace | None]:
    """Each half's linear subspace, with more components than there may be; None if its iterations diverge."""
    count = max(SOUGHT, work.settings.n_components or 0)

    def make(half: int) -> Subspace | None:
        return _learnt(work, half, count, work.stages, work.settings.seed + half)

    return of_both_halves(work.context, "subspace", make)


def _learnt(
    work: Work, half: int, count: int, schedule: Sequence[Stage], seed: int, start: Subspace | None = None
) -> Subspace | None:
    """The subspace of one half; None if the iterations diverge. The arguments are those of `learn`."""
    with work.reporter.stage("subspace"), work.reporter.bar(f"subspace of half {half}", "iterations") as advance:
        observe, mean = partial(work.at_stage, work.sample(half)), work.mean(half)
        try:
            space = learn(observe, mean, work.sphere, count, schedule, seed, start, advance)
        except Diverged:
            return None
        return space if space.greatest_power <= _MOST_POWER else None


def _components(work: Work, spaces: tuple[Subspace, Subspace]) -> Components:
    """The components that both halves have in common."""

    def make(half: int) -> Seen:
        space = spaces[half - 1]
        with work.reporter.stage("components"):
            observations = work.observe(work.sample(half), space.box_size, work.stages[-1].limit_shell)
            return seen_by(space, spaces[2 - half].components, observations, work.table.particle[observations.rows])

    of_second, of_first = of_both_halves(work.context, "components", make)
    seen = of_first, of_second
    found = min(seen[0].count, seen[1].count)
    asked = work.settings.n_components
    scale = work.table.box_size / spaces[0].box_size
    pose = (
        float(np.rad2deg(np.mean([s.turn_sigma for s in spaces]))),
        float(np.mean([s.shift_sigma for s in spaces])) * scale,
    )
    line = ", ".join(
        f"{a:.2f}/{b:.2f} ({s:.0f}/{t:.0f} σ)"
        for a, b, s, t in zip(
            seen[0].variance, seen[1].variance, seen[0].significance, seen[1].significance, strict=True
        )
    )
    work.reporter.line(f"variance of each half's components among the other half's images: {line}")
    count = found if asked is None else asked
    if asked is not None and asked > found:
        work.reporter.warn(
            f"{asked} components were asked for; the halves agree on {found} only, so others may be noise"
        )
    noun = "component" if count == 1 else "components"
    work.reporter.line(f"{count} {noun}" + ("" if asked is None else ", as asked for"))
    canonical = canonical_correlations(spaces[0].components, spaces[1].components)
    return Components(count, found, seen, canonical, pose)


def _warn_of_pose_errors(work: Work, components: Components) -> None:
    degrees, pixels = components.pose_errors
    radius = 0.35 * work.grid.diameter_in_angstroms / work.table.pixel_size_in_angstroms
    rim = np.deg2rad(degrees) * radius
    if rim > _RIM_WARNING or pixels > _SHIFT_WARNING:
        work.reporter.warn(
            f"the images look as if their poses were off by about {degrees:.1f}° and {pixels:.2f} pixels. Components "
            "may be made of such errors: refine the poses first, here with --refine poses,shifts"
        )


def _not_sought(work: Work, why: str) -> Heterogeneity:
    """The result if the images cannot tell whether anything varies."""
    work.reporter.warn(f"heterogeneity is not looked for: {why}")
    return _nothing(work, Components(0, 0, (_UNSEEN, _UNSEEN), np.zeros(0), (0.0, 0.0), why))


def _nothing(work: Work, components: Components) -> Heterogeneity:
    """The result if nothing is known to vary, which is the consensus."""
    latents = Latents.nothing(work.table)
    return Heterogeneity(work.consensus, components, None, latents, (), (), (), work.settings, work.reporter)


_UNSEEN = Seen(np.zeros((0, 0)), np.zeros(0), np.zeros(0))


def _with_components(work: Work, spaces: tuple[Subspace, Subspace], components: Components) -> Heterogeneity:
    first, second = _kept_components(work, spaces, components)
    if first is None or second is None:
        return _not_sought(work, _DIVERGED)
    chosen = first, second
    with work.reporter.stage("latents"):
        latents = embedded(work, chosen, aligned(*chosen))
    rounds = run_rounds(work, chosen, latents)
    halves = tuple(Half(*one) for one in zip(chosen, rounds.decoders, rounds.histories, strict=True))
    states, of_image = make_states(work, rounds)
    latents = replace(rounds.latents, state=of_image)
    return Heterogeneity(
        work.consensus, components, (halves[0], halves[1]), latents, states, leaks(work.table, latents),
        rounds.log_likelihoods, work.settings, work.reporter,
    )  # fmt: skip


def _kept_components(
    work: Work, spaces: tuple[Subspace, Subspace], components: Components
) -> tuple[Subspace | None, Subspace | None]:
    """The components that both halves have in common, learnt for some more iterations without the others."""

    def make(half: int) -> Subspace | None:
        space, basis = spaces[half - 1], components.seen[half - 1].basis[:, : components.count]
        chosen = np.einsum("kj,kzyx->jzyx", basis, space.components).astype(np.float32)
        last = replace(work.stages[-1], iterations=4)
        return _learnt(work, half, components.count, [last], 0, replace(space, components=chosen))

    return of_both_halves(work.context, "kept-subspace", make)
