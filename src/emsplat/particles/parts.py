"""Parts of the data, and the weight of every image in each of them.

A part is what one map is made from: the training images of a half set, or their share in a soft class or a latent bin.
Half sets are the simple case, in which every image belongs to one part with the weight 1. Only the number of that part
is then stored for an image, and nothing is multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from emsplat.particles.table import Particles

HALF_SET_PARTS = 4  # largest number of parts of half sets: the training and the held-out images of each half
_HELD_OUT_SHARE = 5  # one particle in five of a half is held out
_FEWEST_TO_SPLIT = 40  # images of a half below which none is held out

Rows = NDArray[np.int64]


class Split(IntEnum):
    """The purpose of the images of a part."""

    TRAINING = 0
    HELD_OUT = 1


TRAINING, HELD_OUT = Split.TRAINING, Split.HELD_OUT


class Kind(IntEnum):
    """One of the two sufficient statistics."""

    B = 0  # the back-projection b
    T = 1  # the convolution kernel T


@dataclass(frozen=True, order=True)
class Part:
    """The name of a part; parts are ordered by half set, split and state."""

    half: int = 0  # half set 1 or 2; 0 for images of both
    split: Split = Split.TRAINING
    state: int = 0  # number of a soft class, of a latent bin, or of a component

    @property
    def label(self) -> str:
        """A name for files and messages, such as ``half1-held_out-state3``."""
        return f"half{self.half}-{Split(self.split).name.lower()}-state{self.state}"


@dataclass(frozen=True)
class Entries:
    """Images of a block, and the parts that each of them is added to: m additions of n images."""

    rows: Rows  # (n,) rows of the block that belong to any part, in the order of the block
    places: NDArray[np.int64]  # (m,) index of the added image among these rows, ascending
    numbers: NDArray[np.int32]  # (m,) index of the part that it is added to
    weights: NDArray[np.float32] | None  # (m,) weight of the addition; None: each image is added once with weight 1

    def of_part(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
        """Places of the images that are added to a part, and their weights."""
        chosen = self.numbers == number
        return self.places[chosen], None if self.weights is None else self.weights[chosen]


@dataclass(frozen=True)
class PartWeights:
    """Every image's parts and weights, stored sparsely: M entries of N images in P parts.

    The weight of an image in a part multiplies its term ``C² W²`` of T and, unless b has a weight of its own, its term
    ``C W² y`` of b. An M-step of a linear subspace needs both: b with the mean of a latent, which may be negative, and
    T with a second moment.

    Build it with `one_part_each`, `half_sets`, `from_dense`, `from_triplets` or `with_states`.
    """

    parts: tuple[Part, ...]  # (P,)
    numbers: NDArray[np.int32]  # (M,) index into parts; −1 for an image in no part, without offsets
    offsets: NDArray[np.int64] | None = None  # (N + 1,) entries of row i: offsets[i] to offsets[i + 1]; None: one each
    weights: NDArray[np.float32] | None = None  # (M,) weights in T; None: all are 1, which needs no offsets
    weights_of_b: NDArray[np.float32] | None = None  # (M,) weights in b; None: the same as in T

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.numbers) if self.offsets is None else len(self.offsets) - 1

    @staticmethod
    def one_part_each(parts: Sequence[Part], numbers: NDArray[np.integer]) -> PartWeights:
        """A table with every image in one part with the weight 1, or in no part.

        Args:
            parts: the P parts, all different.
            numbers: (N,) index of each image's part; −1 for none.
        """
        _check_parts(parts)
        numbers = np.asarray(numbers)
        if numbers.ndim != 1 or (len(numbers) and not -1 <= numbers.min() <= numbers.max() < len(parts)):
            raise ValueError(f"numbers must be one a row, from −1 to {len(parts) - 1}, of {len(parts)} parts")
        return PartWeights(tuple(parts), numbers.astype(np.int32))

    @staticmethod
    def whole(n_images: int, part: Part = Part()) -> PartWeights:
        """A table with all images in one part."""
        return PartWeights.one_part_each([part], np.zeros(n_images, dtype=np.int32))

    @staticmethod
    def half_sets(table: Particles, seed: int) -> PartWeights:
        """The training and the held-out images of each half set; a small half has no held-out images."""
        numbers = np.full(len(table), -1, dtype=np.int32)
        parts: list[Part] = []
        for half in (1, 2):
            rows = np.flatnonzero(table.half_set == half)
            held_out = np.zeros(len(rows), dtype=bool)
            if can_split(table, half):
                held_out = _held_out(table.particle[rows], seed + half)
            for split, chosen in ((TRAINING, rows[~held_out]), (HELD_OUT, rows[held_out])):
                if len(chosen):
                    numbers[chosen] = len(parts)
                    parts.append(Part(half, split))
        return PartWeights.one_part_each(parts, numbers)

    @staticmethod
    def from_dense(
        parts: Sequence[Part],
        weights: NDArray[np.floating],
        threshold: float = 0.0,
        weights_of_b: NDArray[np.floating] | None = None,
        signed: bool = False,
    ) -> PartWeights:
        """Weights from a matrix.

        Args:
            weights: (N, P) weight of every image in every part.
            threshold: weights of at most this absolute value are dropped, those of b together with those of T.
            weights_of_b: (N, P) the weights in b, if they differ.
            signed: whether T's weights may be negative, as mixed second moments are.
        """
        weights = np.asarray(weights)
        other = None if weights_of_b is None else np.asarray(weights_of_b)
        for name, matrix in (("weights", weights), ("weights_of_b", other)):
            if matrix is not None and (matrix.ndim != 2 or matrix.shape != (len(weights), len(parts))):
                raise ValueError(f"{name} must have the shape (images, {len(parts)} parts), not {matrix.shape}")
        kept = ~(np.abs(weights) <= threshold)  # written so that NaN is kept and then refused
        if other is not None:
            kept |= ~(np.abs(other) <= threshold)
        rows, numbers = np.nonzero(kept)
        of_b = None if other is None else other[kept]
        return PartWeights.from_triplets(parts, len(weights), rows, numbers, weights[kept], of_b, signed)

    @staticmethod
    def from_triplets(
        parts: Sequence[Part],
        n_images: int,
        rows: NDArray[np.integer],
        numbers: NDArray[np.integer],
        weights: NDArray[np.floating],
        weights_of_b: NDArray[np.floating] | None = None,
        signed: bool = False,
    ) -> PartWeights:
        """Weights from M entries in any order.

        Args:
            rows, numbers: (M,) image and index of the part of each entry; a pair may occur only once.
            weights: (M,) weight in T, and also in b unless `weights_of_b` is given.
            signed: whether T's weights may be negative, as mixed second moments are.
        """
        _check_parts(parts)
        columns = [np.asarray(c) for c in (rows, numbers, weights)]
        columns += [] if weights_of_b is None else [np.asarray(weights_of_b)]
        if len({c.shape for c in columns}) != 1 or columns[0].ndim != 1:
            raise ValueError(f"the columns of entries differ in shape: {', '.join(str(c.shape) for c in columns)}")
        for name, column, end in (("row", columns[0], n_images), ("part number", columns[1], len(parts))):
            if len(column) and not 0 <= column.min() <= column.max() < end:
                raise ValueError(f"each {name} must be from 0 to {end - 1}, not {column.min()} to {column.max()}")
        for name, column in zip(("weights", "weights_of_b"), columns[2:], strict=False):
            if not np.isfinite(column).all():
                at = int(np.flatnonzero(~np.isfinite(column))[0])
                raise ValueError(f"{name} holds {column[at]} for row {columns[0][at]}; weights must be finite")
        if not signed and len(weights) and columns[2].min() < 0:
            at = int(np.argmin(columns[2]))
            raise ValueError(
                f"the weight of row {columns[0][at]} in {parts[columns[1][at]].label} is {columns[2][at]:g}; weights "
                "in T must not be negative, unless they are mixed moments (signed=True)"
            )
        order = np.lexsort((columns[1], columns[0]))
        rows, numbers, *values = (c[order] for c in columns)
        twice = (rows[1:] == rows[:-1]) & (numbers[1:] == numbers[:-1])
        if twice.any():
            at = int(np.flatnonzero(twice)[0])
            raise ValueError(f"row {rows[at]} has two weights in {parts[int(numbers[at])].label}; it may have one")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_images))]).astype(np.int64)
        return PartWeights(tuple(parts), numbers.astype(np.int32), offsets, *(v.astype(np.float32) for v in values))

    def with_states(
        self,
        weights: NDArray[np.floating],
        threshold: float = 0.0,
        weights_of_b: NDArray[np.floating] | None = None,
        signed: bool = False,
    ) -> PartWeights:
        """Divide every part into states by soft weights; every image must belong to at most one part.

        Args: as for `from_dense`, (N, states); an image in no part stays in none.
        Returns:
            A table of the parts ``Part(half, split, state)``, all states of the first part first.
        """
        if self.offsets is not None:
            raise ValueError("only a table that has one part of each image can be divided into states")
        states = [Part(0, TRAINING, state) for state in range(np.shape(weights)[1])]
        soft = PartWeights.from_dense(states, weights, threshold, weights_of_b, signed)
        if len(soft) != len(self):
            raise ValueError(f"weights are of {len(soft)} images, the table of {len(self)}")
        assert soft.offsets is not None
        base = np.repeat(self.numbers, np.diff(soft.offsets))
        kept = base >= 0
        offsets = np.concatenate([[0], np.cumsum(kept)])[soft.offsets]
        numbers = (base * len(states) + soft.numbers)[kept].astype(np.int32)
        values = (None if v is None else v[kept] for v in (soft.weights, soft.weights_of_b))
        parts = tuple(Part(p.half, p.split, state) for p in self.parts for state in range(len(states)))
        return PartWeights(parts, numbers, offsets, *values)

    def weights_of(self, kind: Kind) -> NDArray[np.float32] | None:
        """(M,) weights in b or in T; None: all are 1."""
        return self.weights_of_b if kind == Kind.B and self.weights_of_b is not None else self.weights

    def has(self, kind: Kind) -> NDArray[np.bool_]:
        """(P,) whether any image contributes to b, or T, of each part."""
        weights = self.weights_of(kind)
        numbers = self.numbers[self.numbers >= 0 if weights is None else weights != 0]
        return np.bincount(numbers, minlength=len(self.parts)) > 0

    def counts(self) -> NDArray[np.int64]:
        """(P,) number of images in every part."""
        return np.bincount(self.numbers[self.numbers >= 0], minlength=len(self.parts)).astype(np.int64)

    def sums_of_weights(self) -> NDArray[np.float64]:
        """(P,) the sum of the weights in T, by which losses are divided."""
        if self.weights is None:
            return self.counts().astype(np.float64)
        return np.bincount(self.numbers, self.weights, minlength=len(self.parts)).astype(np.float64)

    def holds(self, wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(N,) whether each image belongs to any of the wanted parts, (P,)."""
        if self.offsets is None:
            return np.append(wanted, False)[self.numbers]  # −1 selects the last entry
        before = np.concatenate([[0], np.cumsum(wanted[self.numbers])])
        return before[self.offsets[1:]] > before[self.offsets[:-1]]

    def first_of(self, wanted: NDArray[np.bool_]) -> NDArray[np.int32]:
        """(N,) index of the first of the wanted parts, (P,), that each image belongs to; −1 for none."""
        if self.offsets is None:
            return np.where(np.append(wanted, False)[self.numbers], self.numbers, -1).astype(np.int32)
        rows = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        chosen = np.flatnonzero(wanted[self.numbers])
        found, at = np.unique(rows[chosen], return_index=True)
        first = np.full(len(self), -1, dtype=np.int32)
        first[found] = self.numbers[chosen[at]]
        return first

    def rows_of(self, part: Part, order: Rows) -> Rows:
        """The rows in `order` that belong to a part, in their order; none if the table has no such part."""
        return order[self.holds(np.array([p == part for p in self.parts], dtype=bool))[order]]

    def entries(self, rows: Rows, kind: Kind, wanted: NDArray[np.bool_]) -> Entries:
        """The contributions of some rows to b, or T, of the wanted parts, (P,)."""
        if self.offsets is None:
            numbers = self.numbers[rows]
            chosen = np.append(wanted, False)[numbers]
            rows, numbers = rows[chosen], numbers[chosen]
            return Entries(rows, np.arange(len(rows)), numbers, None)
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        ends = np.cumsum(lengths)
        places = np.repeat(np.arange(len(rows)), lengths)
        at = np.arange(len(places)) + np.repeat(self.offsets[rows] - (ends - lengths), lengths)
        numbers, weights = self.numbers[at], self.weights_of(kind)
        assert weights is not None
        chosen = wanted[numbers] & (weights[at] != 0)
        kept, places = np.unique(places[chosen], return_inverse=True)
        return Entries(rows[kept], places, numbers[chosen], weights[at][chosen])


def can_split(table: Particles, half: int) -> bool:
    """Whether a half has enough images, of more than one particle, to hold some of them out."""
    rows = table.half_set == half
    return bool(np.sum(rows) >= _FEWEST_TO_SPLIT and len(np.unique(table.particle[rows])) > 1)


def _held_out(particle: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """(n,) whether each image is of the one particle in five that is held out."""
    names, inverse = np.unique(particle, return_inverse=True)
    chosen = np.arange(len(names)) % _HELD_OUT_SHARE == 0
    np.random.default_rng(seed).shuffle(chosen)
    return chosen[inverse]


def _check_parts(parts: Sequence[Part]) -> None:
    if len(set(parts)) != len(parts):
        twice = next(part for part in parts if list(parts).count(part) > 1)
        raise ValueError(f"the part {twice.label} comes twice; all parts of a table must differ")
