"""Tables that have no poses yet are read for a search that finds them, and refused by everything else."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from emsplat.errors import InputError
from emsplat.io import read_particles, read_star, write_star
from emsplat.io.star import Table
from emsplat.io.write_refined import write_posed
from emsplat.optics.ctf import ctf as ctf_of

N, BOX = 6, 16


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "images.mrcs"
    with mrcfile.new(path) as file:
        file.set_data(np.random.default_rng(0).normal(size=(N, BOX, BOX)).astype(np.float32))
        file.set_image_stack()
        file.voxel_size = 2.0
    return path


def extraction_star(stack: Path, ctf: bool = True) -> Path:
    columns = {"rlnImageName": [f"{i + 1:06d}@{stack.name}" for i in range(N)], "rlnCoordinateX": ["7.5"] * N}
    optics = {"rlnOpticsGroup": ["1"], "rlnImagePixelSize": ["2.0"], "rlnImageSize": [str(BOX)]}
    columns["rlnOpticsGroup"] = ["1"] * N
    if ctf:
        columns |= {"rlnDefocusU": ["12000"] * N, "rlnDefocusV": ["11000"] * N, "rlnDefocusAngle": ["30"] * N}
        optics |= {"rlnVoltage": ["300"], "rlnSphericalAberration": ["2.7"], "rlnAmplitudeContrast": ["0.1"]}
    path = stack.with_name("extracted.star")
    write_star(path, {"optics": Table(optics), "particles": Table(columns)})
    return path


def test_an_extraction_star_is_read_without_poses_and_written_with_them(stack: Path, tmp_path: Path) -> None:
    star = extraction_star(stack)
    with pytest.raises(InputError, match="rlnAngleRot"):
        read_particles(star)
    particles = read_particles(star, need_poses=False)
    assert (particles.euler_angles_in_degrees == 0).all() and (particles.defocus_u_in_angstroms == 12000).all()
    angles = np.random.default_rng(1).uniform(0, 90, (N, 3))
    posed = replace(
        particles,
        euler_angles_in_degrees=angles,
        origin_in_angstroms=angles[:, :2] / 20,
        half_set=np.array([1, 2] * 3, np.int8),
    )
    (tmp_path / "out").mkdir()
    (out,) = write_posed(posed, tmp_path / "out")
    again = read_particles(out, datadir=tmp_path)
    assert again.euler_angles_in_degrees == pytest.approx(angles, abs=1e-5)
    assert again.origin_in_angstroms == pytest.approx(angles[:, :2] / 20, abs=1e-5)
    assert again.half_set.tolist() == [1, 2] * 3
    assert read_star(out)["particles"].column("rlnCoordinateX") == ["7.5"] * N


def test_a_star_without_ctfs_causes_a_warning_only_if_they_are_needed(stack: Path) -> None:
    star = extraction_star(stack, ctf=False)
    for needed in (True, False):
        particles = read_particles(star, need_poses=False, need_ctf=needed)
        assert len(particles) == N and not particles.has_ctf
        assert any("CTF is taken as 1" in line for line in particles.warnings) == needed


def test_a_ctf_pickle_alone_is_enough(stack: Path, tmp_path: Path) -> None:
    table = np.tile([BOX, 2.0, 12000, 11000, 30, 300, 2.7, 0.1, 0], (N, 1)).astype(np.float32)
    (tmp_path / "ctf.pkl").write_bytes(pickle.dumps(table))
    with pytest.raises(InputError, match="--poses"):
        read_particles(stack, ctf=tmp_path / "ctf.pkl")
    particles = read_particles(stack, ctf=tmp_path / "ctf.pkl", need_poses=False)
    assert len(particles) == N and (particles.origin_in_angstroms == 0).all()


def test_a_stack_alone_is_read_if_neither_poses_nor_ctfs_are_needed(stack: Path) -> None:
    with pytest.raises(InputError, match="poses and CTFs are missing"):
        read_particles(stack, need_poses=False)
    particles = read_particles(stack, need_poses=False, need_ctf=False)
    assert len(particles) == N and particles.pixel_size_in_angstroms == pytest.approx(2.0)
    assert (ctf_of(particles) == 1).all()


def test_a_cryosparc_table_without_alignments_gets_them(stack: Path, tmp_path: Path) -> None:
    fields = [
        *[("uid", "u8"), ("blob/path", "S40"), ("blob/idx", "u4"), ("blob/shape", "u4", (2,)), ("blob/psize_A", "f4")],
        *[("ctf/df1_A", "f4"), ("ctf/df2_A", "f4"), ("ctf/df_angle_rad", "f4"), ("ctf/accel_kv", "f4")],
        *[("ctf/cs_mm", "f4"), ("ctf/amp_contrast", "f4"), ("blob/sign", "f4")],
    ]
    table = np.zeros(N, dtype=fields)
    table["uid"], table["blob/path"], table["blob/idx"] = np.arange(N) + 100, stack.name.encode(), np.arange(N)
    table["blob/shape"], table["blob/psize_A"], table["blob/sign"] = BOX, 2.0, 1.0
    table["ctf/df1_A"], table["ctf/df2_A"], table["ctf/accel_kv"] = 12000, 11000, 300
    table["ctf/cs_mm"], table["ctf/amp_contrast"] = 2.7, 0.1
    path = tmp_path / "extracted.cs"
    with path.open("wb") as file:
        np.save(file, table)
    with pytest.raises(InputError, match="no poses"):
        read_particles(path)
    particles = read_particles(path, need_poses=False)
    angles = np.random.default_rng(2).uniform(5, 85, (N, 3))
    posed = replace(
        particles,
        euler_angles_in_degrees=angles,
        origin_in_angstroms=angles[:, :2] / 30,
        half_set=np.array([2, 1] * 3, np.int8),
    )
    (tmp_path / "out").mkdir()
    star, cs = write_posed(posed, tmp_path / "out")
    for out in (star, cs):
        again = read_particles(out, datadir=tmp_path)
        assert again.rotations() == pytest.approx(posed.rotations(), abs=1e-5)
        assert again.origin_in_angstroms == pytest.approx(posed.origin_in_angstroms, abs=1e-4)
        assert again.half_set.tolist() == [2, 1] * 3
