"""Gaussians: the model ``V(r) = Σ a_k N(r; μ_k, Σ_k)`` as it is stored, merged and put on a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from emsplat.errors import InputError
from emsplat.runtime.files import open_regular, replacing
from emsplat.splat import covariances, voxelise
from emsplat.splat.bandlimit import boosted, widened

_CUTOFF = 5.0  # keeps the error of truncation near Nyquist below 3 %, although the inverse widening amplifies it

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

    def rows(self, rows: NDArray[np.intp] | Tensor) -> Gaussians:
        """The Gaussians with these numbers, or those of a mask."""
        return Gaussians(*(getattr(self, name)[rows] for name in _TENSORS))

    def masses(self) -> Tensor:
        """(K,) integrals, map units × Å³."""
        return self.log_masses.exp()

    def covariances(self) -> Tensor:
        """(K, 3, 3) Å²."""
        return covariances(self.log_scales, self.quaternions)

    def voxelise(self, box_size: int, pixel_size_in_angstroms: float) -> NDArray[np.float32]:
        """(D, D, D) density at any pixel size and box, centred on voxel D//2, without detail too fine for the grid."""
        pixels = self._scaled(1.0 / pixel_size_in_angstroms)
        volume = voxelise(
            pixels.centres, widened(pixels.log_scales), pixels.quaternions, pixels.log_masses, box_size, _CUTOFF, "cpu"
        )
        return boosted(volume.numpy())

    @staticmethod
    def from_pixels(
        centres: Tensor, log_scales: Tensor, quaternions: Tensor, log_masses: Tensor, pixel_size_in_angstroms: float
    ) -> Gaussians:
        """Gaussians whose lengths are given in pixels."""
        tensors = (centres, log_scales.expand(-1, 3), quaternions, log_masses)
        return Gaussians(*(t.detach().clone() for t in tensors))._scaled(pixel_size_in_angstroms)

    def _scaled(self, factor: float) -> Gaussians:
        log = math.log(factor)
        return Gaussians(self.centres * factor, self.log_scales + log, self.quaternions, self.log_masses + 3 * log)

    def save(self, path: Path, **metadata: str) -> None:
        """Write a safetensors file, with the units in its metadata, completely or not at all."""
        tensors = {name: getattr(self, name).float().contiguous() for name in _TENSORS}
        with replacing(path) as temporary:
            temporary.write_bytes(
                save(tensors, metadata=_METADATA | metadata)
            )  # `save_file` hides the error of a full disk

    @staticmethod
    def load(path: Path) -> Gaussians:
        """Read what `save` wrote; InputError if the file is something else."""
        try:
            open_regular(path).close()  # the following call would wait for a pipe without end
            with safe_open(path, framework="pt") as file:
                tensors = [file.get_tensor(name) for name in _TENSORS]
            shapes = [tuple(t.shape) for t in tensors]
            if shapes != [(len(tensors[0]), *rest) for rest in ((3,), (3,), (4,), ())]:
                raise ValueError(f"{', '.join(_TENSORS)} have the shapes {shapes}")
            if not all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors):
                raise ValueError("a value is no finite number, or not of single precision")
            return Gaussians(*tensors)
        except Exception as error:
            raise InputError(
                f"{path}: not a Gaussians file ({error}); give the gaussians.safetensors of a run"
            ) from error


_TENSORS = ("centres", "log_scales", "quaternions", "log_masses")


def merge(*models: Gaussians) -> Gaussians:
    """The average of n models, which is itself a model: the union of all Gaussians with masses divided by n."""
    joined = Gaussians(*(torch.cat([getattr(model, n) for model in models]) for n in _TENSORS))
    return replace(joined, log_masses=joined.log_masses - math.log(len(models)))
