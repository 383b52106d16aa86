"""Facts that stand in two places: refused where they differ by what matters, warned of where by little."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.io import read_particles, write_star
from emsplat.io.star import read_star

N_IMAGES = 6  # of the data set that the fixtures write


@pytest.mark.parametrize("order", [1, -1])
def test_an_optics_group_that_is_there_twice_is_refused(dataset, refuses, order):
    twice = {
        "rlnOpticsGroup": [1, 1],
        "rlnOpticsGroupName": ["a", "a"],
        "rlnVoltage": [300, 200][::order],
        "rlnSphericalAberration": [2.7, 2.7],
        "rlnAmplitudeContrast": [0.1, 0.1],
        "rlnImagePixelSize": [1.5, 1.5],
        "rlnImageSize": [8, 8],
    }
    with refuses("group 1 is there twice", "rlnVoltage", "300", "200"):
        read_particles(dataset(optics=twice))
    same = twice | {"rlnVoltage": [300, 300]}
    assert read_particles(dataset(optics=same)).optics[0].voltage_in_kilovolts == 300


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("rlnVoltage", 200.0, ["voltage", "300 kV", "200 kV"]),
        ("rlnSphericalAberration", 0.01, ["spherical aberration", "2.7 mm", "0.01 mm"]),
        ("rlnAmplitudeContrast", 0.5, ["amplitude contrast", "0.1", "0.5"]),
        ("rlnImagePixelSize", 3.0, ["pixel size", "1.5", "3"]),
        ("rlnImageSize", 16, ["rlnImageSize", "8", "16"]),
    ],
)
def test_a_column_of_two_tables_must_say_one_thing(dataset, refuses, column, value, said):
    with refuses(*said):
        read_particles(dataset(**{column: [value] * N_IMAGES}))


@pytest.mark.parametrize(
    ("column", "value", "kept"), [("rlnAmplitudeContrast", 0.07, 0.1), ("rlnSphericalAberration", 2.62, 2.7)]
)
def test_small_differences_are_warned_of(dataset, column, value, kept):
    particles = read_particles(dataset(**{column: [value] * N_IMAGES}))
    (warning,) = particles.warnings
    assert f"{kept:g}" in warning
    assert f"{value:g}" in warning


def test_columns_that_agree_but_for_rounding_are_silent(dataset):
    columns = {
        "rlnVoltage": [300.00001] * N_IMAGES,
        "rlnImagePixelSize": [1.50001] * N_IMAGES,
        "rlnOriginX": [3.0 / 1.5 + 1e-4] * N_IMAGES,
        "rlnOriginY": [-1.0] * N_IMAGES,
    }
    assert read_particles(dataset(**columns)).warnings == ()


def test_pixel_sizes_of_a_table_are_compared(dataset_30, tmp_path, write_stack, refuses):
    star = dataset_30(rlnPixelSize=[0.6] * N_IMAGES)  # by the magnification, and the header, it is 1.5
    with refuses("0.6", "1.5", "--pixel-size"):
        read_particles(star)
    write_stack(tmp_path / "stack.mrcs", pixel_size=0.0001)
    with refuses("two values of the pixel size", "0.6", "rlnPixelSize", "1.5", "rlnMagnification", "--pixel-size"):
        read_particles(star)
    assert read_particles(star, pixel_size_in_angstroms=1.5).pixel_size_in_angstroms == 1.5


def test_a_stale_magnification_against_table_and_headers_is_warned_of(dataset):
    stale = {"rlnDetectorPixelSize": [5.0] * N_IMAGES, "rlnMagnification": [10000.0] * N_IMAGES}
    particles = read_particles(dataset(**stale))
    assert particles.pixel_size_in_angstroms == 1.5
    assert "two pixel sizes: 1.5 Å" in particles.warnings[0]
    assert "5 Å" in particles.warnings[0]


@pytest.mark.parametrize("pixels", [-2.0, 0.0, 4.0])
def test_origins_in_two_units_must_be_one(dataset, refuses, pixels):
    with refuses("origin", "2 pixels", f"{pixels:g} pixels", "rlnOriginX"):
        read_particles(dataset(rlnOriginX=[pixels] * N_IMAGES))


@pytest.mark.parametrize(("first", "second", "said"), [("accel_kv", 200, "kV"), ("cs_mm", 0.01, "mm")])
def test_slots_of_cryosparc_are_compared(tmp_path, write_stack, refuses, first, second, said):
    from cs_project import column, write_project

    table = write_project(tmp_path, write_stack, {f"mscope_params/{first}": column(second, "<f4")})
    with refuses(f"mscope_params/{first}", said):
        read_particles(table)


@pytest.mark.parametrize("kind", ["Å", "pixels"])
def test_the_pixel_size_given_keeps_shifts_in_pixels(dataset, dataset_30, kind):
    star = dataset() if kind == "Å" else dataset_30()
    plain, other = (read_particles(star, pixel_size_in_angstroms=size) for size in (1.5, 1.8))
    np.testing.assert_allclose(other.origin_in_angstroms / 1.8, plain.origin_in_angstroms / 1.5)
    np.testing.assert_array_equal(other.defocus_u_in_angstroms, plain.defocus_u_in_angstroms)
    assert any("same number of pixels" in line for line in other.warnings) == (kind == "Å")
    assert read_particles(star).origin_in_angstroms[0, 0] == pytest.approx(3.0)


def test_two_blocks_of_optics_do_not_matter_where_they_agree(dataset):
    star = dataset(rlnVoltage=[300.0] * N_IMAGES)
    blocks = read_star(star)
    write_star(star, blocks)
    assert read_particles(star).warnings == ()
