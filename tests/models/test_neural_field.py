"""Neural fields: density, projections and gradients beside references in float64 that are written differently."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from emsplat.models import neural_field
from emsplat.models.density_model import DensityModel
from emsplat.models.encodings import Encoding, HashGrid, PositionalEncoding
from emsplat.models.neural_field import NeuralField

EXTENT = 15
ENCODINGS = {
    "positional": PositionalEncoding(frequencies=4, highest=6.0),
    "hash grid": HashGrid(levels=3, coarsest=3, finest=9, log2_rows=7),  # two levels without and one with collisions
}


def field_of(encoding: Encoding, positive: bool = True, extent: int = EXTENT) -> NeuralField:
    field = NeuralField.random(extent, encoding, (8, 8), scale=2.5, seed=3, positive=positive)
    generator = torch.Generator().manual_seed(4)
    for leaf in field.leaves.values():  # tables and biases that begin at nearly nothing would hide mistakes
        leaf += 0.3 * torch.randn(leaf.shape, generator=generator)
    model: DensityModel = field  # the type checker's word that it is one
    assert model is field
    return field


def encoded(encoding: Encoding, point: Tensor, leaves: dict[str, Tensor]) -> Tensor:
    """The features of one point in [−1, 1]³, straight from their definition."""
    if isinstance(encoding, PositionalEncoding):
        ratio = (2 * encoding.highest) ** (1 / (encoding.frequencies - 1))
        waves = [0.5 * ratio**n for n in range(encoding.frequencies)]
        phases = torch.stack([math.pi * wave * x for x in point for wave in waves])
        return torch.cat([point, phases.sin(), phases.cos()])
    assert isinstance(encoding, HashGrid)
    found, first = [], 0
    for cells, length in zip(encoding.cells, encoding.rows, strict=True):
        scaled = (point + 1) / 2 * cells
        total = torch.zeros(2, dtype=point.dtype)
        for vertex in itertools.product(range(cells + 1), repeat=3):
            weight = math.prod(max(0.0, 1 - abs(float(s) - v)) for s, v in zip(scaled, vertex, strict=True))
            x, y, z = vertex
            row = x + (cells + 1) * y + (cells + 1) ** 2 * z
            if (cells + 1) ** 3 > length:
                row = (x ^ (y * 2_654_435_761) ^ (z * 805_459_861)) % length
            if weight:
                total = total + weight * leaves["table"][first + row]
        found.append(total)
        first += length
    return torch.cat(found)


def value_at(field: NeuralField, x: float, y: float, z: float, leaves: dict[str, Tensor]) -> Tensor:
    """The density at one point in voxels from the centre, in the precision of the leaves."""
    point = torch.tensor([x, y, z], dtype=leaves["weights0"].dtype)
    if float(point.norm()) > field.extent / 2 - 2:
        return point.new_zeros(())
    values = encoded(field.encoding, point / (field.extent / 2), leaves)
    for layer in range(3):
        values = values @ leaves[f"weights{layer}"] + leaves[f"biases{layer}"]
        if layer < 2:
            values = values.clamp_min(0)
    return field.scale * (torch.log1p(values.exp()) if field.positive else values)[0]


def in_float64(field: NeuralField) -> dict[str, Tensor]:
    return {name: leaf.double().requires_grad_() for name, leaf in field.leaves.items()}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("positive", [True, False])
def test_the_density_is_that_of_the_definition(name: str, positive: bool) -> None:
    field = field_of(ENCODINGS[name], positive)
    leaves, middle = in_float64(field), EXTENT // 2
    density = field.density()
    assert density.shape == (EXTENT,) * 3
    for z, y, x in [(7, 7, 7), (3, 9, 8), (10, 4, 6), (8, 5, 11), (0, 0, 0), (7, 7, 1)]:
        expected = value_at(field, x - middle, y - middle, z - middle, leaves)
        assert float(density[z, y, x]) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-6)
    assert not density[0].any()
    assert positive == bool((density >= 0).all())


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("again", [False, True])
def test_gradients_are_those_of_autograd_in_float64(name: str, again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one block and with many, whose activations are computed again."""
    if again:
        monkeypatch.setattr(neural_field, "_BLOCK_FLOATS", 2000)
        monkeypatch.setattr(neural_field, "_KEPT_FLOATS", 0)
    extent = 9
    field = field_of(ENCODINGS[name], extent=extent)
    cotangent = torch.randn(extent, extent, extent, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    leaves, middle = in_float64(field), extent // 2
    reference = sum(
        cotangent[z, y, x] * value_at(field, x - middle, y - middle, z - middle, leaves)
        for z, y, x in itertools.product(range(extent), repeat=3)
    )
    assert isinstance(reference, Tensor)
    reference.backward()
    single = field.with_leaves({name: leaf.clone().requires_grad_() for name, leaf in field.leaves.items()})
    single.density().backward(cotangent.float())
    for leaf_name, leaf in leaves.items():
        found, expected = single.leaves[leaf_name].grad, leaf.grad
        assert found is not None
        assert expected is not None
        assert float((found - expected).norm()) < 1e-5 * float(expected.norm())


@pytest.mark.parametrize("name", ENCODINGS)
def test_projections_are_sums_along_lines_of_sight(name: str) -> None:
    """Turned by right angles and shifted by whole pixels, they are sums of voxels."""
    field, box_size = field_of(ENCODINGS[name]), 17
    turned = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # x in the image is y in the volume
    shifts = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    plain, moved = field.project(torch.stack([torch.eye(3), turned]), shifts, box_size)
    density, first = field.density(), box_size // 2 - EXTENT // 2
    expected = torch.zeros(box_size, box_size)
    expected[first : first + EXTENT, first : first + EXTENT] = density.sum(dim=0)
    assert torch.allclose(plain, expected, atol=1e-4)
    # At the pixel (x, y) of the image lies the point x · (0, 1, 0) + y · (−1, 0, 0) of the volume.
    axis = torch.arange(EXTENT) - EXTENT // 2
    seen = torch.zeros(box_size, box_size)
    for x, y in itertools.product(axis.tolist(), repeat=2):
        place = (box_size // 2 + y - 2, box_size // 2 + x + 1)
        if abs(y) <= EXTENT // 2:
            seen[place] = density[:, EXTENT // 2 + x, EXTENT // 2 - y].sum()
    assert torch.allclose(moved, seen, atol=1e-4)


def test_number_of_parameters() -> None:
    grid = ENCODINGS["hash grid"]
    assert isinstance(grid, HashGrid)
    assert grid.cells == [3, 5, 9]
    assert grid.rows == [64, 128, 128]
    network = 8 * grid.n_features + 8 + 8 * 8 + 8 + 8 + 1
    assert len(field_of(grid)) == 2 * (64 + 128 + 128) + network


def test_memory_is_bounded_by_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd keeps for the gradient is far less than all activations."""
    monkeypatch.setattr(neural_field, "_BLOCK_FLOATS", 20_000)
    field = field_of(ENCODINGS["positional"], extent=25)
    leaves = {name: leaf.requires_grad_() for name, leaf in field.leaves.items()}

    def kept() -> int:
        """Numbers that autograd keeps for the gradient."""
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            field.with_leaves(leaves).density()
        return sum(sizes)

    everything = kept()
    monkeypatch.setattr(neural_field, "_KEPT_FLOATS", 0)
    assert kept() < everything / 4
