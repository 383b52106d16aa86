"""Particles whose images have no CTF, or whose CTF the user does not want to be used."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cs_project import N_IMAGES, complete, write_project

from emsplat.io import read_input, read_particles, read_star, write_star
from emsplat.io.star import Table
from emsplat.io.write_relion import write_relion
from emsplat.optics.ctf import ctf as ctf_of
from emsplat.poses.rounds import check_refinable
from emsplat.settings import InputSettings, ReconstructSettings
from phantom import imagined_particles

OF_IMAGES = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnCtfBfactor")
OF_OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")


@pytest.fixture
def without(dataset: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a star of six images without some columns, and with others in its optics table."""

    def write(*columns: str, **of_optics: str) -> Path:
        path = dataset()
        blocks = read_star(path)
        kept = {
            name: Table({n: v for n, v in table.columns.items() if n not in columns}) for name, table in blocks.items()
        }
        for name, value in of_optics.items():
            kept["optics"].columns[name] = [value] * len(kept["optics"])
        write_star(path, kept)
        return path

    return write


@pytest.mark.parametrize("columns", [OF_IMAGES, (*OF_IMAGES, *OF_OPTICS)])
def test_a_star_without_defocus_is_read_with_a_ctf_of_one(without: Callable, columns: tuple[str, ...]) -> None:
    particles = read_particles(without(*columns, rlnBeamTiltX="0.5"))
    assert not particles.has_ctf
    assert (ctf_of(particles) == particles.ctf_scale[:, None, None]).all()
    assert [line for line in particles.warnings if "CTF is taken as 1" in line and "no defocus" in line]


@pytest.mark.parametrize("column", ["rlnDefocusV", "rlnVoltage"])
def test_half_of_a_ctf_is_none(without: Callable, column: str, refuses: Callable) -> None:
    with refuses(column):
        read_particles(without(column))


def test_premultiplied_images_need_their_ctf(without: Callable, refuses: Callable) -> None:
    star = without(*OF_IMAGES, rlnCtfDataAreCtfPremultiplied="1")
    with refuses("rlnCtfDataAreCtfPremultiplied", "no defocus"):
        read_particles(star)


def test_premultiplied_images_have_their_ctf_whatever_the_user_wants(without: Callable, refuses: Callable) -> None:
    with refuses("rlnCtfDataAreCtfPremultiplied", "leave out --no-ctf"):
        read_input(without(rlnCtfDataAreCtfPremultiplied="1"), InputSettings(no_ctf=True))


def test_the_user_may_not_want_the_ctfs_of_the_file(without: Callable) -> None:
    star = without(rlnBeamTiltX="0.5", rlnOddZernike="[0,0,0.1]", rlnEvenZernike="[0,0,0.1]")
    said, asked = (read_input(star, InputSettings(no_ctf=no)) for no in (False, True))
    assert said.has_ctf and not asked.has_ctf
    assert (ctf_of(asked) == asked.ctf_scale[:, None, None]).all()
    assert not any(asked.optics[0].beam_tilt_in_milliradians) and not asked.optics[0].odd_zernike
    assert any("--no-ctf" in line for line in asked.warnings) and not any("taken as 1" in w for w in said.warnings)
    np.testing.assert_array_equal(asked.euler_angles_in_degrees, said.euler_angles_in_degrees)
    assert asked.fingerprint() != said.fingerprint()  # so that a run with the CTFs is not resumed without them


def test_a_cryosparc_table_without_ctfs_lacks_its_passthrough_or_is_read_so(
    tmp_path: Path, write_stack: Callable, refuses: Callable
) -> None:
    table = write_project(tmp_path, write_stack, {name: None for name in complete() if name.startswith("ctf/")})
    with refuses("ctf/df1_A", "--passthrough", "--no-ctf"):
        read_particles(table)
    particles = read_input(table, InputSettings(no_ctf=True))
    assert len(particles) == N_IMAGES and not particles.has_ctf


def test_cryodrgns_poses_without_ctfs(without: Callable, tmp_path: Path, refuses: Callable) -> None:
    star = without()
    n = len(read_star(star)["particles"])
    (tmp_path / "poses.pkl").write_bytes(pickle.dumps(np.tile(np.eye(3, dtype=np.float32), (n, 1, 1))))
    particles = read_input(star, InputSettings(poses=tmp_path / "poses.pkl", no_ctf=True))
    assert len(particles) == n and not particles.has_ctf
    with refuses("--poses and --ctf", "--no-ctf"):
        InputSettings(poses=tmp_path / "poses.pkl")


@pytest.mark.parametrize("column", ["phase_shift_in_degrees", "b_factor_in_square_angstroms"])
def test_a_phase_shift_or_a_b_factor_alone_is_a_ctf(dataset: Callable[..., Path], tmp_path: Path, column: str) -> None:
    in_focus = read_particles(dataset()).without_ctf()
    particles = replace(in_focus, **{column: np.full(len(in_focus), 40.0)})
    assert particles.has_ctf and not in_focus.has_ctf and not particles.without_ctf().has_ctf
    write_relion(particles, tmp_path / "written.star")
    again = read_particles(tmp_path / "written.star")
    np.testing.assert_array_equal(ctf_of(again), ctf_of(particles))


def test_written_for_relion_it_still_has_no_ctf(without: Callable, tmp_path: Path) -> None:
    write_relion(read_particles(without(*OF_IMAGES)), tmp_path / "out.star")
    blocks = read_star(tmp_path / "out.star")
    assert not {*OF_IMAGES, *OF_OPTICS} & {*blocks["particles"].columns, *blocks["optics"].columns}
    assert not read_particles(tmp_path / "out.star").has_ctf


def test_a_ctf_of_one_has_no_defocus_to_refine(refuses: Callable) -> None:
    particles = imagined_particles(4, 16)
    check_refinable(particles, ReconstructSettings(refine="poses,defocus"))
    with refuses("--refine poses,defocus", "taken as 1"):
        check_refinable(particles.without_ctf(), ReconstructSettings(refine="poses,defocus"))
    check_refinable(particles.without_ctf(), ReconstructSettings(refine="poses,contrast"))
