"""STAR: any table survives being written and read; the compiled reader of large files reads what the plain one does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from emsplat.errors import InputError
from emsplat.io import Table, read_star, write_star
from emsplat.io.star import Reading
from emsplat.io.star_scan import scan_rows
from spoilt.mutations import STAR, TEXT

QUICK = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["data_", "data_x", "loop_", "_x", "#", "", "'", '"', "it's", "a 'b' c", "'a", 'b"', "1e5", "nan", "stop_"]
)
NAMES = st.from_regex(r"[A-Za-z]\w{0,8}", fullmatch=True)


@QUICK
@given(st.data(), st.integers(1, 4), st.integers(0, 5), st.booleans())
def test_any_table_survives(tmp_path: Path, data: st.DataObject, columns: int, rows: int, is_loop: bool) -> None:
    rows = rows if is_loop else 1
    names = data.draw(st.lists(NAMES, min_size=columns, max_size=columns, unique=True))
    table = Table({n: data.draw(st.lists(VALUES, min_size=rows, max_size=rows)) for n in names}, is_loop)
    try:
        write_star(tmp_path / "a.star", {"": table})
    except ValueError:  # a line break, a NUL, or quotes of both kinds
        assume(False)
    found = read_star(tmp_path / "a.star")[""]
    assert (dict(found.columns), found.is_loop) == (dict(table.columns), is_loop)


def test_what_no_quotes_can_hold_is_refused(tmp_path: Path) -> None:
    for value in ("a' b\" c", "two\nlines", "\0"):
        with pytest.raises(ValueError, match="cannot hold"):
            write_star(tmp_path / "a.star", {"": Table({"rlnA": [value]})})


DECIMAL = re.compile(r"[+-]?\d{0,20}\.?\d{0,20}([eE][+-]?\d{0,4})?", re.ASCII)
NUMBERS = st.floats(allow_nan=False).map(repr) | st.from_regex(DECIMAL, fullmatch=True)


@QUICK
@given(st.lists(NUMBERS.filter(bool), min_size=1, max_size=20))
def test_numbers_are_the_nearest_or_left_alone(words: list[str]) -> None:
    text = "".join(f"x {word} \n" for word in words).encode()
    found = scan_rows(text, 2, np.array([1]), np.array([True]))
    assert (found.n_rows, found.end) == (len(words), len(text))
    for word, value, exact in zip(words, found.values[0], found.exact[0], strict=True):
        if exact:
            assert np.float64(word).tobytes() == value.tobytes()  # the sign of zero too
    ordinary = [word.replace(".", "").isdigit() and len(word) <= 15 for word in words]
    np.testing.assert_array_equal(found.exact[0][ordinary], True)


def parsed(path: Path, compiled: bool) -> object:
    """What is read in pieces that begin anywhere, or the refusal."""
    reading = Reading(piece=100, rows_worth_compiling=1 if compiled else 1 << 60)
    try:
        tables = read_star(path, {"rlnA": float, "rlnB": str, "rlnC": float}, reading)
    except InputError as error:
        return str(error)
    return {name: {n: list(values) for n, values in table.columns.items()} for name, table in tables.items()}


def test_the_compiled_reader_is_the_plain_one(tmp_path: Path) -> None:
    """On spoilt files too."""
    rng = np.random.default_rng(0)
    path = tmp_path / "a.star"
    columns = {
        "rlnA": rng.normal(size=60) * 10.0 ** rng.integers(-30, 30, 60),
        "rlnX": np.arange(60),
        "rlnC": np.arange(60),
    }
    texts = {name: [f"{value:.{rng.integers(1, 20)}g}" for value in values] for name, values in columns.items()}
    write_star(path, {"images": Table(texts | {"rlnB": [f"{i % 7}@é.mrcs" if i == 40 else "1@a" for i in range(60)]})})
    valid = path.read_bytes()
    refused = 0
    for seed in range(3):
        for name, mutation in {**TEXT, **STAR}.items():
            if not name.startswith(("many", "large")):
                path.write_bytes(mutation(valid, np.random.default_rng([seed, len(name)])))
                plain = parsed(path, False)
                assert parsed(path, True) == plain, name
                refused += isinstance(plain, str)
    assert 20 < refused < 80


def test_the_compiled_reader_stops_at_what_is_not_plain() -> None:
    plain = b"1 a\n  2\tb  \n"
    for odd in (
        b"3\n",
        b"3 c d\n",
        b"\n",
        b"# c\n",
        b"3 #c\n",
        b"3 'c'\n",
        b'3 "c"\n',
        b"3 \xc3\xa9\n",
        b"3 \x0b\n",
        b"3 c",
    ):
        found = scan_rows(plain + odd + plain, 2, np.array([0, 1]), np.array([True, False]))
        if odd == b"3 c":  # no line end: it goes on with the next row
            found = scan_rows(plain + odd, 2, np.array([0, 1]), np.array([True, False]))
        assert (found.n_rows, found.end) == (2, len(plain)), odd
        np.testing.assert_array_equal(found.values[0], [1, 2])
        assert [plain[a:b] for a, b in found.spans[1].T] == [b"a", b"b"]
