"""Positions on micrographs, from stars of RELION 3.1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from emsplat.check.picks import closeness_findings, read_picks
from emsplat.io import read_particles


def add_positions(optics: dict[str, list[str]], particles: dict[str, list[str]]) -> None:
    """Fifty particles a micrograph on a grid of 100 pixels of 1.25 Å; two moved next to another."""
    n = len(particles["rlnImageName"])
    number = np.arange(n)
    x, y = 100.0 * (number % 10), 100.0 * (number // 10 % 5)
    x[7] = x[6] + 4  # on the same micrograph
    particles["rlnMicrographName"] = [f"m{i // 50}.mrc" for i in number]
    particles["rlnCoordinateX"] = [f"{value:.3f}" for value in x]
    particles["rlnCoordinateY"] = [f"{value:.3f}" for value in y]
    optics["rlnMicrographOriginalPixelSize"] = ["1.25"] * len(optics["rlnOpticsGroup"])


def test_particles_on_top_of_each_other(spoilt: Callable[..., Path]) -> None:
    star = spoilt(add_positions)
    table = read_particles(star)
    picks = read_picks(star, table)
    assert picks is not None and picks.position_in_angstroms is not None
    assert picks.n_micrographs == 10
    expected = np.array([[600 * 1.25, 0], [604 * 1.25, 0]]) - table.origin_in_angstroms[6:8]
    assert np.allclose(picks.position_in_angstroms[6:8], expected, atol=1e-3)
    (finding,) = closeness_findings(picks, table, 150.0)
    assert finding.verdict == "problem"
    assert finding.text.startswith("2 particles")
    (finding,) = closeness_findings(picks, table, 1e-3)
    assert finding.verdict == "fine"


def test_nothing_is_said_where_nothing_is_known(tiny: Path) -> None:
    star = tiny / "particles.star"
    table = read_particles(star)
    assert read_picks(star, table) is None
    assert closeness_findings(None, table, 150.0) == []


def test_micrographs_of_a_real_star(shared_data: Path) -> None:
    star = shared_data / "real/relion31-5/relion31.star"
    picks = read_picks(star, read_particles(star))
    assert picks is not None and picks.position_in_angstroms is not None
    assert picks.n_micrographs == 1
