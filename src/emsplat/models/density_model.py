"""The density model: what a fit needs to know of anything that has a density.

A fit changes the leaves of a model by gradient descent. It does not know what they stand for: a set of Gaussians
(`gaussian_model`), the weights of a neural field, or a decoder at one point of its latent space are fitted by the same
two loops, with the same stopping rule, checkpoints and CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

import numpy as np
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from emsplat.models.optimiser import Adam

Model = TypeVar("Model", bound="DensityModel")


class DensityModel(Protocol):
    """A density in a cube of d³ voxels, as a function of leaf tensors.

    Both `density` and `project` give the density blurred by a Gaussian of variance κ (`splat.bandlimit.WIDENING`, in
    voxels²). The losses undo the blur in Fourier space, so that a model may hold detail that its grid cannot sample.
    """

    @property
    def extent(self) -> int:
        """d, the edge of the cube in voxels; its origin is voxel d//2."""
        ...

    @property
    def gradient_floors(self) -> Mapping[str, tuple[str, float]]:
        """The `floors` argument of `Adam`; empty for most models."""
        ...

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The tensors that a fit changes in place, by name; each has at least one dimension."""
        ...

    def with_leaves(self: Model, leaves: dict[str, Tensor]) -> Model:
        """The same model with other leaves of these names, which are not copied."""
        ...

    def __len__(self) -> int:
        """Number of elements, for the log: Gaussians, voxels, weights."""
        ...

    def density(self) -> Tensor:
        """(d, d, d) density ``[z, y, x]``, differentiable by the leaves."""
        ...

    def project(self, matrices: Tensor, shifts: Tensor, box_size: int) -> Tensor:
        """(n, D, D) projections ``[y, x]``, differentiable by the leaves.

        Args:
            matrices: (n, 3, 3) from `optics.aberrations.slice_matrices`.
            shifts: (n, 2) x, y in pixels: the origin of the cube lies at pixel ``D // 2 + shift``.
            box_size: D.
        """
        ...

    def constrain(self) -> None:
        """Move leaves that a step has taken out of their bounds back into them, in place."""
        ...

    def densify(self, optimiser: Adam, rng: np.random.Generator) -> None:
        """Add detail where the loss asks for it; this may replace the leaves and the optimiser's memory of them.

        A model that has nothing to add does nothing.
        """
        ...


def propagate(gradient: Tensor, output: Tensor) -> None:
    """Add to the gradients of the leaves what follows from the gradient with respect to a density or to projections.

    ``output.backward(gradient)`` does the same, but loads a library of symbolic mathematics first, which takes half a
    second, to compare two shapes.
    """
    _Given.apply(output, gradient).backward()


class _Given(Function):
    """A number whose derivative with respect to a tensor is given."""

    @staticmethod
    def forward(ctx, output, gradient):
        ctx.save_for_backward(gradient)
        return output.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        del cotangent  # it is 1
        return ctx.saved_tensors[0], None
