"""The rows of a large STAR loop, found and turned to numbers by compiled code: words not kept make no objects."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

_TAB, _NEWLINE, _SPACE, _QUOTE, _SHARP, _APOSTROPHE, _LAST_ASCII = 9, 10, 32, 34, 35, 39, 126
_ZERO, _NINE, _DOT, _PLUS, _MINUS, _LOWER_E, _UPPER_E = 48, 57, 46, 43, 45, 101, 69
# An integer below 2**53 times or over a power of ten up to 10**22 is one rounding of two exact numbers, so it is the
# double nearest to the decimal: Clinger (1990), PLDI, 92.
_LARGEST_EXACT = 2**53
_EXACT_POWERS = 10.0 ** np.arange(23)


@dataclass(frozen=True)
class Rows:
    """n rows of K kept columns."""

    n_rows: int
    end: int  # position after the last of them
    spans: NDArray[np.int64]  # (K, 2, n) where the words begin and end
    values: NDArray[np.float64]  # (K, n) the words as numbers
    exact: NDArray[np.bool_]  # (K, n) whether the value is the number nearest to the word; else it means nothing


def scan_rows(text: bytes, n_columns: int, kept: NDArray[np.int64], are_numbers: NDArray[np.bool_]) -> Rows:
    """The rows from the start up to the end, or to the first row that is not plain.

    A plain row is a line of `n_columns` words of printable ASCII, none of which is quoted or begins a comment.

    Args:
        kept: (K,) numbers of the columns to keep, ascending; are_numbers: (K,) whether their values are wanted.
    """
    most = len(text) // (2 * n_columns)  # a word and its separator take at least two bytes
    spans = np.empty((len(kept), 2, most), dtype=np.int64)
    values = np.empty((len(kept), most))
    exact = np.zeros((len(kept), most), dtype=np.bool_)
    view = np.frombuffer(text, dtype=np.uint8, count=text.rfind(b"\n") + 1)
    end, n = _scan(view, n_columns, kept, are_numbers, spans, values, exact)
    return Rows(int(n), int(end), spans[..., :n], values[:, :n], exact[:, :n])


@numba.njit(cache=True)
def _scan(text, n_columns, kept, are_numbers, spans, values, exact):
    """Fills the tables row by row; returns the position after the last plain row, and the number of rows."""
    start, row = 0, 0
    while start < len(text):
        position, column, slot = start, 0, 0
        while True:
            while text[position] == _SPACE or text[position] == _TAB:
                position += 1
            if text[position] == _NEWLINE:
                break
            begin = position
            if text[begin] == _SHARP or text[begin] == _QUOTE or text[begin] == _APOSTROPHE:
                return start, row
            while _SPACE < text[position] <= _LAST_ASCII:
                position += 1
            if position == begin or column == n_columns:  # a control or non-ASCII character; too many words
                return start, row
            if slot < len(kept) and kept[slot] == column:
                spans[slot, 0, row], spans[slot, 1, row] = begin, position
                if are_numbers[slot]:
                    values[slot, row], exact[slot, row] = _number(text, begin, position)
                slot += 1
            column += 1
        if column != n_columns:
            return start, row
        start = position + 1
        row += 1
    return start, row


@numba.njit(cache=True)
def _number(text, position, end):
    """The number a word spells, and whether that is exact, which is also False if it spells none."""
    negative = text[position] == _MINUS
    if negative or text[position] == _PLUS:
        position += 1
    mantissa, digits, decimals, after_dot = 0, 0, 0, False
    while position < end:
        if _ZERO <= text[position] <= _NINE:
            if mantissa > _LARGEST_EXACT // 10 - 1:
                return 0.0, False
            mantissa = 10 * mantissa + (text[position] - _ZERO)
            digits += 1
            decimals += after_dot
        elif text[position] == _DOT and not after_dot:
            after_dot = True
        else:
            break
        position += 1
    exponent = 0
    if position < end:
        exponent, is_exponent = _exponent(text, position, end)
        if not is_exponent:
            return 0.0, False
    power = exponent - decimals
    if digits == 0 or not -len(_EXACT_POWERS) < power < len(_EXACT_POWERS):
        return 0.0, False
    value = mantissa * _EXACT_POWERS[power] if power >= 0 else mantissa / _EXACT_POWERS[-power]
    return -value if negative else value, True


@numba.njit(cache=True)
def _exponent(text, position, end):
    """The exponent after an e, and whether there is one of at most three digits."""
    if text[position] != _LOWER_E and text[position] != _UPPER_E:
        return 0, False
    position += 1
    negative = position < end and text[position] == _MINUS
    if negative or (position < end and text[position] == _PLUS):
        position += 1
    if not 0 < end - position <= 3:
        return 0, False
    value = 0
    while position < end:
        if not _ZERO <= text[position] <= _NINE:
            return 0, False
        value = 10 * value + (text[position] - _ZERO)
        position += 1
    return -value if negative else value, True
