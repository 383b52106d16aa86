"""MRC: all modes and byte orders, sections in any order, against the mrcfile library and RELION."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import mrcfile
import numpy as np
import pytest
from mrcfile.dtypes import HEADER_DTYPE

from emsplat.io import StackReader, StackWriter, read_map, write_map
from emsplat.runtime.files import temporary_name
from processes import PATIENCE

VALUE_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def write_raw(path, values, mode, order="<", *, extended=b"", stamp=True, **fields):
    """A file made without the code under test."""
    header = np.zeros((), HEADER_DTYPE.newbyteorder(order))
    header["nz"], header["ny"], header["nx"] = values.shape
    header["mode"] = mode
    header["nsymbt"] = len(extended)
    if stamp:
        header["machst"] = (0x44, 0x44, 0, 0) if order == "<" else (0x11, 0x11, 0, 0)
    for name, value in fields.items():
        header[name] = value
    body = values.astype(np.dtype(VALUE_TYPES.get(mode, "f4")).newbyteorder(order)).tobytes()
    path.write_bytes(header.tobytes() + extended + body)


def some_values(mode, shape):
    low, high = (0, 60000) if mode == 6 else (-120, 120)
    return np.random.default_rng(mode).integers(low, high, shape).astype(np.float32)


@pytest.mark.parametrize("stamp", [True, False], ids=["stamped", "unstamped"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mode", VALUE_TYPES)
def test_every_mode_and_byte_order_in_any_order_of_sections(tmp_path, mode, order, stamp):
    values = some_values(mode, (11, 7, 7))
    write_raw(
        tmp_path / "a.mrcs", values, mode, order, extended=b"x" * 96, stamp=stamp, dmin=values.min(), dmax=values.max()
    )
    wanted = [10, 3, 4, 5, 0, 3, 9]
    with StackReader(tmp_path / "a.mrcs") as stack:
        assert stack.shape == (11, 7, 7)
        images = stack.read(wanted)
        assert stack.read([]).shape == (0, 7, 7)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, values[wanted])


def test_long_runs_are_read_in_pieces(tmp_path):
    values = some_values(2, (9, 4, 4))
    write_raw(tmp_path / "a.mrcs", values, 2)
    with StackReader(tmp_path / "a.mrcs", largest_read_in_bytes=150) as stack:  # two sections and a bit
        np.testing.assert_array_equal(stack.read(np.arange(9)[::-1]), values[::-1])


@pytest.mark.parametrize("wanted", [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0], [1, 2, 2, 5, 6, 0]])
@pytest.mark.parametrize("order", "<>")
def test_images_are_read_into_given_memory(tmp_path, wanted, order):
    """Also into every other image of it, and where only the ends of a run lie as in the file."""
    values = some_values(2, (7, 4, 4))
    write_raw(tmp_path / "a.mrcs", values, 2, order)
    memory = np.full((2 * len(wanted), 4, 4), -7, dtype=np.float32)
    with StackReader(tmp_path / "a.mrcs") as stack:
        stack.read(wanted, memory[: len(wanted)])
        np.testing.assert_array_equal(memory[: len(wanted)], values[wanted])
        assert (memory[len(wanted) :] == -7).all()
        stack.read(wanted, memory[::2])
        np.testing.assert_array_equal(memory[::2], values[wanted])


@pytest.mark.parametrize(
    ("cell", "expected"),
    [(0, None), (8, None), (12, 1.5), (8.8, 1.1), (np.nan, None), (np.inf, None), (1e20, None), (-12, None)],
)
def test_pixel_size_of_zero_or_one_or_nonsense_is_unset(tmp_path, cell, expected):
    write_raw(tmp_path / "a.mrcs", np.zeros((2, 8, 8)), 2, mx=8, my=8, mz=1, cella=(cell, cell, 1))
    with StackReader(tmp_path / "a.mrcs") as stack:
        assert stack.pixel_size_in_angstroms == (None if expected is None else pytest.approx(expected))


def test_sections_outside_are_refused(tmp_path, refuses):
    write_raw(tmp_path / "a.mrcs", np.zeros((3, 4, 4)), 2)
    with StackReader(tmp_path / "a.mrcs") as stack:
        for section, number in ((3, "number 4"), (-1, "number 0")):
            with refuses("a.mrcs", "holds 3 images", number):
                stack.read([0, section])


@pytest.mark.parametrize("mode", [4, 3, 101])
def test_other_modes_are_refused(tmp_path, refuses, mode):
    write_raw(tmp_path / "a.mrc", np.zeros((4, 4, 4)), mode)
    with refuses("a.mrc", f"mode {mode}", "convert"):
        StackReader(tmp_path / "a.mrc")


@pytest.mark.parametrize("keep", [0, 500, 1024, -1])
def test_truncated_files_are_refused_on_opening(tmp_path, refuses, keep):
    path = tmp_path / "a.mrc"
    write_raw(path, np.zeros((4, 4, 4)), 2)
    path.write_bytes(path.read_bytes()[:keep])
    with refuses("a.mrc", "truncated"):
        StackReader(path)
    with refuses("a.mrc", "truncated"):
        read_map(path)


def test_a_huge_claim_is_refused_before_memory_is_taken(tmp_path, refuses):
    path = tmp_path / "a.mrc"
    write_raw(path, np.zeros((1, 4, 4)), 2, nx=60000, ny=60000, nz=60000)
    with refuses("truncated"):
        read_map(path)


def test_a_file_with_a_hole_is_not_believed(tmp_path, refuses):
    path = tmp_path / "a.mrc"
    write_raw(path, np.zeros((1, 4, 4)), 2, nx=10_000, ny=10_000, nz=10_000)
    os.truncate(path, 1024 + 4 * 10_000**3)
    with refuses("a.mrc", "4,000 GB", "memory"):
        read_map(path)


def test_a_pipe_is_not_waited_for(tmp_path, refuses):
    os.mkfifo(tmp_path / "a.mrc")
    with refuses("a.mrc", "a pipe"):
        StackReader(tmp_path / "a.mrc")


def test_an_origin_that_is_nowhere_is_refused(tmp_path, refuses):
    write_raw(tmp_path / "a.mrc", np.zeros((4, 4, 4)), 2, origin=(0, np.nan, 0))
    with refuses("a.mrc", "origin", "finite"):
        read_map(tmp_path / "a.mrc")


def test_missing_and_foreign_files_are_refused(tmp_path, refuses):
    (tmp_path / "text.mrc").write_text("data_\n" * 500)
    with refuses("text.mrc", "a star file, not an MRC file"):
        read_map(tmp_path / "text.mrc")
    with refuses("absent.mrc", "cannot be read"):
        read_map(tmp_path / "absent.mrc")


@pytest.mark.parametrize("size", [6, 7])
def test_maps_survive_a_round_trip_and_mrcfile_agrees(tmp_path, size):
    volume = np.random.default_rng(size).normal(3, 2, (size, size, size)).astype(np.float32)
    path = tmp_path / "a.mrc"
    write_map(path, volume, 1.23, (1.0, -2.0, 3.0))
    found = read_map(path)
    np.testing.assert_array_equal(found.values, volume)
    assert found.pixel_size_in_angstroms == pytest.approx(1.23)
    np.testing.assert_allclose(found.origin_in_angstroms, (1, -2, 3))
    assert mrcfile.validate(path)
    with mrcfile.open(path) as file:
        assert file.is_volume()
        np.testing.assert_array_equal(file.data, volume)
        assert tuple(file.voxel_size.tolist()) == pytest.approx((1.23, 1.23, 1.23))
        assert file.header.rms == pytest.approx(volume.std(), rel=1e-5)
        assert file.header.dmean == pytest.approx(volume.mean(), rel=1e-5)
        assert (int(file.header.mapc), int(file.header.mapr), int(file.header.maps)) == (1, 2, 3)


def test_the_default_origin_is_zero(tmp_path):
    write_map(tmp_path / "a.mrc", np.ones((4, 4, 4)), 2.0)
    assert not read_map(tmp_path / "a.mrc").origin_in_angstroms.any()


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 1, 2), (2, 1, 3), (3, 2, 1)])
def test_axes_and_start_indices_are_turned(tmp_path, axes):
    volume = some_values(2, (4, 5, 6))  # z, y, x
    # columns, rows, sections run along x, y, z = 1, 2, 3 as `axes` says
    stored = volume.transpose([3 - axis for axis in reversed(axes)])
    start = dict(zip(("nxstart", "nystart", "nzstart"), [10 * axis for axis in axes], strict=True))
    fields = dict(zip(("mapc", "mapr", "maps"), axes, strict=True))
    write_raw(tmp_path / "a.mrc", stored, 2, mx=6, my=5, mz=4, cella=(12, 10, 8), **fields, **start)
    found = read_map(tmp_path / "a.mrc", cubic=False)
    np.testing.assert_array_equal(found.values, volume)
    np.testing.assert_allclose(found.origin_in_angstroms, (20, 40, 60))


@pytest.mark.parametrize(
    ("shape", "value", "cell", "culprits"),
    [
        ((4, 4, 5), 0.0, (8, 8, 8), ["5 × 4 × 4", "not a cube"]),
        ((4, 4, 4), np.nan, (8, 8, 8), ["NaN"]),
        ((4, 4, 4), np.inf, (8, 8, 8), ["infinite"]),
        ((4, 4, 4), 0.0, (8, 8, 12), ["edges", "3.0"]),
    ],
)
def test_bad_maps_are_refused(tmp_path, refuses, shape, value, cell, culprits):
    values = np.ones(shape)
    values[0, 0, 1] = value
    write_raw(tmp_path / "a.mrc", values, 2, mx=4, my=4, mz=4, cella=cell)
    with refuses("a.mrc", *culprits):
        read_map(tmp_path / "a.mrc")


@pytest.mark.parametrize("box_size", [6, 7])
def test_stacks_are_written_block_by_block(tmp_path, box_size):
    images = np.random.default_rng(0).normal(1, 2, (5, box_size, box_size)).astype(np.float32)
    path = tmp_path / "a.mrcs"
    with StackWriter(path, box_size, 1.1) as stack:
        for block in (images[:2], images[2:2], images[2], images[3:]):
            stack.append(block)
        assert not path.exists()
    assert mrcfile.validate(path)
    with mrcfile.open(path) as file:
        assert file.is_image_stack()
        np.testing.assert_array_equal(file.data, images)
        assert file.voxel_size.x == pytest.approx(1.1)
        assert (file.header.dmin, file.header.dmax) == (images.min(), images.max())
        assert file.header.rms == pytest.approx(images.std(), rel=1e-5)
    with StackReader(path) as reader:
        assert reader.pixel_size_in_angstroms == pytest.approx(1.1)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_stack_leaves_nothing(tmp_path, failure):
    def interrupted():
        with StackWriter(tmp_path / "a.mrcs", 4, 1.0) as stack:
            stack.append(np.ones((2, 4, 4)))
            raise failure

    with pytest.raises(failure):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_an_empty_or_misshapen_stack_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one"), StackWriter(tmp_path / "a.mrcs", 4, 1.0):
        pass
    with pytest.raises(ValueError, match="box 4"), StackWriter(tmp_path / "a.mrcs", 4, 1.0) as stack:
        stack.append(np.ones((1, 5, 5)))
    assert not list(tmp_path.iterdir())


def write_large_stack(path):
    with StackWriter(path, 64, 1.0) as stack:
        stack.append(np.ones((8, 64, 64)))


def write_small_stack(path):  # fits the file object's buffer: the disk is found full on closing
    with StackWriter(path, 4, 1.0) as stack:
        stack.append(np.ones((1, 4, 4)))


@pytest.mark.parametrize(
    "write", [lambda path: write_map(path, np.ones((8, 8, 8)), 2.0), write_large_stack, write_small_stack]
)
def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path, refuses, write):
    path = tmp_path / "a.mrc"
    path.write_text("old")
    temporary_name(path).symlink_to("/dev/full")  # every write there fails with ENOSPC
    with refuses("a.mrc", "disk is full"):
        write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_one_line(tmp_path, refuses):
    with refuses("nowhere", "cannot be written"):
        write_map(tmp_path / "nowhere" / "a.mrc", np.ones((4, 4, 4)), 1.0)
    with refuses("nowhere", "cannot be written"), StackWriter(tmp_path / "nowhere" / "a.mrcs", 4, 1.0):
        pass


def test_relion_reads_what_is_written(tmp_path):
    if not shutil.which("relion_image_handler"):
        pytest.skip("NO RELION (relion_image_handler): the MRC writer is not judged by it")
    volume = np.random.default_rng(1).normal(2, 3, (8, 8, 8)).astype(np.float32)
    write_map(tmp_path / "map.mrc", volume, 1.7)
    with StackWriter(tmp_path / "stack.mrcs", 8, 1.7) as stack:
        stack.append(volume[:3])
    for name, values, size in (("map.mrc", volume, "8 x 8 x 8 x 1"), ("1@stack.mrcs", volume[0], "8 x 8 x 1 x 1")):
        command = ["relion_image_handler", "--i", name, "--stats"]
        printed = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=PATIENCE
        ).stdout
        said = dict(re.findall(r"(\w+) ?= (-?[\d.e-]+)", printed))
        assert size in printed, printed
        for key, expected in (("avg", values.mean()), ("stddev", values.std()), ("angpix", 1.7)):
            assert float(said[key]) == pytest.approx(expected, rel=1e-3), printed
