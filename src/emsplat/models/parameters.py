"""K Gaussians as the leaves of a fit, lengths in pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, cat

from emsplat.models.gaussians import Gaussians
from emsplat.splat.bandlimit import narrowed

NAMES = ("centres", "log_scales", "quaternions", "log_masses")


@dataclass
class Parameters:
    """K Gaussians, lengths in pixels from the cube's centre. Their covariances include the widening of the splat."""

    centres: Tensor  # (K, 3) x, y, z
    log_scales: Tensor  # (K, 3), or (K, 1) for isotropic Gaussians
    quaternions: Tensor  # (K, 4)
    log_masses: Tensor  # (K,)

    def __len__(self) -> int:
        return len(self.centres)

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Parameters:
        """New tensors from a function of name and tensor."""
        return Parameters(**{name: change(name, getattr(self, name).detach()) for name in NAMES})

    def rows(self, rows: Tensor) -> Parameters:
        """The Gaussians of these rows (numbers or a mask), copied."""
        return self.map(lambda _, tensor: tensor[rows].clone())

    def gaussians(self, pixel_size_in_angstroms: float) -> Gaussians:
        """The same Gaussians in Å, with the widening removed from their covariances."""
        return Gaussians.from_pixels(
            self.centres, narrowed(self.log_scales.detach()), self.quaternions, self.log_masses, pixel_size_in_angstroms
        )


def concatenate(first: Parameters, second: Parameters) -> Parameters:
    """The union of two sets of Gaussians, in this order."""
    return first.map(lambda name, tensor: cat([tensor, getattr(second, name).detach()]))
