"""E-step and M-step on a grid of poses, as batched matrix products over angular frequencies.

Hats denote angular Fourier coefficients on ring r. The score of a pose is

    s(d, ψ, t) = Σ_m [Re c_m cos mψ + Im c_m sin mψ] − ½ Σ_r 2πr c²(r) A_d(r),    c_m = Σ_r 2πr P̂*_d(r, m) Î_t(r, m)

which takes one product over the rings for every m, and a second one over m. The M-step takes the same products in the
opposite direction: with p the posterior and ``ŵ_m = Σ_ψ p e^{−imψ}``, a direction's slice of b is ``Σ ŵ_m Î_t(r, m)``,
so that one slice is inserted for each direction and not for each image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emsplat.abinitio import grids
from emsplat.abinitio.polar import PolarGrid, PolarImages
from emsplat.abinitio.softmax import LANES, Posterior, posterior
from emsplat.runtime.devices import CPU

# Number of images whose scores on a coarse grid stay in the caches while they are worked on. It does not depend on the
# number of threads, because sums over images round by the blocks in which they are taken.
IMAGES_AT_ONCE = 2 * LANES


@dataclass(frozen=True)
class Slices:
    """Slices of a map in the directions of a search, as angular coefficients."""

    grid: PolarGrid
    products: Tensor  # (M, 2·d, 2·R) float32: from columns [Re Î; Im Î] to rows Re c, then Im c
    power: NDArray[np.float32]  # (d, R) 2πr ⟨|P|²⟩ over a ring
    log_prior: NDArray[np.float32] | None = None  # (d,) of the directions; its exponentials have a mean of 1

    @property
    def n_directions(self) -> int:
        return len(self.power)

    def select(self, directions: NDArray[np.int64]) -> Slices:
        """The slices in some of the directions."""
        both = torch.from_numpy(np.concatenate([directions, directions + self.n_directions])).to(self.products.device)
        log_prior = None if self.log_prior is None else self.log_prior[directions]
        return Slices(self.grid, self.products[:, both], self.power[directions], log_prior)


@dataclass(frozen=True)
class Shifted:
    """Angular coefficients of n images at T shifts."""

    coefficients: Tensor  # (M, T·n, 2·R): Re Î, then Im Î
    power: NDArray[np.float32]  # (n, R) c²
    n_shifts: int

    def select(self, rows: NDArray[np.int64]) -> Shifted:
        """The coefficients of some of the images."""
        orders, _, parts = self.coefficients.shape
        of_images = self.coefficients.view(orders, self.n_shifts, len(self.power), parts)
        chosen = of_images.index_select(2, torch.from_numpy(rows).to(of_images.device)).view(orders, -1, parts)
        return Shifted(chosen, self.power[rows], self.n_shifts)


def slices_of(samples: NDArray[np.complex64], grid: PolarGrid, device: torch.device = CPU) -> Slices:
    """The slices with these (d, R, Q) samples, in the form that the E-step takes on this device."""
    d, rings, q = samples.shape
    flat = torch.from_numpy(samples.reshape(-1, q))
    spectra = torch.empty(grid.n_orders, 2, d, rings)
    for first, matrix, part in zip((0, 1), grid.to_orders(), (flat.real, flat.imag), strict=True):
        found = torch.from_numpy(matrix) @ part.T  # (2·orders, d·R)
        spectra[first::2] = found.reshape(-1, 2, d, rings)
    weight = (2 * np.pi * grid.radii).astype(np.float32)
    factors = torch.full((grid.n_orders, 1, 1), 2.0)
    factors[0] = 1.0
    real, imaginary = (spectra[:, i] * torch.from_numpy(weight) * factors for i in (0, 1))
    products = torch.cat([torch.cat([real, imaginary], dim=2), torch.cat([-imaginary, real], dim=2)], dim=1)
    power = (np.abs(samples) ** 2).mean(axis=2) * weight
    return Slices(grid, products.contiguous().to(device), power.astype(np.float32))


def shifted(
    images: PolarImages,
    centres: NDArray[np.float64],
    offsets: NDArray[np.float64],
    box_size: int,
    device: torch.device = CPU,
) -> Shifted:
    """Images moved so that a particle at ``centre + offset`` comes to the origin.

    Args:
        centres: (n, 2) x, y in pixels from the image's origin; offsets: (T, 2) likewise; box_size: D.
    """
    grid = images.grid
    n, n_shifts = len(images), len(offsets)
    real = np.empty((grid.n_angles, n_shifts, n, grid.n_rings), np.float32)
    imaginary = np.empty_like(real)
    frequencies = 2 * np.pi * grid.points / box_size
    _move(images.signal, frequencies, np.asarray(centres), np.asarray(offsets), real, imaginary)
    out = torch.empty(grid.n_orders, n_shifts * n, 2, grid.n_rings)
    for first, matrix, part in zip((0, 1), grid.to_orders(), (real, imaginary), strict=True):
        found = torch.from_numpy(matrix) @ torch.from_numpy(part.reshape(grid.n_angles, -1))
        out[first::2] = found.view(-1, 2, n_shifts * n, grid.n_rings).transpose(1, 2)
    return Shifted(out.view(grid.n_orders, n_shifts * n, -1).to(device), images.power, n_shifts)


def turn_matrix(n_orders: int, n_turns: int, device: torch.device = CPU) -> Tensor:
    """(ψ, 2·M) cosines and sines of mψ, alternating."""
    angle = grids.turns(n_turns)[:, None] * np.arange(n_orders)
    return torch.from_numpy(
        np.stack([np.cos(angle), np.sin(angle)], axis=2).reshape(n_turns, -1).astype(np.float32)
    ).to(device)


def scores_of(slices: Slices, images: Shifted, turn: Tensor, reuse: bool = False) -> Tensor:
    """(ψ, d, T, n) log-likelihoods without the penalty.

    Args:
        reuse: write them over those of the last call that reused memory.
    """
    d, n = slices.n_directions, len(images.power)
    orders, columns, _ = images.coefficients.shape
    device = slices.products.device
    c = _room("products", orders, 2 * d, columns, device=device)
    torch.bmm(slices.products, images.coefficients.transpose(1, 2), out=c)
    out = _room("scores", len(turn), d * columns, device=device) if reuse else None
    return torch.mm(turn, c.view(turn.shape[1], -1), out=out).view(len(turn), d, images.n_shifts, n)


def penalty_of(slices: Slices, images: Shifted) -> NDArray[np.float32]:
    """(d, n) penalty: half the power of each slice in each image, less the log prior of its direction."""
    penalty = 0.5 * (slices.power @ images.power.T)
    return penalty if slices.log_prior is None else penalty - slices.log_prior[:, None]


def e_step(
    slices: Slices,
    images: Shifted,
    turn: Tensor,
    log_prior: NDArray[np.float32],
    beta: float,
    reuse: bool = False,
) -> tuple[Tensor, Posterior]:
    """(ψ, d, T, n) posterior before normalisation, and its sums; `reuse` as in `scores_of`."""
    scores = scores_of(slices, images, turn, reuse)
    return scores, posterior_of(scores, penalty_of(slices, images), log_prior, beta)


def posterior_of(
    scores: Tensor, penalty: NDArray[np.float32], log_prior: NDArray[np.float32], beta: float
) -> Posterior:
    """`softmax.posterior` of scores on any device, in place."""
    if scores.device == CPU:
        return posterior(scores.numpy(), penalty, log_prior, beta)
    from emsplat.abinitio import softmax_gpu  # Triton may only exist where there is a card

    taken, added = (torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in (penalty, log_prior))
    return softmax_gpu.posterior(scores, taken.to(scores.device), added.to(scores.device), beta)


def m_step(
    probabilities: Tensor, images: Shifted, normalisation: NDArray[np.float32], turn: Tensor, grid: PolarGrid
) -> Tensor:
    """(2, M, d, R) real and imaginary parts of the angular coefficients of b, for `samples_of`, on the processor.

    Args:
        probabilities: (ψ, d, T, n), to be divided by a normalisation (n,).
    """
    n_turns, d, n_shifts, n = probabilities.shape
    device = probabilities.device
    w = _room("products", 2 * grid.n_orders, d * n_shifts * n, device=device)
    w = torch.mm(turn.T, probabilities.reshape(n_turns, -1), out=w).view(grid.n_orders, 2 * d, n_shifts * n)
    scale = torch.from_numpy(1 / normalisation).to(device).repeat(n_shifts)
    both = torch.bmm(w, images.coefficients * scale[:, None])  # (M, 2·d, 2·R)
    rings = grid.n_rings
    cosine, sine = both[:, :d], both[:, d:]
    real = cosine[:, :, :rings] + sine[:, :, rings:]
    imaginary = cosine[:, :, rings:] - sine[:, :, :rings]
    return torch.stack([real, imaginary]).cpu()


def samples_of(coefficients: Tensor, grid: PolarGrid) -> NDArray[np.complex64]:
    """(d, R, Q) samples from angular coefficients (2, M, d, R)."""
    d, rings = coefficients.shape[2:]
    spectra = coefficients.transpose(0, 1)
    parts = [
        torch.from_numpy(matrix) @ spectra[first::2].reshape(matrix.shape[1], -1)
        for first, matrix in zip((0, 1), grid.from_orders(), strict=True)
    ]
    samples = torch.complex(*parts).reshape(grid.n_angles, d, rings)
    return samples.permute(1, 2, 0).contiguous().numpy()


_rooms: dict[tuple[str, torch.device], Tensor] = {}


def _room(name: str, *shape: int, device: torch.device) -> Tensor:
    """Memory for the intermediate results of one name, whose content is lost at the next call.

    Fresh memory of some megabytes costs more time, page by page, than the products that fill it.
    """
    size = math.prod(shape)
    key = name, device
    if key not in _rooms or _rooms[key].numel() < size:
        _rooms[key] = torch.empty(size, device=device)
    return _rooms[key][:size].view(shape)


@numba.njit(cache=True, parallel=True, nogil=True, error_model="numpy")
def _move(signal, frequencies, centres, offsets, real, imaginary):
    n, rings, angles = signal.shape
    for q in numba.prange(angles):
        cosine, sine = np.empty((len(offsets), rings), np.float32), np.empty((len(offsets), rings), np.float32)
        for t in range(len(offsets)):
            for r in range(rings):
                angle = frequencies[r, q, 0] * offsets[t, 0] + frequencies[r, q, 1] * offsets[t, 1]
                cosine[t, r], sine[t, r] = np.cos(angle), np.sin(angle)
        for i in range(n):
            for r in range(rings):
                angle = frequencies[r, q, 0] * centres[i, 0] + frequencies[r, q, 1] * centres[i, 1]
                value = signal[i, r, q] * np.complex64(complex(np.cos(angle), np.sin(angle)))
                for t in range(len(offsets)):
                    real[q, t, i, r] = value.real * cosine[t, r] - value.imag * sine[t, r]
                    imaginary[q, t, i, r] = value.real * sine[t, r] + value.imag * cosine[t, r]
