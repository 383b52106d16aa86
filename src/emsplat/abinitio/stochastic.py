"""The first stage: from random poses to a coarse map, batch by batch.

Each batch is searched over the whole grid of poses against the present map; its slices are added to those of earlier
batches, which fade. The temperature follows from the information of the images. If posteriors would be spikes on a map
that is still arbitrary, it is raised until their entropy is a set share of the grid's; this share falls to 0 over the
first half of the stage. Images with little information have wide posteriors anyway, and β is 1 from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.abinitio import grids, search, volume
from emsplat.abinitio.polar import PolarGrid, PolarImages
from emsplat.abinitio.shares import in_shares
from emsplat.runtime.devices import CPU
from emsplat.runtime.ranks.world import World

_SMOOTHED = 8  # iterations over which the likelihood is averaged
_FALLEN, _TOO_MUCH_POWER = 0.25, 1.2  # faults: loss of this share of the likelihood; map's power over the images'
_MOST_STEPS_BACK, _WARMER = 3, 1.5  # largest number of steps back; factor on the entropies' floor after each
_EXPLAINED = 1.0  # nats per image, above which images that maps do not explain are taken to show no particle
_BIAS_KEPT = 0.9  # share of the classes' bias that is kept from one batch to the next
NOTHING = 0.02  # nats per image; images that say less after a third of the batches give no map
_FOR_BETA = 12  # number of images from which the temperature is found


@dataclass(frozen=True)
class StageSettings:
    """Settings of both stages, found from the data."""

    box_size: int  # D of the particle's images
    diameter: float  # diameter of the particle's sphere, as a share of the box
    signal: NDArray[np.float64]  # (R,) S, power of a projection
    symmetry: NDArray[np.float64]  # (m, 3, 3)
    max_shift: float  # pixels: largest distance of a particle from its image's middle
    shift_sigma: float  # pixels: standard deviation of this distance in the prior
    n_classes: int | None = None  # K maps, and a class of images without a particle; None: one map for all images
    world: World = field(default_factory=World)  # the ranks that share the images
    device: torch.device = CPU  # where poses are compared


@dataclass(frozen=True)
class StochasticSettings:
    """Settings of the first stage."""

    n_directions: int
    n_turns: int
    shift_step: float  # pixels
    batch: int
    iterations: int
    memory: float = 0.8  # share of the earlier batches that is kept at each iteration
    first_entropy: float = 0.4  # least entropy of posteriors at first, as a share of the grid's; falls to 0
    annealed: float = 0.5  # share of the iterations over which it falls


@dataclass
class Trace:
    """What each iteration of either stage has shown; values are means over its images."""

    evidence: list[float] = field(default_factory=list)  # log-likelihood per image, less that of no particle
    top: list[float] = field(default_factory=list)  # largest posterior
    beta: list[float] = field(default_factory=list)
    power: list[float] = field(default_factory=list)  # power of the map over S, in the outer half of the rings
    steps_back: list[int] = field(default_factory=list)  # iterations at which a fault was noticed


def first_stage(
    images: PolarImages,
    centres: NDArray[np.float64],
    stage: StageSettings,
    settings: StochasticSettings,
    rng: np.random.Generator,
    watch: Callable[[int, NDArray[np.float32], Trace], None] = lambda done, map_, trace: None,
) -> tuple[NDArray[np.float32], Trace]:
    """(N, N, N) map, or (K, N, N, N) maps of all classes, and the trace of the iterations.

    Args:
        centres: (n, 2) x, y in pixels: initial positions of the particles in their images; replaced by those that are
            found.
    """
    bias = None if stage.n_classes is None else np.zeros(stage.n_classes)
    search_for = _Stochastic(images, centres, stage, settings, rng, bias)
    order = _order(len(images), settings.batch * settings.iterations, rng)
    trace, sums = Trace(), volume.SliceSums.empty(volume.map_box(images.grid), stage.n_classes)
    map_: NDArray[np.float32] | None = None
    best = _Best()
    floor_factor, since = 1.0, 0  # factor on the entropies' floor; iteration from which it falls
    for iteration in range(settings.iterations):
        rows = order[iteration * settings.batch : (iteration + 1) * settings.batch]
        annealing = max(0.0, 1 - (iteration - since) / (settings.annealed * (settings.iterations - since)))
        floor = min(0.8, settings.first_entropy * floor_factor) * annealing
        sums.fade(settings.memory)
        search_for.batch(rows, map_, floor, sums, trace)
        map_ = volume.solve(sums, stage.signal, stage.diameter)
        trace.power.append(power_share(map_, stage.signal))
        if best.is_left_behind(trace, iteration) and len(trace.steps_back) < _MOST_STEPS_BACK:
            trace.steps_back.append(iteration)
            sums, map_ = best.restored()
            floor_factor, since = floor_factor * _WARMER, iteration
        best.offer(trace, sums, map_)
        watch(iteration + 1, map_, trace)
        if 3 * iteration > settings.iterations and np.mean(trace.evidence[-_SMOOTHED:]) < NOTHING:
            break
    assert map_ is not None
    return map_, trace


@dataclass
class _Best:
    """The state of the highest likelihood so far, to which a fault leads back."""

    evidence: float = -np.inf
    map: NDArray[np.float32] | None = None
    sums: volume.SliceSums | None = None
    at: int = 0

    def offer(self, trace: Trace, sums: volume.SliceSums, map_: NDArray[np.float32]) -> None:
        """Keep this state if it is the best."""
        if len(trace.evidence) < _SMOOTHED:
            return
        recent = float(np.mean(trace.evidence[-_SMOOTHED:]))
        if recent > self.evidence and trace.power[-1] < _TOO_MUCH_POWER:
            self.evidence, self.map, self.at = recent, map_, len(trace.evidence)
            self.sums = volume.SliceSums(sums.back_projection.copy(), sums.weight.copy())

    def is_left_behind(self, trace: Trace, iteration: int) -> bool:
        """Whether the likelihood has fallen far below the best, or the map has more power than the images."""
        if self.map is None or iteration < 2 * _SMOOTHED or len(trace.evidence) < self.at + _SMOOTHED:
            return False
        recent = float(np.mean(trace.evidence[-_SMOOTHED:]))
        return recent < self.evidence - max(_FALLEN * abs(self.evidence), 1.0) or (
            trace.power[-1] > _TOO_MUCH_POWER and recent < self.evidence
        )

    def restored(self) -> tuple[volume.SliceSums, NDArray[np.float32]]:
        """A copy of the sums, and their map."""
        assert self.sums is not None and self.map is not None
        return volume.SliceSums(self.sums.back_projection.copy(), self.sums.weight.copy()), self.map


@dataclass
class _BatchSums:
    """Sums over a share of a batch, and its new centres."""

    back: NDArray[np.float32]  # (2, M, d, R) slices of b, from `search.m_step`
    weight: NDArray[np.float32]  # (d, R)
    classes: NDArray[np.float64]  # (K,) posteriors
    totals: NDArray[np.float64]  # (2,) of the log-likelihood and the largest posterior
    centres: NDArray[np.float64]  # (n, 2)

    @staticmethod
    def empty(grid: PolarGrid, n_directions: int, n_classes: int, n: int) -> _BatchSums:
        return _BatchSums(
            np.zeros((2, grid.n_orders, n_directions, grid.n_rings), np.float32),
            np.zeros((n_directions, grid.n_rings), np.float32),
            np.zeros(n_classes),
            np.zeros(2),
            np.zeros((n, 2)),
        )


@dataclass(frozen=True)
class _Stochastic:
    """The search of one batch after another."""

    images: PolarImages
    centres: NDArray[np.float64]
    stage: StageSettings
    settings: StochasticSettings
    rng: np.random.Generator
    bias: NDArray[np.float64] | None  # (K,) added to the log-likelihoods under the maps of the classes

    def batch(
        self,
        rows: NDArray[np.int64],
        map_: NDArray[np.float32] | None,
        floor: float,
        sums: volume.SliceSums,
        trace: Trace,
    ) -> None:
        """Search a batch against the map and insert its slices; without a map, in random poses."""
        batch, grid, stage = self.images.select(rows), self.images.grid, self.stage
        points = grids.directions(self.settings.n_directions, grids.random_turn(self.rng), stage.symmetry)
        frames = grids.frames(points)
        turn = search.turn_matrix(grid.n_orders, self.settings.n_turns, stage.device)
        offsets = grids.shift_grid(1, self.settings.shift_step)
        moved = search.shifted(batch, self.centres[rows], offsets, stage.box_size, stage.device)
        if map_ is None:
            back, weight = _at_random(batch, moved, len(frames) * (stage.n_classes or 1), turn, self.rng)
        else:
            slices = search.slices_of(volume.slices(map_, grid, frames), grid, stage.device)
            if self.bias is not None:
                slices = replace(slices, log_prior=np.repeat(self.bias, len(frames)).astype(np.float32))
            back, weight = self._search(rows, batch, moved, slices, turn, offsets, floor, trace)
        volume.insert(sums, back, weight, grid, frames, stage.symmetry)

    def _search(
        self,
        rows: NDArray[np.int64],
        batch: PolarImages,
        moved: search.Shifted,
        slices: search.Slices,
        turn: torch.Tensor,
        offsets: NDArray[np.float64],
        floor: float,
        trace: Trace,
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
        """The slices of b, and their weights, of a batch of images that is searched; their centres are updated."""
        grid, stage, n = batch.grid, self.stage, len(rows)
        log_prior = shift_prior(offsets, stage.shift_sigma)
        few = moved.select(np.arange(min(n, _FOR_BETA)))
        beta = 1.0
        if floor > 0:
            scores = search.scores_of(slices, few, turn, reuse=True).cpu().numpy()
            beta = _beta(scores, search.penalty_of(slices, few), floor)

        def work(share: NDArray[np.int64]) -> _BatchSums:
            sums = _BatchSums.empty(grid, slices.n_directions, self.stage.n_classes or 1, len(share))
            for place in np.array_split(np.arange(len(share)), -(-len(share) // search.IMAGES_AT_ONCE)):
                part = share[place]
                some = moved.select(part)
                scores, penalty = search.scores_of(slices, some, turn, reuse=True), search.penalty_of(slices, some)
                found = search.posterior_of(scores, penalty, log_prior, beta)
                shown = self._with_particle(found.evidence, trace)
                sums.back += search.m_step(scores, some, found.total / shown, turn, grid).numpy()
                sums.weight += (found.of_direction * shown) @ batch.power[part]
                sums.classes += (found.of_direction @ shown).reshape(len(sums.classes), -1).sum(axis=1)
                moves = (offsets.T @ found.of_shift).T
                sums.centres[place] = limited(self.centres[rows[part]] + moves, stage.max_shift)
                sums.totals += found.evidence.sum(), (1 / found.total).sum()
            return sums

        sums = _BatchSums.empty(grid, slices.n_directions, self.stage.n_classes or 1, 0)
        for share, added in in_shares(n, stage.world, work):
            self.centres[rows[share]] = added.centres
            sums.back += added.back
            sums.weight += added.weight
            sums.classes += added.classes
            sums.totals += added.totals
        for values, total in zip((trace.evidence, trace.top), sums.totals, strict=True):
            values.append(float(total / n))
        trace.beta.append(beta)
        if self.bias is not None:
            self._balance(sums.classes / max(sums.classes.sum(), 1e-9), floor)
        return search.samples_of(torch.from_numpy(sums.back), grid), sums.weight

    def _with_particle(self, evidence: NDArray[np.float32], trace: Trace) -> NDArray[np.float32]:
        """(n,) posterior that images show a particle: 1 without a class of others, or as long as maps explain nothing.

        All classes, and that without a particle, whose evidence is 0, are equally probable.
        """
        if self.bias is None or not trace.evidence or trace.evidence[-1] < _EXPLAINED:
            return np.ones_like(evidence)
        odds = len(self.bias) * np.exp(np.clip(evidence, -60, 60))
        return np.asarray(odds / (1 + odds), np.float32)

    def _balance(self, shares: NDArray[np.float64], floor: float) -> None:
        """Bring classes that have more or less than their share of a batch nearer to it, until maps have formed.

        Otherwise, the class whose map grows first attracts all images, because at coarse resolution maps are alike.
        """
        assert self.bias is not None
        excess = np.log(np.maximum(shares * len(shares), 0.1)) if floor > 0 else 0.0
        self.bias[:] = _BIAS_KEPT * self.bias - excess


def power_share(map_: NDArray[np.float32], signal: NDArray[np.float64]) -> float:
    """Power of a map divided by that of the projections, in the outer half of the rings."""
    half = len(signal) // 2
    return float(volume.shell_powers(map_, len(signal))[half:].sum() / signal[half:].sum())


def shift_prior(offsets: NDArray[np.float64], sigma: float) -> NDArray[np.float32]:
    """(T,) log prior of shifts (T, 2), normal with this standard deviation; its exponentials have a mean of 1."""
    log_prior = -0.5 * (offsets**2).sum(axis=1) / max(sigma, 1e-3) ** 2
    return (log_prior - np.log(np.mean(np.exp(log_prior)))).astype(np.float32)


def limited(centres: NDArray[np.float64], farthest: float) -> NDArray[np.float64]:
    """The centres, moved to within this distance of the middle."""
    distance = np.linalg.norm(centres, axis=1, keepdims=True)
    return centres / np.maximum(distance / max(farthest, 1e-9), 1)


def _order(n: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows in random order; their frequencies differ by at most one."""
    return np.concatenate([rng.permutation(n) for _ in range(-(-wanted // n))])[:wanted]


def _at_random(
    batch: PolarImages,
    moved: search.Shifted,
    n_directions: int,
    turn: torch.Tensor,
    rng: np.random.Generator,
) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """Slices of images in random poses."""
    n, d = len(batch), n_directions
    poses = np.zeros((len(turn), d, moved.n_shifts, n), np.float32)
    direction = rng.integers(d, size=n)
    poses[rng.integers(len(turn), size=n), direction, 0, np.arange(n)] = 1
    back = search.m_step(torch.from_numpy(poses).to(turn.device), moved, np.ones(n, np.float32), turn, batch.grid)
    return search.samples_of(back, batch.grid), (direction == np.arange(d)[:, None]).astype(np.float32) @ batch.power


def _beta(scores: NDArray[np.float32], penalty: NDArray[np.float32], floor: float) -> float:
    """The largest β ≤ 1 at which the mean entropy of some images is at least a share of the grid's."""
    flat = (scores - penalty[:, None]).reshape(-1, scores.shape[-1])
    flat -= flat.max(axis=0)
    wanted = floor * np.log(len(flat))
    room = np.empty_like(flat)

    def entropy(beta: float) -> float:
        p = np.exp(np.multiply(flat, np.float32(beta), out=room), out=room)
        total = p.sum(axis=0)
        return float((np.log(total) - beta * np.einsum("pn,pn->n", p, flat) / total).mean())

    if floor <= 0 or entropy(1.0) >= wanted:
        return 1.0
    low, high = 1e-4, 1.0
    for _ in range(8):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if entropy(middle) >= wanted else (low, middle)
    return float(low)
