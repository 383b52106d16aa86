"""Gaussians from statistics: full-batch minimisation of the quadratic loss.

A step costs one 3D splat, two FFTs and one gather, whatever the number of images. How many are taken is what keeps the
noise out, and it is searched for within the half: steps down the loss of most of its images, until that of the others
no longer falls. The fit then begins again, on all of them, and its steps add up to as many as were best.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from emsplat.errors import InputError
from emsplat.fit.by_statistics_gpu import DeviceLoss, Replayed
from emsplat.fit.state import FitHistory, FitState
from emsplat.models.densification import DensitySettings, control, is_due, round_gaussians, sample_centres
from emsplat.models.gaussians import Gaussians
from emsplat.models.parameters import Adam, Parameters
from emsplat.runtime.checkpoint import UNKEPT, Checkpoint
from emsplat.runtime.devices import CPU
from emsplat.splat import voxelise
from emsplat.splat.bandlimit import WIDENING, narrowed
from emsplat.statistics.accumulate import Statistics
from emsplat.statistics.loss import QuadraticLoss, cube, fitting_period

_MIN_SCALE = 0.2  # σ in pixels: no atom that a grid can show is sharper
_WIDEST_PER_SPACING, _START_PER_WIDEST = 0.6, 0.6  # σ at most, and at the start
_START_BLUR = 1.0  # pixels, of the inversion that centres are drawn from


@dataclass(frozen=True)
class FitSettings:
    """Every number of the fit."""

    n_gaussians: int
    isotropic: bool = False
    max_steps: int = 90
    anneal_steps: int = 18  # the last ones, with falling step sizes; together worth half as many
    approach_steps: int | None = None  # before them; None: searched for
    check_every: int = 4
    improvement: float = 2e-3  # of the loss on unseen images that counts as one, relative, between checks
    patience: int = 2  # checks on unseen images without improvement that end the search
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


def _loss(statistics: Statistics, extent: int, device: torch.device) -> QuadraticLoss | DeviceLoss:
    period = fitting_period(extent)
    if device == CPU:
        return QuadraticLoss(statistics, extent, period)
    return DeviceLoss(statistics, extent, period, device)


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
    mask = mask[middle]
    smooth = gaussian_filter(statistics.raw_map(), _START_BLUR)[middle] * mask
    # A little weight everywhere in the mask: the inversion's weak parts must not be left empty.
    weight = np.maximum(smooth - 0.1 * smooth.max(), 0) + 0.02 * smooth.max() * (mask > 0.5)
    log_scale = math.log(max(_START_PER_WIDEST * settings.max_scale, 1.0))
    operators = np.eye(3)[None] if symmetry is None else symmetry
    number = max(1, settings.n_gaussians // len(operators))
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
        seen, unseen: a split of the half, for the search; all of it is fitted. Without the second all steps are taken.
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
    saved = checkpoint.load()
    state = FitState.restored(saved, settings.step_sizes, device) if saved else _beginning(start, settings, device)
    fit = _Fit(state, extent, settings, device, progress, say, watch, checkpoint)
    if state.anneal_from is None:
        state.anneal_from = settings.approach_steps
        state.history.stopped_by = "as in the first fit" if settings.approach_steps is not None else "no split"
    if state.anneal_from is None and unseen:
        fit.search(_loss(seen, extent, device), _loss(unseen, extent, device))
        fit.begin_again(start)
    if state.anneal_from is None:
        state.anneal_from = settings.max_steps - fit.annealing
    fit.descend(_loss(seen + unseen if unseen else seen, extent, device), state.anneal_from)
    return state.optimiser.parameters.to(CPU), state.history


def _beginning(start: Parameters, settings: FitSettings, device: torch.device) -> FitState:
    return FitState(Adam(start.to(device), settings.step_sizes), np.random.default_rng(settings.seed))


@dataclass(frozen=True)
class _Fit:
    """The two parts of a fit, and what both need."""

    state: FitState
    extent: int
    settings: FitSettings
    device: torch.device
    progress: Callable[[int, int], None]
    say: Callable[[str], None]
    watch: Callable[[Parameters], None]
    checkpoint: Checkpoint

    def search(self, loss: QuadraticLoss | DeviceLoss, check: QuadraticLoss | DeviceLoss) -> None:
        """Whole steps down the loss, until the other one no longer falls."""
        state, settings, history = self.state, self.settings, self.state.history
        most = settings.max_steps - self.annealing
        step = self._steps_down(loss, most)
        while state.waited < settings.patience and state.done < most:
            volume = step(1.0)
            if state.done % settings.check_every == 0:
                now = float(check.at(volume)[0])
                history.checks.append((state.done, now))
                improved = not history.checks[1:] or now < state.best - settings.improvement * abs(state.best)
                state.waited = 0 if improved else state.waited + 1
                if now < state.best:
                    state.best, state.best_at = now, state.done
            self._end_step(most + self.annealing)
        history.stopped_by = "loss on unseen images" if state.waited >= settings.patience else "maximum number of steps"

    def begin_again(self, start: Parameters) -> None:
        """From the start, with as many steps as were best: one that falls to nothing is worth half a whole one.

        Half of the best ones are taken whole at least: the first steps bring what is strong, which rules the loss.
        """
        state, history = self.state, self.state.history
        fresh = _beginning(start, self.settings, self.device)
        state.optimiser, state.rng, state.done = fresh.optimiser, fresh.rng, 0
        state.anneal_from = max(state.best_at - self.annealing // 2, state.best_at // 2)
        history.searched, history.losses, history.counts = history.losses, [], []

    def descend(self, loss: QuadraticLoss | DeviceLoss, anneal_from: int) -> None:
        """The fit proper: whole steps, then falling ones."""
        state, history = self.state, self.state.history
        history.anneal_from = anneal_from
        step = self._steps_down(loss, anneal_from)
        while (annealed := state.done - anneal_from) < self.annealing:
            step(0.5 + 0.5 * math.cos(math.pi * max(annealed, 0) / self.annealing))
            self._end_step(len(history.searched) + anneal_from + self.annealing)

    @property
    def annealing(self) -> int:
        """Steps."""
        return min(self.settings.anneal_steps, self.settings.max_steps)

    def _steps_down(self, loss: QuadraticLoss | DeviceLoss, anneal_from: int) -> Callable[[float], Tensor]:
        """What takes a step, of a share of the step sizes, and returns the density before it."""
        state, settings = self.state, self.settings
        rate = torch.ones((), device=self.device)

        def descend() -> tuple[float | Tensor, Tensor]:
            optimiser = state.optimiser
            optimiser.forget_gradients()
            volume = _density(optimiser.parameters, self.extent, settings.cutoff)
            value, gradient = loss.at(volume.detach())
            volume.backward(gradient)
            optimiser.step(rate)
            confine(optimiser.parameters, self.extent, settings.max_scale)
            return value, volume.detach()

        descent = Replayed(descend, self.device, self.say)

        def step(share: float) -> Tensor:
            rate.fill_(share)
            value, volume = descent()
            _refuse_not_finite(float(value), state)
            state.history.losses.append(float(value))
            state.history.counts.append(len(state.optimiser.parameters))
            if is_due(state.done, anneal_from, settings.density):
                control(state.optimiser, settings.n_gaussians, settings.density, state.rng)
                descent.forget()
            return volume

        return step

    def _end_step(self, total: int) -> None:
        self.state.done += 1
        self.progress(self.state.history.n_steps, total)
        self.watch(self.state.optimiser.parameters)
        self.checkpoint.offer(self.state.saved)


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


def _density(parameters: Parameters, extent: int, cutoff: float) -> Tensor:
    """(d, d, d) density of the Gaussians on the cube."""
    return voxelise(
        parameters.centres, parameters.log_scales, parameters.quaternions, parameters.log_masses, extent, cutoff
    )


@torch.no_grad()
def confine(parameters: Parameters, extent: int, max_scale: float) -> None:
    """Keep the centres within the ball inscribed in the cube, and σ where a grid can hold it."""
    parameters.log_scales.clamp_(*(0.5 * math.log(s**2 + WIDENING) for s in (_MIN_SCALE, max_scale)))
    limit = extent / 2 - 2.0
    radius = parameters.centres.norm(dim=1, keepdim=True).clamp_min(1e-6)
    parameters.centres.mul_((limit / radius).clamp_max(1.0))
