"""RELION's columns of aberrations: read, written back, refused where they make no sense."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emsplat.io import read_particles
from emsplat.io.relion_aberrations import aberration_columns, with_aberrations
from emsplat.io.star import read_star
from emsplat.particles.table import OpticsGroup

N_IMAGES = 6  # of the data set fixture
FIELDS = ("beam_tilt_in_milliradians", "odd_zernike", "even_zernike", "magnification")
MATRIX = {"rlnMagMat00": [1.01], "rlnMagMat01": [0.02], "rlnMagMat10": [-0.03], "rlnMagMat11": [0.99]}


def test_the_optics_table_is_read(dataset):
    columns = {"rlnBeamTiltX": [0.5], "rlnBeamTiltY": [-1e-2], "rlnEvenZernike": ["[1,-2.5,3e-1]"], **MATRIX}
    (group,) = read_particles(dataset({**columns, "rlnOddZernike": ["[0.1,0.2,0.3,0.4,0.5,0.6]"]})).optics
    assert group.beam_tilt_in_milliradians == (0.5, -0.01)
    assert group.odd_zernike == (0.1, 0.2, 0.3, 0.0, 0.0, 0.6)  # the tilt stands for the fourth and fifth
    assert group.even_zernike == (1.0, -2.5, 0.3)
    assert group.magnification == (1.01, 0.02, -0.03, 0.99)
    (group,) = read_particles(
        dataset({"rlnOddZernike": ["[0.1,0.2,0.3,0.4,0.5,0.6]"], "rlnEvenZernike": ["[]"]})
    ).optics
    assert group.odd_zernike == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert group.even_zernike == ()


@pytest.mark.parametrize("column", ["rlnBeamTiltX", "rlnBeamTiltY"])
def test_one_beam_tilt_alone(dataset, column):
    (group,) = read_particles(dataset({column: [0.5]})).optics
    assert sum(group.beam_tilt_in_milliradians) == 0.5


def test_beam_tilts_in_the_rows_make_optics_groups(dataset_30):
    tilt = [0.1, 0.2, 0.1, 0.2, 0.3, 0.1]
    particles = read_particles(dataset_30(rlnBeamTiltX=tilt, rlnBeamTiltY=[0.5] * N_IMAGES))
    found = np.array([group.beam_tilt_in_milliradians for group in particles.optics])
    assert len(found) == 3
    np.testing.assert_array_equal(found[particles.optics_group], [[x, 0.5] for x in tilt])


@pytest.mark.parametrize(
    ("columns", "culprits"),
    [
        ({"rlnBeamTiltY": ["?"]}, ["rlnBeamTiltY", "'?'"]),
        ({"rlnBeamTiltX": ["nan"]}, ["rlnBeamTiltX is nan"]),
        ({"rlnBeamTiltX": [5000]}, ["rlnBeamTiltX is 5000", "1000"]),
        ({"rlnOddZernike": ["[1,x]"]}, ["rlnOddZernike", "'x'"]),
        ({"rlnOddZernike": ["[1,,2]"]}, ["rlnOddZernike", "''"]),
        ({"rlnEvenZernike": ["[inf]"]}, ["rlnEvenZernike", "inf"]),
        ({"rlnEvenZernike": ["[1e300]"]}, ["rlnEvenZernike", "1e300"]),
        ({"rlnEvenZernike": ["[" + ",".join("1" * 101) + "]"]}, ["rlnEvenZernike", "101 coefficients"]),
        ({"rlnMagMat00": [1]}, ["no rlnMagMat01, rlnMagMat10, rlnMagMat11;"]),
        ({**MATRIX, "rlnMagMat00": [0]}, ["rlnMagMat00", "0, 0.02, -0.03, 0.99"]),
        ({**MATRIX, "rlnMagMat00": [-1]}, ["rlnMagMat00"]),
        ({**MATRIX, "rlnMagMat11": ["nan"]}, ["rlnMagMat11 is nan"]),
    ],
)
def test_senseless_values_are_refused(dataset, refuses, columns, culprits):
    with refuses("particles.star", "row 1", *culprits):
        read_particles(dataset(columns))


@pytest.mark.parametrize("name", ["relion31.6opticsgroups", "empiar-10204-betagal-run_data", "relion5"])
def test_real_groups_go_round(shared_data, name):
    path = shared_data / "metadata" / f"{name}.star"
    groups = read_particles(path, pixel_size_in_angstroms=1.25, need_stacks=False).optics
    table = read_star(path)["optics"]
    assert len(groups) == len(table)
    np.testing.assert_array_equal([g.beam_tilt_in_milliradians[0] for g in groups], table.floats("rlnBeamTiltX"))
    np.testing.assert_array_equal([g.magnification[2] for g in groups], table.floats("rlnMagMat10"))
    for column, field in (("rlnOddZernike", "odd_zernike"), ("rlnEvenZernike", "even_zernike")):
        written = [np.array(text.strip("[]").split(","), dtype=float) for text in table.column(column)]
        np.testing.assert_array_equal([getattr(g, field) for g in groups], written)
    columns = aberration_columns(groups)
    for i, group in enumerate(groups):
        plain = replace(group, **{field: getattr(OpticsGroup, field) for field in FIELDS})
        assert plain != group
        assert with_aberrations(plain, {column: values[i] for column, values in columns.items()}, "written") == group


def test_what_no_group_has_is_not_written():
    plain = OpticsGroup("a", 1.0, 8, 300.0, 2.7, 0.1)
    assert aberration_columns([plain]) == {}
