"""The whole job: consensus, subspace, number of components, bins, decoder, rounds, states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.fourier import maps
from emsplat.heterogeneity.agreement import Seen, seen_by
from emsplat.heterogeneity.alignment import Alignment, aligned, canonical_correlations
from emsplat.heterogeneity.bins import fill_bins, landmarks, shares, sparse
from emsplat.heterogeneity.decoder import Decoder
from emsplat.heterogeneity.fit_decoder import VARIANTS, DecoderHistory, DecoderSettings, Fitted, fit_decoder
from emsplat.heterogeneity.gtm import PointPosterior, inner_with_points, point_posterior, shares_of_bins
from emsplat.heterogeneity.latents import Latents
from emsplat.heterogeneity.observations import Observations, observe
from emsplat.heterogeneity.posterior import Posterior
from emsplat.heterogeneity.protection import leaks
from emsplat.heterogeneity.result import Components, Half, Heterogeneity
from emsplat.heterogeneity.states import make_states
from emsplat.heterogeneity.subspace import Stage, Subspace, embed, learn, stages
from emsplat.io import read_map
from emsplat.io.images import ImageSource, reading_order
from emsplat.particles.parts import TRAINING, PartWeights
from emsplat.particles.table import Particles
from emsplat.reconstruction.reconstruct import Reconstruction, reconstruct
from emsplat.reconstruction.working_grid import Grid, working_grid
from emsplat.runtime.reporting import Reporter
from emsplat.runtime.threads import threads
from emsplat.settings import HeterogeneitySettings
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.statistics.loss import fitting_period
from emsplat.symmetry import symmetry_operators

Found = TypeVar("Found")

_SOUGHT = 6  # number of components that are learnt at first; those that the halves do not share are dropped
_FEWEST_IMAGES = 200  # smallest number of images in a half
_LEARNT_FROM = 25_000  # largest number of images of a half; more would take memory and hardly help the components
_BLOCK = 4096  # images whose samples are held at once when all images are used
_FINEST_SHELL = 23  # finest shell of the subspace and of the rounds
_GRID_BYTES = 600 << 20  # size of the grids of bins that are filled at once
_MOST_ROUNDS = 2
_WORTH_A_ROUND = 0.02  # gain in log-likelihood per image above which a round's latents are taken
# Standard deviations in pixels, of the rim's movement by turns and of shifts, above which poses look wrong. With exact
# poses, 0.1 and 0.06 to 0.08 were learnt; with errors of 2° and 0.57 pixels, 0.11 and 0.32.
_RIM_WARNING, _SHIFT_WARNING = 0.4, 0.2


@dataclass(frozen=True)
class _Work:
    """The data and settings that all stages need."""

    table: Particles
    images: ImageSource
    noise: NDArray[np.float64]
    consensus: Reconstruction
    grid: Grid
    sphere: NDArray[np.float32]  # (D, D, D) mask within which components are sought
    limit_shell: int
    settings: HeterogeneitySettings
    reporter: Reporter

    def rows(self, half: int) -> NDArray[np.int64]:
        """The rows of a half, in the order of the disk."""
        order = reading_order(self.table)
        return order[self.table.half_set[order] == half]

    def observe(self, rows: NDArray[np.int64], box_size: int, limit_shell: int) -> Observations:
        return observe(self.table, self.images, rows, self.noise, box_size, limit_shell)

    def at_stage(self, rows: NDArray[np.int64], stage: Stage) -> Observations:
        return self.observe(rows, stage.box_size, stage.limit_shell)

    def mean(self, half: int) -> NDArray[np.float32]:
        """(D, D, D) consensus of the half, on the scale of the images."""
        return self.consensus.half_maps[half - 1]

    @property
    def stages(self) -> list[Stage]:
        return stages(self.table.box_size, self.limit_shell)


def find_heterogeneity(
    particles: Path | str | Particles,
    settings: HeterogeneitySettings | None = None,
    reporter: Reporter | None = None,
) -> Heterogeneity:
    """Latents of all particles, the maps of their states, and a decoder for both.

    Raises:
        InputError: one line on what is wrong with the input and what to do.
    """
    settings, reporter = settings or HeterogeneitySettings(), reporter or Reporter()
    focus = None if settings.mask is None else _focus(settings.mask)  # a bad mask is refused before any work
    consensus = reconstruct(particles, settings.for_consensus(), reporter)
    table = consensus.particles
    if len(np.unique(table.particle)) < len(table):
        reporter.warn("several images show one particle, such as its tilts; each of them gets a latent of its own")
    with threads(settings.threads), ImageSource(table, settings.invert) as images:
        work = _work(table, images, consensus, focus, settings, reporter)
        fewest = min(len(work.rows(half)) for half in (1, 2))
        if fewest < _FEWEST_IMAGES:
            reporter.warn(f"{fewest} images in a half set are too few to look for heterogeneity; use {_FEWEST_IMAGES}")
            return _nothing(work, None)
        if work.limit_shell < 2:
            reporter.warn("nothing can be measured of the consensus, so nothing can be said of how particles differ")
            return _nothing(work, None)
        spaces = _subspaces(work)
        components = _components(work, spaces)
        _warn_of_pose_errors(work, components)
        if components.count == 0:
            reporter.line("no heterogeneity found: " + components.why_none)
            return _nothing(work, components)
        return _with_components(work, spaces, components)


def _work(
    table: Particles,
    images: ImageSource,
    consensus: Reconstruction,
    focus: NDArray[np.float32] | None,
    settings: HeterogeneitySettings,
    reporter: Reporter,
) -> _Work:
    box_size, pixel_size = table.box_size, table.pixel_size_in_angstroms
    edge = box_size * pixel_size
    diameter = settings.mask_diameter or consensus.preview.diameter_in_angstroms or maps.PARTICLE_SHARE * edge
    diameter = min(1.15 * diameter, 0.95 * edge)  # moving parts may extend beyond the consensus
    finest = 2 * pixel_size if settings.max_resolution is None else settings.max_resolution
    working = _box_for(table, finest)
    grid = working_grid(table, diameter, symmetry_operators("C1"), working)
    sphere = maps.soft_sphere(box_size, diameter / pixel_size, 0.05 * box_size)
    if focus is not None:
        if len(focus) != box_size:
            raise InputError(
                f"{settings.mask}: has {len(focus)} voxels for images of {box_size} pixels; resample it to that box"
            )
        sphere = focus
    limit = min(consensus.validation.limit_shell, _FINEST_SHELL, box_size // 2 - 1, int(edge / finest))
    return _Work(table, images, consensus.preview.noise, consensus, grid, sphere, limit, settings, reporter)


def _box_for(table: Particles, finest: float) -> int:
    """Edge in voxels of the box that holds this resolution (Å)."""
    full = table.box_size
    needed = int(np.ceil(2 * full * table.pixel_size_in_angstroms / finest))
    return min(full, max(16, scipy.fft.next_fast_len(needed, real=True)))


def _focus(path: Path) -> NDArray[np.float32]:
    mask = read_map(path).values
    if mask.min() < -1e-3 or mask.max() > 1 + 1e-3 or mask.max() < 0.5:
        raise InputError(
            f"{path}: has values from {mask.min():g} to {mask.max():g}; scale it to values between 0 and 1"
        )
    return mask


def _subspaces(work: _Work) -> tuple[Subspace, Subspace]:
    """Each half's linear subspace, with more components than there may be."""
    count = max(_SOUGHT, work.settings.n_components or 0)
    found = []
    for half in (1, 2):
        rows = _sample(work.rows(half), work.settings.seed + half)
        with work.reporter.stage("subspace"), work.reporter.bar(f"subspace of half {half}", "iterations") as advance:
            found.append(
                learn(
                    partial(work.at_stage, rows),
                    work.mean(half), work.sphere, count, work.stages, work.settings.seed + half, progress=advance,
                )
            )  # fmt: skip
    return found[0], found[1]


def _sample(rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    if len(rows) <= _LEARNT_FROM:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), _LEARNT_FROM, replace=False))]


def _components(work: _Work, spaces: tuple[Subspace, Subspace]) -> Components:
    """The components that both halves have in common."""
    seen = []
    with work.reporter.stage("components"):
        for other, half in ((0, 1), (1, 0)):
            rows = _sample(work.rows(half + 1), work.settings.seed + half + 1)
            observations = work.observe(rows, spaces[half].box_size, work.stages[-1].limit_shell)
            seen.append(seen_by(spaces[half], spaces[other].components, observations))
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
    return Components(count, found, (seen[0], seen[1]), canonical, pose)


def _warn_of_pose_errors(work: _Work, components: Components) -> None:
    degrees, pixels = components.pose_errors
    radius = 0.35 * work.grid.diameter_in_angstroms / work.table.pixel_size_in_angstroms
    rim = np.deg2rad(degrees) * radius
    if rim > _RIM_WARNING or pixels > _SHIFT_WARNING:
        work.reporter.warn(
            f"the images look as if their poses were off by about {degrees:.1f}° and {pixels:.2f} pixels. Components "
            "may be made of such errors: refine the poses first, here with --refine poses,shifts"
        )


def _nothing(work: _Work, components: Components | None) -> Heterogeneity:
    """The result if nothing varies, which is the consensus."""
    empty = components or Components(0, 0, (_UNSEEN, _UNSEEN), np.zeros(0), (0.0, 0.0))
    latents = Latents.nothing(work.table)
    return Heterogeneity(work.consensus, empty, None, latents, (), (), (), work.settings, work.reporter)


_UNSEEN = Seen(np.zeros((0, 0)), np.zeros(0), np.zeros(0))


def _with_components(work: _Work, spaces: tuple[Subspace, Subspace], components: Components) -> Heterogeneity:
    kept = _kept_components(work, spaces, components)
    reporter, count = work.reporter, components.count
    alignment = aligned(kept[0], kept[1])
    with reporter.stage("latents"):
        latents = _embedded(work, kept, alignment)
    n_bins = min({1: 8, 2: 16}.get(count, 24), max(3, len(work.table) // 150))
    surely = latents.junk < 0.5
    centres = landmarks(latents.mean[surely], n_bins, work.settings.seed)
    points = landmarks(latents.mean[surely], 2 * n_bins, work.settings.seed + 1)
    of_points = shares_of_bins(points, centres)
    with reporter.stage("latents"):
        weights = sparse(shares(latents.mean, latents.covariance, centres) * (1e-6 + (1 - latents.junk[:, None])))
        weights *= (1 - latents.junk[:, None]).astype(np.float32)
    split = PartWeights.half_sets(work.table, work.settings.seed)
    starts = [_consensus_decoder(work, half, count) for half in (1, 2)]
    histories: list[list[tuple[DecoderHistory, ...]]] = [[], []]
    held_out = split.holds(np.array([p.split != TRAINING for p in split.parts]))
    likelihoods: list[float] = []
    best: tuple[list[Decoder], Latents, NDArray[np.float32]] | None = None
    for turn in range(_MOST_ROUNDS + 1):
        fitted = []
        for half in (1, 2):
            one = _fitted(work, half, weights, latents.mean, split, starts[half - 1], turn)
            histories[half - 1].append(one.histories)
            fitted.append(one.decoder)
            starts[half - 1] = one.training
        found, posterior = _placed(work, kept, fitted, points)
        likelihoods.append(float(found.log_likelihood[held_out].mean()))
        reporter.line(
            f"round {turn}: log-likelihood of a held-out image {likelihoods[-1]:.3f}; "
            + ", ".join(f"half {h + 1}: {histories[h][-1][0].variant}" for h in range(2))
        )
        if best is not None and likelihoods[-1] < likelihoods[-2] + _WORTH_A_ROUND:
            break
        best, latents = (fitted, found, posterior), found
        weights = sparse(posterior @ of_points) * (1 - found.junk[:, None]).astype(np.float32)
    assert best is not None
    decoders, latents, posterior = best
    halves = tuple(
        Half(space, decoder, tuple(history)) for space, decoder, history in zip(kept, decoders, histories, strict=True)
    )
    states, of_image = make_states(
        work.table, work.images, work.consensus, (decoders[0], decoders[1]), latents, points, posterior,
        _accumulation(work), work.settings, reporter,
    )  # fmt: skip
    latents = replace(latents, state=of_image)
    found_leaks = leaks(work.table, latents)
    return Heterogeneity(
        work.consensus, components, (halves[0], halves[1]), latents, states, found_leaks, tuple(likelihoods),
        work.settings, reporter,
    )  # fmt: skip


def _kept_components(
    work: _Work, spaces: tuple[Subspace, Subspace], components: Components
) -> tuple[Subspace, Subspace]:
    """The components that both halves have in common, learnt for some more iterations without the others."""
    out = []
    for half in (1, 2):
        space, basis = spaces[half - 1], components.seen[half - 1].basis[:, : components.count]
        chosen = np.einsum("kj,kzyx->jzyx", basis, space.components).astype(np.float32)
        rows = _sample(work.rows(half), work.settings.seed + half)
        last = replace(work.stages[-1], iterations=4)
        with work.reporter.stage("subspace"):
            out.append(
                learn(
                    partial(work.at_stage, rows),
                    work.mean(half), work.sphere, components.count, [last], 0, replace(space, components=chosen),
                )
            )  # fmt: skip
    return out[0], out[1]


def _embedded(work: _Work, spaces: tuple[Subspace, Subspace], alignment: Alignment) -> Latents:
    """The linear latents of all images, with those of half 2 in the frame of half 1."""
    latents = Latents.empty(work.table, spaces[0].count)
    for half in (1, 2):
        space = spaces[half - 1]

        def found(observations: Observations, space: Subspace = space) -> Posterior:
            return embed(space, observations)

        for rows, posterior in _in_blocks(work, half, found):
            mean, covariance = posterior.mean[:, : space.count], posterior.covariance[:, : space.count, : space.count]
            if half == 2:
                mean, covariance = alignment.mean(mean), alignment.covariance(covariance)
            latents.put(rows, mean, covariance, posterior.contrast, posterior.junk, posterior.log_evidence)
    return latents


def _in_blocks(
    work: _Work, half: int, of: Callable[[Observations], Found]
) -> Iterator[tuple[NDArray[np.int64], Found]]:
    """The rows of each block of a half's images, and the result of a function of these images."""
    rows = work.rows(half)
    stage = work.stages[-1]
    for first in range(0, len(rows), _BLOCK):
        block = rows[first : first + _BLOCK]
        yield block, of(work.observe(block, stage.box_size, stage.limit_shell))


def _consensus_decoder(work: _Work, half: int, count: int) -> Decoder:
    """The half's consensus Gaussians, which do not follow the latents yet."""
    model = work.consensus.halves[half - 1].gaussians
    assert model is not None  # `for_consensus` asks for Gaussians
    return Decoder(model, torch.zeros(len(model), count), torch.zeros(len(model), count, 3))


def _accumulation(work: _Work) -> AccumulationSettings:
    return AccumulationSettings(
        work.grid.box_size, fitting_period(work.grid.extent), work.noise, work.grid.symmetry, _GRID_BYTES
    )


def _fitted(
    work: _Work,
    half: int,
    weights: NDArray[np.float32],
    latents: NDArray[np.float64],
    split: PartWeights,
    start: Decoder,
    turn: int,
) -> Fitted:
    reporter = work.reporter
    with reporter.stage("bins"), reporter.bar(f"bins of half {half}", "images") as advance:
        n = int((work.table.half_set == half).sum())
        bins = fill_bins(
            work.table, work.images, half, weights, latents, split, _accumulation(work), work.grid.extent,
            lambda done: advance(done, n),
        )  # fmt: skip
    settings = DecoderSettings() if turn == 0 else replace(DecoderSettings(), most_steps=20)
    with reporter.stage("decoder"), reporter.bar(f"decoder of half {half}", "steps") as advance:
        fitted = fit_decoder(start, bins, work.grid.pixel_size, work.grid.extent, settings, VARIANTS, advance)
    reporter.line(
        f"half {half}, round {turn}: {len(bins)} bins; held-out loss "
        + ", ".join(f"{h.variant} {h.best:.4f} after {h.best_at} steps" for h in fitted.histories)
    )
    return fitted


def _placed(
    work: _Work, spaces: tuple[Subspace, Subspace], decoders: list[Decoder], points: NDArray[np.float64]
) -> tuple[Latents, NDArray[np.float32]]:
    """Every image's latent among the points, and its (N, P) posterior."""
    latents = Latents.empty(work.table, points.shape[1])
    weights = np.zeros((len(work.table), len(points)), dtype=np.float32)
    stage = work.stages[-1]
    pixel_size = work.table.pixel_size_in_angstroms
    for half in (1, 2):
        with work.reporter.stage("posterior"):
            decoder = decoders[half - 1]
            volumes = [
                maps.fourier_resize(decoder.at(z).voxelise(work.table.box_size, pixel_size), stage.box_size)
                for z in points
            ]
            blocks = list(_in_blocks(work, half, partial(inner_with_points, volumes)))
            power, overlap = (np.concatenate([pair[i] for _, pair in blocks]) for i in (0, 1))
            rows = np.concatenate([block for block, _ in blocks])
            even = np.full(len(points), 1 / len(points))
            posterior, _ = point_posterior(power, overlap, even, spaces[half - 1].contrast)
            weights[rows] = posterior.weights
            _put(latents, rows, posterior, points)
    return latents, weights


def _put(latents: Latents, rows: NDArray[np.int64], found: PointPosterior, points: NDArray[np.float64]) -> None:
    latents.put(rows, found.mean(points), found.covariance(points), found.contrast, found.junk, found.log_likelihood)
