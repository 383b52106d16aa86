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
        both = torch.from_numpy(np.concatenate([directions, directions + self.n_directions]))
        log_prior = None if self.log_prior is None else self.log_prior[directions]
        return Slices(self.grid, self.products[:, both], self.power[directions], log_prior)


@dataclass(frozen=True)
class Shifted:
    """Angular coefficients of n images at T shifts."""

    coefficients: Tensor  # (M, 2·R, T·n): Re Î, then Im Î
    power: NDArray[np.float32]  # (n, R) c²
    n_shifts: int

    def select(self, rows: NDArray[np.int64]) -> Shifted:
        """The coefficients of some of the images."""
        orders, parts = self.coefficients.shape[:2]
        of_images = self.coefficients.reshape(orders, parts, self.n_shifts, len(self.power))
        chosen = of_images[..., torch.from_numpy(rows)].reshape(orders, parts, -1)
        return Shifted(chosen, self.power[rows], self.n_shifts)


def slices_of(samples: NDArray[np.complex64], grid: PolarGrid) -> Slices:
    """The slices with these (d, R, Q) samples, in the form that the E-step takes."""
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
    return Slices(grid, products.contiguous(), power.astype(np.float32))


def shifted(images: PolarImages, centres: NDArray[np.float64], offsets: NDArray[np.float64], box_size: int) -> Shifted:
    """Images moved so that a particle at ``centre + offset`` comes to the origin.

    Args:
        centres: (n, 2) x, y in pixels from the image's origin; offsets: (T, 2) likewise; box_size: D.
    """
    grid = images.grid
    n, n_shifts = len(images), len(offsets)
    real = np.empty((grid.n_angles, grid.n_rings, n_shifts, n), np.float32)
    imaginary = np.empty_like(real)
    frequencies = 2 * np.pi * grid.points / box_size
    _move(images.signal, frequencies, np.asarray(centres), np.asarray(offsets), real, imaginary)
    out = torch.empty(grid.n_orders, 2 * grid.n_rings, n_shifts * n)
    for first, matrix, part in zip((0, 1), grid.to_orders(), (real, imaginary), strict=True):
        found = torch.from_numpy(matrix) @ torch.from_numpy(part.reshape(grid.n_angles, -1))
        out[first::2] = found.reshape(-1, 2 * grid.n_rings, n_shifts * n)
    return Shifted(out, images.power, n_shifts)


def turn_matrix(n_orders: int, n_turns: int) -> Tensor:
    """(ψ, 2·M) cosines and sines of mψ, alternating."""
    angle = grids.turns(n_turns)[:, None] * np.arange(n_orders)
    return torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], axis=2).reshape(n_turns, -1).astype(np.float32))


def scores_of(slices: Slices, images: Shifted, turn: Tensor, reuse: bool = False) -> Tensor:
    """(ψ, d, T, n) log-likelihoods without the penalty.

    Args:
        reuse: write them over those of the last call that reused memory.
    """
    d, n = slices.n_directions, len(images.power)
    m, columns = len(images.coefficients), images.coefficients.shape[2]
    c = torch.bmm(slices.products, images.coefficients, out=_room("products", m, 2 * d, columns))  # (M, 2·d, T·n)
    out = _room("scores", len(turn), d * columns) if reuse else None
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
    return scores, posterior(scores.numpy(), penalty_of(slices, images), log_prior, beta)


def images_at_once() -> int:
    """Number of images whose scores on a coarse grid stay in the caches while they are worked on."""
    return LANES * max(2, numba.get_num_threads())


def m_step(
    probabilities: Tensor, images: Shifted, normalisation: NDArray[np.float32], turn: Tensor, grid: PolarGrid
) -> NDArray[np.complex64]:
    """(d, R, Q) slices of b, from probabilities (ψ, d, T, n) divided by a normalisation (n,)."""
    n_turns, d, n_shifts, n = probabilities.shape
    w = _room("products", 2 * grid.n_orders, d * n_shifts * n)
    w = torch.mm(turn.T, probabilities.reshape(n_turns, -1), out=w).view(grid.n_orders, 2 * d, n_shifts * n)
    scale = torch.from_numpy(1 / normalisation).repeat(n_shifts)
    both = torch.bmm(w, (images.coefficients * scale).transpose(1, 2))  # (M, 2·d, 2·R)
    rings = grid.n_rings
    cosine, sine = both[:, :d], both[:, d:]
    real = cosine[:, :, :rings] + sine[:, :, rings:]
    imaginary = cosine[:, :, rings:] - sine[:, :, :rings]
    return samples_of(real, imaginary, grid)


def samples_of(real: Tensor, imaginary: Tensor, grid: PolarGrid) -> NDArray[np.complex64]:
    """(d, R, Q) samples from angular coefficients (M, d, R)."""
    d, rings = real.shape[1:]
    spectra = torch.stack([real, imaginary], dim=1)
    parts = [
        torch.from_numpy(matrix) @ spectra[first::2].reshape(matrix.shape[1], -1)
        for first, matrix in zip((0, 1), grid.from_orders(), strict=True)
    ]
    samples = torch.complex(*parts).reshape(grid.n_angles, d, rings)
    return samples.permute(1, 2, 0).contiguous().numpy()


_rooms: dict[str, Tensor] = {}


def _room(name: str, *shape: int) -> Tensor:
    """Memory for the intermediate results of one name, whose content is lost at the next call.

    Fresh memory of some megabytes costs more time, page by page, than the products that fill it.
    """
    size = math.prod(shape)
    if name not in _rooms or _rooms[name].numel() < size:
        _rooms[name] = torch.empty(size)
    return _rooms[name][:size].view(shape)


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _move(signal, frequencies, centres, offsets, real, imaginary):
    n, rings, angles = signal.shape
    for q in numba.prange(angles):
        for r in range(rings):
            fx, fy = frequencies[r, q, 0], frequencies[r, q, 1]
            for i in range(n):
                phase = fx * centres[i, 0] + fy * centres[i, 1]
                value = signal[i, r, q] * np.complex64(complex(np.cos(phase), np.sin(phase)))
                # The first shift's place holds the centred value until the last shift has used it.
                real[q, r, 0, i], imaginary[q, r, 0, i] = value.real, value.imag
            for t in range(len(offsets) - 1, -1, -1):
                c = np.float32(np.cos(fx * offsets[t, 0] + fy * offsets[t, 1]))
                s = np.float32(np.sin(fx * offsets[t, 0] + fy * offsets[t, 1]))
                for i in range(n):
                    a, b = real[q, r, 0, i], imaginary[q, r, 0, i]
                    real[q, r, t, i] = a * c - b * s
                    imaginary[q, r, t, i] = a * s + b * c
