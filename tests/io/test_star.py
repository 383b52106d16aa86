"""STAR files: every dialect reads the same, what is written is read, bad files are refused in one line."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from emsplat.io import Table, read_star, write_star
from processes import PATIENCE

PLAIN = "data_images\n\nloop_\n_rlnA #1\n_rlnB #2\n1 one\n2 two\n\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace(" #1", "").replace(" #2", ""),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.rstrip(),
        "\ufeff# made by hand\n" + PLAIN,
        PLAIN.replace("loop_", "loop_ # comment").replace("2 two", "# between rows\n   2\t'two'   # at the end"),
        PLAIN.replace("one", '"one"'),
        PLAIN.replace("_rlnB #2\n", "_rlnB #2\n\n"),
    ],
    ids=["plain", "no numbers", "crlf", "no end", "bom", "comments", "quotes", "blank after header"],
)
def test_dialects_of_one_table_read_the_same(tmp_path, text):
    path = tmp_path / "a.star"
    path.write_bytes(text.encode())
    (table,) = read_star(path).values()
    assert table.columns == {"rlnA": ["1", "2"], "rlnB": ["one", "two"]}
    np.testing.assert_array_equal(table.floats("rlnA"), [1, 2])
    np.testing.assert_array_equal(table.integers("rlnA"), [1, 2])


def test_blocks_keep_names_and_kinds(tmp_path):
    path = tmp_path / "a.star"
    path.write_text("data_\n_rlnKey  value\n_rlnWords 'two words'\n\n" + PLAIN + "data_none\nloop_\n_rlnC\n")
    blocks = read_star(path)
    assert list(blocks) == ["", "images", "none"]
    assert blocks[""].columns == {"rlnKey": ["value"], "rlnWords": ["two words"]}
    assert [table.is_loop for table in blocks.values()] == [False, True, True]
    assert [len(table) for table in blocks.values()] == [1, 2, 0]


def test_words_that_look_like_syntax_are_values_within_a_row(tmp_path):
    path = tmp_path / "a.star"
    path.write_text(PLAIN.replace("1 one", "data_1 it's#1").replace("2 two", "_x ''"))
    assert read_star(path)["images"].columns == {"rlnA": ["data_1", "_x"], "rlnB": ["it's#1", ""]}


def test_what_is_written_is_read(tmp_path):
    blocks = {
        "optics": Table({"rlnName": ["a b", "#c", "", "_d", 'e"f', "'g", '"h']}),
        "general": Table({"rlnKey": ["1"], "rlnLongerKey": ["x y"]}, is_loop=False),
        "empty": Table({"rlnNothing": []}),
    }
    write_star(tmp_path / "a.star", blocks)
    assert {name: (t.columns, t.is_loop) for name, t in read_star(tmp_path / "a.star").items()} == {
        name: (t.columns, t.is_loop) for name, t in blocks.items()
    }
    assert "# version 30001\n\ndata_optics\n" in (tmp_path / "a.star").read_text()


def test_only_what_is_kept_is_kept(tmp_path, refuses):
    n = 2500  # more than one batch of rows
    table = Table({"rlnA": [str(i) for i in range(n)], "rlnB": ["x"] * n, "rlnC": ["7.5"] * n})
    write_star(tmp_path / "a.star", {"images": table})
    kept = read_star(tmp_path / "a.star", {"rlnA": float, "rlnB": str, "rlnZ": str})["images"]
    assert list(kept.columns) == ["rlnA", "rlnB"]
    np.testing.assert_array_equal(kept.floats("rlnA"), np.arange(n))
    assert kept.column("rlnA")[:2] == ["0", "1"]
    assert kept.column("rlnB") == ["x"] * n
    with refuses("row 1:", "rlnB", "'x'", "not a number"):
        read_star(tmp_path / "a.star", {"rlnB": float})
    assert read_star(tmp_path / "a.star")["images"].columns == table.columns


def test_writing_fails_whole(tmp_path, refuses):
    path = tmp_path / "a.star"
    path.write_text("old")
    with pytest.raises(ValueError, match="line break"):
        write_star(path, {"": Table({"rlnA": ["1", "2\n3"]})})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with refuses("nowhere", "cannot be written"):
        write_star(tmp_path / "nowhere" / "a.star", {})


@pytest.mark.parametrize(
    ("text", "culprits"),
    [
        (PLAIN.replace("2 two", "2"), ["line 7", "1 values for 2 columns"]),
        (PLAIN.replace("2 two", "2 two 3"), ["line 7", "3 values for 2 columns"]),
        (PLAIN.replace("2 two", "\n2 two"), ["line 8", "'2 two'", "blank line"]),
        (PLAIN.replace("_rlnB", "_rlnA"), ["line 5", "second column rlnA"]),
        (PLAIN + PLAIN, ["line 9", "data_images"]),
        (PLAIN.replace("_rlnA", "loop_\n_rlnA\nloop_"), ["line 6", "second loop"]),
        (PLAIN.replace("loop_\n", ""), ["line 3", "rlnA has 0 values"]),
        ("data_\n_rlnKey 1\n2 3\n", ["line 3", "'2 3'", "outside a loop"]),
        ("data_\n_rlnKey\n", ["line 2", "rlnKey has 0 values"]),
        ("x,y\n1,2\n", ["line 1", "'x,y'"]),
        ("", ["no data_ block"]),
        ("# only a comment\n", ["no data_ block"]),
        (PLAIN + "\0", ["binary"]),
        (b"data_\n\xff\xfe\n", ["UTF-8"]),
    ],
)
def test_bad_files_are_refused(tmp_path, refuses, text, culprits):
    path = tmp_path / "bad.star"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with refuses("bad.star", *culprits):
        read_star(path)


def test_missing_file_and_folder_are_refused(tmp_path, refuses):
    for path in (tmp_path / "absent.star", tmp_path):
        with refuses(str(path), "cannot be read"):
            read_star(path)


def test_bad_values_are_refused(refuses):
    table = Table(
        {"rlnA": ["1", "x", "y"], "rlnB": ["1", "2", "2.5"], "rlnC": ["nan", "1", "1"]}, label="a.star, data_"
    )
    with refuses("a.star", "row 2", "rlnA", "'x'", "not a number"):
        table.floats("rlnA")
    with refuses("a.star", "row 3", "rlnB", "'2.5'", "whole"):
        table.integers("rlnB")
    with refuses("row 1", "rlnC", "'nan'", "whole"):
        table.integers("rlnC")
    with refuses("rlnD", "missing"):
        table.floats("rlnD")


def test_every_real_star_survives_a_round_trip(tmp_path, shared_data):
    paths = sorted(shared_data.rglob("*.star"))
    assert len(paths) >= 10
    for path in paths:
        blocks = read_star(path)
        assert blocks
        write_star(tmp_path / "copy.star", blocks)
        copy = read_star(tmp_path / "copy.star")
        assert {n: t.columns for n, t in copy.items()} == {n: t.columns for n, t in blocks.items()}, path


def test_relion_reads_what_is_written(tmp_path: Path):
    if not shutil.which("relion_star_printtable"):
        pytest.skip("NO RELION (relion_star_printtable): the star writer is not judged by it")
    rows = {"rlnImageName": ["1@a.mrcs", "2@a.mrcs"], "rlnOpticsGroup": ["1", "1"], "rlnAngleRot": ["1.5", "-2"]}
    optics = Table({"rlnOpticsGroup": ["1"], "rlnOpticsGroupName": ["scope"], "rlnVoltage": ["300"]})
    write_star(tmp_path / "a.star", {"optics": optics, "particles": Table(rows)})
    command = ["relion_star_printtable", "a.star", "data_particles", "rlnImageName", "rlnAngleRot"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    assert [line.split() for line in printed.splitlines() if "@" in line] == [["1@a.mrcs", "1.5"], ["2@a.mrcs", "-2"]]
