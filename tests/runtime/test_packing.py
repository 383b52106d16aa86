"""Dataclasses come back from a state as they were, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from emsplat.runtime.checkpoint import Checkpoints
from emsplat.runtime.packing import packed, unpacked


@dataclass(frozen=True)
class Inner:
    values: np.ndarray
    names: list[str] = field(default_factory=list)


@dataclass
class Outer:
    pair: tuple[Inner, Inner | None]
    numbers: list[float]
    generator: dict[str, object]
    waves: np.ndarray


def test_a_nested_value_survives_the_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    waves = (rng.normal(size=(3, 4)) + 1j * rng.normal(size=(3, 4))).astype(np.complex64)
    value = Outer(
        (Inner(rng.normal(size=(0, 3)), ["a"]), None),
        [0.1, np.float32(1 / 3), np.inf],
        dict(rng.bit_generator.state),
        waves,
    )
    checkpoints = Checkpoints(tmp_path, resume=True)
    assert checkpoints.save("value", packed(value))
    state = checkpoints.load("value")
    assert state is not None
    found = unpacked(state, Outer, Inner)
    assert isinstance(found.pair, tuple) and found.pair[1] is None and found.pair[0].names == ["a"]
    assert found.pair[0].values.shape == (0, 3)
    assert found.numbers == value.numbers
    np.testing.assert_array_equal(found.waves, waves)
    other = np.random.default_rng(5)
    other.bit_generator.state = found.generator
    assert other.random() == rng.random()
    with pytest.raises(KeyError):
        unpacked(state, Outer)
