"""The posteriors of a search, on a card or by Triton's interpreter, against float64; the products follow the device.

``tests/statistics/test_accumulate_gpu.py`` runs this file in a process of its own, because TRITON_INTERPRET must be set
before Triton is imported.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import blobs
from emsplat.abinitio import grids, search, softmax, softmax_gpu
from emsplat.abinitio.polar import PolarGrid, PolarImages

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda", 0)
GRID = PolarGrid.of(5, 0.7)


@pytest.mark.parametrize("n", [1, 131])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_posteriors_are_those_in_float64(n: int, beta: float) -> None:
    rng = np.random.default_rng(n)
    scores = rng.normal(0, 8, (6, 3, 5, n)).astype(np.float32)
    penalty, log_prior = rng.uniform(0, 9, (3, n)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    exact = scores.astype(np.float64) - penalty[:, None] + log_prior[:, None]
    largest = exact.max(axis=(0, 1, 2))
    p = np.exp(beta * (exact - largest))
    filled = torch.from_numpy(scores.copy()).to(DEVICE)
    found = softmax_gpu.posterior(
        filled, torch.from_numpy(penalty).to(DEVICE), torch.from_numpy(log_prior).to(DEVICE), beta
    )
    total = p.sum(axis=(0, 1, 2))
    assert filled.cpu().numpy() == pytest.approx(p, abs=1e-5)
    assert found.largest == pytest.approx(largest, abs=1e-4)
    assert found.total == pytest.approx(total, rel=1e-4)
    assert found.of_direction == pytest.approx(p.sum(axis=(0, 2)) / total, abs=1e-5)
    assert found.of_shift == pytest.approx(p.sum(axis=(0, 1)) / total, abs=1e-5)
    assert found.evidence == pytest.approx(largest + np.log(np.exp(exact - largest).mean(axis=(0, 1, 2))), abs=1e-3)
    assert (found.best == exact.reshape(-1, n).argmax(axis=0)).all()
    # And those of the processor's kernel.
    others = softmax.posterior(scores, penalty, log_prior, beta)
    for name in ("largest", "total", "evidence", "of_direction", "of_shift"):
        assert getattr(found, name) == pytest.approx(getattr(others, name), abs=2e-3), name
    assert found.best.dtype == others.best.dtype and (found.best == others.best).all()


def test_both_steps_give_on_the_device_what_they_give_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    shape = (9, GRID.n_rings, GRID.n_angles)
    signal = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    images = PolarImages(GRID, signal, rng.uniform(0.01, 0.02, shape[:2]).astype(np.float32))
    frames = grids.frames(grids.directions(12, np.eye(3), np.eye(3)[None]))
    samples, offsets = blobs.slices_at(GRID, frames).astype(np.complex64), grids.shift_grid(1, 1.0)
    log_prior, some = np.zeros(len(offsets), np.float32), np.array([4, 0, 8])
    made = []
    for device in (search.CPU, DEVICE):
        if device == DEVICE:  # by the kernel, also where the device is the processor
            monkeypatch.setattr(search, "posterior_of", by_the_kernel)
        moved = search.shifted(images, np.zeros((9, 2)), offsets, blobs.BOX, device).select(some)
        slices = search.slices_of(samples, GRID, device).select(np.arange(2, 9))
        turn = search.turn_matrix(GRID.n_orders, 8, device)
        probabilities, sums = search.e_step(slices, moved, turn, log_prior, 1.0, reuse=True)
        assert probabilities.device.type == device.type
        back = search.m_step(probabilities, moved, sums.total, turn, GRID)
        made.append((sums, search.samples_of(back, GRID)))
    (one, first), (other, second) = made
    assert other.evidence == pytest.approx(one.evidence, abs=1e-3)
    assert np.linalg.norm(second - first) < 1e-4 * np.linalg.norm(first)


def by_the_kernel(scores: torch.Tensor, penalty: np.ndarray, log_prior: np.ndarray, beta: float) -> softmax.Posterior:
    """What `search.posterior_of` does with scores on a card."""
    return softmax_gpu.posterior(
        scores, torch.from_numpy(penalty).to(scores.device), torch.from_numpy(log_prior).to(scores.device), beta
    )
