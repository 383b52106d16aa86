"""Surfaces and PNG files."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from matplotlib.image import imread

from emsplat.report.picture import as_data_uri, as_png, grey, surface_picture

COLOUR = (80, 140, 200)


def ball(n: int, radius: float, centre: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """Density that falls off smoothly and is ½ at the radius; centre x, y, z."""
    x, y, z = (np.arange(n) - n // 2 - c for c in centre)
    distance = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    return (1 / (1 + np.exp((distance - radius) / 1.5))).astype(np.float32)


def test_a_ball_is_a_disc_lit_from_above_left() -> None:
    picture = surface_picture(ball(64, 20), 0.5, COLOUR)
    assert picture is not None
    m = len(picture)
    solid = picture[..., 3] > 250
    assert solid.sum() == pytest.approx(np.pi * (20 / 64 * m) ** 2, rel=0.03)
    brightness = picture[..., :3].sum(axis=2).astype(float)
    middle, step = m // 2, m // 8
    assert brightness[middle - step, middle - step] > 1.2 * brightness[middle + step, middle + step]
    assert np.all(picture[~solid & (picture[..., 3] == 0), :3] == 0)


@pytest.mark.parametrize(("centre", "row", "column"), [((16, 0, 0), 0.5, 0.75), ((0, 16, 0), 0.25, 0.5)])
def test_x_runs_right_and_y_up(centre: tuple[float, float, float], row: float, column: float) -> None:
    picture = surface_picture(ball(64, 5, centre), 0.5, COLOUR)
    assert picture is not None
    rows, columns = np.nonzero(picture[..., 3])
    assert rows.mean() / len(picture) == pytest.approx(row, abs=0.02)
    assert columns.mean() / len(picture) == pytest.approx(column, abs=0.02)


def test_what_is_nearer_along_z_hides_what_is_behind() -> None:
    small_in_front = ball(64, 20, (0, 0, -10)) + ball(64, 5, (0, 0, 22))
    small_behind = ball(64, 20, (0, 0, 10)) + ball(64, 5, (0, 0, -22))
    front, behind = (surface_picture(v, 0.5, COLOUR) for v in (small_in_front, small_behind))
    alone = surface_picture(ball(64, 20, (0, 0, 10)), 0.5, COLOUR)
    assert front is not None and behind is not None and alone is not None
    middle = slice(len(front) // 2 - 20, len(front) // 2 + 20)
    assert np.allclose(behind[middle, middle].astype(float), alone[middle, middle], atol=6)
    assert np.abs(front[middle, middle].astype(float) - alone[middle, middle]).max() > 40


def test_nothing_above_the_level_is_no_picture() -> None:
    assert surface_picture(ball(32, 8), 5.0, COLOUR) is None


@pytest.mark.parametrize("shape", [(7, 5), (6, 9, 4)])
def test_another_program_reads_the_png(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(np.rint(255 * imread(BytesIO(as_png(pixels)))), pixels)
    assert as_data_uri(pixels).startswith("data:image/png;base64,iVBOR")


def test_grey_goes_from_black_to_white() -> None:
    assert grey(np.array([-1.0, 0.0, 1.0, 2.0, 9.0]), 0.0, 2.0).tolist() == [0, 0, 127, 255, 255]
