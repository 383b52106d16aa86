"""Pictures: each is drawn, whole, in every state a run can end in."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from emsplat.figures import reconstruction as figures
from emsplat.validation.validate import Validation


def verdict(n: int = 32) -> Validation:
    shells = np.arange(1, n + 1)
    falling = 1 / (1 + np.exp((shells - 0.6 * n) / 3))
    broken = np.where(shells < n - 2, falling, np.nan)  # as beyond the limit
    return Validation(
        frequency=shells / (2 * n * 1.5),
        raw_half_unmasked=falling**3,
        raw_half_masked=falling**2,
        raw_half_corrected=falling**2 - 0.01,
        gaussian_half=0.5 + 0.5 * falling,
        c_half=broken,
        c_map=broken,
        c_map_se=0.05 * (1 - falling),
        c_gaussians=broken - 0.02,
        inversion_share=0.5 * np.nan_to_num(broken),
        gain=falling,
        resolution=5.0,
        resolution_kind="measured",
        limit_shell=n - 4,
        last_shell=n - 4,
        nyquist=3.0,
    )


STATES = {
    "measured": {},
    "limit": {"resolution": 3.4, "resolution_kind": "better_than"},
    "nyquist": {"resolution": 3.0, "resolution_kind": "better_than", "limit_shell": 32},
    "nothing": {"resolution": None, "resolution_kind": "not_measurable", "limit_shell": 0},
}


def is_a_picture(path: Path) -> bool:
    pixels = imread(path)[..., :3]
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
    return min(pixels.shape[:2]) > 300 and pixels.std() > 0.02


@pytest.mark.parametrize("state", STATES)
def test_fsc_family_in_every_state(state: str, tmp_path: Path) -> None:
    v = replace(verdict(), **STATES[state])
    truth, title = (
        (v.gaussian_half, "a headline as long as it likes to be, " * 4) if state == "measured" else (None, None)
    )
    figures.figure_fsc(v, tmp_path / "fsc.png", truth, title)
    assert is_a_picture(tmp_path / "fsc.png")


@pytest.mark.parametrize("fitted", ["Gaussians", "neural fields"])
def test_the_legend_of_the_fsc_family_is_not_cut_off(fitted: str, tmp_path: Path) -> None:
    figures.figure_fsc(verdict(), tmp_path / "fsc.png", verdict().gaussian_half, fitted=fitted)
    picture = imread(tmp_path / "fsc.png")
    legend = picture[int(0.8 * len(picture)) :, :, :3]
    assert legend.std() > 0.02
    assert np.all(legend[:, -3:] == 1)
    assert np.all(legend[:, :3] == 1)


def test_fsc_of_a_pair(tmp_path: Path) -> None:
    v = verdict()
    crossings = {0.5: 5.0, 0.143: None}
    figures.figure_fsc_pair(v.raw_half_unmasked, v.frequency, tmp_path / "a.png")
    figures.figure_fsc_pair(v.raw_half_unmasked, v.frequency, tmp_path / "b.png", crossings, v.raw_half_masked)
    assert is_a_picture(tmp_path / "a.png")
    assert is_a_picture(tmp_path / "b.png")


@pytest.mark.parametrize("box_size", [16, 17])
def test_slices_and_projections(box_size: int, tmp_path: Path) -> None:
    volume = np.random.default_rng(0).standard_normal((box_size,) * 3, dtype=np.float32)
    figures.figure_slices(volume, tmp_path / "slices.png", 12.0, raw=volume)
    figures.figure_projections(np.zeros_like(volume), tmp_path / "projections.png", 0.5)
    assert is_a_picture(tmp_path / "slices.png")
    assert (tmp_path / "projections.png").stat().st_size > 0


@pytest.mark.parametrize("n_images", [1, 500])
def test_orientations(n_images: int, tmp_path: Path) -> None:
    angles = np.random.default_rng(0).uniform(-360, 360, (n_images, 3))
    figures.figure_orientations(angles, tmp_path / "orientations.png")
    assert is_a_picture(tmp_path / "orientations.png")


def test_a_direction_is_counted_where_it_points() -> None:
    """Tilt 0 is the upper pole, rot runs across; tilts beyond 180 and below 0 are the same directions."""
    counts = figures.direction_counts(np.array([[90.0, 60.0, 3.0], [-90.0, -60.0, 5.0], [450.0, 420.0, 0.0]]), rows=6)
    assert counts.sum() == 3
    assert counts[4, 9] == 3  # height cos 60° = 1/2 … 2/3 of −1 .. 1 in six; 90° in the tenth of twelve


def test_losses(tmp_path: Path) -> None:
    steps = np.arange(50)
    figures.figure_loss([steps, steps], [1 / (1 + steps)] * 2, [[(0, 2.0), (8, 1.0)], []], tmp_path / "loss.png")
    assert is_a_picture(tmp_path / "loss.png")


def test_the_ending_chooses_the_format(tmp_path: Path) -> None:
    figures.figure_fsc(verdict(), tmp_path / "fsc.svg")
    assert "<svg" in (tmp_path / "fsc.svg").read_text()[:500]


def test_importing_leaves_the_users_matplotlib_alone() -> None:
    code = "import sys, emsplat.figures.reconstruction; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
