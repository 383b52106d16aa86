"""The second stage: EM over all images, on a coarse grid of poses that is refined where posteriors have mass.

In every round each image is compared with all coarse poses on the first rings. The directions that hold nearly all of
its posterior are replaced by their finer families, which are compared on all rings. An image with a flat posterior
would keep most directions; it says nothing on the finer rings yet, and stays on the coarse grid in this round. Rounds
go on until the likelihood stops rising.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.abinitio import grids, search, volume
from emsplat.abinitio.polar import PolarGrid, PolarImages
from emsplat.abinitio.shares import in_shares
from emsplat.abinitio.stochastic import StageSettings, Trace, limited, power_share, shift_prior

_KEPT_MASS = 0.999  # share of an image's coarse posterior that is searched further
# An image that keeps more than this share of the coarse directions, and says less than this in nats, stays on the
# coarse grid. One that says much may tell directions apart on finer rings, as one of a particle that is nearly round.
_FLAT, _LITTLE = 0.6, 8.0
_FALLEN = 0.05  # a loss of this share of the likelihood is a fault; the round before is then taken
_NOTHING = 0.3  # nats per image; images that say less hold no map
_LEAST_SHARE = 0.05  # of a class, over that of classes of equal size
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
    flat: NDArray[np.bool_]  # (n,) whether the posterior was too flat for the fine grid
    classes: NDArray[np.float32]  # (n, K) posterior of each class
    junk: NDArray[np.float32]  # (n,) posterior of the class of images without a particle

    @staticmethod
    def empty(n: int, n_classes: int = 1) -> Found:
        top, evidence, junk = (np.zeros(n, np.float32) for _ in range(3))
        rotations, centres, flat = np.tile(np.eye(3), (n, 1, 1)), np.zeros((n, 2)), np.zeros(n, np.bool_)
        classes = np.full((n, n_classes), 1 / n_classes, np.float32)
        return Found(rotations, centres, top, evidence, flat, classes, junk)

    def put(self, rows: NDArray[np.int64], some: Found) -> None:
        """Take over the results for some of the images."""
        for entry in fields(self):
            getattr(self, entry.name)[rows] = getattr(some, entry.name)

    def select(self, rows: NDArray[np.int64]) -> Found:
        """The results for some of the images."""
        return Found(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass
class Rounds:
    """The second stage so far, from which it goes on."""

    map: NDArray[np.float32]  # (N, N, N) on the box of `volume.map_box`
    centres: NDArray[np.float64]  # (n, 2) x, y in pixels: centres of the shifts that are searched
    trace: Trace = field(default_factory=Trace)
    sums: volume.SliceSums | None = None  # the sums that the map solves, once there was a round
    found: Found | None = None  # the images' poses against the map before it
    shares: NDArray[np.float64] | None = None  # (K+1,) shares of the classes, that without a particle last
    looks: list[float] = field(default_factory=list)  # share of the particles that each look at all shifts has moved
    since: int = 0  # number of rounds before the last of these looks

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
        settled = len(evidence) - self.since >= settings.fewest_rounds and self.rise < small
        return settled or self.is_spent(settings)

    def is_spent(self, settings: FullSettings) -> bool:
        """Whether no other round would help, whatever the centres of the particles: a fault, no map, or too many."""
        evidence = self.trace.evidence
        return bool(self.trace.steps_back) or evidence[-1] < _NOTHING or len(evidence) >= settings.most_rounds


def no_progress(number: int) -> AbstractContextManager[Callable[[int, int], None]]:
    """A progress bar of a round that shows nothing."""
    return nullcontext(lambda done, total: None)


def full_stage(
    images: PolarImages,
    rounds: Rounds,
    stage: StageSettings,
    settings: FullSettings,
    rng: np.random.Generator,
    after_round: Callable[[], None] = lambda: None,
    progress: Callable[[int], AbstractContextManager[Callable[[int, int], None]]] = no_progress,
) -> None:
    """Search all images round by round, until it is no longer worthwhile.

    Args:
        rounds: the map to start from, or the state after some rounds; it is brought up to date after every round.
        after_round: called after every round.
        progress: the progress bar of a round of this number, from 1.
    """
    while not rounds.is_over(settings):
        trace, centres = rounds.trace, rounds.centres
        sums = volume.SliceSums.like(rounds.map)
        with progress(len(trace.evidence) + 1) as advance:
            found = round_of(images, rounds.map, centres, stage, settings, rng, sums, advance, rounds.shares)
        evidence = float(found.evidence.mean())
        if rounds.found is not None and evidence - trace.evidence[-1] < -_FALLEN * max(abs(trace.evidence[-1]), 1.0):
            trace.steps_back.append(len(trace.evidence))
            after_round()
            return
        centres += np.clip(found.centres - centres, -settings.fine_shift, settings.fine_shift)
        centres[:] = limited(centres, stage.max_shift)
        rounds.map, rounds.sums, rounds.found = volume.solve(sums, stage.signal, stage.diameter), sums, found
        if stage.n_classes is not None:
            rounds.shares = shares_of(found)
        trace.evidence.append(evidence)
        trace.top.append(float(found.top.mean()))
        trace.beta.append(1.0)
        trace.power.append(power_share(rounds.map, stage.signal))
        after_round()


def shares_of(found: Found) -> NDArray[np.float64]:
    """(K+1,) mean posteriors of the classes, that without a particle last; none is so small that it cannot return."""
    shares = np.append(found.classes.mean(axis=0), found.junk.mean()).astype(np.float64)
    shares = np.maximum(shares, _LEAST_SHARE / len(shares))
    return np.asarray(shares / shares.sum())


def log_priors_of_classes(shares: NDArray[np.float64]) -> NDArray[np.float32]:
    """(K,) log prior probabilities of the classes, whose exponentials have a mean of 1, from (K+1,) shares."""
    return np.asarray(np.log(shares[:-1]) - np.log(shares[:-1].mean()), np.float32)


def round_of(
    images: PolarImages,
    map_: NDArray[np.float32],
    centres: NDArray[np.float64],
    stage: StageSettings,
    settings: FullSettings,
    rng: np.random.Generator,
    sums: volume.SliceSums | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
    shares: NDArray[np.float64] | None = None,
) -> Found:
    """Search all images once against a map, or K maps; their slices are added to `sums`.

    Args:
        shares: (K+1,) prior probabilities of the classes, that without a particle last; None: classes are equally
            probable, and all images show a particle.
    """
    turn_of_grids = grids.random_turn(rng)
    coarse_grid = images.grid.coarser(settings.coarse_rings)
    coarse = grids.directions(settings.coarse_directions, turn_of_grids, stage.symmetry)
    fine = grids.directions(settings.fine_directions, turn_of_grids, stage.symmetry)
    search_in = _Search(
        coarse=Level.of(
            map_, coarse_grid, coarse, settings.coarse_turns, grids.shift_grid(1, settings.coarse_shift), stage
        ),
        fine=Level.of(map_, images.grid, fine, settings.fine_turns, grids.shift_grid(2, settings.fine_shift), stage),
        families=grids.families(fine, coarse),
        stage=stage,
    )
    n_classes = len(map_) if map_.ndim == 4 else 1
    if n_classes > 1:
        search_in = replace(search_in, families=_of_classes(search_in.families, len(fine), n_classes))
    if shares is not None:
        search_in = search_in.with_shares(shares)
    found = Found.empty(len(images), n_classes)
    per_image = settings.coarse_turns * len(coarse) * len(search_in.coarse.offsets)
    block = int(np.clip(_SCORES_AT_ONCE // per_image, 32, 512))
    world, done = stage.world, 0

    def work(share: NDArray[np.int64]) -> tuple[Found, list[tuple[torch.Tensor, NDArray[np.float32]]]]:
        nonlocal done
        levels = search_in.emptied()
        of_share = Found.empty(len(share), n_classes)
        for part in np.array_split(np.arange(len(share)), -(-len(share) // block)):
            rows = share[part]
            _search_block(images.select(rows), centres[rows], levels, part, of_share)
            done += len(part)
            advance(min(done * world.size, len(images)), len(images))
        both = (levels.coarse, levels.fine) if sums is not None else ()
        return of_share, [(level.back, level.weight) for level in both]

    for share, (of_share, of_levels) in in_shares(len(images), world, work):
        found.put(share, of_share)
        for level, (back, weight) in zip((search_in.coarse, search_in.fine), of_levels, strict=False):
            level.back.add_(back)
            level.weight[:] += weight
    if sums is not None:
        for level in (search_in.coarse, search_in.fine):
            grid, frames = level.slices.grid, level.frames[: len(level.frames) // n_classes]
            of_level = search.samples_of(level.back, grid)
            volume.insert(sums, of_level, level.weight, grid, frames, stage.symmetry)
    return found


@dataclass(frozen=True)
class Level:
    """A grid of poses of a round, the slices of its map, and those of the images found on it.

    The directions of several classes follow each other.
    """

    slices: search.Slices
    frames: NDArray[np.float64]  # (d, 3, 3)
    turn: torch.Tensor
    offsets: NDArray[np.float64]  # (T, 2) pixels
    log_prior: NDArray[np.float32]  # (T,)
    back: torch.Tensor  # (2, M, d, R) sums of the images' slices, as angular coefficients
    weight: NDArray[np.float32]  # (d, R)

    @staticmethod
    def of(
        map_: NDArray[np.float32],
        grid: PolarGrid,
        directions: NDArray[np.float64],
        n_turns: int,
        offsets: NDArray[np.float64],
        stage: StageSettings,
    ) -> Level:
        frames = grids.frames(directions)
        slices = search.slices_of(volume.slices(map_, grid, frames), grid, stage.device)
        frames = np.tile(frames, (slices.n_directions // len(frames), 1, 1))
        return Level(
            slices,
            frames,
            search.turn_matrix(grid.n_orders, n_turns, stage.device),
            offsets,
            shift_prior(offsets, stage.shift_sigma),
            torch.zeros(2, grid.n_orders, len(frames), grid.n_rings),
            np.zeros((len(frames), grid.n_rings), np.float32),
        )

    def emptied(self) -> Level:
        """The same level with empty sums."""
        return replace(self, back=torch.zeros_like(self.back), weight=np.zeros_like(self.weight))

    def with_log_prior(self, of_classes: NDArray[np.float32]) -> Level:
        """The same level with (K,) log prior probabilities of the classes."""
        log_prior = np.repeat(of_classes, len(self.frames) // len(of_classes))
        return replace(self, slices=replace(self.slices, log_prior=log_prior))

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of turns, directions and shifts."""
        return len(self.turn), len(self.frames), len(self.offsets)

    def poses(
        self, best: NDArray[np.int64], centres: NDArray[np.float64], directions: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rotations (n, 3, 3) and centres (n, 2) of flat indices (ψ, d, t), among all directions or some of them."""
        n_turns, _, n_shifts = self.shape
        frames = self.frames if directions is None else self.frames[directions]
        k, d, t = np.unravel_index(best, (n_turns, len(frames), n_shifts))
        return grids.turned(frames[d], grids.turns(n_turns)[k]), centres + self.offsets[t]


@dataclass(frozen=True)
class _Search:
    """The grids of one round."""

    coarse: Level
    fine: Level
    families: list[NDArray[np.int64]]  # fine directions of each coarse direction
    stage: StageSettings
    log_odds: float = -np.inf  # log of the prior odds that an image shows no particle

    def emptied(self) -> _Search:
        """The same grids with sums of their own, which are empty."""
        return replace(self, coarse=self.coarse.emptied(), fine=self.fine.emptied())

    def with_shares(self, shares: NDArray[np.float64]) -> _Search:
        """The same grids with (K+1,) prior probabilities of the classes, that without a particle last."""
        coarse, fine = (level.with_log_prior(log_priors_of_classes(shares)) for level in (self.coarse, self.fine))
        return replace(self, coarse=coarse, fine=fine, log_odds=float(np.log(shares[-1] / shares[:-1].sum())))

    def with_particle(self, evidence: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n,) posterior that images with this evidence show a particle; the evidence of no particle is 0."""
        return np.asarray(1 / (1 + np.exp(np.clip(self.log_odds - evidence, -80, 80))), np.float32)


def _search_block(
    block: PolarImages, centres: NDArray[np.float64], s: _Search, rows: NDArray[np.int64], found: Found
) -> None:
    """Search one block of images; fill in `found` at the rows, and add to the sums of both levels."""
    n = len(block)
    kept = np.empty((len(s.coarse.frames), n), np.bool_)
    for part in np.array_split(np.arange(n), -(-n // search.IMAGES_AT_ONCE)):
        kept[:, part] = _search_coarsely(block.select(part), centres[part], s, rows[part], found)
    sharp = np.flatnonzero(~found.flat[rows])
    # Images that say little keep many directions, so the fine posteriors of fewer images are held at a time.
    per_direction = len(s.fine.turn) * len(s.fine.offsets) * -(-len(s.fine.frames) // len(s.families))
    number = np.cumsum(kept[:, sharp].sum(axis=0) * per_direction) // _SCORES_AT_ONCE
    for value in np.unique(number):
        some = sharp[number == value]
        _search_families(block.select(some), centres[some], kept[:, some], s, rows[some], found)


def _search_coarsely(
    block: PolarImages, centres: NDArray[np.float64], s: _Search, rows: NDArray[np.int64], found: Found
) -> NDArray[np.bool_]:
    """(coarse, n) mask of the directions that each image keeps; images with flat posteriors are finished."""
    level, grid = s.coarse, s.coarse.slices.grid
    moved = search.shifted(block.coarser(grid.n_rings), centres, level.offsets, s.stage.box_size, s.stage.device)
    probabilities, sums = search.e_step(level.slices, moved, level.turn, level.log_prior, 1.0, reuse=True)
    kept = _directions_with_mass(sums.of_direction)
    flat = (kept.mean(axis=0) > _FLAT) & (sums.evidence < _LITTLE)
    if flat.any():
        at = rows[flat]
        found.flat[at] = True
        found.rotations[at], found.centres[at] = level.poses(sums.best[flat], centres[flat])
        found.top[at], found.evidence[at] = 1 / sums.total[flat], sums.evidence[flat]
        shown = s.with_particle(sums.evidence)
        of_class = sums.of_direction.reshape(found.classes.shape[1], -1, len(flat)).sum(axis=1)
        found.classes[at], found.junk[at] = (of_class * shown).T[flat], 1 - shown[flat]
        normalisation = np.where(flat, sums.total / np.maximum(shown, np.float32(1e-30)), np.float32(np.inf))
        level.back[:] += search.m_step(probabilities, moved, normalisation, level.turn, grid)
        level.weight[:] += (sums.of_direction * (flat * shown)) @ block.power[:, : grid.n_rings]
    return kept


def _search_families(
    block: PolarImages,
    centres: NDArray[np.float64],
    kept: NDArray[np.bool_],
    s: _Search,
    rows: NDArray[np.int64],
    found: Found,
) -> None:
    """Search images in the families of the coarse directions that each of them has kept, (coarse, n)."""
    n, level = len(block), s.fine
    moved = search.shifted(block, centres, level.offsets, s.stage.box_size, s.stage.device)
    parts = []
    largest = np.full(n, -np.inf, np.float32)
    for family, of_family in zip(s.families, kept, strict=True):
        who = np.flatnonzero(of_family)
        if len(who) == 0 or len(family) == 0:
            continue
        probabilities, sums = search.e_step(
            level.slices.select(family), moved.select(who), level.turn, level.log_prior, 1.0
        )
        better = sums.largest > largest[who]
        winners = who[better]
        largest[winners] = sums.largest[better]
        at = rows[winners]
        found.rotations[at], found.centres[at] = level.poses(sums.best[better], centres[winners], family)
        parts.append((family, who, probabilities, sums))
    total = np.zeros(n, np.float32)
    for _, who, _, sums in parts:
        total[who] += sums.total * np.exp(sums.largest - largest[who])
    evidence = largest + np.log(total) - np.float32(np.log(np.prod(level.shape)))
    shown = s.with_particle(evidence)
    grid, n_classes = level.slices.grid, found.classes.shape[1]
    found.classes[rows] = 0
    for family, who, probabilities, sums in parts:
        scale = np.exp(sums.largest - largest[who]) * shown[who]
        normalisation = (total[who] / np.maximum(scale, 1e-30)).astype(np.float32)
        added = search.m_step(probabilities, moved.select(who), normalisation, level.turn, grid)
        level.back.index_add_(2, torch.from_numpy(family), added)
        share = sums.total / normalisation
        level.weight[family] += (sums.of_direction * share) @ block.power[who]
        found.classes[rows[who], family[0] * n_classes // len(level.frames)] += share
    found.top[rows] = 1 / total
    found.evidence[rows], found.junk[rows] = evidence, 1 - shown


def _of_classes(families: list[NDArray[np.int64]], n_fine: int, n_classes: int) -> list[NDArray[np.int64]]:
    """Families of the directions of all classes, which follow each other."""
    return [family + number * n_fine for number in range(n_classes) for family in families]


def _directions_with_mass(of_direction: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(d, n) mask of the fewest directions that together hold nearly all of each image's posterior."""
    order = np.argsort(of_direction, axis=0)[::-1]
    mass = np.cumsum(np.take_along_axis(of_direction, order, axis=0), axis=0)
    needed = np.vstack([np.zeros(of_direction.shape[1]), mass[:-1]]) < _KEPT_MASS
    kept = np.zeros(of_direction.shape, np.bool_)
    np.put_along_axis(kept, order, needed, axis=0)
    return kept
