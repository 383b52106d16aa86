"""cryoSPARC tables joined on uid; whatever is wrong with a file is refused in one line."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from cs_project import N_IMAGES, NO_PLAIN, UID, class_columns, column, complete, only, write_cs, write_project
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.io.cs import read_cs
from emsplat.io.cs_columns import read_columns
from emsplat.particles.table import Particles


@pytest.fixture
def table(tmp_path, write_stack):
    """Writes a project; returns its table."""
    return lambda changes=None: write_project(tmp_path, write_stack, changes)


def assert_same(one: Particles, other: Particles) -> None:
    assert one.optics == other.optics
    for name, value in vars(one).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def test_passthroughs_are_joined_on_uid(table, tmp_path):
    """In another order, with rows of other particles, and with columns that the main table has changed since."""
    whole = complete()
    order = np.random.default_rng(2).permutation(N_IMAGES)
    mixed = {name: np.concatenate([values[order], values[:2]]) for name, values in whole.items()}
    mixed["uid"][-2:] = (1, 2)
    outdated = {"alignments3D/pose": mixed["alignments3D/pose"] + 1}
    images = write_cs(tmp_path / "images.cs", only(mixed, "blob/", "alignments3D") | outdated)
    optics = write_cs(tmp_path / "optics.cs", only(mixed, "ctf/"))
    changed = {name: None for name in whole if name.startswith(("blob/", "ctf/"))}
    assert_same(read_cs(table(changed), passthrough=[images, optics]), read_cs(table()))


def test_a_bad_join_is_refused(table, tmp_path, refuses):
    whole = complete()
    few = write_cs(tmp_path / "few.cs", {name: values[:4] for name, values in whole.items()})
    with refuses("few.cs", "2 of the 6", "uid 0"):
        read_cs(table(), passthrough=[few])
    empty = write_cs(tmp_path / "empty.cs", {name: values[:0] for name, values in whole.items()})
    with refuses("empty.cs", "6 of the 6"):
        read_cs(table(), passthrough=[empty])
    twice = UID.copy()
    twice[4] = twice[1]
    doubled = write_cs(tmp_path / "doubled.cs", {**whole, "uid": twice})
    with refuses("doubled.cs", "rows 2 and 5", str(UID[1])):
        read_cs(table(), passthrough=[doubled])
    with refuses("particles.cs", "rows 2 and 5"):
        read_cs(table({"uid": twice}))
    with refuses("particles.cs", "no column uid"):
        read_cs(table({"uid": None}))
    with refuses("gone.cs", "cannot be read"):
        read_cs(table(), passthrough=[tmp_path / "gone.cs"])


@pytest.mark.parametrize("size", [1, 300, 900])
def test_rows_are_read_in_blocks(table, size):
    path = table()
    (whole,), (in_blocks,) = read_columns(path, []).tables, read_columns(path, [], block_in_bytes=size).tables
    assert whole.keys() == in_blocks.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(in_blocks[name], values, err_msg=name)


def with_third(name: str, value) -> dict[str, NDArray]:
    values = complete()[name].copy()
    values[2] = value
    return {name: values}


@pytest.mark.parametrize(
    ("changes", "culprits"),
    [
        ({"blob/path": None, "ctf/df1_A": None, "ctf/cs_mm": None}, ("columns blob/path, ctf/df1_A, ctf/cs_mm",)),
        ({"alignments3D/shift": None}, ("missing column alignments3D/shift", "--passthrough")),
        ({"ctf/df_angle_rad": None}, ("ctf/df_angle_rad",)),
        (NO_PLAIN, ("no poses", "alignments3D/pose")),
        ({**NO_PLAIN, "alignments2D/pose": column(1.0)}, ("only 2D alignments",)),
        ({**NO_PLAIN, **class_columns(2, "alignments_class_")[0], "alignments_class_1/class_posterior": None},
         ("alignments_class_1/class_posterior",)),
        ({**NO_PLAIN, "alignments3D_multi/pose": np.zeros((6, 2, 3)), "alignments3D_multi/shift": np.zeros((6, 2, 2))},
         ("alignments3D_multi/class_posterior",)),
        (with_third("alignments3D/pose", 1e30), ("row 3", "pose of the alignment", "radians")),
        ({**NO_PLAIN, "alignments3D_multi/pose": np.zeros((6, 40, 3)), "alignments3D_multi/class_posterior":
          np.full((6, 40), np.nan)}, ("row 1", "alignments3D_multi/class_posterior", "finite")),
        (with_third("alignments3D/pose", np.nan), ("row 3", "uid 5", "finite")),
        (with_third("ctf/df1_A", np.inf), ("row 3", "ctf/df1_A")),
        (with_third("ctf/accel_kv", 0), ("row 3", "ctf/accel_kv", "positive")),
        (with_third("ctf/amp_contrast", 7), ("row 3", "ctf/amp_contrast")),
        (with_third("blob/sign", 0), ("row 3", "blob/sign", "1 or -1")),
        (with_third("blob/shape", 10), ("row 3", "blob/shape", "8 × 8")),
        (with_third("blob/psize_A", -1.5), ("row 3", "blob/psize_A", "positive")),
        (with_third("blob/psize_A", 1.6), ("two pixel sizes", "--pixel-size")),
        ({"blob/psize_A": column(2.0)}, ("2 Å", "1.5 Å", "--pixel-size")),
        (with_third("alignments3D/psize_A", 0), ("row 3", "psize_A of the alignment")),
        (with_third("alignments3D/split", 2), ("row 3", "split", "0 or 1")),
        (with_third("blob/idx", 6), ("6 images", "number 7")),
        (with_third("blob/idx", 2**32 - 1), ("row 3", "blob/idx")),
        (with_third("blob/path", b""), ("row 3", "blob/path")),
        (with_third("blob/path", b"a\nb.mrc"), ("row 3", "blob/path")),
        (with_third("blob/path", b"a\xff.mrc"), ("row 3", "blob/path")),
        (with_third("blob/path", b"a\0b.mrc"), ("row 3", "blob/path")),
        ({"blob/path": column("stack.mrcs", "U")}, ("blob/path", "<U10")),
        ({"blob/idx": column(1.0)}, ("blob/idx", "float32", "whole numbers")),
        ({"alignments3D/pose": column(1.0)}, ("alignments3D/pose", "3 numbers")),
        ({"ctf/df1_A": column(b"x", "S")}, ("ctf/df1_A", "numbers")),
        ({"uid": np.arange(6.0)}, ("no column uid",)),
    ],
)  # fmt: skip
def test_bad_columns_are_named(table, refuses, changes, culprits):
    with refuses("particles.cs", *culprits):
        read_cs(table(changes))


def array_file(header: str, rows: bytes = b"") -> bytes:
    """An array file, version 1.0, with whatever header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + rows


def saved(values: NDArray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


TERABYTES = "{'descr': [('uid', '<u8'), ('blob/path', 'S1000')], 'fortran_order': False, 'shape': (1000000000,)}"


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (b"", "not a cryoSPARC table"),
        (b"data_\nloop_\n", "not a cryoSPARC table"),
        (b"\x93NUMPY\x01\x00", "not a cryoSPARC table"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "not a cryoSPARC table"),
        (b"\x93NUMPY\x09\x00" + bytes(200), "not a cryoSPARC table"),
        (array_file("{" * 30000), "not a cryoSPARC table"),
        (array_file("-" * 60000 + "1"), "not a cryoSPARC table"),
        (array_file("+".join(["1"] * 30000)), "not a cryoSPARC table"),
        (array_file(TERABYTES.replace("S1000", "?!")), "not a cryoSPARC table"),
        (array_file(TERABYTES.replace("'S1000'", "'<f8', (10**5, 10**5)")), "not a cryoSPARC table"),
        (array_file(TERABYTES.replace("'S1000'", "'<f8', (1000000, 1000000)")), "not a cryoSPARC table"),
        (array_file(TERABYTES), "truncated"),
        (array_file(TERABYTES.replace("1000000000", "-1")), "not a cryoSPARC table"),
        (array_file(TERABYTES.replace("1000000000", "9" * 4300)), "not a cryoSPARC table"),
        (array_file(TERABYTES.replace("(1000000000,)", "(2, 3)")), "named columns"),
        (array_file("{'descr': [('uid', 'S0')], 'fortran_order': False, 'shape': (1000000000000,)}"), "named columns"),
        (array_file("{'descr': [], 'fortran_order': False, 'shape': (1000000000000,)}"), "named columns"),
        (saved(np.zeros(5)), "named columns"),
        (saved(np.array(3.0)), "named columns"),
        (saved(np.array([{"a": 1}], dtype=object)), "Python objects"),
        (saved(np.array([(1, "x")], dtype=[("uid", "<u8"), ("blob/path", "O")])), "Python objects"),
        (saved(np.zeros(0, dtype=[("uid", "<u8")])), "0 rows"),
        (b"\x94CSDAT" + bytes(100), "compressed"),
    ],
)
def test_bad_files_are_refused_and_take_no_memory(tmp_path, refuses, content, culprit):
    path = tmp_path / "bad.cs"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with refuses("bad.cs", culprit):
            read_cs(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_a_table_of_the_wrong_length_is_refused(table, refuses):
    path = table()
    content = path.read_bytes()
    for kept in (content[:-1], content[:-100], content + b"\0"):
        path.write_bytes(kept)
        with refuses("particles.cs", f"{len(kept)} bytes", f"claims {len(content)}"):
            read_cs(path)


def test_a_damaged_table_gives_a_table_or_one_line(table):
    path = table()
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(damaged), rng.integers(1, 6)):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert len(read_cs(path)) == N_IMAGES
        except InputError as error:
            assert "\n" not in str(error)
