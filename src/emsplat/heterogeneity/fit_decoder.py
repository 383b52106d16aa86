"""Full-batch fit of a decoder to the statistics of latent bins, without reading an image.

``Σ_g π_g [½⟨V(z_g), T_g∗V(z_g)⟩ − ⟨b_g, V(z_g)⟩]`` is the loss of a nonlinear model for the images of all bins, if each
image of a bin g is taken to show V(z_g). Steps lower the loss of the training images until that of the held-out images
no longer falls; some steps of falling size on all images end the fit.

Two things keep the noise of a few thousand images out of the slopes:

- *The mean mass of a Gaussian is kept.* The leaves are the masses averaged over all bins, ``Σ_g π_g exp(α + w·z_g)``,
  of which the consensus is a good estimate. With α as a leaf, the slope alone could not lead a Gaussian that half of
  the images lack from its mean of ½ to 1 and 0.
- *Most Gaussians follow no latent.* The slopes of each Gaussian have a Cauchy distribution as their prior, and so have
  its displacements: small ones are drawn to 0, and large ones are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emsplat.heterogeneity.decoder import STEEPEST, Decoder
from emsplat.models.density_model import propagate
from emsplat.models.gaussian_model import GaussianModel, GaussianSettings
from emsplat.models.gaussians import Gaussians
from emsplat.models.parameters import Parameters
from emsplat.splat import voxelise
from emsplat.splat.bandlimit import widened
from emsplat.statistics.loss import QuadraticLoss

VARIANTS: tuple[str, ...] = ("mass", "both")
_WARM = 0.3  # size of the steps of a fit that starts from another's end, as a share
_MOST_WARM_STEPS = 20


@dataclass(frozen=True)
class DecoderSettings:
    """The settings of the fit."""

    mass_step: float = 0.28  # step size of the slopes; divided by √K
    displacement_step: float = 0.3  # voxels; divided by √K
    base_steps: tuple[float, float, float, float] = (0.15, 0.015, 0.015, 0.02)  # centres, scales, quaternions, masses
    most_steps: int = 60
    check_every: int = 5
    patience: int = 2
    improvement: float = 2e-4  # relative fall of the held-out loss
    anneal_steps: int = 12
    cutoff: float = 3.0
    max_scale: float = 4.0  # largest σ in voxels
    slope_prior: float = 0.1  # width of the Cauchy prior of the mass slopes
    displacement_prior: float = 0.1  # the same of the displacements, in voxels

    def warm(self) -> DecoderSettings:
        """The settings of a fit that starts from the end of another.

        The first steps of Adam have their full size however small the gradient is. Near a minimum they lead away from
        it, and the search would end where it began.
        """
        return replace(
            self,
            mass_step=_WARM * self.mass_step,
            displacement_step=_WARM * self.displacement_step,
            most_steps=min(self.most_steps, _MOST_WARM_STEPS),
        )


@dataclass(frozen=True)
class Bin:
    """The data of the images near a point of latent space."""

    z: NDArray[np.float64]  # (K,) mean latent of its images
    weight: float  # share of all images
    images: float  # number of images; those that are in several bins count in parts
    training: QuadraticLoss
    held_out: QuadraticLoss
    held_out_share: float  # share of the bin's images that are held out


@dataclass
class DecoderHistory:
    """What the log and the figures show. Losses are per image, averaged over the bins."""

    variant: str
    losses: list[float] = field(default_factory=list)
    checks: list[tuple[int, float]] = field(default_factory=list)
    best: float = math.inf
    best_at: int = 0


class DecoderFit:
    """One fit of one variant: its leaves in voxels, and Adam."""

    def __init__(
        self,
        start: Decoder,
        bins: Sequence[Bin],
        pixel_size: float,
        extent: int,
        variant: str,
        settings: DecoderSettings,
    ) -> None:
        self.bins, model = bins, start.gaussians
        self.places = torch.as_tensor(np.stack([one.z for one in bins]), dtype=torch.float32)  # (G, K)
        self.log_shares = torch.log(torch.tensor([one.weight for one in bins], dtype=torch.float32))
        self.images = sum(one.images for one in bins)
        self.training_images = sum(one.images * (1 - one.held_out_share) for one in bins)
        scaled = Gaussians.from_pixels(
            model.centres, model.log_scales, model.quaternions, model.log_masses, 1 / pixel_size
        )
        base = (scaled.centres, widened(scaled.log_scales), scaled.quaternions, scaled.log_masses)
        self.base = Parameters(*(t.clone().requires_grad_() for t in base))
        self.mass_slopes = start.mass_slopes.clone().requires_grad_()
        self.displacements = (start.displacements / pixel_size).clone().requires_grad_()
        if variant == "mass":
            self.displacements.detach().zero_()
        self.base.log_masses.detach().add_(self._mean_of_slopes().detach())
        self.limits = GaussianSettings(len(model), cutoff=settings.cutoff, max_scale=settings.max_scale)
        self.variant, self.pixel_size, self.extent, self.settings = variant, pixel_size, extent, settings
        root = math.sqrt(max(start.n_latents, 1))
        groups = [
            {"params": [t], "lr": 0.0, "size": size, "follows_latents": False}
            for t, size in zip(self._base_leaves, settings.base_steps, strict=True)
        ]
        groups.append(
            {"params": [self.mass_slopes], "lr": 0.0, "size": settings.mass_step / root, "follows_latents": True}
        )
        if variant != "mass":
            groups.append(
                {
                    "params": [self.displacements],
                    "lr": 0.0,
                    "size": settings.displacement_step / root,
                    "follows_latents": True,
                }
            )
        self.optimiser = torch.optim.Adam(groups, betas=(0.8, 0.99), eps=1e-12)

    @property
    def _base_leaves(self) -> tuple[Tensor, ...]:
        p = self.base
        return (p.centres, p.log_scales, p.quaternions, p.log_masses)

    def _changes(self, points: Tensor) -> Tensor:
        """(J, n) change of the log masses from z = 0 to (n, K) points."""
        return (self.mass_slopes @ points.T).clamp(-STEEPEST, STEEPEST)

    def _mean_of_slopes(self) -> Tensor:
        """(J,) logarithm of the mean mass over all bins, less that at z = 0."""
        return torch.logsumexp(self.log_shares + self._changes(self.places), dim=1)

    def density(self, z: NDArray[np.float64]) -> Tensor:
        """(d, d, d) splat at a point; the losses undo its widening."""
        point = torch.as_tensor(z, dtype=torch.float32)
        p = self.base
        return voxelise(
            p.centres + torch.einsum("jkc,k->jc", self.displacements, point),
            p.log_scales,
            p.quaternions,
            p.log_masses - self._mean_of_slopes() + self._changes(point[None])[:, 0],
            self.extent,
            self.settings.cutoff,
        )

    def step(self, rate: float, on_all: bool) -> float:
        """Take one step; return the loss before it, without the prior."""
        self.optimiser.zero_grad()
        total = 0.0
        for one in self.bins:
            volume = self.density(one.z)
            share = one.held_out_share if on_all else 0.0
            value, gradient = one.training.at(volume.detach())
            if on_all:
                other, more = one.held_out.at(volume.detach())
                value = (1 - share) * value + share * other
                gradient = (1 - share) * gradient + share * more
            total += one.weight * value
            propagate(one.weight * gradient, volume)
        self._add_prior(self.images if on_all else self.training_images)
        for group in self.optimiser.param_groups:
            # The consensus was also fitted to the held-out images, so it moves only while all images are fitted.
            group["lr"] = rate * group["size"] if on_all or group["follows_latents"] else 0.0
        self.optimiser.step()
        with torch.no_grad():
            GaussianModel(self.base, self.extent, self.limits).constrain()
        return total

    @torch.no_grad()
    def _add_prior(self, n_images: float) -> None:
        """Add the gradient of the prior, ``½ (q + 1) log(|w|² + ε²)`` of the q slopes of each Gaussian, per image."""
        settings = self.settings
        for leaf, width in (
            (self.mass_slopes, settings.slope_prior),
            (self.displacements, settings.displacement_prior),
        ):
            if leaf.grad is not None:
                flat = leaf.flatten(1)
                scale = (flat.shape[1] + 1) / (n_images * ((flat**2).sum(dim=1, keepdim=True) + width**2))
                leaf.grad += (scale * flat).reshape(leaf.shape)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The loss of the held-out images."""
        return sum(one.weight * one.held_out.at(self.density(one.z))[0] for one in self.bins)

    def state(self) -> list[Tensor]:
        return [t.detach().clone() for t in (*self._base_leaves, self.mass_slopes, self.displacements)]

    @torch.no_grad()
    def restore(self, state: list[Tensor]) -> None:
        for leaf, value in zip((*self._base_leaves, self.mass_slopes, self.displacements), state, strict=True):
            leaf.copy_(value)

    def decoder(self) -> Decoder:
        """The decoder in Å."""
        displacements = self.displacements.detach() * self.pixel_size
        model = self.base.gaussians(self.pixel_size)
        model = replace(model, log_masses=model.log_masses - self._mean_of_slopes().detach())
        return Decoder(model, self.mass_slopes.detach().clone(), displacements)


@dataclass(frozen=True)
class Fitted:
    """A decoder and its history."""

    decoder: Decoder  # fitted to all images in the end
    training: Decoder  # decoder before the steps on all images; the next round starts from it
    histories: tuple[DecoderHistory, ...]  # histories of all variants, the chosen one first


def fit_decoder(
    start: Decoder,
    bins: Sequence[Bin],
    pixel_size: float,
    extent: int,
    settings: DecoderSettings,
    variants: Sequence[str] = VARIANTS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fitted:
    """Fit all variants and return that with the least held-out loss.

    Args:
        start: the decoder to start from, in Å; pixel_size: Å per voxel of the bins' losses.
    """
    most = settings.most_steps + settings.anneal_steps
    found: list[tuple[float, DecoderFit, DecoderHistory]] = []
    for number, variant in enumerate(variants):
        fit, history = DecoderFit(start, bins, pixel_size, extent, variant, settings), DecoderHistory(variant)
        _search(fit, history, partial(_within, progress, number * most, len(variants) * most))
        found.append((history.best, fit, history))
    found.sort(key=lambda item: item[0])
    _, fit, history = found[0]
    training = fit.decoder()
    for i in range(settings.anneal_steps):
        history.losses.append(fit.step(0.5 + 0.5 * math.cos(math.pi * i / settings.anneal_steps), True))
    progress(len(variants) * most, len(variants) * most)
    return Fitted(fit.decoder(), training, tuple(item[2] for item in found))


def _within(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _search(fit: DecoderFit, history: DecoderHistory, progress: Callable[[int], None]) -> None:
    """Take steps until the held-out loss no longer falls; leave the fit in its best state."""
    settings = fit.settings
    history.best = fit.held_out_loss()
    history.checks.append((0, history.best))
    best, waited, done = fit.state(), 0, 0
    while waited < settings.patience and done < settings.most_steps:
        history.losses.append(fit.step(1.0, False))
        done += 1
        progress(done)
        if done % settings.check_every:
            continue
        now = fit.held_out_loss()
        history.checks.append((done, now))
        better = now < history.best - settings.improvement * abs(history.best)
        waited = 0 if better else waited + 1
        if now < history.best:
            history.best, history.best_at, best = now, done, fit.state()
    fit.restore(best)
