"""Adam with a memory whose rows come and go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from emsplat.models.gaussian_model import GaussianModel
from emsplat.models.optimiser import Adam

SHAPES = {"centres": (3,), "log_scales": (3,), "quaternions": (4,), "log_masses": ()}
STEPS = {"centres": 0.1, "log_scales": 0.03, "quaternions": 0.03, "log_masses": 0.04}
Tensors = dict[str, Tensor]


def drawn(n: int, seed: int = 0) -> Tensors:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, *shape, generator=rng) for name, shape in SHAPES.items()}


def leaves_of(tensors: Tensors) -> Tensors:
    return {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}


def adam(leaves: Tensors) -> Adam:
    return Adam(leaves, STEPS, GaussianModel.gradient_floors)


def step(optimiser: Adam, leaves: Tensors, gradients: Tensors) -> None:
    for name, leaf in leaves.items():
        leaf.grad = gradients[name].clone()
    optimiser.step(leaves, 1.0)


def equal(one: Tensors, other: Tensors) -> bool:
    return all(torch.equal(one[name], other[name]) for name in SHAPES)


def rows(tensors: Tensors, chosen: Tensor) -> Tensors:
    return {name: tensor.detach()[chosen] for name, tensor in tensors.items()}


def test_it_is_torchs_own_where_no_row_comes_or_goes() -> None:
    """To rounding, over some steps; without floors, which torch has none of."""
    ours, theirs = leaves_of(drawn(20)), leaves_of(drawn(20))
    one = Adam(ours, STEPS)
    groups = [{"params": [leaf], "lr": STEPS[name]} for name, leaf in theirs.items()]
    other = torch.optim.Adam(groups, betas=(0.8, 0.99), eps=1e-12)
    for seed in range(5):
        gradients = drawn(20, seed)
        step(one, ours, gradients)
        for name, leaf in theirs.items():
            leaf.grad = gradients[name].clone()
        other.step()
    for name, leaf in ours.items():
        torch.testing.assert_close(leaf, theirs[name], rtol=1e-5, atol=1e-6)


def test_leaves_of_any_shape_and_length_are_stepped() -> None:
    """As those of a network: each its own step size at first, whatever its gradient."""
    leaves = {"weights": torch.zeros(4, 3, 2, requires_grad=True), "bias": torch.zeros(5, requires_grad=True)}
    optimiser = Adam(leaves, {"weights": 0.1, "bias": 0.2})
    for leaf in leaves.values():
        leaf.grad = torch.full_like(leaf, 3.0)
    optimiser.step(leaves, 0.5)
    torch.testing.assert_close(leaves["weights"].detach(), torch.full((4, 3, 2), -0.05))
    torch.testing.assert_close(leaves["bias"].detach(), torch.full((5,), -0.1))


def test_the_memory_follows_the_rows() -> None:
    """Rows that stay go on as if nothing had happened; new ones start as with a new optimiser."""
    undisturbed, changed, added = leaves_of(drawn(10)), leaves_of(drawn(10)), leaves_of(drawn(3, seed=3))
    optimisers = [adam(leaves) for leaves in (undisturbed, changed, added)]
    for leaves, optimiser in zip((undisturbed, changed), optimisers, strict=False):
        for _ in range(3):
            step(optimiser, leaves, drawn(10, seed=1))
    keep = torch.tensor([True, False, True, True, False, True, True, True, False, True])
    optimisers[1].replace_rows(keep, n_added=3)
    kept = rows(changed, keep)
    changed = leaves_of({name: torch.cat([kept[name], added[name].detach()]) for name in SHAPES})
    second, third = drawn(10, seed=2), drawn(3, seed=4)
    both = {name: torch.cat([second[name][keep], third[name]]) for name in SHAPES}
    for _ in range(2):
        step(optimisers[0], undisturbed, second)
        step(optimisers[1], changed, both)
        step(optimisers[2], added, third)
    assert equal(rows(changed, torch.arange(7)), rows(undisturbed, keep))
    assert equal(rows(changed, torch.arange(7, 10)), rows(added, torch.arange(3)))


def test_a_restored_optimiser_goes_on_as_the_one_before() -> None:
    before, after = leaves_of(drawn(6)), leaves_of(drawn(6))
    one = adam(before)
    step(one, before, drawn(6, seed=1))
    step(adam(after), after, drawn(6, seed=1))
    other = adam(after)
    other.restore({name: tensor.clone() for name, tensor in one.tensors().items()})
    step(one, before, drawn(6, seed=2))
    step(other, after, drawn(6, seed=2))
    assert equal(before, after)


def test_the_first_step_is_the_step_size() -> None:
    start, leaves = drawn(5), leaves_of(drawn(5))
    step(adam(leaves), leaves, drawn(5, seed=1))
    for name in SHAPES:
        shares = (leaves[name].detach() - start[name]).abs() / STEPS[name]
        assert shares.max() < 1.001
        assert shares.median() > (0.9 if name == "quaternions" else 0.999)


def test_a_round_gaussian_is_not_turned_by_rounding() -> None:
    """Its quaternion has no gradient but what rounding leaves, which Adam would make whole steps of."""
    start, leaves, gradients = drawn(5), leaves_of(drawn(5)), drawn(5, seed=1)
    optimiser = adam(leaves)
    for seed in range(3):
        gradients["quaternions"] = 1e-7 * drawn(5, seed=seed)["quaternions"]
        step(optimiser, leaves, gradients)
    assert (leaves["quaternions"].detach() - start["quaternions"]).abs().max() < 1e-3 * STEPS["quaternions"]


def test_gradient_sizes_are_those_of_a_steady_gradient() -> None:
    leaves, gradients = leaves_of(drawn(5)), drawn(5, seed=1)
    optimiser = adam(leaves)
    for _ in range(4):
        step(optimiser, leaves, gradients)
    assert optimiser.gradient_sizes("centres").tolist() == pytest.approx(gradients["centres"].norm(dim=1).tolist())
