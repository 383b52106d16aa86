"""Curves in text."""

from __future__ import annotations

import re

import numpy as np
import pytest

from emsplat.runtime.text_curve import text_curve

BRAILLE = range(0x2800, 0x2900)
BITS = {0x01: (0, 0), 0x02: (1, 0), 0x04: (2, 0), 0x40: (3, 0), 0x08: (0, 1), 0x10: (1, 1), 0x20: (2, 1), 0x80: (3, 1)}


def dots(lines: list[str]) -> np.ndarray:
    """(rows, columns) what is drawn, from the characters, as their standard numbers the dots."""
    rows = [line[5:] for line in lines[1:-2]]
    width = len(lines[-2]) - 5
    drawn = np.zeros((4 * len(rows), 2 * width), dtype=bool)
    for i, row in enumerate(rows):
        for j, character in enumerate(row):
            code = ord(character)
            for bit, (y, x) in BITS.items():
                drawn[4 * i + y, 2 * j + x] |= code in BRAILLE and bool((code - 0x2800) & bit)
    return drawn


@pytest.mark.parametrize("n", [8, 64, 300])
def test_dots_lie_where_the_curve_is(n: int) -> None:
    frequency = np.arange(1, n + 1) / (2.0 * n * 1.5)
    curve = 1 / (1 + np.exp(20 * (frequency - 0.2)))
    drawn = dots(text_curve("c_map", frequency, curve))
    rows, columns = drawn.shape
    at = (np.arange(columns) + 0.5) / columns * frequency[-1]
    heights = 1 - np.array([np.flatnonzero(column).mean() for column in drawn.T]) / (rows - 1)
    assert np.max(np.abs(heights - np.interp(at, frequency, curve))) < 1.5 / rows


def test_a_steep_fall_leaves_no_gap() -> None:
    frequency = np.arange(1, 65) / 192
    drawn = dots(text_curve("c_map", frequency, np.where(frequency < 0.15, 1.0, 0.0)))
    assert drawn.any(axis=1).all()


def test_nothing_is_drawn_where_nothing_is_known() -> None:
    frequency = np.arange(1, 65) / 192
    drawn = dots(text_curve("c_map", frequency, np.where(frequency < 1 / 6, 0.8, np.nan)))
    columns = drawn.shape[1]
    assert drawn[:, : columns // 2 - 2].any(axis=0).all()
    assert not drawn[:, columns // 2 + 1 :].any()


def test_labels_lie_below_their_frequency() -> None:
    frequency = np.arange(1, 65) / 192  # to 3 Å
    lines = text_curve("c_map", frequency, np.ones(64))
    assert lines[0] == "c_map"
    width = len(lines[-2]) - 5
    for label in lines[-1].replace(" Å", "_Å").split():
        text = label.replace("_Å", " Å")
        middle = lines[-1].index(f" {text}") + 1 + len(text) // 2 - 5
        assert middle == pytest.approx(width * 3 / float(text[:-2]), abs=1)
    assert "3 Å" in lines[-1]


@pytest.mark.parametrize("pixel_size", [0.3, 1.0, 14.56, 300.0])
def test_any_scale_has_labels_that_do_not_touch(pixel_size: float) -> None:
    frequency = np.arange(1, 33) / (64 * pixel_size)
    labels = text_curve("c_map", frequency, np.ones(32))[-1]
    apart = re.split(" {2,}", labels.strip())
    assert len(apart) >= 2
    assert all(re.fullmatch(r"[\d.]+ Å", label) for label in apart)
