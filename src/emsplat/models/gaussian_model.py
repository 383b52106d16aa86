"""The set of Gaussians as a density model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from emsplat.models.densification import Densification, densified
from emsplat.models.optimiser import Adam
from emsplat.models.parameters import NAMES, Parameters, concatenate
from emsplat.splat import project, voxelise
from emsplat.splat.bandlimit import WIDENING

_MIN_SCALE = 0.2  # smallest σ in pixels; no atom that a grid can show is sharper
_EDGE = 2.0  # voxels between the faces of the cube and the ball that centres are kept in
_WIDEST_PER_SPACING = 0.6  # largest σ, in units of the distance between Gaussians that fill the particle evenly
# A round Gaussian has no direction. The gradient with respect to its quaternion is pure rounding, which Adam would
# amplify to whole steps, so that runs whose sums differ by rounding would not come to the same map.
_ROUND = 1e-2


@dataclass(frozen=True)
class GaussianSettings:
    """Limits of a set of Gaussians."""

    n_gaussians: int  # target number of densification
    isotropic: bool = False
    cutoff: float = 3.0  # Mahalanobis radius at which they are truncated
    max_scale: float = 2.0  # σ in pixels; wider splats cost much and show little that narrower ones cannot
    densification: Densification = field(default_factory=Densification)

    @staticmethod
    def for_particle(n_gaussians: int, volume_in_voxels: float, isotropic: bool = False) -> GaussianSettings:
        """Settings whose Gaussians can be wide enough to fill the particle's volume, however few they are."""
        spacing = (volume_in_voxels / n_gaussians) ** (1 / 3)
        return GaussianSettings(n_gaussians, isotropic, max_scale=max(1.0, _WIDEST_PER_SPACING * spacing))


@dataclass
class GaussianModel:
    """Gaussians in a cube: a `density_model.DensityModel`."""

    parameters: Parameters
    extent: int  # edge of the cube in voxels
    settings: GaussianSettings
    gradient_floors: ClassVar[dict[str, tuple[str, float]]] = {"quaternions": ("log_scales", _ROUND)}

    def __len__(self) -> int:
        return len(self.parameters)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The four tensors of `Parameters`."""
        return {name: getattr(self.parameters, name) for name in NAMES}

    def with_leaves(self, leaves: dict[str, Tensor]) -> GaussianModel:
        """Other Gaussians in the same cube."""
        return replace(self, parameters=Parameters(**leaves))

    def density(self) -> Tensor:
        """(d, d, d) density on the cube."""
        p = self.parameters
        return voxelise(p.centres, p.log_scales, p.quaternions, p.log_masses, self.extent, self.settings.cutoff)

    def project(self, matrices: Tensor, shifts: Tensor, box_size: int) -> Tensor:
        """(n, D, D) projections; see `splat.project`."""
        p, cutoff = self.parameters, self.settings.cutoff
        return project(p.centres, p.log_scales, p.quaternions, p.log_masses, matrices, shifts, box_size, cutoff)

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep the centres within the ball inscribed in the cube, and σ in the range that a grid can hold."""
        centres, log_scales = self.parameters.centres, self.parameters.log_scales
        log_scales.clamp_(*(0.5 * math.log(s**2 + WIDENING) for s in (_MIN_SCALE, self.settings.max_scale)))
        limit = self.extent / 2 - _EDGE
        radius = centres.norm(dim=1, keepdim=True).clamp_min(1e-6)
        centres.mul_((limit / radius).clamp_max(1.0))

    def densify(self, optimiser: Adam, rng: np.random.Generator) -> None:
        """Carry out one round of `densification`."""
        pulls = optimiser.gradient_sizes("centres")
        settings = self.settings
        keep, added = densified(self.parameters, pulls, settings.n_gaussians, settings.densification, rng)
        together = concatenate(self.parameters.rows(keep), added)
        self.parameters = together.map(lambda _, tensor: tensor.requires_grad_())
        optimiser.replace_rows(keep, len(added))
