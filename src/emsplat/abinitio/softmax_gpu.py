"""The posterior of every image over a grid of poses on a graphics card, as `softmax` computes it on the processor.

A program takes a block of images and one direction, and goes through all turns and shifts of it, so that neighbouring
threads read neighbouring scores. A first pass finds each image's largest score, a second one exponentiates; the sums
over directions are left to torch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from emsplat.abinitio.softmax import Posterior

_BLOCK = 128  # images that a program takes


def posterior(scores: Tensor, penalty: Tensor, log_prior: Tensor, beta: float) -> Posterior:
    """Turn scores into probabilities, in place and before normalisation; see `softmax.posterior`.

    Args:
        scores: (ψ, d, t, n) float32, contiguous; penalty: (d, n); log_prior: (t,); all on one device.
    """
    n_psi, n_directions, n_shifts, n = scores.shape
    device = scores.device
    largest_of = torch.empty(n_directions, n, device=device)
    best_of = torch.empty(n_directions, n, dtype=torch.int32, device=device)
    launch = (triton.cdiv(n, _BLOCK), n_directions)
    sizes = n_psi, n_directions, n_shifts, n
    _largest[launch](scores, penalty, log_prior, largest_of, best_of, *sizes, BLOCK=_BLOCK)
    largest, where = largest_of.max(dim=0)
    sums = torch.empty(2, n_directions, n, device=device)
    of_shift = torch.empty(n_directions, n_shifts, n, device=device)
    _exponentiate[launch](scores, largest, sums, of_shift, beta, *sizes, BLOCK=_BLOCK)
    of_direction = sums[0]
    total, at_one = sums.sum(dim=1)
    evidence = largest + torch.log(at_one) - math.log(n_psi * n_directions * n_shifts)
    found = (
        largest,
        total,
        evidence,
        of_direction / total,
        of_shift.sum(dim=0) / total,
        best_of.gather(0, where[None])[0].long(),
    )
    return Posterior(*(values.cpu().numpy() for values in found))


@triton.jit
def _largest(
    scores, penalty, log_prior, largest_of, best_of, n_psi, n_directions, n_shifts, n, BLOCK: tl.constexpr
):  # fmt: skip
    image = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    d = tl.program_id(1)
    inside = image < n
    taken = tl.load(penalty + d * n + image, inside, 0.0)
    largest = tl.full((BLOCK,), -1e30, tl.float32)
    best = tl.zeros((BLOCK,), tl.int32)
    for k in range(n_psi):
        for t in range(n_shifts):
            pose = (k * n_directions + d) * n_shifts + t
            place = scores + pose.to(tl.int64) * n + image
            score = tl.load(place, inside, 0.0) - taken + tl.load(log_prior + t)
            tl.store(place, score, inside)
            better = score > largest
            largest = tl.where(better, score, largest)
            best = tl.where(better, pose, best)
    tl.store(largest_of + d * n + image, largest, inside)
    tl.store(best_of + d * n + image, best, inside)


@triton.jit
def _exponentiate(
    scores, largest_of_image, sums, of_shift, beta, n_psi, n_directions, n_shifts, n, BLOCK: tl.constexpr
):  # fmt: skip
    image = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    d = tl.program_id(1)
    inside = image < n
    largest = tl.load(largest_of_image + image, inside, 0.0)
    total = tl.zeros((BLOCK,), tl.float32)
    at_one = tl.zeros((BLOCK,), tl.float32)
    for t in range(n_shifts):
        shift = tl.zeros((BLOCK,), tl.float32)
        for k in range(n_psi):
            pose = (k * n_directions + d) * n_shifts + t
            place = scores + pose.to(tl.int64) * n + image
            below = tl.load(place, inside, 0.0) - largest
            p = tl.exp(beta * below)
            tl.store(place, p, inside)
            shift += p
            at_one += tl.exp(below)
        tl.store(of_shift + (d * n_shifts + t) * n + image, shift, inside)
        total += shift
    size = n_directions * n
    tl.store(sums + d * n + image, total, inside)
    tl.store(sums + size + d * n + image, at_one, inside)
