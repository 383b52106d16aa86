"""The picture of the local resolution, in every state a run can end in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from emsplat.figures.local_resolution import figure_local_resolution
from emsplat.fourier import maps
from emsplat.validation.local_resolution import LocalResolution


def local(state: str) -> LocalResolution:
    mask = maps.soft_sphere(25, 14, 3) if state != "no mask" else np.zeros((25, 25, 25), np.float32)
    resolution = np.where(mask > 0, 3 + 0.1 * np.arange(25, dtype=np.float32), np.float32(np.nan))
    if state == "one value":
        resolution[mask > 0] = 3
    if state == "nothing measurable":
        resolution[:] = np.nan
    return LocalResolution(resolution, 0.1 * resolution, resolution > 4, mask, 30.0, 3.0)


@pytest.mark.parametrize("state", ["measured", "one value", "nothing measurable", "no mask"])
def test_it_is_drawn(state: str, tmp_path: Path) -> None:
    volume = np.random.default_rng(0).standard_normal((25, 25, 25), dtype=np.float32)
    truth = np.full(volume.shape, 3.5) if state == "measured" else None
    figure_local_resolution(local(state), volume, tmp_path / "local.png", 2.0, 4.5, truth)
    pixels = imread(tmp_path / "local.png")[..., :3]
    assert [p.name for p in tmp_path.iterdir()] == ["local.png"]
    assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.02
