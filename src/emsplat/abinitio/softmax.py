"""The posterior of every image over a grid of poses, computed from scores in place.

Scores are ``(ψ, d, t, n)`` with the images innermost, so that one pass of vector instructions serves many images. A
first pass finds each image's largest score; a second one exponentiates and takes the sums that the search needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

LANES = 32  # images that are worked on together; their sums stay in the first-level cache
# 2^f on [−½, ½], constant term first: relative error 2e-7 (least-squares fit).
_EXP2 = tuple(
    np.float32(c) for c in (1.0, 0.693147180, 0.240226507, 0.0555041087, 0.00961812911, 0.00133335581, 0.000154035304)
)
_LOG2_E = np.float32(1.4426950408889634)
_FLOOR = np.float32(-100.0)  # exponent of 2; 2^−100 is negligible beside 1


@dataclass(frozen=True)
class Posterior:
    """Sums over the poses of n images; the probabilities times `total` have replaced the scores."""

    largest: NDArray[np.float32]  # (n,) largest score
    total: NDArray[np.float32]  # (n,) Σ exp(β (score − largest)), the normalisation
    evidence: NDArray[np.float32]  # (n,) ln Σ prior exp(score), at β = 1
    of_direction: NDArray[np.float32]  # (d, n) normalised posterior of each direction
    of_shift: NDArray[np.float32]  # (t, n) normalised posterior of each shift
    best: NDArray[np.int64]  # (n,) flat index (ψ, d, t) of the largest score


def posterior(
    scores: NDArray[np.float32], penalty: NDArray[np.float32], log_prior: NDArray[np.float32], beta: float
) -> Posterior:
    """Turn scores into probabilities, in place and before normalisation.

    Args:
        scores: (ψ, d, t, n) log-likelihoods without the penalty.
        penalty: (d, n) half the power that a projection has in the image, which is subtracted.
        log_prior: (t,) log prior of the shifts; its exponentials over all poses sum to the number of poses.
        beta: inverse temperature.
    """
    n_psi, n_directions, n_shifts, n = scores.shape
    sums = np.zeros((3, n), np.float32)
    of_direction, of_shift = np.zeros((n_directions, n), np.float32), np.zeros((n_shifts, n), np.float32)
    best = np.zeros(n, np.int64)
    _exponentiate(scores, penalty, log_prior, np.float32(beta), sums, of_direction, of_shift, best)
    largest, total, at_one = sums
    evidence = largest + np.log(at_one) - np.float32(np.log(n_psi * n_directions * n_shifts))
    return Posterior(largest, total, evidence, of_direction / total, of_shift / total, best)


@numba.njit(inline="always")
def _exp(x):
    """e^x for x ≤ 0, float32."""
    t = max(x * _LOG2_E, _FLOOR)
    whole = np.floor(t + np.float32(0.5))
    f = t - whole
    p = _EXP2[6]
    p = p * f + _EXP2[5]
    p = p * f + _EXP2[4]
    p = p * f + _EXP2[3]
    p = p * f + _EXP2[2]
    p = p * f + _EXP2[1]
    p = p * f + _EXP2[0]
    return p * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@numba.njit(cache=True, parallel=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "nnan"})
def _exponentiate(scores, penalty, log_prior, beta, sums, of_direction, of_shift, best):
    n_psi, n_directions, n_shifts, n = scores.shape
    for block in numba.prange((n + LANES - 1) // LANES):
        first, last = block * LANES, min(n, (block + 1) * LANES)
        width = last - first
        largest = np.full(width, np.float32(-1e30))
        where = np.zeros(width, np.int32)
        for k in range(n_psi):
            for d in range(n_directions):
                taken = penalty[d, first:last]
                for t in range(n_shifts):
                    row = scores[k, d, t, first:last]
                    added = log_prior[t]
                    index = np.int32((k * n_directions + d) * n_shifts + t)
                    for i in range(width):
                        score = row[i] - taken[i] + added
                        row[i] = score
                        better = score > largest[i]
                        largest[i] = score if better else largest[i]
                        where[i] = index if better else where[i]
        total, at_one = np.zeros(width, np.float32), np.zeros(width, np.float32)
        tempered = beta != np.float32(1.0)
        for k in range(n_psi):
            for d in range(n_directions):
                direction = of_direction[d, first:last]
                for t in range(n_shifts):
                    row = scores[k, d, t, first:last]
                    shift = of_shift[t, first:last]
                    for i in range(width):
                        below = row[i] - largest[i]
                        p = _exp(beta * below)
                        row[i] = p
                        total[i] += p
                        direction[i] += p
                        shift[i] += p
                        if tempered:
                            at_one[i] += _exp(below)
        for i in range(width):
            sums[0, first + i] = largest[i]
            sums[1, first + i] = total[i]
            sums[2, first + i] = at_one[i] if tempered else total[i]
            best[first + i] = where[i]
