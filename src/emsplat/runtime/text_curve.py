"""A curve in text for terminals, with two by four dots in each character."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 56, 7  # characters
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # bits of a braille character, by column, from the top
_BLANK, _LEVEL, _AXIS = 0x2800, "┄", "─"
_LEVELS = {1.0: "1.0", 0.5: "0.5", 0.0: "0.0"}
_LEAST_GAP = 8  # characters between labels in Å


def text_curve(name: str, frequency: NDArray[np.float64], curve: NDArray[np.float64]) -> list[str]:
    """Lines that show a correlation between 0 and 1 against frequency, with its resolution in Å below.

    Args:
        name: written above.
        frequency: (n,) 1/Å, rising; curve: (n,), clipped to 0 .. 1; nothing is drawn where it is NaN.
    """
    columns, rows = 2 * _WIDTH, 4 * _HEIGHT
    dots = np.zeros((rows, columns), dtype=bool)
    at = (np.arange(columns) + 0.5) / columns * frequency[-1]
    values = np.interp(at, frequency, np.clip(curve, 0, 1))  # NaN stays NaN
    row_of = np.rint((1 - values) * (rows - 1))
    for column in range(columns):
        if not math.isfinite(row_of[column]):
            continue
        row = int(row_of[column])
        before = row if column == 0 or not math.isfinite(row_of[column - 1]) else int(row_of[column - 1])
        dots[min(row, before + 1) : max(row, before - 1) + 1, column] = True  # without gaps where it is steep
        dots[row, column] = True
    lines = [name]
    for line in range(_HEIGHT):
        block = dots[4 * line : 4 * line + 4]
        label = next((text for level, text in _LEVELS.items() if _line_of(level) == line), "")
        is_level = line == _line_of(0.5)
        cells = (_character(block[:, 2 * i : 2 * i + 2], is_level) for i in range(_WIDTH))
        lines.append(f"{label:>3} {'┤' if label else '│'}{''.join(cells)}".rstrip())
    return [*lines, "    └" + _AXIS * _WIDTH, _resolutions(float(frequency[-1]))]


def _line_of(level: float) -> int:
    return round((1 - level) * (4 * _HEIGHT - 1)) // 4


def _character(block: NDArray[np.bool_], is_level: bool) -> str:
    bits = sum(_DOTS[column][row] for column in range(2) for row in range(4) if block[row, column])
    if bits:
        return chr(_BLANK + bits)
    return _LEVEL if is_level else " "


def _resolutions(last_frequency: float) -> str:
    """Round numbers of Å, the finest first, each below its place."""
    line = [" "] * (_WIDTH + 12)
    free_below = len(line)
    for resolution in (m * 10.0**e for e in range(-1, 4) for m in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
        text = f"{resolution:g} Å"
        place = 5 + round(_WIDTH / resolution / last_frequency)
        start = place - len(text) // 2
        if place <= 5 + _WIDTH and start >= 7 and start + _LEAST_GAP <= free_below:
            line[start : start + len(text)] = text
            free_below = start
    return "".join(line).rstrip()
