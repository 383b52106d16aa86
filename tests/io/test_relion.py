"""RELION particle files of every version, read into the same table; whatever is wrong is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.io import ImageSource, read_particles
from emsplat.optics.ctf import ctf

N_IMAGES, BOX_SIZE = 6, 8  # of the data set fixture
EVEN = np.arange(N_IMAGES) % 2
NAN = [1.0, float("nan"), *[1.0] * (N_IMAGES - 2)]


def with_third(value, other=1.0):
    return [other, other, value, *[other] * (N_IMAGES - 3)]


def names(pattern):
    return [pattern.format(i + 1) for i in range(N_IMAGES)]


def assert_is_the_data_set(particles):
    assert len(particles) == N_IMAGES
    assert particles.box_size == BOX_SIZE
    assert particles.pixel_size_in_angstroms == pytest.approx(1.5)
    assert particles.optics[0].voltage_in_kilovolts == 300
    assert particles.optics[0].spherical_aberration_in_millimetres == 2.7
    assert particles.optics[0].amplitude_contrast == 0.1
    np.testing.assert_array_equal(particles.section, np.arange(N_IMAGES))
    np.testing.assert_allclose(particles.euler_angles_in_degrees, np.arange(N_IMAGES)[:, None] * [10.0, 20.0, 30.0])
    np.testing.assert_allclose(particles.origin_in_angstroms, np.tile([3.0, -1.5], (N_IMAGES, 1)))
    np.testing.assert_allclose(particles.defocus_u_in_angstroms, 10000 + np.arange(N_IMAGES))
    np.testing.assert_allclose(particles.defocus_v_in_angstroms, 9000 + np.arange(N_IMAGES))


def test_version_31(dataset):
    particles = read_particles(dataset())
    assert_is_the_data_set(particles)
    assert particles.optics[0].name == "scope"
    assert particles.warnings == ()
    assert particles.ids[2] == "000003@stack.mrcs"


@pytest.mark.parametrize("block", ["", "images", "model_class_1", "particles"])
def test_version_30_under_any_block_name(dataset_30, block):
    assert_is_the_data_set(read_particles(dataset_30(block)))


@pytest.mark.parametrize("column", ["rlnPixelSize", "rlnImagePixelSize"])
def test_other_pixel_size_columns(dataset_30, column):
    path = dataset_30(**{column: [1.5] * N_IMAGES, "rlnMagnification": None})
    assert_is_the_data_set(read_particles(path))


def test_absent_columns_have_their_neutral_value(dataset):
    particles = read_particles(dataset(rlnOriginXAngst=None, rlnOriginYAngst=None, rlnOpticsGroup=None))
    assert not particles.origin_in_angstroms.any()
    for neutral in ("phase_shift_in_degrees", "b_factor_in_square_angstroms", "pre_exposure", "half_set"):
        assert not getattr(particles, neutral).any()
    assert (particles.ctf_scale == 1).all()
    assert not particles.optics[0].premultiplied
    assert len(set(particles.particle)) == N_IMAGES


def test_present_columns_are_read(dataset):
    path = dataset(
        {"rlnCtfDataAreCtfPremultiplied": [1]},
        rlnPhaseShift=[90.0] * N_IMAGES,
        rlnCtfBfactor=[50.0] * N_IMAGES,
        rlnCtfScalefactor=[0.5] * N_IMAGES,
        rlnRandomSubset=1 + EVEN,
    )
    particles = read_particles(path)
    assert particles.optics[0].premultiplied
    assert (particles.phase_shift_in_degrees == 90).all()
    assert (particles.b_factor_in_square_angstroms == 50).all()
    assert (particles.ctf_scale == 0.5).all()
    np.testing.assert_array_equal(particles.half_set, 1 + EVEN)


def test_rows_find_their_optics_group_by_number(dataset):
    two = {
        "rlnOpticsGroup": [7, 3],
        "rlnOpticsGroupName": ["seven", "three"],
        "rlnVoltage": [300, 200],
        **{name: [v, v] for name, v in (("rlnSphericalAberration", 2.7), ("rlnAmplitudeContrast", 0.1))},
        **{name: [v, v] for name, v in (("rlnImagePixelSize", 1.5), ("rlnImageSize", BOX_SIZE))},
    }
    particles = read_particles(dataset(two, rlnOpticsGroup=np.where(EVEN, 3, 7)))
    assert [particles.optics[g].name for g in particles.optics_group[:2]] == ["seven", "three"]
    assert [particles.optics[g].voltage_in_kilovolts for g in particles.optics_group[:2]] == [300, 200]


def test_identical_optics_in_rows_become_groups(dataset_30):
    particles = read_particles(dataset_30(rlnVoltage=np.where(EVEN, 200, 300)))
    assert len(particles.optics) == 2
    voltages = np.array([g.voltage_in_kilovolts for g in particles.optics])
    np.testing.assert_array_equal(voltages[particles.optics_group], np.where(EVEN, 200, 300))


def test_missing_defocus_angle_is_zero_without_astigmatism(dataset, refuses):
    same = [10000.0] * N_IMAGES
    particles = read_particles(dataset(rlnDefocusAngle=None, rlnDefocusU=same, rlnDefocusV=same))
    assert not particles.defocus_angle_in_degrees.any()
    with refuses("rlnDefocusAngle"):
        read_particles(dataset(rlnDefocusAngle=None))


@pytest.mark.parametrize(
    ("columns", "expected_particles", "expected_dose"),
    [
        # a tilt series: the pre-exposure varies within the group
        (
            {"rlnGroupName": list("aaabbb"), "rlnMicrographPreExposure": [1, 2, 3] * 2},
            [0, 0, 0, 1, 1, 1],
            [1, 2, 3] * 2,
        ),
        # single particles: a group is a micrograph
        ({"rlnGroupName": list("aaabbb"), "rlnMicrographPreExposure": [4] * 6}, range(6), [0] * 6),
        ({"rlnGroupName": list("aaabbb"), "rlnCtfBfactor": [-4, -8, -12] * 2}, [0, 0, 0, 1, 1, 1], [0] * 6),
        ({"rlnGroupName": list("aaabbb"), "rlnCtfBfactor": [-4, -8, -8] * 2}, range(6), [0] * 6),
        ({"rlnGroupName": list("abcdef"), "rlnCtfBfactor": [-4, -8, -8] * 2}, range(6), [0] * 6),
        # B-factors that were fitted to single particles
        (
            {"rlnGroupName": list("aaabbb"), "rlnCtfBfactor": [11, 25, 18, 40, 33, 7], "rlnRandomSubset": [1, 2] * 3},
            range(6),
            [0] * 6,
        ),
        ({"rlnGroupName": list("aaabbb")}, range(6), [0] * 6),
        # doses that differ between images but never within a particle
        ({"rlnMicrographPreExposure": [1, 2, 3, 4, 5, 6]}, range(6), [0] * 6),
        ({"rlnTomoParticleName": list("ababab")}, [0, 1, 0, 1, 0, 1], [0] * 6),
        (
            {"rlnTomoParticleName": list("ababcc"), "rlnMicrographPreExposure": [1, 2, 3, 4, 5, 5]},
            [0, 1, 0, 1, 2, 2],
            [1, 2, 3, 4, 0, 0],
        ),
    ],
)
def test_tilts_of_one_particle(dataset, columns, expected_particles, expected_dose):
    particles = read_particles(dataset(**columns))
    np.testing.assert_array_equal(np.unique(particles.particle, return_inverse=True)[1], expected_particles)
    np.testing.assert_array_equal(particles.pre_exposure, expected_dose)
    if len(set(expected_particles)) < 6:
        np.testing.assert_array_equal(particles.tilted_particle, particles.particle)
    else:
        assert particles.tilted_particle is None


MISSING = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnDefocusU", "rlnDefocusV", "rlnImageName"]
NOT_MISSED = ["rlnDefocusAngle", "rlnOpticsGroup", "rlnOriginXAngst", "rlnOriginYAngst"]
MISSING_OPTICS = ["rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"]


@pytest.mark.parametrize("column", MISSING + MISSING_OPTICS)
def test_a_missing_column_is_named(dataset, refuses, column):
    path = dataset({column: None}) if column in MISSING_OPTICS else dataset(**{column: None})
    with refuses("particles.star", column):
        read_particles(path)


BAD_ROWS = {
    "index 0": ({"rlnImageName": [*names("{}@stack.mrcs")[:5], "0@stack.mrcs"]}, ["row 6", "0@stack.mrcs"]),
    "index not a number": ({"rlnImageName": ["x@stack.mrcs", *names("{}@stack.mrcs")[1:]]}, ["row 1", "x@stack"]),
    "no index": ({"rlnImageName": ["stack.mrcs", *names("{}@stack.mrcs")[1:]]}, ["row 1", "'stack.mrcs'"]),
    "index beyond the end": ({"rlnImageName": names("{}0@stack.mrcs")}, ["stack.mrcs", "holds 6", "number 60"]),
    "no such stack": ({"rlnImageName": names("{}@other.mrcs")}, ["other.mrcs", "--datadir"]),
    "nan angle": ({"rlnAnglePsi": NAN}, ["row 2", "000002@stack.mrcs", "rlnAnglePsi", "nan"]),
    "nan defocus": ({"rlnDefocusU": NAN}, ["row 2", "rlnDefocusU"]),
    "infinite origin": ({"rlnOriginXAngst": with_third("inf")}, ["row 3", "rlnOriginXAngst", "inf"]),
    "text for a number": ({"rlnDefocusV": with_third("high")}, ["row 3", "rlnDefocusV", "'high'"]),
    "half set 3": ({"rlnRandomSubset": with_third(3)}, ["row 3", "rlnRandomSubset", "1 or 2"]),
    "half set 0": ({"rlnRandomSubset": with_third(0)}, ["row 3", "rlnRandomSubset"]),
    "tilts in both halves": (
        {"rlnTomoParticleName": list("aabbcc"), "rlnRandomSubset": with_third(2)},
        ["row 3", "tilts"],
    ),
    "unknown optics group": ({"rlnOpticsGroup": with_third(4, 1)}, ["row 3", "rlnOpticsGroup is 4"]),
    "no rows": ({name: [] for name in [*MISSING, *NOT_MISSED]}, ["no particles", "0 rows"]),
    "bad voltage": ({"rlnVoltage": with_third(0.0, 300)}, ["row 3", "rlnVoltage"]),
    "negative voltage": ({"rlnVoltage": [-300] * 6}, ["rlnVoltage is -300"]),
    "voltage in volts": ({"rlnVoltage": [300000] * 6}, ["rlnVoltage", "kV"]),
    "contrast beyond 1": ({"rlnAmplitudeContrast": [10] * 6}, ["rlnAmplitudeContrast is 10"]),
    "pixel size 0": ({"rlnImagePixelSize": [0] * 6}, ["rlnImagePixelSize is 0"]),
    "two pixel sizes": (
        {"rlnImagePixelSize": with_third(1.51, 1.5)},
        ["two pixel sizes", "1.5 ", "1.51", "--pixel-size"],
    ),
    "box against stack": ({"rlnImageSize": [16] * 6}, ["rlnImageSize is 16", "8 pixels"]),
    "beam tilt not a number": ({"rlnBeamTiltX": ["x"] * 6}, ["row 1", "rlnBeamTiltX", "'x'"]),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_refused(dataset, refuses, case):
    columns, culprits = BAD_ROWS[case]
    with refuses(*culprits):
        read_particles(dataset(**columns))


def test_several_groups_need_a_column_that_tells_them_apart(dataset, refuses):
    two = {name: [v, v] for name, v in (("rlnVoltage", 300), ("rlnSphericalAberration", 2.7))}
    two |= {"rlnAmplitudeContrast": [0.1] * 2, "rlnOpticsGroup": [1, 2], "rlnOpticsGroupName": list("ab")}
    with refuses("2 optics groups", "rlnOpticsGroup"):
        read_particles(dataset({**two, "rlnImagePixelSize": [1.5] * 2, "rlnImageSize": [8] * 2}, rlnOpticsGroup=None))


@pytest.mark.parametrize(
    ("star", "header", "override", "expected"),
    [
        (1.5, 1.5, None, 1.5),
        (1.5, 1.0, None, 1.5),  # the header's 1 means unset
        (1.5, 0.0, None, 1.5),
        (1.5, 1.51, None, 1.5),  # within 1 %
        (None, 1.7, None, 1.7),
        (1.5, 1.7, 1.6, 1.6),
        (None, 0.0, 1.6, 1.6),
        (1.5, 1.7, None, ["1.5 Å", "1.7 Å", "--pixel-size"]),
        (None, 1.0, None, ["no pixel size", "--pixel-size"]),
        (1.5, 1.5, -1.0, ["--pixel-size -1.0"]),
        (1.5, 1.5, float("nan"), ["--pixel-size nan"]),
    ],
)
def test_pixel_size_star_header_override(dataset, refuses, star, header, override, expected):
    path = dataset({"rlnImagePixelSize": None if star is None else [star]}, pixel_size=header)
    if isinstance(expected, list):
        with refuses(*expected):
            read_particles(path, pixel_size_in_angstroms=override)
    else:
        found = read_particles(path, pixel_size_in_angstroms=override).pixel_size_in_angstroms
        assert found == pytest.approx(expected)


def test_origins_in_pixels_follow_the_pixel_size(dataset_30):
    particles = read_particles(dataset_30(), pixel_size_in_angstroms=2.0)
    np.testing.assert_allclose(particles.origin_in_angstroms[0], [4.0, -2.0])


def test_a_magnification_that_no_header_confirms_is_said(dataset_30, tmp_path, write_stack):
    path = dataset_30()
    assert read_particles(path).warnings == ()
    write_stack(tmp_path / "stack.mrcs", pixel_size=1.0)
    (warning,) = read_particles(path).warnings
    assert "rlnMagnification" in warning
    assert "--pixel-size" in warning


def test_phases_that_were_flipped_are_flipped_back(dataset):
    flipped = read_particles(dataset({"rlnCtfDataArePhaseFlipped": [1]}))
    plain = read_particles(dataset({"rlnCtfDataArePhaseFlipped": [0]}))
    assert flipped.optics[0].phase_flipped
    assert flipped.warnings == plain.warnings == ()
    rows = np.arange(N_IMAGES)
    with ImageSource(flipped) as back, ImageSource(plain) as stack:
        expected = np.fft.rfft2(stack.read(rows)) * np.sign(ctf(plain))
        found = np.fft.rfft2(back.read(rows[::-1])[::-1])
    inner = np.s_[:, [0, 1, 2, 3, 5, 6, 7], :4]  # the Nyquist frequency of an even box is its own mirror image
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-4)


def test_what_would_make_a_wrong_map_is_refused(dataset, refuses):
    both = {"rlnCtfDataArePhaseFlipped": [1], "rlnCtfDataAreCtfPremultiplied": [1]}
    with refuses("rlnCtfDataArePhaseFlipped", "rlnCtfDataAreCtfPremultiplied"):
        read_particles(dataset(both))
    with refuses("rlnIsFlip"):
        read_particles(dataset(rlnIsFlip=[0, 0, 1, 0, 0, 0]))
    assert read_particles(dataset(rlnIsFlip=[0] * N_IMAGES)).warnings == ()


def test_repeated_images_and_negative_b_factors_are_named(dataset):
    assert "repeat" in read_particles(dataset(rlnImageName=["1@stack.mrcs"] * N_IMAGES)).warnings[0]
    assert "rlnCtfBfactor" in read_particles(dataset(rlnCtfBfactor=[-4.0] * N_IMAGES)).warnings[0]


@pytest.mark.parametrize(
    ("where", "name", "use_datadir"),
    [
        ("data/deep/stack.mrcs", "deep/stack.mrcs", True),
        ("data/stack.mrcs", "deep/stack.mrcs", True),
        ("deep/stack.mrcs", "deep/stack.mrcs", True),
        ("stack.mrcs", "deep/stack.mrcs", False),
        ("cwd/deep/stack.mrcs", "deep/stack.mrcs", False),
    ],
)
def test_stacks_are_found_by_folder_and_name(dataset, tmp_path, monkeypatch, write_stack, where, name, use_datadir):
    path = dataset(rlnImageName=names("{}@" + name))
    (tmp_path / "stack.mrcs").unlink()
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    write_stack(tmp_path / where)
    (tmp_path / "cwd").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "cwd")
    particles = read_particles(path, datadir=tmp_path / "data" if use_datadir else None)
    assert particles.stacks[0].resolve() == tmp_path / where


def test_two_stacks_of_one_name_are_not_taken_for_one_file(dataset, refuses):
    mixed = [f"{i + 1}@{'ab'[i % 2]}/stack.mrcs" for i in range(N_IMAGES)]
    with refuses("a/stack.mrcs", "b/stack.mrcs", "--datadir"):
        read_particles(dataset(rlnImageName=mixed))


def test_two_boxes_and_oblong_images_are_refused(dataset, tmp_path, write_stack, refuses):
    path = dataset(rlnImageName=[f"{i + 1}@{'stack' if i else 'other'}.mrcs" for i in range(N_IMAGES)])
    write_stack(tmp_path / "other.mrcs", box_size=10)
    with refuses("two box sizes", "10 in", "8 in", "other.mrcs"):
        read_particles(path)
    raw = bytearray((tmp_path / "stack.mrcs").read_bytes())
    raw[4:8] = np.int32(4).tobytes()  # ny
    (tmp_path / "stack.mrcs").write_bytes(raw)
    (tmp_path / "other.mrcs").write_bytes(raw)
    with refuses("8 × 4", "square"):
        read_particles(path)


def test_groups_of_two_boxes_are_refused_as_such(dataset, refuses):
    two = {name: [v, v] for name, v in (("rlnVoltage", 300), ("rlnSphericalAberration", 2.7))}
    two |= {"rlnAmplitudeContrast": [0.1] * 2, "rlnOpticsGroup": [1, 2], "rlnOpticsGroupName": list("ab")}
    two |= {"rlnImagePixelSize": [1.5] * 2, "rlnImageSize": [8, 10]}
    path = dataset(two, rlnOpticsGroup=1 + EVEN)
    for need_stacks in (True, False):
        with refuses("two box sizes, 8 and 10", "rlnImageSize", "apart"):
            read_particles(path, need_stacks=need_stacks)


@pytest.mark.parametrize("size", [0, -8, 1e12, 8.5, "nan"])
def test_a_box_that_is_no_number_of_pixels_is_refused(dataset, refuses, size):
    with refuses("rlnImageSize"):
        read_particles(dataset({"rlnImageSize": [size]}), need_stacks=False)


def test_columns_nobody_knows_are_ignored(dataset):
    assert_is_the_data_set(read_particles(dataset(rlnOfTomorrow=["x"] * N_IMAGES, other=[1] * N_IMAGES)))


def test_a_table_without_its_stacks(dataset, tmp_path):
    path = dataset()
    (tmp_path / "stack.mrcs").unlink()
    assert_is_the_data_set(read_particles(path, need_stacks=False))


REAL = {
    "real/ribosome-tilts/particles.star": (1430, 32, 12.0, 40),
    "real/ribosome-sta/sta_testing_bin8.star": (219, 64, 14.56, 6),
    "real/spa-17/sample_relion_data.star": (17, 200, 1.338, 17),
    "real/relion31-5/relion31.star": (5, 256, 2.806, 5),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_sets(shared_data, name):
    n, box_size, pixel_size, n_particles = REAL[name]
    # the one whose columns hold the unbinned detector's pixel size needs it said
    override = pixel_size if "ribosome-sta" in name else None
    particles = read_particles(shared_data / name, pixel_size_in_angstroms=override)
    assert (len(particles), particles.box_size, len(set(particles.particle))) == (n, box_size, n_particles)
    assert particles.pixel_size_in_angstroms == pytest.approx(pixel_size, rel=1e-4)
    with ImageSource(particles) as source:
        images = source.read(np.arange(n)[-5:])
    assert images.shape == (5, box_size, box_size)
    assert np.isfinite(images).all()


def test_the_real_tilt_series(shared_data):
    particles = read_particles(shared_data / "real/ribosome-tilts/particles.star")
    assert particles.optics[0].premultiplied
    assert particles.pre_exposure.max() > 60
    for number in set(particles.particle):
        assert len(set(particles.half_set[particles.particle == number])) == 1


REAL_METADATA = {
    "empiar-10204-betagal-run_data.star": 4501,
    "relion5.star": 17,
    "sample_particles_relion30.star": 17,
    "sample_relion_symmetry_group_D4.star": 17,
}


@pytest.mark.parametrize("name", REAL_METADATA)
def test_real_metadata_without_images(shared_data, refuses, name):
    path = shared_data / "metadata" / name
    particles = read_particles(path, need_stacks=False)
    assert len(particles) == REAL_METADATA[name]
    assert "modelled" not in " ".join(particles.warnings)
    with refuses("not found", "--datadir"):
        read_particles(path)


@pytest.mark.parametrize(
    ("name", "culprits"),
    [
        ("metadata/sample_incomplete_ctf_params.star", ["rlnVoltage"]),
        ("metadata/relion31.6opticsgroups.star", ["1.24", "1.25"]),
        ("metadata/empiar-10204-betagal-postprocess.star", ["rlnImageName"]),
        ("real/empiar-10076/empiar_10076_7.star", ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]),
    ],
)
def test_real_stars_that_are_not_enough(shared_data, refuses, name, culprits):
    with refuses(name, *culprits):
        read_particles(shared_data / name, need_stacks=False)
