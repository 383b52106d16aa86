"""Adam, whose memory follows the rows of its leaves as they come and go."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_BETAS, _EPSILON = (0.8, 0.99), 1e-12
_AGE = "age."

Leaves = Mapping[str, Tensor]


class Adam:
    """Adam (Kingma & Ba 2015) with one step size per leaf; rows can be kept, dropped and appended.

    Args:
        leaves: tensors by name, each of shape (rows, ...).
        step_sizes: step size of every leaf that is to be changed, by name.
        floors: for a leaf whose gradient may be nothing but rounding, another leaf of as many rows and a share: a step
            is divided by at least this share of the size of the other one's gradient. The other leaf must come first
            among the step sizes.
    """

    def __init__(
        self, leaves: Leaves, step_sizes: Mapping[str, float], floors: Mapping[str, tuple[str, float]] | None = None
    ) -> None:
        self.step_sizes, self.floors = dict(step_sizes), dict(floors or {})
        self._mean = {name: torch.zeros_like(leaf, requires_grad=False) for name, leaf in leaves.items()}
        self._square = {name: torch.zeros_like(leaf, requires_grad=False) for name, leaf in leaves.items()}
        # The number of steps of every row, by the number of rows: leaves of equal length change their rows together.
        self._age = {len(leaf): leaf.detach().new_zeros(len(leaf)) for leaf in leaves.values()}

    @torch.no_grad()
    def step(self, leaves: Leaves, rate: float | Tensor) -> None:
        """Take one step down the gradients stored in the leaves and clear them; `rate` scales all step sizes.

        All work is in place. If the rate is a tensor, no value is read, so that a CUDA graph can record the step.
        """
        corrections = {}
        for rows, age in self._age.items():
            age += 1
            corrections[rows] = torch.sqrt(1 - _BETAS[1] ** age) / (1 - _BETAS[0] ** age)
        for name, size in self.step_sizes.items():
            leaf, mean, square = leaves[name], self._mean[name], self._square[name]
            gradient, leaf.grad = leaf.grad, None
            if gradient is None:
                continue
            mean.lerp_(gradient, 1 - _BETAS[0])
            square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            divisor = square.sqrt()
            if name in self.floors:
                other, share = self.floors[name]
                divisor += share * self._square[other].sum(dim=1, keepdim=True).sqrt()
            step = (mean * _by_row(corrections[len(leaf)], leaf)).div_(divisor.add_(_EPSILON))
            leaf.sub_(step.mul_(rate * size))

    def gradient_sizes(self, name: str) -> Tensor:
        """(rows,) root mean square of the recent gradients of each row of a leaf."""
        square = self._square[name]
        share = 1 - _BETAS[1] ** self._age[len(square)].clamp_min(1)
        return (square.flatten(start_dim=1).sum(dim=1) / share).sqrt()

    def replace_rows(self, keep: Tensor, n_added: int) -> None:
        """Keep the memory of these rows (a mask for all leaves, of equal length) and append rows without memory."""
        for memory in (self._mean, self._square):
            for name, values in memory.items():
                memory[name] = torch.cat([values[keep], values.new_zeros((n_added, *values.shape[1:]))])
        [age] = self._age.values()
        age = torch.cat([age[keep], age.new_zeros(n_added)])
        self._age = {len(age): age}

    def tensors(self) -> dict[str, Tensor]:
        """All the memory by name, for a checkpoint."""
        memories = {"mean": self._mean, "square": self._square}
        tensors = {f"{kind}.{name}": values for kind, memory in memories.items() for name, values in memory.items()}
        return tensors | {f"{_AGE}{rows}": age for rows, age in self._age.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the memory that `tensors` of an optimiser with the same names of leaves returned."""
        self._mean, self._square = ({name: tensors[f"{k}.{name}"] for name in self._mean} for k in ("mean", "square"))
        self._age = {len(age): age for name, age in tensors.items() if name.startswith(_AGE)}


def _by_row(values: Tensor, leaf: Tensor) -> Tensor:
    """(rows, 1, …) values of the rows, ready to be multiplied by the leaf."""
    return values.view(-1, *[1] * (leaf.ndim - 1))
