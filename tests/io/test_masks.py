"""Masks and maps in the place that their headers say."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from test_mrc_kinds import written

from emsplat.check.compare import compare
from emsplat.fourier.maps import soft_sphere
from emsplat.io import read_particles, write_map
from emsplat.io.masks import GridOfMap, read_mask

BOX, PIXEL = 24, 2.0
GRID = GridOfMap(BOX, PIXEL)


@pytest.fixture
def ball():
    """(BOX,)*3 off the middle, so that axes and directions tell."""
    return np.roll(soft_sphere(BOX, 7, 2), (2, -3, 1), (0, 1, 2))


def test_a_plain_mask_is_what_the_file_holds(tmp_path, ball):
    write_map(tmp_path / "mask.mrc", ball, PIXEL)
    found, line = read_mask(tmp_path / "mask.mrc", GRID)
    np.testing.assert_array_equal(found, ball)
    assert line is None


@pytest.mark.parametrize(("low", "high"), [(-128, 127), (0, 255), (0, 2), (-0.5, 1), (0, 0.3), (0, 0)])
def test_values_that_are_none_of_a_mask_are_refused(tmp_path, refuses, ball, low, high):
    write_map(tmp_path / "mask.mrc", np.where(ball > 0.5, high, low), PIXEL)
    with refuses("mask.mrc", "mask"):
        read_mask(tmp_path / "mask.mrc", GRID)


def test_bytes_of_imod_are_refused_with_advice(tmp_path, refuses, ball):
    inside = ball > 0.5
    with refuses("from -128 to 127", "add 128 and divide by 255"):
        read_mask(written(tmp_path / "a.mrc", np.where(inside, 127, -128).astype("i1"), 0, flags=1), GRID)
    with refuses("from 0 to 255", "divide by 255"):
        read_mask(written(tmp_path / "a.mrc", np.where(inside, 255, 0).astype("u1"), 0, flags=0), GRID)
    found, _ = read_mask(written(tmp_path / "a.mrc", inside.astype("i1"), 0), GRID)
    np.testing.assert_array_equal(found, inside)


@pytest.mark.parametrize("moved", [(3, 0, 0), (0, -2, 4), (1, 1, 1)])
def test_an_origin_moves_the_mask_to_where_it_was(tmp_path, ball, moved):
    x, y, z = moved
    origin = -PIXEL * np.array(moved)
    write_map(tmp_path / "mask.mrc", np.roll(ball, (z, y, x), (0, 1, 2)), PIXEL, origin)
    found, line = read_mask(tmp_path / "mask.mrc", GRID)
    np.testing.assert_allclose(found, ball, atol=1e-6)
    assert f"{-x:+d}, {-y:+d}, {-z:+d} voxels" in line
    as_it_lies, line = read_mask(tmp_path / "mask.mrc", GRID, ignore_origin=True)
    assert line is None
    assert not np.allclose(as_it_lies, ball)


def test_axes_in_another_order_are_turned(tmp_path, ball):
    path = written(tmp_path / "a.mrc", np.ascontiguousarray(ball.transpose(2, 1, 0)).astype("f4"), 2)
    raw = bytearray(path.read_bytes())
    raw[64:76] = np.array([3, 2, 1], "<i4").tobytes()  # columns run along z, sections along x
    path.write_bytes(raw)
    np.testing.assert_array_equal(read_mask(path, GRID)[0], ball)


@pytest.mark.parametrize(("box", "pixel"), [(40, 1.2), (16, 3.0), (24, 2.5), (32, 2.0), (18, 2.0)])
def test_other_boxes_and_pixel_sizes_are_interpolated_about_the_middle(tmp_path, box, pixel):
    write_map(tmp_path / "mask.mrc", soft_sphere(box, 14 / pixel, 6 / pixel), pixel)
    found, line = read_mask(tmp_path / "mask.mrc", GRID)
    assert np.abs(found - soft_sphere(BOX, 14 / PIXEL, 6 / PIXEL)).max() < 0.2
    assert str(tmp_path / "mask.mrc") in line


def test_a_mask_that_cannot_be_placed_is_refused(tmp_path, refuses, ball):
    write_map(tmp_path / "far.mrc", ball, PIXEL, (200.0, 0, 0))
    with refuses("far.mrc", "outside the box", "origin"):
        read_mask(tmp_path / "far.mrc", GRID)
    write_map(tmp_path / "unset.mrc", soft_sphere(16, 7, 2), 1.0)  # a pixel size of 1 means none
    with refuses("unset.mrc", "no pixel size"):
        read_mask(tmp_path / "unset.mrc", GRID)


# --- emsplat fsc ------------------------------------------------------------------------------------------------------


@pytest.fixture
def maps(tmp_path, ball):
    rng = np.random.default_rng(0)
    a, b = (ball + rng.normal(0, 0.1, ball.shape) for _ in range(2))
    write_map(tmp_path / "a.mrc", a, PIXEL)
    write_map(tmp_path / "b.mrc", b, PIXEL)
    return a, b


def test_fsc_honours_an_origin(tmp_path, maps, capsys):
    plain = compare(tmp_path / "a.mrc", tmp_path / "b.mrc", None, tmp_path / "f.png")
    write_map(tmp_path / "c.mrc", np.roll(maps[1], (2, 2, 2), (0, 1, 2)), PIXEL, [-2 * PIXEL] * 3)
    moved = compare(tmp_path / "a.mrc", tmp_path / "c.mrc", None, tmp_path / "f.png")
    assert "moved by -2, -2, -2 voxels" in capsys.readouterr().out
    assert moved[0.5] == pytest.approx(plain[0.5], rel=0.1)


def test_fsc_refuses_an_origin_that_would_part_maps_that_agree(tmp_path, maps, refuses):
    write_map(tmp_path / "c.mrc", maps[1], PIXEL, [-BOX // 2 * PIXEL] * 3)
    with refuses("(0, 0, 0)", "(-24, -24, -24)", "--ignore-origins"):
        compare(tmp_path / "a.mrc", tmp_path / "c.mrc", None, tmp_path / "f.png")
    plain = compare(tmp_path / "a.mrc", tmp_path / "b.mrc", None, tmp_path / "f.png")
    assert compare(tmp_path / "a.mrc", tmp_path / "c.mrc", None, tmp_path / "f.png", ignore_origins=True) == plain


def test_particle_files_of_other_kinds_are_named(tmp_path, refuses):
    for name, content, said in (
        ("a.pkl.gz", gzip.compress(b"\x80\x04" + bytes(100)), "gunzip -k"),
        ("a.mrcs", b"<!doctype html><html>" + b" " * 3000, "web page"),
    ):
        (tmp_path / name).write_bytes(content)
        with refuses(name, said):
            read_particles(tmp_path / name)
