"""Encodings of points for neural fields: features in which a small network can express fine detail.

- `PositionalEncoding`: waves of geometrically spaced frequencies along each axis (Mildenhall et al. 2020)
- `HashGrid`: grids from coarse to fine, whose vertices share a table of trainable features (Müller et al. 2022)
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_PRIMES = (1, 2_654_435_761, 805_459_861)  # of the hash of Müller et al. (2022)
_FEATURES = 2  # features of each vertex
_INITIAL = 1e-4  # largest size of a feature before the first step


class Encoding(Protocol):
    """Features of points of the cube [−1, 1]³."""

    @property
    def n_features(self) -> int:
        """Number of features of each point."""
        ...

    def leaves(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The trainable tensors before the first step, by name; may be empty."""
        ...

    def features(self, points: Tensor, leaves: dict[str, Tensor]) -> Tensor:
        """(n, F) features of (n, 3) points x, y, z, differentiable by the leaves."""
        ...

    def features_of_planes(self, z: Tensor, axis: Tensor, inside: Tensor, leaves: dict[str, Tensor]) -> Tensor:
        """The same of points on a grid, with less work.

        Args:
            z: (k,) coordinates of the planes.
            axis: (d,) coordinates of the points of a plane along x and along y.
            inside: (k, d, d) mask ``[z, y, x]`` of the n points that are asked for.
        """
        ...


@dataclass(frozen=True)
class PositionalEncoding:
    """The coordinates, and sine and cosine of each coordinate at several frequencies."""

    frequencies: int  # number of frequencies of each axis
    highest: float  # in waves per edge of the cube; the lowest is half a wave

    @property
    def n_features(self) -> int:
        return 3 + 6 * self.frequencies

    def leaves(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing is trained."""
        del generator
        return {}

    def features(self, points: Tensor, leaves: dict[str, Tensor]) -> Tensor:
        """(n, 3 + 6 frequencies) features."""
        del leaves
        waves = torch.logspace(math.log2(0.5), math.log2(self.highest), self.frequencies, base=2.0, dtype=points.dtype)
        phases = (points[:, :, None] * (math.pi * waves.to(points.device))).flatten(start_dim=1)
        return torch.cat([points, phases.sin(), phases.cos()], dim=1)

    def features_of_planes(self, z: Tensor, axis: Tensor, inside: Tensor, leaves: dict[str, Tensor]) -> Tensor:
        """The waves along an axis are computed once for each coordinate of the grid."""
        place = inside.nonzero().unbind(dim=1)
        of_axes = [self.features(along[:, None], leaves) for along in (axis, axis, z)]
        found = [features[index] for features, index in zip(of_axes, reversed(place), strict=True)]
        # Of each axis: the coordinate, its sines, its cosines. Of a point: all coordinates, all sines, all cosines.
        parts = [features.split([1, self.frequencies, self.frequencies], dim=1) for features in found]
        return torch.cat([part[kind] for kind in range(3) for part in parts], dim=1)


@dataclass(frozen=True)
class HashGrid:
    """Trilinear interpolation in grids of several levels; a fine level hashes its vertices into a table."""

    levels: int
    coarsest: int  # cells along the edge of the cube
    finest: int
    log2_rows: int  # largest number of rows of a level's table, as a power of two

    @property
    def n_features(self) -> int:
        return _FEATURES * self.levels

    @property
    def cells(self) -> list[int]:
        """Cells along the edge of the cube, level by level."""
        growth = (self.finest / self.coarsest) ** (1 / max(self.levels - 1, 1))
        return [round(self.coarsest * growth**level) for level in range(self.levels)]

    @property
    def rows(self) -> list[int]:
        """Rows of the table, level by level; a level with as many rows as vertices has no collisions."""
        return [min((cells + 1) ** 3, 1 << self.log2_rows) for cells in self.cells]

    def leaves(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The tables of all levels in one tensor, nearly zero."""
        return {"table": _INITIAL * (2 * torch.rand(sum(self.rows), _FEATURES, generator=generator) - 1)}

    def features(self, points: Tensor, leaves: dict[str, Tensor]) -> Tensor:
        """(n, 2 levels) features."""
        found, first = [], 0
        for cells, length in zip(self.cells, self.rows, strict=True):
            rows, weights = _corners(points, cells, length)
            corners = leaves["table"][first + rows]
            found.append((corners * weights[:, :, None]).sum(dim=1))
            first += length
        return torch.cat(found, dim=1)

    def features_of_planes(self, z: Tensor, axis: Tensor, inside: Tensor, leaves: dict[str, Tensor]) -> Tensor:
        """On a grid the interpolation is separable: along z, then y, then x, for all points of a plane at once."""
        found, first = [], 0
        for cells, length in zip(self.cells, self.rows, strict=True):
            low, along_z = _interpolation(z, cells)
            _, along = _interpolation(axis, cells, everything=True)
            table = leaves["table"][first : first + length]
            values = _vertices(table, cells, low, along_z.shape[1])
            values = torch.tensordot(along_z, values, dims=1)
            values = torch.einsum("yv,zvxf->zyxf", along, values)
            values = torch.einsum("xv,zyvf->zyxf", along, values)
            found.append(values[inside])
            first += length
        return torch.cat(found, dim=1)


def _cell(coordinates: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """The vertices before coordinates in [−1, 1], and the share of a cell beyond them."""
    scaled = (0.5 * (coordinates + 1)).clamp(0, 1) * cells
    low = scaled.floor().clamp_max(cells - 1)
    return low.long(), scaled - low


def _row(x: Tensor, y: Tensor, z: Tensor, cells: int, length: int) -> Tensor:
    """The rows of vertices in a level's table; if it has too few rows, they are hashed into it."""
    if (cells + 1) ** 3 <= length:
        return x + (cells + 1) * (y + (cells + 1) * z)
    hashed: Tensor = (x * _PRIMES[0]) ^ (y * _PRIMES[1]) ^ (z * _PRIMES[2])
    return hashed % length


def _corners(points: Tensor, cells: int, length: int) -> tuple[Tensor, Tensor]:
    """(n, 8) rows of a level's table and (n, 8) weights of the vertices around each point."""
    low, share = _cell(points, cells)
    rows, weights = [], []
    for corner in itertools.product((0, 1), repeat=3):
        x, y, z = (low + torch.tensor(corner, device=low.device)).unbind(dim=1)
        rows.append(_row(x, y, z, cells, length))
        sides = [share[:, axis] if end else 1 - share[:, axis] for axis, end in enumerate(corner)]
        weights.append(sides[0] * sides[1] * sides[2])
    return torch.stack(rows, dim=1), torch.stack(weights, dim=1)


def _interpolation(coordinates: Tensor, cells: int, everything: bool = False) -> tuple[int, Tensor]:
    """The first vertex that any coordinate needs, and the (n, vertices) matrix of the interpolation from there on.

    Args:
        everything: whether to begin with vertex 0 and to end with the last one.
    """
    low, share = _cell(coordinates, cells)
    first, last = (0, cells) if everything else (int(low.min()), int(low.max()) + 1)
    matrix = coordinates.new_zeros(len(coordinates), last - first + 1)
    place = torch.arange(len(coordinates), device=low.device)
    matrix[place, low - first] = 1 - share
    matrix[place, low - first + 1] = share
    return first, matrix


def _vertices(table: Tensor, cells: int, first: int, number: int) -> Tensor:
    """(number, cells+1, cells+1, F) features of the vertices of some planes, ``[z, y, x]``."""
    edge = cells + 1
    if len(table) == edge**3:
        return table.view(edge, edge, edge, -1)[first : first + number]
    axis = torch.arange(edge, device=table.device)
    z = torch.arange(first, first + number, device=table.device)
    rows = _row(axis, axis[:, None], z[:, None, None], cells, len(table))
    return table.index_select(0, rows.flatten()).view(number, edge, edge, -1)
