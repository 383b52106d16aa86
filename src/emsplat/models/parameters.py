"""The fit's parameters in pixels, and Adam with a state that follows Gaussians as they come and go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = ("centres", "log_scales", "quaternions", "log_masses")
_BETAS, _EPSILON = (0.8, 0.99), 1e-12
# Of the size of the gradient by the scales: what the gradient by a quaternion is divided by at least. A round Gaussian
# has no direction, so that gradient is rounding there, which Adam would blow up to whole steps: no two runs whose sums
# differ by their rounding would come to the same map.
_ROUND = 1e-2


@dataclass
class Parameters:
    """K Gaussians as leaf tensors, lengths in pixels from the cube's centre."""

    centres: Tensor  # (K, 3) x, y, z
    log_scales: Tensor  # (K, 3), or (K, 1) for isotropic Gaussians
    quaternions: Tensor  # (K, 4)
    log_masses: Tensor  # (K,)

    def __len__(self) -> int:
        return len(self.centres)

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Parameters:
        """New leaves from a function of name and tensor."""
        return Parameters(**{name: change(name, getattr(self, name).detach()) for name in NAMES})

    def to(self, device: torch.device) -> Parameters:
        """On this device."""
        return self.map(lambda _, tensor: tensor.to(device))

    def rows(self, rows: Tensor) -> Parameters:
        """The Gaussians of these rows (numbers or a mask), copied."""
        return self.map(lambda _, tensor: tensor[rows].clone())


def concatenate(first: Parameters, second: Parameters) -> Parameters:
    """Both sets, the first one first."""
    return first.map(lambda name, tensor: torch.cat([tensor, getattr(second, name).detach()]))


class Adam:
    """Adam (Kingma & Ba 2015) with one step size per kind of parameter; rows can be kept, dropped and appended."""

    def __init__(self, parameters: Parameters, step_sizes: dict[str, float]) -> None:
        self.parameters = parameters.map(lambda _, tensor: tensor.clone().requires_grad_())
        self.step_sizes = step_sizes
        self._mean = parameters.map(lambda _, tensor: torch.zeros_like(tensor))
        self._square = parameters.map(lambda _, tensor: torch.zeros_like(tensor))
        self._age = torch.zeros(len(parameters), device=parameters.centres.device)

    def forget_gradients(self) -> None:
        """Clear what an interrupted step may have left in the leaves."""
        for name in NAMES:
            getattr(self.parameters, name).grad = None

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        """One step along the gradients stored in the leaves, which are cleared; `rate` scales all step sizes.

        All in place, and where the rate is a tensor without a look at any value: a CUDA graph can hold it.
        """
        self._age += 1
        correction = torch.sqrt(1 - _BETAS[1] ** self._age) / (1 - _BETAS[0] ** self._age)
        for name, size in self.step_sizes.items():
            leaf, mean, square = (getattr(p, name) for p in (self.parameters, self._mean, self._square))
            gradient = leaf.grad
            leaf.grad = None
            if gradient is None:
                continue
            mean.lerp_(gradient, 1 - _BETAS[0])
            square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            scale = correction if leaf.ndim == 1 else correction[:, None]
            size_of_gradient = square.sqrt()
            if name == "quaternions":
                size_of_gradient += _ROUND * self._square.log_scales.sum(dim=1, keepdim=True).sqrt()
            leaf.sub_((mean * scale).div_(size_of_gradient.add_(_EPSILON)).mul_(rate * size))

    def pulls(self) -> Tensor:
        """(K,) how hard the loss has lately pulled at each centre: its slope along a way of one σ, root mean square."""
        seen = 1 - _BETAS[1] ** self._age.clamp_min(1)
        slopes = (self._square.centres.sum(dim=1) / seen).sqrt()
        return slopes * self.parameters.log_scales.detach().mean(dim=1).exp()

    def replace(self, keep: Tensor, added: Parameters) -> None:
        """Keep these rows with their moments and append new Gaussians with none."""
        nothing = added.map(lambda _, tensor: torch.zeros_like(tensor))
        self.parameters = concatenate(self.parameters.rows(keep), added).map(lambda _, t: t.requires_grad_())
        self._mean = concatenate(self._mean.rows(keep), nothing)
        self._square = concatenate(self._square.rows(keep), nothing)
        self._age = torch.cat([self._age[keep], self._age.new_zeros(len(added))])

    def tensors(self) -> dict[str, Tensor]:
        """The parameters and all the memory, by name, for a checkpoint."""
        kinds = {"parameters": self.parameters, "mean": self._mean, "square": self._square}
        named = {f"{kind}.{name}": getattr(p, name).detach() for kind, p in kinds.items() for name in NAMES}
        return named | {"age": self._age}

    @staticmethod
    def restored(tensors: dict[str, Tensor], step_sizes: dict[str, float]) -> Adam:
        """The optimiser that `tensors` were taken from."""
        kinds = (Parameters(**{n: tensors[f"{kind}.{n}"] for n in NAMES}) for kind in ("parameters", "mean", "square"))
        parameters, mean, square = kinds
        optimiser = Adam(parameters, step_sizes)
        optimiser._mean, optimiser._square, optimiser._age = mean, square, tensors["age"]
        return optimiser
