"""Where the particle lies in each image: a search over all shifts that are likely, on the coarse grid of poses.

The rounds of a search compare each image with shifts of one step about its present centre. A centre that is several
steps off is rarely left, because the pose has meanwhile adapted to it: early maps are round, and the particle of an
elongated shape lies with either of its ends on their middle. So once there is a map, all shifts are compared, and
particles that are much more likely to lie elsewhere are moved there at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from emsplat.abinitio import full, grids, search
from emsplat.abinitio.full import FullSettings, Rounds, full_stage, no_progress
from emsplat.abinitio.polar import PolarImages
from emsplat.abinitio.shares import in_shares
from emsplat.abinitio.stochastic import StageSettings, shift_prior

_STEP = 1.3  # steps of the coarse grid of shifts, between those that are compared
_REACH = 3.0  # standard deviations of the centres, beyond which no particle is looked for
_LEAST_SPREAD = 0.5  # of that in the prior of all shifts; the present centres may all be too near to the middle
_FAR = 2.0  # steps of the coarse grid of shifts; the rounds make shorter moves by themselves
_FEW = 0.02  # share of the particles; if fewer are moved, rounds go on until they have settled
_BETWEEN_LOOKS = 3  # rounds from one look to the next, while many particles are moved
_MOST_LOOKS = 6
_SHIFTED_AT_ONCE = 320  # number of shifted images whose scores stay in the caches


def recentred(
    images: PolarImages,
    map_: NDArray[np.float32],
    centres: NDArray[np.float64],
    stage: StageSettings,
    settings: FullSettings,
    rng: np.random.Generator,
    shares: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], float]:
    """(n, 2) centres, of which some were moved far, and the share of the images that these are.

    The prior of a particle's centre is a normal distribution about the middle of its image, as wide as the present
    centres are spread. A particle is looked for within three standard deviations of it.

    Args:
        map_: (N, N, N), or (K, N, N, N) maps of all classes.
        centres: (n, 2) x, y in pixels from the image's middle.
        shares: (K+1,) prior probabilities of the classes, as in `full.round_of`.
    """
    spread = max(float(np.sqrt(np.mean(centres**2))), settings.coarse_shift, _LEAST_SPREAD * stage.shift_sigma)
    offsets = _disc(_STEP * settings.coarse_shift, min(_REACH * spread, stage.max_shift))
    if len(offsets) == 1:
        return centres, 0.0
    grid = images.grid.coarser(settings.coarse_rings)
    directions = grids.directions(settings.coarse_directions, grids.random_turn(rng), stage.symmetry)
    level = full.Level.of(map_, grid, directions, settings.coarse_turns, offsets, stage)
    log_prior = shift_prior(offsets, spread)
    if shares is not None:
        level = level.with_log_prior(full.log_priors_of_classes(shares))

    at_once = max(1, _SHIFTED_AT_ONCE // len(offsets))

    def work(share: NDArray[np.int64]) -> NDArray[np.int64]:
        best = np.empty(len(share), np.int64)
        for part in np.array_split(np.arange(len(share)), -(-len(share) // at_once)):
            some = images.select(share[part]).coarser(grid.n_rings)
            middle = np.zeros((len(part), 2))
            moved = search.shifted(some, middle, offsets, stage.box_size, stage.device)
            _, sums = search.e_step(level.slices, moved, level.turn, log_prior, 1.0, reuse=True)
            best[part] = sums.of_shift.argmax(axis=0)
        return best

    found = centres.copy()
    for share, best in in_shares(len(images), stage.world, work):
        found[share] = offsets[best]
    far = np.linalg.norm(found - centres, axis=1) > _FAR * settings.coarse_shift
    return np.where(far[:, None], found, centres), float(far.mean())


def search_fully(
    images: PolarImages,
    rounds: Rounds,
    stage: StageSettings,
    settings: FullSettings,
    rng: np.random.Generator,
    after_round: Callable[[], None] = lambda: None,
    progress: Callable[[int], AbstractContextManager[Callable[[int, int], None]]] = no_progress,
) -> None:
    """The second stage, with looks at all shifts: before its first round, every few rounds, and when they have settled.

    It is over when its rounds have settled and a look moves hardly any particle. The arguments are those of
    `full.full_stage`.
    """
    while True:
        begun, looks = bool(rounds.trace.evidence), rounds.looks
        is_over = begun and rounds.is_over(settings)
        many_move = bool(looks) and looks[-1] >= _FEW and len(looks) < _MOST_LOOKS
        is_due = not looks or is_over or (many_move and len(rounds.trace.evidence) - rounds.since >= _BETWEEN_LOOKS)
        if is_due:
            if len(looks) == _MOST_LOOKS or (begun and rounds.is_spent(settings)):
                return
            centres, moved = recentred(images, rounds.map, rounds.centres, stage, settings, rng, rounds.shares)
            looks.append(moved)
            if is_over and moved < _FEW:
                return
            rounds.centres[:] = centres
            rounds.since = len(rounds.trace.evidence)
            many_move = moved >= _FEW and len(looks) < _MOST_LOOKS
        last = rounds.since + _BETWEEN_LOOKS if many_move else settings.most_rounds
        limited = replace(settings, most_rounds=min(last, settings.most_rounds))
        full_stage(images, rounds, stage, limited, rng, after_round, progress)


def _disc(step: float, radius: float) -> NDArray[np.float64]:
    """(T, 2) x, y of a square grid with this step, within a radius of its origin."""
    reach = int(radius / step)
    k = np.arange(-reach, reach + 1)
    x, y = (step * a.ravel() for a in np.meshgrid(k, k))
    return np.stack([x, y], axis=1)[np.hypot(x, y) <= radius]
