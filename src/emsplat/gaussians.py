"""Gaussians: the model ``V(r) = Σ a_k N(r; μ_k, Σ_k)`` as it is stored, merged and put on a grid."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from emsplat.errors import InputError
from emsplat.splat import covariances, voxelise

_METADATA = {
    "format": "emsplat gaussians 1",
    "centres": "Å from the box centre (voxel D//2), x y z",
    "log_scales": "natural log of σ in Å, along the Gaussian's own axes",
    "quaternions": "w x y z, the Gaussian's axes → x y z",
    "log_masses": "natural log of the integral, map units × Å³",
}


@dataclass(frozen=True)
class Gaussians:
    """K Gaussians; lengths in Å from the box centre, masses in map units × Å³. Masses are positive by construction."""

    centres: Tensor  # (K, 3) x, y, z
    log_scales: Tensor  # (K, 3)
    quaternions: Tensor  # (K, 4) w, x, y, z
    log_masses: Tensor  # (K,)

    def __len__(self) -> int:
        return len(self.centres)

    def masses(self) -> Tensor:
        """(K,) integrals, map units × Å³."""
        return self.log_masses.exp()

    def covariances(self) -> Tensor:
        """(K, 3, 3) Å²."""
        return covariances(self.log_scales, self.quaternions)

    def voxelise(self, box_size: int, pixel_size_in_angstroms: float, cutoff: float = 4.0) -> Tensor:
        """(D, D, D) float32 density at any pixel size and box, centred on voxel D//2."""
        scaled = self._scaled(1.0 / pixel_size_in_angstroms)
        return voxelise(
            scaled.centres, scaled.log_scales, scaled.quaternions, scaled.log_masses, box_size, cutoff, "cpu"
        )

    def in_pixels(self, pixel_size_in_angstroms: float) -> Gaussians:
        """The same density with lengths in pixels, as the fit holds it."""
        return self._scaled(1.0 / pixel_size_in_angstroms)

    @staticmethod
    def from_pixels(
        centres: Tensor, log_scales: Tensor, quaternions: Tensor, log_masses: Tensor, pixel_size_in_angstroms: float
    ) -> Gaussians:
        """Gaussians whose lengths are given in pixels."""
        tensors = (centres, log_scales.expand(-1, 3), quaternions, log_masses)
        return Gaussians(*(t.detach().clone() for t in tensors))._scaled(pixel_size_in_angstroms)

    def _scaled(self, factor: float) -> Gaussians:
        log = torch.log(torch.tensor(factor, dtype=torch.float64)).item()
        return Gaussians(
            self.centres * factor, self.log_scales + log, self.quaternions, self.log_masses + 3 * log
        )

    def save(self, path: Path, **metadata: str) -> None:
        """Write a safetensors file with the units in its metadata; complete or not at all."""
        tensors = {name: getattr(self, name).float().contiguous() for name in _TENSORS}
        partial = path.with_name(f".{path.name}.partial")
        try:
            save_file(tensors, partial, metadata=_METADATA | metadata)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def load(path: Path) -> Gaussians:
        """Read what `save` wrote; InputError where the file is something else."""
        try:
            with safe_open(path, framework="pt") as file:
                return Gaussians(*(file.get_tensor(name) for name in _TENSORS))
        except Exception as error:
            raise InputError(
                f"{path}: not a Gaussians file ({error}); give the gaussians.safetensors of a run"
            ) from error


_TENSORS = ("centres", "log_scales", "quaternions", "log_masses")


def merge(first: Gaussians, second: Gaussians) -> Gaussians:
    """The average of two models, itself a model: the union of both with half the masses."""
    log_half = torch.log(torch.tensor(0.5)).item()
    return Gaussians(
        *(torch.cat([getattr(first, n), getattr(second, n)]) for n in _TENSORS[:3]),
        log_masses=torch.cat([first.log_masses, second.log_masses]) + log_half,
    )
