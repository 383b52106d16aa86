"""The decoder: Gaussians whose masses and positions follow the latents. One model holds the maps of all particles.

``V(z) = Σ_j exp(α_j + w_j·z) N(r; μ_j + u_j z, Σ_j)``: every Gaussian has a slope w_j of its log mass and a
displacement u_j for each latent. All images contribute to the position of mass that all states share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from emsplat.errors import InputError
from emsplat.models.gaussians import Gaussians, merge
from emsplat.runtime.files import open_regular, replacing

_GAUSSIANS = ("centres", "log_scales", "quaternions", "log_masses")
_SLOPES = ("mass_slopes", "displacements")
_METADATA = {
    "format": "emsplat decoder 1",
    "centres": "Å from the box centre (voxel D//2), x y z, at z = 0",
    "log_scales": "natural log of σ in Å, along the Gaussian's own axes",
    "quaternions": "w x y z, the Gaussian's axes → x y z",
    "log_masses": "natural log of the integral, map units × Å³, at z = 0",
    "mass_slopes": "change of the log mass with each latent",
    "displacements": "Å, x y z: movement of the centre with each latent",
}
STEEPEST = 8.0  # largest change of a log mass; exp(8) is all or nothing


@dataclass(frozen=True)
class Decoder:
    """J Gaussians as functions of K latents; lengths in Å."""

    gaussians: Gaussians  # Gaussians at z = 0
    mass_slopes: Tensor  # (J, K)
    displacements: Tensor  # (J, K, 3) Å

    @property
    def n_latents(self) -> int:
        """K."""
        return self.mass_slopes.shape[1]

    @property
    def moves(self) -> bool:
        """Whether any Gaussian changes its position."""
        return bool(self.displacements.any())

    def at(self, z: NDArray[np.floating] | Tensor) -> Gaussians:
        """The Gaussians at one point z, (K,)."""
        point = torch.as_tensor(np.asarray(z), dtype=torch.float32)
        base = self.gaussians
        return replace(
            base,
            centres=base.centres + torch.einsum("jkc,k->jc", self.displacements, point),
            log_masses=base.log_masses + (self.mass_slopes @ point).clamp(-STEEPEST, STEEPEST),
        )

    def save(self, path: Path, **metadata: str) -> None:
        """Write a safetensors file, with the units in its metadata, completely or not at all."""
        tensors = {name: getattr(self.gaussians, name) for name in _GAUSSIANS}
        tensors |= {name: getattr(self, name) for name in _SLOPES}
        data = save({n: t.detach().float().contiguous() for n, t in tensors.items()}, metadata=_METADATA | metadata)
        with replacing(path) as temporary:
            temporary.write_bytes(data)

    @staticmethod
    def load(path: Path) -> Decoder:
        """Read what `save` wrote; InputError if the file is something else."""
        try:
            open_regular(path).close()
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in (*_GAUSSIANS, *_SLOPES)}
            n, k = tensors["mass_slopes"].shape
            expected = ((n, 3), (n, 3), (n, 4), (n,), (n, k), (n, k, 3))
            if tuple(tuple(t.shape) for t in tensors.values()) != expected:
                raise ValueError(f"the tensors have the shapes {[tuple(t.shape) for t in tensors.values()]}")
            if not all(t.isfinite().all() for t in tensors.values()):
                raise ValueError("a value is no finite number")
        except Exception as error:
            raise InputError(
                f"{path}: not a decoder ({error}); give the folder of an emsplat heterogeneity run"
            ) from error
        model = Gaussians(*(tensors[name] for name in _GAUSSIANS))
        return Decoder(model, tensors["mass_slopes"], tensors["displacements"])


def average(first: Decoder, second: Decoder) -> Decoder:
    """The decoder whose map at any point is the average of two decoders' maps there."""
    return Decoder(
        merge(first.gaussians, second.gaussians),
        torch.cat([first.mass_slopes, second.mass_slopes]),
        torch.cat([first.displacements, second.displacements]),
    )
