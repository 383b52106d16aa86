"""Coverage of Fourier space against distributions whose sampling is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.check.coverage import coverage_findings
from emsplat.conventions import rotation_matrices
from emsplat.particles.coverage import measure_coverage
from emsplat.symmetry import symmetry_operators
from phantom import imagined_particles

ALONE = np.eye(3)[None]
PATCH, FLOOR = 0.05, 0.02  # as coverage.py has them


def views_at(rot: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    return rotation_matrices(np.stack([rot, tilt, np.zeros(len(rot))], axis=1))


def even_views(n: int) -> np.ndarray:
    return imagined_particles(n, 16).rotations()


def test_even_views() -> None:
    found = measure_coverage(even_views(20_000), ALONE, 0)
    assert found.efficiency > 0.98
    assert found.empty == 0
    assert found.gap_in_degrees < 3
    assert found.densest_cap == pytest.approx(1 - np.cos(np.pi / 6), abs=0.02)
    assert coverage_findings(found, 20_000, "C1")[0].verdict == "fine"


def test_one_view_fills_one_plane() -> None:
    """Of all directions, a share of PATCH lies in the slice: S is 1/PATCH there and nothing elsewhere."""
    found = measure_coverage(views_at(np.full(500, 40.0), np.full(500, 60.0)), ALONE, 0)
    assert found.efficiency == pytest.approx(1 / (PATCH * PATCH + (1 - PATCH) / FLOOR), rel=0.02)
    assert found.empty == pytest.approx(1 - PATCH, abs=0.01)
    assert found.gap_in_degrees == pytest.approx(90, abs=1)
    assert found.densest_cap == 1
    problem = coverage_findings(found, 500, "C1")[0]
    assert problem.verdict == "problem"
    assert "--symmetry" in (problem.advice or "")
    assert "--symmetry" not in (coverage_findings(found, 500, "D2")[0].advice or "")


def test_views_about_one_axis() -> None:
    """Views across the y axis, evenly: at the angle α from it S goes as (2/π) asin(min(1, PATCH / sin α))."""
    tilt = np.linspace(-90, 90, 20_000, endpoint=False)
    found = measure_coverage(views_at(np.zeros_like(tilt), tilt), ALONE, 0)
    cosine = (np.arange(100_000) + 0.5) / 100_000
    sampling = 2 / np.pi * np.arcsin(np.minimum(1, PATCH / np.sqrt(1 - cosine**2)))
    relative = sampling / sampling.mean()
    assert found.efficiency == pytest.approx(1 / np.mean(1 / np.maximum(relative, FLOOR)), rel=0.02)
    assert found.gap_in_degrees == pytest.approx(90, abs=3)  # the nearest direction that is tried


def test_a_missing_cone() -> None:
    """Views within 20° of z leave the directions within 70° of z unseen, but for the slices' thickness."""
    rng = np.random.default_rng(0)
    tilt = np.rad2deg(np.arccos(1 - rng.uniform(size=20_000) * (1 - np.cos(np.deg2rad(20)))))
    found = measure_coverage(views_at(rng.uniform(-180, 180, 20_000), tilt), ALONE, 0)
    edge = np.deg2rad(70)
    assert 1 - np.cos(edge - np.arcsin(PATCH)) < found.empty + 0.03
    assert found.empty < 1 - np.cos(edge) + 0.08
    assert found.preferred[1] < 8


def test_symmetry_completes_the_views() -> None:
    """One view seen four times by D2, along a direction of no symmetry, covers four planes."""
    one = views_at(np.full(300, 30.0), np.full(300, 50.0))
    alone = measure_coverage(one, ALONE, 0)
    mates = measure_coverage(one, symmetry_operators("D2"), 0)
    assert 1 - mates.empty == pytest.approx(4 * (1 - alone.empty), rel=0.15)


def test_few_images_are_not_judged() -> None:
    found = measure_coverage(even_views(17), ALONE, 0)
    assert coverage_findings(found, 17, "C1")[0].verdict == "note"
