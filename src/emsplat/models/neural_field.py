"""Neural fields as density models, for comparison with the Gaussians.

A small network gives the density at a point from an encoding of its coordinates. With `encodings.PositionalEncoding`
this is the coordinate network of NeRF (Mildenhall et al. 2020), with `encodings.HashGrid` the hash grid of instant-NGP
(Müller et al. 2022). The density is that of a map in real space: there are no rays, colours or opacities.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from emsplat.models.encodings import Encoding
from emsplat.models.optimiser import Adam
from emsplat.splat.bandlimit import boosted

_EDGE = 2.0  # voxels between the faces of the cube and the ball outside which the density is 0, as for the Gaussians
_BLOCK_FLOATS = 4 << 20  # activations of a block
_KEPT_FLOATS = 64 << 20  # activations up to which they are kept for the gradient; beyond, they are computed again


@dataclass(frozen=True)
class NeuralField:
    """A density in a cube, blurred as `density_model.DensityModel` asks for. It is such a model.

    The field stands for the blurred density, which the voxels sample without aliasing. It is evaluated in blocks of
    points. If all activations need more than 256 MB, they are computed again for the gradient, block by block.
    """

    extent: int  # edge of the cube in voxels
    encoding: Encoding
    leaves: dict[str, Tensor]  # those of the encoding, and ``weights0``, ``biases0``, ``weights1`` … of the network
    scale: float  # density at a network output of 1
    positive: bool = True  # softplus after the last layer; otherwise the density may have any sign
    gradient_floors: ClassVar[Mapping[str, tuple[str, float]]] = {}

    @staticmethod
    def random(
        extent: int, encoding: Encoding, widths: tuple[int, ...], scale: float, seed: int, positive: bool = True
    ) -> NeuralField:
        """A field whose network has hidden layers of these widths, with random weights (He et al. 2015)."""
        generator = torch.Generator().manual_seed(seed)
        leaves = encoding.leaves(generator)
        sizes = [encoding.n_features, *widths, 1]
        for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            bound = math.sqrt(6 / n_in) if layer < len(widths) else math.sqrt(1 / n_in)
            leaves[f"weights{layer}"] = bound * (2 * torch.rand(n_in, n_out, generator=generator) - 1)
            leaves[f"biases{layer}"] = torch.zeros(n_out)
        return NeuralField(extent, encoding, leaves, scale, positive)

    def with_leaves(self, leaves: dict[str, Tensor]) -> NeuralField:
        """The same network with other weights."""
        return replace(self, leaves=leaves)

    def __len__(self) -> int:
        """Number of trainable parameters."""
        return sum(leaf.numel() for leaf in self.leaves.values())

    def density(self) -> Tensor:
        """(d, d, d) density at the voxels of the cube, 0 outside the ball inscribed in it."""
        d, some = self.extent, self.leaves["weights0"]
        axis = torch.arange(d, dtype=some.dtype, device=some.device) - d // 2
        inside = _within_ball(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2, d)
        scaled = axis / (0.5 * d)
        of_planes = self._activations * inside.sum(dim=(1, 2))
        planes = max(1, _BLOCK_FLOATS // max(1, int(of_planes.max())))
        again = int(of_planes.sum()) > _KEPT_FLOATS
        values = [
            self._computed(_Planes(z, scaled, mask), again)
            for z, mask in zip(scaled.split(planes), inside.split(planes), strict=True)
        ]
        return torch.zeros(d, d, d, dtype=some.dtype, device=some.device).masked_scatter(inside, torch.cat(values))

    def on_grid(self, box_size: int) -> NDArray[np.float32]:
        """(D, D, D) density without the blur, on the middle of a larger or equal box."""
        volume = np.zeros((box_size,) * 3, dtype=np.float32)
        first = box_size // 2 - self.extent // 2
        with torch.no_grad():
            volume[(slice(first, first + self.extent),) * 3] = self.density().cpu().numpy()
        return boosted(volume)

    def project(self, matrices: Tensor, shifts: Tensor, box_size: int) -> Tensor:
        """(n, D, D) sums of the density along lines of sight, sampled once in each pixel of depth."""
        some = self.leaves["weights0"]
        matrices, shifts = matrices.to(some), shifts.to(some)
        pixel = torch.arange(box_size, dtype=some.dtype, device=some.device) - box_size // 2
        depth = torch.arange(self.extent, dtype=some.dtype, device=some.device) - self.extent // 2
        images = []
        for matrix, shift in zip(matrices, shifts, strict=True):
            z, y, x = torch.meshgrid(depth, pixel - shift[1], pixel - shift[0], indexing="ij")
            points = (torch.stack([x, y, z], dim=-1) @ matrix).view(-1, 3)
            inside = _within_ball(points.square().sum(dim=1), self.extent).nonzero()[:, 0]
            line = points.new_zeros(len(points)).index_put((inside,), self._at(points[inside]))
            images.append(line.view(self.extent, box_size, box_size).sum(dim=0))
        return torch.stack(images) if images else matrices.new_zeros(0, box_size, box_size)

    def constrain(self) -> None:
        """Any weights will do."""

    def densify(self, optimiser: Adam, rng: np.random.Generator) -> None:
        """A network has nothing to add."""

    @property
    def _activations(self) -> int:
        """Numbers that the gradient needs of each point."""
        return self.encoding.n_features + sum(len(leaf) for name, leaf in self.leaves.items() if "biases" in name)

    def _at(self, points: Tensor) -> Tensor:
        """(n,) density at (n, 3) points x, y, z in voxels from the centre."""
        blocks = (points / (0.5 * self.extent)).split(max(1, _BLOCK_FLOATS // self._activations))
        again = len(points) * self._activations > _KEPT_FLOATS
        values = [self._computed(_Points(block), again) for block in blocks if len(block)]
        return torch.cat(values) if values else points.new_zeros(0)

    def _computed(self, places: _Planes | _Points, again: bool) -> Tensor:
        """(n,) density at some places. Args: again: whether to compute the activations again for the gradient."""
        names = list(self.leaves)

        def evaluate(*leaves: Tensor) -> Tensor:
            return self._evaluate(places, dict(zip(names, leaves, strict=True)))

        if not again:
            return evaluate(*self.leaves.values())
        values: Tensor = checkpoint(evaluate, *self.leaves.values(), use_reentrant=False, preserve_rng_state=False)
        return values

    def _evaluate(self, places: _Planes | _Points, leaves: dict[str, Tensor]) -> Tensor:
        values = places.features(self.encoding, leaves)
        n_layers = sum(name.startswith("weights") for name in leaves)
        for layer in range(n_layers):
            values = torch.addmm(leaves[f"biases{layer}"], values, leaves[f"weights{layer}"])
            if layer < n_layers - 1:
                values = torch.relu(values)
        values = values[:, 0]
        return self.scale * (torch.nn.functional.softplus(values) if self.positive else values)


@dataclass(frozen=True)
class _Points:
    """Points anywhere."""

    points: Tensor  # (n, 3) in [−1, 1]

    def features(self, encoding: Encoding, leaves: dict[str, Tensor]) -> Tensor:
        return encoding.features(self.points, leaves)


@dataclass(frozen=True)
class _Planes:
    """Points of a grid, plane by plane; the fields are the arguments of `Encoding.features_of_planes`."""

    z: Tensor
    axis: Tensor
    inside: Tensor

    def features(self, encoding: Encoding, leaves: dict[str, Tensor]) -> Tensor:
        return encoding.features_of_planes(self.z, self.axis, self.inside, leaves)


def _within_ball(squared_radius: Tensor, extent: int) -> Tensor:
    """Mask of the points within the ball in which a model may have density."""
    return squared_radius <= (extent / 2 - _EDGE) ** 2
