"""Gaussians from statistics: full-batch minimisation of the quadratic loss.

A step costs one 3D splat, two FFTs and one gather, whatever the number of images. The loop runs on most of a half's
images; when the loss on the others no longer falls, it anneals on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numba
import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from emsplat.checkpoint import UNKEPT, Checkpoint
from emsplat.density import DensitySettings, control, is_due, round_gaussians, sample_centres
from emsplat.devices import CPU
from emsplat.errors import InputError
from emsplat.fit_gpu import DeviceLoss, Replayed
from emsplat.fit_state import FitHistory, FitState
from emsplat.gaussians import Gaussians
from emsplat.parameters import Adam, Parameters
from emsplat.splat import voxelise
from emsplat.splat.bandlimit import WIDENING, boost, boosted, narrowed
from emsplat.statistics import Statistics

_PERIOD_PER_EXTENT, _EXACT_PERIOD = 1.25, 96  # voxels, up to which a convolution is exact
_MIN_SCALE = 0.2  # σ in pixels: no atom that a grid can show is sharper
_WIDEST_PER_SPACING, _START_PER_WIDEST = 0.65, 0.6  # σ at most, and at the start
_START_BLUR = 1.0  # pixels, of the inversion that centres are drawn from


@dataclass(frozen=True)
class FitSettings:
    """Every number of the fit."""

    n_gaussians: int
    isotropic: bool = False
    max_steps: int = 90
    anneal_steps: int = 18  # the last ones, with falling step sizes
    check_every: int = 4
    improvement: float = 2e-3  # of the loss on unseen images that counts as one, relative, between checks
    patience: int = 2  # checks on unseen images without improvement before annealing
    start_share: float = 0.7  # of the Gaussians that are there from the start; density control adds the rest
    cutoff: float = 3.0
    step_sizes: dict[str, float] = field(
        default_factory=lambda: {"centres": 0.6, "log_scales": 0.05, "quaternions": 0.05, "log_masses": 0.07}
    )
    density: DensitySettings = field(default_factory=DensitySettings)
    max_scale: float = 2.0  # σ in pixels; wider splats cost much and say little that several narrower ones do not
    seed: int = 0

    @staticmethod
    def for_particle(n_gaussians: int, volume_in_voxels: float, isotropic: bool, seed: int) -> FitSettings:
        """Settings whose Gaussians can be wide enough to fill the particle's volume, however few they are."""
        spacing = (volume_in_voxels / n_gaussians) ** (1 / 3)
        return FitSettings(n_gaussians, isotropic, max_scale=max(1.0, _WIDEST_PER_SPACING * spacing), seed=seed)


class QuadraticLoss:
    """``½⟨V, T∗V⟩ − ⟨b, V⟩`` per image for ``V = boost ∗ S``, as a function of the splat S in a cube of edge d.

    The convolution is exact with a period of 2d (Toeplitz embedding), if T reaches that far. A shorter period wraps
    what lies far apart onto what lies near.
    """

    def __init__(self, statistics: Statistics, extent: int, period: int | None = None) -> None:
        self.extent = extent
        self.period = min(period or 2 * extent, statistics.kernel.shape[0])
        share = np.float32(1 / statistics.n_images)
        self.transfer = statistics.transfer(self.period) * boost(self.period) ** 2 * share
        self.adjoint = boosted(statistics.adjoint)[cube(statistics.box_size, extent)] * share

    def convolve(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """T∗V on the cube; the zeros of the padding are never transformed."""
        d, n = self.extent, self.period
        f = scipy.fft.rfft(volume, n=n, axis=2)
        f = scipy.fft.fft(f, n=n, axis=1)
        f = scipy.fft.fft(f, n=n, axis=0)
        f *= self.transfer
        f = scipy.fft.ifft(f, axis=0, overwrite_x=True)[:d]
        f = scipy.fft.ifft(f, axis=1)[:, :d]
        return scipy.fft.irfft(f, n=n, axis=2)[:, :, :d]

    def value_and_gradient(self, volume: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        """The loss and ``T∗V − b``, (d, d, d)."""
        gradient = np.empty_like(self.adjoint)
        of_planes = _value_and_gradient(volume, self.convolve(volume), self.adjoint, gradient)
        return float(of_planes.sum()), gradient

    def at(self, volume: Tensor) -> tuple[float, Tensor]:
        """The same of a tensor."""
        value, gradient = self.value_and_gradient(volume.numpy())
        return value, torch.from_numpy(gradient)

    def best_mass(self, volume: Tensor) -> float:
        """The factor of this volume that makes the loss least."""
        v = volume.numpy()
        return _inner(self.adjoint, v) / _inner(v, self.convolve(v))


def _loss(statistics: Statistics, extent: int, device: torch.device) -> QuadraticLoss | DeviceLoss:
    period = fitting_period(extent)
    if device == CPU:
        return QuadraticLoss(statistics, extent, period)
    return DeviceLoss(statistics, extent, period, device)


def fitting_period(extent: int) -> int:
    """Voxels; of the convolution that a fit in a cube of this edge is made with.

    T falls off so fast that a quarter more than the cube is enough: on three simulated sets (96², 100², 128²) the mean
    FSC of the averaged map with the truth was not lower than with the exact period (0.8949 for 0.8937, 0.9736 for
    0.9735, 0.9404 for 0.9401), in half the time or less. Small cubes are embedded exactly, for it costs nothing.
    """
    needed = max(math.ceil(_PERIOD_PER_EXTENT * extent), min(2 * extent, _EXACT_PERIOD))
    return scipy.fft.next_fast_len(needed, real=True)


def cube(box_size: int, extent: int) -> tuple[slice, slice, slice]:
    """The middle of a (D, D, D) volume, edge d, voxel D//2 becoming voxel d//2."""
    first = box_size // 2 - extent // 2
    return (slice(first, first + extent),) * 3


def initial_gaussians(
    statistics: Statistics,
    mask: NDArray[np.float32],
    extent: int,
    settings: FitSettings,
    symmetry: NDArray[np.float64] | None = None,
    device: torch.device = CPU,
) -> Parameters:
    """Equal spheres drawn from the smoothed low-resolution inversion, with the mass that fits the images best.

    Args:
        mask: (D, D, D) soft mask of the particle; centres are drawn within it.
        symmetry: (m, 3, 3) operators; one m-th of the Gaussians is drawn and replicated by them.
        device: where they are, and where their mass is found.
    """
    middle = cube(statistics.box_size, extent)
    number = max(1, round(settings.start_share * settings.n_gaussians))
    mask = mask[middle]
    smooth = gaussian_filter(statistics.raw_map(), _START_BLUR)[middle] * mask
    # A little weight everywhere in the mask: the inversion's weak parts must not be left empty.
    weight = np.maximum(smooth - 0.1 * smooth.max(), 0) + 0.02 * smooth.max() * (mask > 0.5)
    log_scale = math.log(max(_START_PER_WIDEST * settings.max_scale, 1.0))
    operators = np.eye(3)[None] if symmetry is None else symmetry
    number = max(1, number // len(operators))
    centres = sample_centres(weight, number, np.random.default_rng(settings.seed))
    centres = np.einsum("gij,kj->gki", operators, centres).reshape(-1, 3).astype(np.float32)
    parameters = round_gaussians(centres, log_scale, 0.0, 1 if settings.isotropic else 3).to(device)
    if len(centres) == 0:
        raise InputError(
            "the inversion shows no positive density within the particle's sphere; check --invert and --mask-diameter"
        )
    mass = _loss(statistics, extent, device).best_mass(_density(parameters, extent, settings.cutoff))
    parameters.log_masses += math.log(max(mass, 1e-12))
    return parameters


def fit_gaussians(
    seen: Statistics,
    unseen: Statistics | None,
    start: Parameters,
    extent: int,
    settings: FitSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
    device: torch.device = CPU,
    say: Callable[[str], None] = lambda text: None,
    watch: Callable[[Parameters], None] = lambda parameters: None,
    checkpoint: Checkpoint = UNKEPT,
) -> tuple[Parameters, FitHistory]:
    """Fit Gaussians to the images of one half.

    Args:
        seen, unseen: a split of the half; the second only decides when to anneal, then joins in. Without it all
            steps are taken.
        start: from `initial_gaussians`.
        extent: edge of the cube, in voxels, in which the Gaussians live.
        progress: called with the steps done and to do.
        device: where it is done; the Gaussians come back to the CPU.
        say: told where a graphics card has to be asked for every step anew.
        watch: called after every step with the Gaussians, which the next step changes.
        checkpoint: is offered the state after every step; the fit goes on from the one it loads, to the same result.
    Raises:
        InputError: the loss, or a Gaussian, is no longer finite.
    """
    loss = _loss(seen, extent, device)
    check = _loss(unseen, extent, device) if unseen else None
    saved = checkpoint.load()
    if saved:
        state = FitState.restored(saved, settings.step_sizes, device)
    else:
        state = FitState(Adam(start.to(device), settings.step_sizes), np.random.default_rng(settings.seed))
    optimiser, history, rate = state.optimiser, state.history, torch.ones((), device=device)

    def descend() -> tuple[float | Tensor, Tensor, Tensor]:
        """A step; the loss, the density and the gradient before it."""
        optimiser.forget_gradients()
        volume = _density(optimiser.parameters, extent, settings.cutoff)
        value, gradient = loss.at(volume.detach())
        volume.backward(gradient)
        optimiser.step(rate)
        confine(optimiser.parameters, extent, settings.max_scale)
        return value, volume.detach(), gradient

    descent = Replayed(descend, device, say)
    length = min(settings.anneal_steps, settings.max_steps)
    anneal_from = settings.max_steps - length if state.anneal_from is None else state.anneal_from
    while state.done < anneal_from + length:
        annealing = state.done >= anneal_from
        if annealing and unseen:
            loss, unseen = _loss(seen + unseen, extent, device), None
            descent.forget()
        rate.fill_(0.5 + 0.5 * math.cos(math.pi * (state.done - anneal_from) / length) if annealing else 1.0)
        value, volume, gradient = descent()
        _refuse_not_finite(float(value), state)
        history.losses.append(float(value))
        history.counts.append(len(optimiser.parameters))
        if check and not annealing and (state.done + 1) % settings.check_every == 0:
            now = float(check.at(volume)[0])
            history.checks.append((state.done, now))
            improved = not history.checks[1:] or now < state.best - settings.improvement * abs(state.best)
            state.waited = 0 if improved else state.waited + 1
            state.best = min(state.best, now)
            if state.waited >= settings.patience:
                state.anneal_from = anneal_from = state.done + 1
                history.stopped_by = "loss on unseen images"
        if not annealing and is_due(state.done, anneal_from, settings.density):
            asked_for = gradient.numpy() if device == CPU else gradient
            control(optimiser, asked_for, settings.n_gaussians, settings.density, state.rng)
            descent.forget()
        state.done += 1
        progress(state.done, anneal_from + length)
        watch(optimiser.parameters)
        checkpoint.offer(state.saved)
    history.anneal_from = anneal_from
    return optimiser.parameters.to(CPU), history


def _refuse_not_finite(loss: float, state: FitState) -> None:
    if not (math.isfinite(loss) and state.is_finite):
        raise InputError(
            f"step {state.done + 1} of the fit: {'a Gaussian' if math.isfinite(loss) else 'the loss'} is not a finite "
            "number; some image or its CTF must be odd: look for it with emsplat check and remove it from the particle "
            "file; the checkpoint before it stays"
        )


def gaussians_of(parameters: Parameters, pixel_size_in_angstroms: float) -> Gaussians:
    """The model in Å, its covariances without the splat's widening."""
    p = parameters
    return Gaussians.from_pixels(
        p.centres, narrowed(p.log_scales.detach()), p.quaternions, p.log_masses, pixel_size_in_angstroms
    )


def _inner(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """⟨a, b⟩, the same whatever the number of threads, as that of a BLAS is not."""
    return float(np.multiply(a, b).sum(dtype=np.float64))


def _density(parameters: Parameters, extent: int, cutoff: float) -> Tensor:
    """(d, d, d) density of the Gaussians on the cube."""
    return voxelise(
        parameters.centres, parameters.log_scales, parameters.quaternions, parameters.log_masses, extent, cutoff
    )


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _value_and_gradient(volume, convolved, adjoint, gradient):
    """(d,) the loss by planes, in an order that no number of threads changes; fills the gradient ``T∗V − b``."""
    d = volume.shape[0]
    values = np.zeros(d)
    for z in numba.prange(d):
        for y in range(d):
            for x in range(d):
                v, tv, b = volume[z, y, x], convolved[z, y, x], adjoint[z, y, x]
                gradient[z, y, x] = tv - b
                values[z] += v * (np.float32(0.5) * tv - b)
    return values


@torch.no_grad()
def confine(parameters: Parameters, extent: int, max_scale: float) -> None:
    """Keep the centres within the ball inscribed in the cube, and σ where a grid can hold it."""
    parameters.log_scales.clamp_(*(0.5 * math.log(s**2 + WIDENING) for s in (_MIN_SCALE, max_scale)))
    limit = extent / 2 - 2.0
    radius = parameters.centres.norm(dim=1, keepdim=True).clamp_min(1e-6)
    parameters.centres.mul_((limit / radius).clamp_max(1.0))
