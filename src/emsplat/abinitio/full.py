"""The second stage: EM over all images, on a coarse grid of poses that is refined where posteriors have mass.

In every round each image is compared with all coarse poses on the first rings. The directions that hold nearly all of
its posterior are replaced by their finer families, which are compared on all rings. Rounds go on until the
likelihood stops rising.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.abinitio import grids, search, volume
from emsplat.abinitio.polar import PolarImages
from emsplat.abinitio.stochastic import StageSettings, Trace, limited, power_share, shift_prior

_KEPT_MASS = 0.999  # share of an image's coarse posterior that is searched further
_FALLEN = 0.05  # a loss of this share of the likelihood is a fault; the round before is then taken
_NOTHING = 0.3  # nats per image; images that say less hold no map
_SCORES_AT_ONCE = 24 << 20  # number of scores held for a block of images


@dataclass(frozen=True)
class FullSettings:
    """The fineness of the second stage's grids, and the criterion for its end."""

    coarse_rings: int
    coarse_directions: int
    coarse_turns: int
    fine_directions: int
    fine_turns: int
    coarse_shift: float  # pixels
    fine_shift: float
    fewest_rounds: int = 3
    most_rounds: int = 40
    gain: float = 0.003  # a round that raises the likelihood by less than this share of it is the last


@dataclass
class Found:
    """What the search has found out about n images."""

    rotations: NDArray[np.float64]  # (n, 3, 3) rotation of the most probable pose
    centres: NDArray[np.float64]  # (n, 2) x, y of the most probable pose, in pixels from the image's middle
    top: NDArray[np.float32]  # (n,) posterior of the most probable pose
    evidence: NDArray[np.float32]  # (n,) log-likelihood, less that of no particle
    likelihood: NDArray[np.float32]  # (n,) log-likelihood of the most probable pose alone

    @staticmethod
    def empty(n: int) -> Found:
        none = np.zeros(n, np.float32)
        return Found(np.tile(np.eye(3), (n, 1, 1)), np.zeros((n, 2)), none, none.copy(), none.copy())


@dataclass
class Rounds:
    """The second stage so far, from which it goes on."""

    map: NDArray[np.float32]  # (N, N, N) on the box of `volume.map_box`
    centres: NDArray[np.float64]  # (n, 2) x, y in pixels: centres of the shifts that are searched
    trace: Trace = field(default_factory=Trace)
    sums: volume.SliceSums | None = None  # the sums that the map solves, once there was a round
    found: Found | None = None  # the images' poses against the map before it

    @property
    def rise(self) -> float:
        """What the last round has added to the likelihood."""
        evidence = self.trace.evidence
        return evidence[-1] - evidence[-2] if len(evidence) > 1 else np.inf

    def is_over(self, settings: FullSettings) -> bool:
        """Whether another round would not be worthwhile."""
        evidence = self.trace.evidence
        if not evidence:
            return False
        small = settings.gain * max(abs(evidence[-1]), 1.0)
        settled = len(evidence) >= settings.fewest_rounds and self.rise < small
        return (
            bool(self.trace.steps_back) or evidence[-1] < _NOTHING or settled or len(evidence) >= settings.most_rounds
        )


def full_stage(
    images: PolarImages,
    rounds: Rounds,
    stage: StageSettings,
    settings: FullSettings,
    rng: np.random.Generator,
    after_round: Callable[[], None] = lambda: None,
    progress: Callable[[int], AbstractContextManager[Callable[[int, int], None]]] = lambda _: nullcontext(_ignore),
) -> None:
    """Search all images round by round, until it is no longer worthwhile.

    Args:
        rounds: the map to start from, or the state after some rounds; it is brought up to date after every round.
        after_round: called after every round.
        progress: the progress bar of a round of this number, from 1.
    """
    while not rounds.is_over(settings):
        trace, centres = rounds.trace, rounds.centres
        sums = volume.SliceSums.empty(len(rounds.map))
        with progress(len(trace.evidence) + 1) as advance:
            found = round_of(images, rounds.map, centres, stage, settings, rng, sums, advance)
        evidence = float(found.evidence.mean())
        if rounds.found is not None and evidence - trace.evidence[-1] < -_FALLEN * max(abs(trace.evidence[-1]), 1.0):
            trace.steps_back.append(len(trace.evidence))
            after_round()
            return
        centres += np.clip(found.centres - centres, -settings.fine_shift, settings.fine_shift)
        centres[:] = limited(centres, stage.max_shift)
        rounds.map, rounds.sums, rounds.found = volume.solve(sums, stage.signal, stage.diameter), sums, found
        trace.evidence.append(evidence)
        trace.top.append(float(found.top.mean()))
        trace.beta.append(1.0)
        trace.power.append(power_share(rounds.map, stage.signal))
        after_round()


def _ignore(done: int, total: int) -> None:
    """Take no notice of progress."""


def round_of(
    images: PolarImages,
    map_: NDArray[np.float32],
    centres: NDArray[np.float64],
    stage: StageSettings,
    settings: FullSettings,
    rng: np.random.Generator,
    sums: volume.SliceSums | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """Search all images once against a map; their slices are added to `sums`."""
    grid, turn_of_grids = images.grid, grids.random_turn(rng)
    coarse_grid = grid.coarser(settings.coarse_rings)
    coarse = grids.directions(settings.coarse_directions, turn_of_grids, stage.symmetry)
    fine = grids.directions(settings.fine_directions, turn_of_grids, stage.symmetry)
    fine_frames = grids.frames(fine)
    coarse_samples = volume.slices(map_, grid, grids.frames(coarse))[:, : coarse_grid.n_rings]
    search_in = _Search(
        coarse=search.slices_of(np.ascontiguousarray(coarse_samples), coarse_grid),
        fine=search.slices_of(volume.slices(map_, grid, fine_frames), grid),
        frames=fine_frames,
        families=grids.families(fine, coarse),
        coarse_turn=search.turn_matrix(coarse_grid.n_orders, settings.coarse_turns),
        fine_turn=search.turn_matrix(grid.n_orders, settings.fine_turns),
        coarse_offsets=grids.shift_grid(1, settings.coarse_shift),
        fine_offsets=grids.shift_grid(2, settings.fine_shift),
        stage=stage,
    )
    found = Found.empty(len(images))
    back = np.zeros((len(fine), grid.n_rings, grid.n_angles), np.complex64)
    weight = np.zeros((len(fine), grid.n_rings), np.float32)
    per_image = settings.coarse_turns * len(coarse) * len(search_in.coarse_offsets)
    block = int(np.clip(_SCORES_AT_ONCE // per_image, 32, 512))
    for rows in np.array_split(np.arange(len(images)), max(1, -(-len(images) // block))):
        _search_block(images.select(rows), centres[rows], search_in, rows, found, back, weight)
        advance(int(rows[-1]) + 1, len(images))
    if sums is not None:
        volume.insert(sums, back, weight, grid, fine_frames, stage.symmetry)
    return found


@dataclass(frozen=True)
class _Search:
    """The grids of one round, and the slices of its map."""

    coarse: search.Slices
    fine: search.Slices
    frames: NDArray[np.float64]  # (fine, 3, 3)
    families: list[NDArray[np.int64]]  # fine directions of each coarse direction
    coarse_turn: torch.Tensor
    fine_turn: torch.Tensor
    coarse_offsets: NDArray[np.float64]
    fine_offsets: NDArray[np.float64]
    stage: StageSettings


def _search_block(
    block: PolarImages,
    centres: NDArray[np.float64],
    s: _Search,
    rows: NDArray[np.int64],
    found: Found,
    back: NDArray[np.complex64],
    weight: NDArray[np.float32],
) -> None:
    """Search one block of images; fill in `found` at the rows, and add to `back` and `weight`."""
    moved = search.shifted(block.coarser(s.coarse.grid.n_rings), centres, s.coarse_offsets, s.stage.box_size)
    _, coarse = search.e_step(s.coarse, moved, s.coarse_turn, shift_prior(s.coarse_offsets, s.stage), 1.0)
    kept = _directions_with_mass(coarse.of_direction)
    # Images that say little keep many directions, so the fine posteriors of fewer images are held at a time.
    per_direction = len(s.fine_turn) * len(s.fine_offsets) * -(-len(s.frames) // len(s.families))
    part = np.cumsum(kept.sum(axis=0) * per_direction) // _SCORES_AT_ONCE
    for number in np.unique(part):
        some = np.flatnonzero(part == number)
        _search_families(block.select(some), centres[some], kept[:, some], s, rows[some], found, back, weight)


def _search_families(
    block: PolarImages,
    centres: NDArray[np.float64],
    kept: NDArray[np.bool_],
    s: _Search,
    rows: NDArray[np.int64],
    found: Found,
    back: NDArray[np.complex64],
    weight: NDArray[np.float32],
) -> None:
    """Search images in the families of the coarse directions that each of them has kept, (coarse, n)."""
    n = len(block)
    moved = search.shifted(block, centres, s.fine_offsets, s.stage.box_size)
    log_prior = shift_prior(s.fine_offsets, s.stage)
    parts = []
    largest = np.full(n, -np.inf, np.float32)
    for family, of_family in zip(s.families, kept, strict=True):
        who = np.flatnonzero(of_family)
        if len(who) == 0 or len(family) == 0:
            continue
        some = moved.select(who)
        probabilities, sums = search.e_step(s.fine.select(family), some, s.fine_turn, log_prior, 1.0)
        better = sums.largest > largest[who]
        winners = who[better]
        largest[winners] = sums.largest[better]
        k, d, t = np.unravel_index(sums.best[better], probabilities.shape[:3])
        found.rotations[rows[winners]] = grids.turned(s.frames[family[d]], grids.turns(len(s.fine_turn))[k])
        found.centres[rows[winners]] = centres[winners] + s.fine_offsets[t]
        parts.append((family, who, probabilities, sums))
    total = np.zeros(n, np.float32)
    for _, who, _, sums in parts:
        total[who] += sums.total * np.exp(sums.largest - largest[who])
    for family, who, probabilities, sums in parts:
        scale = np.exp(sums.largest - largest[who])
        normalisation = (total[who] / np.maximum(scale, 1e-30)).astype(np.float32)
        back[family] += search.m_step(probabilities, moved.select(who), normalisation, s.fine_turn, block.grid)
        weight[family] += (sums.of_direction * (sums.total / normalisation)) @ block.power[who]
    poses = len(s.fine_turn) * len(s.frames) * len(s.fine_offsets)
    found.top[rows] = 1 / total
    found.likelihood[rows] = largest
    found.evidence[rows] = largest + np.log(total) - np.float32(np.log(poses))


def _directions_with_mass(of_direction: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(d, n) mask of the fewest directions that together hold nearly all of each image's posterior."""
    order = np.argsort(of_direction, axis=0)[::-1]
    mass = np.cumsum(np.take_along_axis(of_direction, order, axis=0), axis=0)
    needed = np.vstack([np.zeros(of_direction.shape[1]), mass[:-1]]) < _KEPT_MASS
    kept = np.zeros(of_direction.shape, np.bool_)
    np.put_along_axis(kept, order, needed, axis=0)
    return kept
