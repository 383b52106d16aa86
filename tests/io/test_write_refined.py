"""Refined particles handed back in the format they came in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cs_project import complete, write_cs

from emsplat.io import read_particles, read_star
from emsplat.io.write_refined import write_refined
from emsplat.particles.table import Particles
from emsplat.poses.refine import changed
from emsplat.settings import REFINABLE

COLUMNS = {"poses": [0, 1, 2], "shifts": [3, 4], "contrast": [5], "defocus": [6]}
OF_STARS = {
    "poses": {"rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"},
    "shifts": {"rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginX", "rlnOriginY"},
    "contrast": {"rlnCtfScalefactor"},
    "defocus": {"rlnDefocusU", "rlnDefocusV"},
}
OF_TABLES = {
    "poses": {"alignments3D/pose"},
    "shifts": {"alignments3D/shift"},
    "contrast": {"alignments3D/alpha"},
    "defocus": {"ctf/df1_A", "ctf/df2_A"},
}
STARS = ("real/relion31-5/relion31.star", "real/spa-17/sample_relion_data.star", "metadata/relion31.6opticsgroups.star")


def refined(particles: Particles, quantities: tuple[str, ...]) -> tuple[Particles, np.ndarray]:
    """The particles with some change of these quantities, and its factor of the contrast."""
    changes = np.zeros((len(particles), 7))
    for name in quantities:
        shape = (len(particles), len(COLUMNS[name]))
        changes[:, COLUMNS[name]] = np.random.default_rng(0).uniform(0.05, 0.2, shape)
    return changed(particles, changes), 1 + changes[:, 5]


def assert_same(found: Particles, expected: Particles, tolerance: float) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.rotations(), expected.rotations(), atol=tolerance)
    for name in ("origin_in_angstroms", "ctf_scale", "defocus_u_in_angstroms", "defocus_v_in_angstroms"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("quantities", [("poses",), ("shifts",), ("contrast", "defocus"), REFINABLE])
@pytest.mark.parametrize("name", STARS)
def test_stars(name: str, quantities: tuple[str, ...], shared_data: Path, tmp_path: Path) -> None:
    """RELION 3.0, whose origins are in pixels, and 3.1; what was not refined is the same text."""
    source = read_particles(shared_data / name, need_stacks=False, pixel_size_in_angstroms=1.7)
    expected, contrast = refined(source, quantities)
    out = write_refined(expected, contrast, quantities, tmp_path)
    assert out == tmp_path / "particles.star"
    found = read_particles(out, need_stacks=False, pixel_size_in_angstroms=1.7)
    assert_same(found, expected, 2e-6)
    may_change = set().union(*(OF_STARS[quantity] for quantity in quantities))
    before, after = read_star(source.source), read_star(out)
    for block, table in before.items():
        for column in set(table.columns) - may_change:
            assert after[block].column(column) == table.column(column)
        assert set(after[block].columns) - set(table.columns) <= may_change


@pytest.mark.parametrize("aligned_in", ["alignments3D/alpha", "ctf/scale"])
@pytest.mark.parametrize("quantities", [("poses",), ("shifts",), ("contrast",), ("defocus",), REFINABLE])
def test_tables(quantities: tuple[str, ...], aligned_in: str, tmp_path: Path) -> None:
    """Poses as rotation vectors, shifts in pixels of the grid they were found on, the scale where the table has it."""
    columns = complete() | {"alignments3D/psize_A": np.full(6, 3.0, dtype="<f4")}
    if aligned_in == "ctf/scale":
        del columns["alignments3D/alpha"]
    source = write_cs(tmp_path / "J2" / "particles.cs", columns)
    particles = read_particles(source, need_stacks=False)
    expected, contrast = refined(particles, quantities)
    (tmp_path / "out").mkdir()
    some = np.array([4, 1, 3])
    out = write_refined(expected.select(some), contrast[some], quantities, tmp_path / "out")
    assert out.name == "particles.cs"
    assert_same(read_particles(out, need_stacks=False), expected.select(np.sort(some)), 2e-6)
    before, after = np.load(source)[np.sort(some)], np.load(out)
    may_change = set().union(*(OF_TABLES[quantity] for quantity in quantities))
    if "contrast" in quantities:
        may_change.add(aligned_in)
    assert after.dtype == before.dtype
    for name in set(before.dtype.names) - may_change:
        np.testing.assert_array_equal(after[name], before[name])


def test_sources_without_such_columns_give_a_star(shared_data: Path, tmp_path: Path) -> None:
    """Tomography, tables whose poses stand elsewhere, and particles of no file."""
    folder = shared_data / "metadata" / "relion5-tomo"
    [optimisation_set] = folder.glob("*optimisation_set.star")
    particles = read_particles(optimisation_set, need_stacks=False)
    tilts, contrast = refined(particles, ("poses", "shifts"))
    out = write_refined(tilts, contrast, ("poses", "shifts"), tmp_path)
    found = read_particles(out, need_stacks=False)
    np.testing.assert_allclose(found.rotations(), tilts.rotations(), atol=2e-6)
    np.testing.assert_allclose(found.origin_in_angstroms, tilts.origin_in_angstroms, atol=2e-5)
    nowhere = replace(tilts, source=tmp_path / "gone.star")
    out.unlink()
    assert len(read_particles(write_refined(nowhere, contrast, ("poses",), tmp_path), need_stacks=False)) == len(tilts)


def test_values_of_another_file_are_all_written(shared_data: Path, tmp_path: Path) -> None:
    """Where poses and CTFs came from cryoDRGN's pickles, the star with the images' names has others, or none."""
    particles = read_particles(shared_data / STARS[0], need_stacks=False)
    moved, contrast = refined(particles, REFINABLE)
    out = write_refined(moved, contrast, ("poses",), tmp_path, by_column=False)
    assert_same(
        read_particles(out, need_stacks=False), replace(moved, ids=read_particles(out, need_stacks=False).ids), 2e-6
    )
