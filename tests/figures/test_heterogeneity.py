"""Figures of states: arrows are means of what moves, and differences are drawn where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from emsplat.figures.heterogeneity import Movement, _mean_arrows, figure_differences, figure_movement


def test_arrows_are_means_by_mass_in_each_cell() -> None:
    places = np.array([[-9.0, -9.0], [-8.6, -8.8], [9.0, 9.0], [0.0, 0.0], [40.0, 0.0]])
    arrows = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -2.0], [5.0, 5.0], [7.0, 7.0]])
    masses = np.array([3.0, 1.0, 2.0, 0.001, 5.0])  # the fourth is too light, the fifth lies beyond the picture
    at, mean = _mean_arrows(places, arrows, masses, 10.0)
    np.testing.assert_allclose(at, [[-8.9, -8.95], [9, 9]])
    np.testing.assert_allclose(mean, [[0.75, 0.25], [0, -2]])


def test_figures_are_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volume = rng.random((16, 16, 16), dtype=np.float32)
    mask = np.zeros_like(volume)
    mask[5:11, 5:11, 5:11] = 1
    difference = np.zeros_like(volume)
    difference[8, 6:9, 6:9] = 2
    centres, moved = rng.normal(0, 8, (50, 3)), np.tile([4.0, 0, 0], (50, 1))
    figure_movement([Movement(volume, centres, np.ones(50), moved)] * 2, 3.0, tmp_path / "movement.png")
    figure_differences(
        [volume] * 3, [difference] * 3, [0.1 * volume] * 3, [mask] * 3, ["1", "2", "3"], tmp_path / "differences.png"
    )
    red = imread(tmp_path / "differences.png")[..., :3] @ [1.0, -0.5, -0.5]
    assert (red > 0.3).sum() > 3 * 200  # the strong voxels of each state
    assert imread(tmp_path / "movement.png").std() > 0.05
