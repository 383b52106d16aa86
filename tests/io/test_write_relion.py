"""Particles written as a RELION star: the same when read again, and the same to RELION."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from emsplat.io import read_map, read_particles, read_star, write_star
from emsplat.io.write_relion import write_relion
from emsplat.particles.table import Particles
from relion import run_relion

ABERRATIONS = {
    "beam_tilt_in_milliradians": (1.5, -0.7),
    "odd_zernike": (0.5, -0.3, 0.4, 0.0, 0.2, -0.6),
    "even_zernike": (0.1, 0.2, -0.3, 0.4, 0.1, 0.2, -0.2, 0.3, 0.1),
    "magnification": (1.02, 0.005, -0.004, 0.98),
}


def assert_equal(found: Particles, expected: Particles) -> None:
    """But for what a number of six decimals cannot say, and for how images are named."""
    for field in fields(Particles):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if field.name in ("source", "ids", "stacks", "warnings", "dark", "optics"):
            continue
        assert a == b if isinstance(a, str | None) else np.allclose(a, b, atol=1e-6), field.name
    assert found.optics == expected.optics
    assert [path.resolve() for path in found.stacks] == [path.resolve() for path in expected.stacks]


@pytest.mark.parametrize(
    "name", ["spa-17/sample_relion_data.star", "ribosome-sta/sta_testing_bin8.star", "ribosome-tilts/particles.star"]
)
def test_read_again_it_is_the_same(name: str, shared_data: Path, tmp_path: Path) -> None:
    """Also particles of RELION 3.0, with origins in pixels; and tilts, which are one particle."""
    expected = read_particles(shared_data / "real" / name)
    write_relion(expected, tmp_path / "out.star")
    assert_equal(read_particles(tmp_path / "out.star"), expected)


def test_aberrations_read_again(shared_data: Path, tmp_path: Path) -> None:
    """Of six optics groups."""
    source = shared_data / "metadata/relion31.6opticsgroups.star"
    expected = read_particles(source, need_stacks=False, pixel_size_in_angstroms=1.25)
    assert any(group.odd_zernike for group in expected.optics)
    write_relion(expected, tmp_path / "out.star")
    found = read_particles(tmp_path / "out.star", need_stacks=False)
    assert found.optics == expected.optics
    assert np.array_equal(found.optics_group, expected.optics_group)


def test_names_of_stacks(simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the project where the stack lies in it, absolute elsewhere."""
    particles = read_particles(simulated / "particles.star")
    monkeypatch.chdir(simulated.parent)
    for project, expected in (
        (None, f"000001@{simulated.name}/particles.mrcs"),
        (simulated, "000001@particles.mrcs"),
        (tmp_path, f"000001@{simulated}/particles.mrcs"),
    ):
        write_relion(particles, tmp_path / "out.star", project)
        table = read_star(tmp_path / "out.star")["particles"]
        assert table.column("rlnImageName")[0] == expected


def reconstructed_by_relion(star: str, folder: Path) -> np.ndarray:
    run_relion("relion_reconstruct", "--i", star, "--o", f"{star}.mrc", "--ctf", folder=folder)
    return read_map(folder / f"{star}.mrc").values


def test_relion_makes_the_same_map_of_it(simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink(simulated / "particles.mrcs", "particles.mrcs")
    os.symlink(simulated / "particles.star", "original.star")
    write_relion(read_particles("original.star"), "ours.star")
    ours, original = (reconstructed_by_relion(f"{name}.star", tmp_path) for name in ("ours", "original"))
    assert np.linalg.norm(ours - original) < 1e-5 * np.linalg.norm(original)


def test_relion_sees_the_aberrations(simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two optics groups, one of them aberrated: as in a star whose columns are written here by hand."""
    monkeypatch.chdir(tmp_path)
    os.symlink(simulated / "particles.mrcs", "particles.mrcs")
    plain = read_particles(simulated / "particles.star")
    [group] = plain.optics
    halves = (np.arange(len(plain)) % 2).astype(np.int32)
    aberrated = replace(plain, stacks=(tmp_path / "particles.mrcs",), optics_group=halves)
    aberrated = replace(aberrated, optics=(group, replace(group, name="second", **ABERRATIONS)))
    write_relion(aberrated, "ours.star")

    blocks = read_star(simulated / "particles.star")
    optics = {name: table.column(name) * 2 for table in [blocks["optics"]] for name in table.columns}
    optics |= {
        "rlnOpticsGroup": ["1", "2"],
        "rlnOpticsGroupName": ["first", "second"],
        "rlnBeamTiltX": ["0", "1.5"],
        "rlnBeamTiltY": ["0", "-0.7"],
        "rlnOddZernike": ["[0,0,0,0,0,0]", "[0.5,-0.3,0.4,0,0.2,-0.6]"],
        "rlnEvenZernike": ["[0,0,0,0,0,0,0,0,0]", "[0.1,0.2,-0.3,0.4,0.1,0.2,-0.2,0.3,0.1]"],
        "rlnMagMat00": ["1", "1.02"],
        "rlnMagMat01": ["0", "0.005"],
        "rlnMagMat10": ["0", "-0.004"],
        "rlnMagMat11": ["1", "0.98"],
    }
    rows = dict(blocks["particles"].columns) | {"rlnOpticsGroup": [str(half + 1) for half in halves]}
    write_star("byhand.star", {"optics": type(blocks["optics"])(optics), "particles": type(blocks["particles"])(rows)})
    ours, by_hand = (reconstructed_by_relion(f"{name}.star", tmp_path) for name in ("ours", "byhand"))
    assert np.linalg.norm(ours - by_hand) < 1e-5 * np.linalg.norm(by_hand)
    without = reconstructed_by_relion("particles.star", simulated)
    assert np.linalg.norm(ours - without) > 0.05 * np.linalg.norm(without)
