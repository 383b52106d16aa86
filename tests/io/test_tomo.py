"""RELION tomography: every tilt's pose, origin and defocus, against points moved through the tomogram with another
library's rotations, and against a real data set that was written out image by image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from emsplat.conventions import rotation_matrices
from emsplat.io import ImageSource, Table, read_particles, read_star, write_star

RNG = np.random.default_rng(0)
TILT_PIXEL, IMAGE_PIXEL, BOX = 1.5, 3.0, 8
N_TILTS = {"TS_1": 5, "TS_2": 7}
TOMOGRAM_OF = ["TS_1", "TS_2", "TS_1"]  # of three particles
VISIBLE = [[1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]
TILT_ANGLES = {name: RNG.uniform([-5, -60, 80], [5, 60, 90], (n, 3)) for name, n in N_TILTS.items()}  # x, y, z
ANGLES = RNG.uniform(-180, 180, (3, 3))
SUBTOMOGRAM_ANGLES = RNG.uniform(-180, 180, (3, 3))
ORIGINS = RNG.uniform(-10, 10, (3, 3))
COORDINATES = RNG.uniform(-2000, 2000, (3, 3))  # Å from the tomogram's centre
SIZE = np.array([3000, 2400, 1000])  # of the tomograms, in tilt pixels
HAND, SLOPE = -1.0, 0.9


def table(**columns):
    return Table({name: [str(v) for v in values] for name, values in columns.items() if values is not None})


def keys(**values):
    return Table({name: [str(value)] for name, value in values.items()}, is_loop=False)


def xyz(pattern, values):
    return {pattern.format(axis): values[:, i] for i, axis in enumerate("XYZ")}


def angles(pattern, values):
    return {pattern.format(name): values[:, i] for i, name in enumerate(("Rot", "Tilt", "Psi"))}


def tilt_rotations(name):
    """(F, 3, 3) by scipy: about the fixed x, then y, then z axis."""
    return Rotation.from_euler("xyz", TILT_ANGLES[name], degrees=True).as_matrix()


def tilts(name, matrices, **changes):
    n = N_TILTS[name]
    columns = {
        "rlnDefocusU": 30000.0 + 100 * np.arange(n),
        "rlnDefocusV": 29000.0 + 100 * np.arange(n),
        "rlnDefocusAngle": 10.0 * np.arange(n),
        "rlnPhaseShift": 5.0 * np.arange(n),
        "rlnCtfScalefactor": np.linspace(0.5, 1, n),
        "rlnMicrographPreExposure": 3.0 * np.arange(n),
    }
    if matrices:
        rows = tilt_rotations(name)
        # the shifts, in the last column, move no direction
        columns |= {f"rlnTomoProj{a}": [f"[{x},{y},{z},7]" for x, y, z in rows[:, i]] for i, a in enumerate("XYZ")}
    else:
        columns |= {f"rlnTomo{a}": TILT_ANGLES[name][:, i] for i, a in enumerate(("XTilt", "YTilt", "ZRot"))}
    return table(**{**columns, **changes})


@pytest.fixture
def project(tmp_path):
    """Writes an optimisation set with three particles of two tomograms; returns its path. Version 4 puts the tilts'
    matrices into the tomograms' star and the coordinates into pixels, 5 writes angles, files of their own, and Å."""

    def write(version=5, tomograms=None, optics=None, tilt_changes=None, **particles):
        overview = {
            "rlnTomoName": list(N_TILTS),
            "rlnTomoTiltSeriesName": [f"{name}.mrc" for name in N_TILTS],
            "rlnTomoTiltSeriesPixelSize": [TILT_PIXEL] * 2,
            "rlnTomoHand": [HAND] * 2,
            "rlnTomoDefocusSlope": [SLOPE] * 2,
            **{f"rlnTomoSize{axis}": [SIZE[i]] * 2 for i, axis in enumerate("XYZ")},
        }
        series = {name: tilts(name, version == 4, **(tilt_changes or {})) for name in N_TILTS}
        if version == 5:
            overview["rlnTomoTiltSeriesStarFile"] = [f"tilt_series/{name}.star" for name in N_TILTS]
            (tmp_path / "tilt_series").mkdir(exist_ok=True)
            for name, one in series.items():
                write_star(tmp_path / "tilt_series" / f"{name}.star", {name: one})
            series = {}
            where = xyz("rlnCenteredCoordinate{}Angst", COORDINATES)
        else:
            where = xyz("rlnCoordinate{}", COORDINATES / TILT_PIXEL + SIZE / 2)
        write_star(tmp_path / "tomograms.star", {"global": table(**{**overview, **(tomograms or {})}), **series})
        groups = {
            "rlnOpticsGroup": [1],
            "rlnOpticsGroupName": ["scope"],
            "rlnVoltage": [300],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.07],
            "rlnImagePixelSize": [IMAGE_PIXEL],
            "rlnImageSize": [BOX],
            "rlnImageDimensionality": [2],
            "rlnCtfDataAreCtfPremultiplied": [1],
        }
        rows = {
            "rlnTomoName": TOMOGRAM_OF,
            "rlnTomoParticleName": [f"{name}/{i}" for i, name in enumerate(TOMOGRAM_OF)],
            "rlnImageName": [f"stacks/{i}_stack2d.mrcs" for i in range(3)],
            "rlnTomoVisibleFrames": [str(flags).replace(" ", "") for flags in VISIBLE],
            "rlnOpticsGroup": [1] * 3,
            "rlnRandomSubset": [1, 2, 2],
            **angles("rlnAngle{}", ANGLES),
            **angles("rlnTomoSubtomogram{}", SUBTOMOGRAM_ANGLES),
            **xyz("rlnOrigin{}Angst", ORIGINS),
            **where,
        }
        blocks = {
            "general": keys(rlnTomoSubTomosAre2DStacks=1),
            "optics": table(**{**groups, **(optics or {})}),
            "particles": table(**{**rows, **particles}),
        }
        write_star(tmp_path / "particles.star", blocks)
        files = keys(rlnTomoParticlesFile="particles.star", rlnTomoTomogramsFile="tomograms.star")
        write_star(tmp_path / "optimisation_set.star", {"": files})
        return tmp_path / "optimisation_set.star"

    return write


def particle_and_tilt():
    return np.array([(p, t) for p, flags in enumerate(VISIBLE) for t in np.flatnonzero(flags)])


@pytest.mark.parametrize("version", [4, 5])
def test_points_of_a_particle_land_where_its_images_show_them(project, version):
    found = read_particles(project(version), need_stacks=False)
    matrices, at_tilt = found.rotations(), particle_and_tilt()
    assert len(found) == len(at_tilt)
    points = np.random.default_rng(1).normal(0, 100, (20, 3))  # in the particle, Å from its centre
    for image, (p, tilt) in enumerate(at_tilt):
        rotation = tilt_rotations(TOMOGRAM_OF[p])[tilt]
        to_tomogram = rotation_matrices(SUBTOMOGRAM_ANGLES[p])
        centre = COORDINATES[p] - to_tomogram @ ORIGINS[p]
        in_tomogram = centre + points @ (to_tomogram @ rotation_matrices(ANGLES[p])).T
        seen = (in_tomogram - COORDINATES[p]) @ rotation[:2].T  # from the place the image was cut out at
        predicted = points @ matrices[image, :2].T - found.origin_in_angstroms[image]
        np.testing.assert_allclose(predicted, seen, atol=1e-6)
        depth = rotation[2] @ centre
        assert found.defocus_u_in_angstroms[image] == pytest.approx(30000 + 100 * tilt + HAND * SLOPE * depth, abs=1e-3)
        assert found.defocus_v_in_angstroms[image] == pytest.approx(29000 + 100 * tilt + HAND * SLOPE * depth, abs=1e-3)


def test_what_else_the_tilts_and_particles_say(project):
    found = read_particles(project(), need_stacks=False)
    particle, tilt = particle_and_tilt().T
    n_tilts = np.array([N_TILTS[TOMOGRAM_OF[p]] for p in particle])
    np.testing.assert_allclose(found.defocus_angle_in_degrees, 10 * tilt)
    np.testing.assert_allclose(found.phase_shift_in_degrees, 5 * tilt)
    np.testing.assert_allclose(found.ctf_scale, 0.5 + 0.5 * tilt / (n_tilts - 1))
    np.testing.assert_allclose(found.pre_exposure, 3 * tilt)
    assert len(set(zip(found.particle.tolist(), particle.tolist(), strict=True))) == 3
    np.testing.assert_array_equal(found.half_set, np.array([1, 2, 2])[particle])
    assert (found.box_size, found.pixel_size_in_angstroms, found.optics[0].premultiplied) == (BOX, IMAGE_PIXEL, True)
    assert list(found.ids[:3]) == [f"tilt{t}@stacks/0_stack2d.mrcs" for t in (1, 3, 4)]
    assert len(set(found.ids)) == len(found)
    assert found.warnings == ()


def test_absent_columns_have_their_neutral_value(project):
    gone = {"rlnTomoSubtomogramRot": None, "rlnTomoSubtomogramTilt": None, "rlnTomoSubtomogramPsi": None}
    gone |= {f"rlnOrigin{axis}Angst": None for axis in "XYZ"}
    gone |= {"rlnTomoVisibleFrames": None, "rlnTomoParticleName": None, "rlnRandomSubset": None}
    path = project(tilt_changes={"rlnPhaseShift": None, "rlnCtfScalefactor": None, "rlnTomoXTilt": None}, **gone)
    found = read_particles(path, need_stacks=False)
    assert len(found) == 5 + 7 + 5
    assert not found.origin_in_angstroms.any()
    assert (found.ctf_scale == 1).all()
    assert len(set(found.particle)) == 3


def test_optics_may_stand_in_the_particles_rows_and_the_size_of_tomograms_nowhere(project):
    in_rows = {"rlnVoltage": [300] * 3, "rlnSphericalAberration": [2.7] * 3, "rlnAmplitudeContrast": [0.07] * 3}
    in_rows |= {"rlnImagePixelSize": [IMAGE_PIXEL] * 3, "rlnImageSize": [BOX] * 3}
    nowhere = {f"rlnTomoSize{axis}": None for axis in "XYZ"}
    usual = read_particles(project(), need_stacks=False)
    found = read_particles(project(tomograms=nowhere, optics=dict.fromkeys(in_rows), **in_rows), need_stacks=False)
    assert (found.box_size, found.pixel_size_in_angstroms) == (BOX, IMAGE_PIXEL)
    np.testing.assert_allclose(found.defocus_u_in_angstroms, usual.defocus_u_in_angstroms)


def test_a_b_factor_for_each_electron_stands_for_the_dose(project):
    found = read_particles(project(tomograms={"rlnCtfBfactorPerElectronDose": [4.0, 0.0]}), need_stacks=False)
    particle, tilt = particle_and_tilt().T
    first = np.array([TOMOGRAM_OF[p] == "TS_1" for p in particle])
    np.testing.assert_allclose(found.b_factor_in_square_angstroms, np.where(first, 4 * 3 * tilt, 0))
    np.testing.assert_allclose(found.pre_exposure, np.where(first, 0, 3 * tilt))


@pytest.mark.parametrize("whole_series", [False, True])
def test_images_of_stacks_with_the_visible_tilts_or_with_all(project, tmp_path, write_stack, whole_series):
    path = project()
    (tmp_path / "stacks").mkdir()
    expected = []
    for p, flags in enumerate(VISIBLE):
        n = len(flags) if whole_series else sum(flags)
        images = write_stack(tmp_path / "stacks" / f"{p}_stack2d.mrcs", n=n, box_size=BOX, pixel_size=IMAGE_PIXEL)
        expected += list(images[np.flatnonzero(flags)] if whole_series else images)
    found = read_particles(path)
    with ImageSource(found) as source:
        np.testing.assert_array_equal(source.read(np.arange(len(found))), np.array(expected))
    np.testing.assert_array_equal(found.ids, read_particles(path, need_stacks=False).ids)


def test_files_that_moved(project, tmp_path, write_stack, refuses):
    path = project(rlnImageName=[f"/gone/Extract/stacks/{i}_stack2d.mrcs" for i in range(3)])
    new = tmp_path / "elsewhere"
    (new / "stacks").mkdir(parents=True)
    for p, flags in enumerate(VISIBLE):
        write_stack(new / "stacks" / f"{p}_stack2d.mrcs", n=sum(flags), box_size=BOX, pixel_size=IMAGE_PIXEL)
    for name in ("particles.star", "tomograms.star", "tilt_series"):
        (tmp_path / name).rename(new / name)
    with refuses("particles.star", "not found", "--datadir"):
        read_particles(path)
    for prefix in (None, "/gone/Extract/"):
        found = read_particles(path, datadir=new, strip_prefix=prefix)
        assert found.stacks[0] == new / "stacks" / "0_stack2d.mrcs"


def test_antisymmetric_aberrations_are_out_of_the_images_already(project):
    optics = {"rlnBeamTiltX": [0.3], "rlnOddZernike": ["[0,0.2,0]"], "rlnEvenZernike": ["[0,0.1,0]"]}
    found = read_particles(project(optics=optics), need_stacks=False)
    assert found.optics[0].beam_tilt_in_milliradians == (0, 0)
    assert not any(found.optics[0].odd_zernike)
    assert found.optics[0].even_zernike == (0, 0.1, 0)
    (warning,) = found.warnings
    assert "odd Zernikes" in warning


WARP = "metadata/relion5-tomo/warptools_test_4-tomos_10-ptcls_box-32_angpix-12"


def test_a_real_export_and_its_images_one_by_one(shared_data):
    """The single-image star was composed by its authors from the same export."""
    export = read_particles(shared_data / f"{WARP}_optimisation_set.star", need_stacks=False)
    images = read_particles(shared_data / "real/ribosome-tilts/particles.star")
    assert len(export) == len(images) == 1430
    np.testing.assert_allclose(export.rotations(), images.rotations(), atol=1e-6)
    for name in ("defocus_u", "defocus_v", "origin"):
        np.testing.assert_allclose(
            getattr(export, f"{name}_in_angstroms"), getattr(images, f"{name}_in_angstroms"), atol=1e-6
        )
    for name in ("defocus_angle_in_degrees", "pre_exposure", "ctf_scale", "section"):
        expected = getattr(images, name)
        if name == "section":  # one stack a particle there, one for all here
            expected = expected - np.array([expected[images.particle == p].min() for p in images.particle])
        np.testing.assert_allclose(getattr(export, name), expected)
    pairs = set(zip(export.particle.tolist(), images.particle.tolist(), strict=True))
    assert len(pairs) == len(set(export.particle)) == len(set(images.particle)) == 40
    (warning,) = export.warnings
    assert "WarpTools" in warning


@pytest.mark.parametrize(("pixel_size", "known"), [(TILT_PIXEL, False), (IMAGE_PIXEL, True)])
def test_depth_is_left_out_only_where_warptools_hides_it(project, pixel_size, known):
    dummy = {"rlnTomoTiltSeriesName": ["dummy_tiltseries.mrc"] * 2, "rlnTomoTiltSeriesPixelSize": [pixel_size] * 2}
    found = read_particles(project(4, dummy), need_stacks=False)
    at_centre = 30000 + 100 * particle_and_tilt()[:, 1]
    assert np.allclose(found.defocus_u_in_angstroms, at_centre) is not known
    assert bool(found.warnings) is not known


def replaced(values, value):
    return [*values[:1], value, *values[2:]]


BAD = {
    "no such tomogram": ({"rlnTomoName": replaced(TOMOGRAM_OF, "TS_9")}, ["tomograms.star", "TS_9"]),
    "visible of another length": (
        {"rlnTomoVisibleFrames": replaced([str(v).replace(" ", "") for v in VISIBLE], "[1,1]")},
        ["row 2", "rlnTomoVisibleFrames", "each tilt"],
    ),
    "nothing visible": (
        {"rlnTomoVisibleFrames": replaced([str(v).replace(" ", "") for v in VISIBLE], str([0] * 7).replace(" ", ""))},
        ["row 2", "at least one"],
    ),
    "visible is no list": ({"rlnTomoVisibleFrames": ["[a,b]"] * 3}, ["rlnTomoVisibleFrames", "[a,b]"]),
    "an image, not a stack": ({"rlnImageName": ["1@a.mrcs"] * 3}, ["row 1", "1@a.mrcs", "stack of tilts"]),
    "nan angle": ({"rlnAngleRot": [0.0, np.nan, 0.0]}, ["row 2", "rlnAngleRot", "nan"]),
    "nan coordinate": ({"rlnCenteredCoordinateZAngst": [np.nan, 0.0, 0.0]}, ["row 1", "rlnCenteredCoordinateZ"]),
    "no tomogram names": ({"rlnTomoName": None}, ["rlnTomoName"]),
    "subvolumes": ({"optics": {"rlnImageDimensionality": [3]}}, ["rlnImageDimensionality", "3D", "2D stacks"]),
    "no size": ({"version": 4, "tomograms": {"rlnTomoSizeZ": None}}, ["row 1", "TS_1", "rlnTomoSizeX"]),
    "no coordinates": ({"version": 4, "rlnCoordinateY": None}, ["rlnCoordinateY"]),
    "no hand": ({"tomograms": {"rlnTomoHand": None}}, ["tomograms.star", "rlnTomoHand"]),
    "pixel size 0": ({"tomograms": {"rlnTomoTiltSeriesPixelSize": [0, 0]}}, ["rlnTomoTiltSeriesPixelSize is 0"]),
    "no names": ({"tomograms": {"rlnTomoName": None}}, ["tomograms.star", "rlnTomoName"]),
    "no dose": ({"tilt_changes": {"rlnMicrographPreExposure": None}}, ["TS_1", "rlnMicrographPreExposure"]),
    "no tilt": ({"tilt_changes": {"rlnTomoYTilt": None}}, ["TS_1", "rlnTomoYTilt"]),
    "no series file": (
        {"tomograms": {"rlnTomoTiltSeriesStarFile": ["tilt_series/TS_1.star", "absent.star"]}},
        ["tomograms.star", "absent.star", "--datadir"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sets_are_refused(project, refuses, case):
    changes, culprits = BAD[case]
    with refuses(*culprits):
        read_particles(project(**changes), need_stacks=False)


BAD_MATRIX_ROWS = {"[1,0,0,0]": "no rotation", "[1,0]": "fewer than 3", "1 0 0": "1 0 0", "[nan,0,0]": "nan"}


@pytest.mark.parametrize("row", BAD_MATRIX_ROWS)
def test_bad_matrices_are_refused(project, refuses, row):
    path = project(4)
    tomograms = path.with_name("tomograms.star")
    write_star(tomograms, {**read_star(tomograms), "TS_1": tilts("TS_1", True, rlnTomoProjX=[row] * 5)})
    with refuses("TS_1", BAD_MATRIX_ROWS[row]):
        read_particles(path, need_stacks=False)


def test_a_mirrored_tilt_series_is_refused(project, refuses):
    path = project(4)
    tomograms = path.with_name("tomograms.star")
    rows = -tilt_rotations("TS_1")[:, 2]
    mirrored = tilts("TS_1", True, rlnTomoProjZ=[f"[{x},{y},{z},0]" for x, y, z in rows])
    write_star(tomograms, {**read_star(tomograms), "TS_1": mirrored})
    with refuses("TS_1", "mirroring"):
        read_particles(path, need_stacks=False)


def test_a_stack_of_another_length_is_refused(project, tmp_path, write_stack, refuses):
    path = project()
    (tmp_path / "stacks").mkdir()
    for p, n in enumerate((4, 7, 1)):  # the first shows 3 of 5 tilts
        write_stack(tmp_path / "stacks" / f"{p}_stack2d.mrcs", n=n, box_size=BOX, pixel_size=IMAGE_PIXEL)
    with refuses("row 1", "0_stack2d.mrcs", "4", "3, the visible tilts, or 5"):
        read_particles(path)


def test_an_incomplete_set_and_the_particles_alone_are_refused(project, tmp_path, refuses):
    path = project()
    with refuses("particles.star", "optimisation set"):
        read_particles(tmp_path / "particles.star")
    write_star(path, {"": keys(rlnTomoParticlesFile="particles.star")})
    with refuses("optimisation_set.star", "rlnTomoTomogramsFile"):
        read_particles(path)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"tomograms": {"rlnVoltage": [300, 200]}}, ["voltage", "300 kV", "200 kV (rlnVoltage of the tomograms)"]),
        ({"tomograms": {"rlnSphericalAberration": [2.7, 0.01]}}, ["spherical aberration", "2.7 mm", "0.01 mm"]),
        ({"tomograms": {"rlnAmplitudeContrast": [0.07, 0.3]}}, ["amplitude contrast", "0.07", "0.3"]),
        ({"optics": {"rlnTomoTiltSeriesPixelSize": [2.0]}}, ["pixel size", "2 Å", "1.5 Å"]),
        ({"optics": {"rlnTomoSubtomogramBinning": [4]}}, ["pixel size", "3 Å (rlnImagePixelSize)", "6 Å"]),
        ({"rlnOriginX": [100.0] * 3}, ["origin", "rlnOriginX"]),
    ],
)
def test_particles_and_tomograms_that_contradict_each_other_are_refused(project, refuses, where, said):
    with refuses(*said):
        read_particles(project(**where), need_stacks=False)


def test_particles_and_tomograms_that_agree_are_silent(project):
    twice = {"rlnVoltage": [300.0] * 2, "rlnSphericalAberration": [2.7] * 2, "rlnAmplitudeContrast": [0.07] * 2}
    optics = {"rlnTomoTiltSeriesPixelSize": [TILT_PIXEL], "rlnTomoSubtomogramBinning": [IMAGE_PIXEL / TILT_PIXEL]}
    pixels = xyz("rlnCoordinate{}", np.round(COORDINATES / TILT_PIXEL + SIZE / 2, 1))
    pixels |= {"rlnOriginX": ORIGINS[:, 0] / IMAGE_PIXEL}
    found = read_particles(project(tomograms=twice, optics=optics, **pixels), need_stacks=False)
    assert found.warnings == ()
    plain = read_particles(project(), need_stacks=False)
    np.testing.assert_allclose(found.origin_in_angstroms, plain.origin_in_angstroms)


def test_coordinates_in_pixels_of_another_binning_are_warned_of(project):
    """RELION 5 takes those in Å."""
    found = read_particles(project(**xyz("rlnCoordinate{}", COORDINATES / TILT_PIXEL / 4)), need_stacks=False)
    assert len(found.warnings) == 3
    assert all("position" in line and "the first is taken" in line for line in found.warnings)
    assert "rlnCenteredCoordinateXAngst" in found.warnings[0]
    plain = read_particles(project(), need_stacks=False)
    np.testing.assert_array_equal(found.defocus_u_in_angstroms, plain.defocus_u_in_angstroms)


def test_a_pixel_size_that_is_given_settles_the_binning(project):
    path = project(optics={"rlnTomoSubtomogramBinning": [4]})
    assert read_particles(path, pixel_size_in_angstroms=3.0, need_stacks=False).pixel_size_in_angstroms == 3.0


@pytest.mark.parametrize(("turn", "outcome"), [(0.0, "silent"), (0.5, "warned"), (20.0, "refused")])
def test_matrices_and_angles_must_say_one_thing(project, refuses, turn, outcome):
    path = project(4)
    blocks = read_star(path.with_name("tomograms.star"))
    for name in N_TILTS:
        columns = {f"rlnTomo{a}": TILT_ANGLES[name][:, i] for i, a in enumerate(("XTilt", "YTilt", "ZRot"))}
        columns["rlnTomoZRot"] = columns["rlnTomoZRot"] + turn
        blocks[name] = table(**blocks[name].columns, **{c: np.round(v, 3) for c, v in columns.items()})
    write_star(path.with_name("tomograms.star"), blocks)
    if outcome == "refused":
        with refuses("view", "20.00", "rlnTomoProjX"):
            read_particles(path, need_stacks=False)
        return
    warnings = read_particles(path, need_stacks=False).warnings
    assert len(warnings) == (2 if outcome == "warned" else 0)
