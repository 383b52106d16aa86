"""cisTEM's tables: every column, and the conventions, against RELION's star of the same images."""

from __future__ import annotations

import gzip
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest

from cistem_tables import table, write_cistem_binary, write_cistem_star
from emsplat.io import read_input, read_particles, read_star
from emsplat.io.cistem_columns import is_binary_table, read_columns
from emsplat.io.formats import Format, sniff
from emsplat.io.subset import subset
from emsplat.settings import InputSettings
from emsplat.simulation import SimulationSettings, simulate
from phantom import inverted

N = 6
WRITERS = {"star": write_cistem_star, "cistem": write_cistem_binary}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path, write_stack):
    """Writes a stack and a table of six images in one of the two formats; keywords replace or (None) remove columns."""
    write_stack(tmp_path / "stack.mrcs", N)

    def write(**changes):
        columns = {name: v for name, v in {**table(N), **changes}.items() if v is not None}
        return WRITERS[request.param](tmp_path / f"a.{request.param}", columns)

    return write


def test_every_column_is_read(written):
    path, given = written(), table(N)
    found = read_particles(path)
    assert sniff(path) is Format.CISTEM
    assert found.ids.tolist() == [f"{i:06d}@stack.mrcs" for i in range(1, N + 1)]
    np.testing.assert_array_equal(found.section, np.arange(N))
    angles = np.stack([given["AnglePhi"], given["AngleTheta"], given["AnglePsi"]], axis=1)
    np.testing.assert_allclose(found.euler_angles_in_degrees, angles, rtol=1e-6)
    origins = -np.stack([given["XShift"], given["YShift"]], axis=1)
    np.testing.assert_allclose(found.origin_in_angstroms, origins, rtol=1e-6)
    np.testing.assert_allclose(found.defocus_u_in_angstroms, given["Defocus1"], rtol=1e-6)
    np.testing.assert_allclose(found.defocus_v_in_angstroms, given["Defocus2"], rtol=1e-6)
    np.testing.assert_allclose(found.defocus_angle_in_degrees, given["DefocusAngle"], rtol=1e-6)
    np.testing.assert_allclose(found.phase_shift_in_degrees, 90, rtol=1e-6)
    (group,) = found.optics
    assert (group.voltage_in_kilovolts, group.box_size, found.pixel_size_in_angstroms) == (300, 8, 1.5)
    assert (group.spherical_aberration_in_millimetres, group.amplitude_contrast) == (2.7, 0.07)
    assert not found.half_set.any()
    assert found.warnings == ()


def test_absent_columns_have_their_neutral_value(written):
    found = read_particles(written(PhaseShift=None, ImageActivity=None, Occupancy=None, XShift=None, YShift=None))
    assert not found.phase_shift_in_degrees.any()
    assert not found.origin_in_angstroms.any()
    with_header = read_particles(written(PixelSize=None))  # the stack's header has it
    assert with_header.pixel_size_in_angstroms == 1.5


@pytest.fixture(scope="module")
def simulated_both(tmp_path_factory, one_chain):
    """A simulation in an odd box, off centre and with a phase plate, with its star written as cisTEM's tables too."""
    folder = tmp_path_factory.mktemp("both")
    settings = SimulationSettings(
        n_images=40,
        box_size=33,
        pixel_size_in_angstroms=4.0,
        snr=0.2,
        phase_shift_in_degrees=35.0,
        astigmatism_in_angstroms=800.0,
    )
    star = simulate(one_chain, folder, settings, overwrite=True)
    rows = read_star(star)["particles"]
    columns = {
        "PositionInStack": list(range(1, 41)),
        "AnglePsi": rows.floats("rlnAnglePsi"),
        "AngleTheta": rows.floats("rlnAngleTilt"),
        "AnglePhi": rows.floats("rlnAngleRot"),
        "XShift": -rows.floats("rlnOriginXAngst"),
        "YShift": -rows.floats("rlnOriginYAngst"),
        "Defocus1": rows.floats("rlnDefocusU"),
        "Defocus2": rows.floats("rlnDefocusV"),
        "DefocusAngle": rows.floats("rlnDefocusAngle"),
        "PhaseShift": rows.floats("rlnPhaseShift"),
        "PixelSize": [4.0] * 40,
        "MicroscopeVoltagekV": [300.0] * 40,
        "MicroscopeCsMM": [2.7] * 40,
        "AmplitudeContrast": [0.1] * 40,
        "StackFilename": ["particles.mrcs"] * 40,
    }
    write_cistem_star(folder / "c.star", columns)
    write_cistem_binary(folder / "c.cistem", columns)
    return star


@pytest.mark.parametrize("name", ["c.star", "c.cistem"])
def test_the_same_images_give_the_same_map_as_from_relions_star(simulated_both, name):
    relion, cistem = read_particles(simulated_both), read_particles(simulated_both.with_name(name))
    assert np.ptp(relion.origin_in_angstroms) > 1
    one, other = inverted(relion), inverted(cistem)
    assert np.abs(other - one).max() < 1e-3 * np.abs(one).max()
    wrong = inverted(replace(cistem, origin_in_angstroms=-cistem.origin_in_angstroms))
    assert np.abs(wrong - one).max() > 0.1 * np.abs(one).max()


def test_images_that_cistem_would_leave_out_are_left_out(written, refuses):
    found = read_particles(written(ImageActivity=[1, 0, -1, 1, 1, 1], Occupancy=[100.0, 100.0, 100.0, 3.0, 60.0, 0.0]))
    assert found.ids.tolist() == [f"{i:06d}@stack.mrcs" for i in (1, 2, 5)]
    (line,) = found.warnings
    assert "3 of 6 images are left out: 1 are not active, 2 have an occupancy below 50 %" in line
    with refuses("6 of 6 images", "occupancy"):
        read_particles(written(Occupancy=[30.0] * N))


def test_what_is_left_out_needs_no_stack_and_rows_keep_their_numbers(written, refuses):
    inactive = {"ImageActivity": [-1, 1, 1, 1, 1, 1], "StackFilename": ["gone.mrc"] + ["stack.mrcs"] * 5}
    found = read_particles(written(**inactive))
    assert len(found) == 5
    assert [path.name for path in found.stacks] == ["stack.mrcs"]
    with refuses("row 3: cisTEMPixelSize"):
        read_particles(written(PixelSize=[1.5, 1.5, -1.0, 1.5, 1.5, 1.5], **inactive))


def test_row_numbers_are_not_those_of_the_images_that_are_left(written, tmp_path, refuses):
    path = written(ImageActivity=[-1, 1, 1, 1, 1, 1])
    (tmp_path / "ind.pkl").write_bytes(pickle.dumps(np.array([1, 2])))
    with refuses("ind.pkl", "a cisTEM table", "list ids"):
        read_input(path, InputSettings(keep=tmp_path / "ind.pkl"))


def test_exposures_of_one_particle_share_a_half(written):
    groups = [1, 1, 2, 2, 3, 3]
    found = read_particles(written(ParticleGroup=groups, PreExposure=[0.0, 3.0] * 3))
    assert len(set(found.particle)) == 3
    np.testing.assert_array_equal(found.pre_exposure, [0, 3] * 3)
    alone = read_particles(written(ParticleGroup=[1] * N, PreExposure=[0.0] * N))
    assert len(set(alone.particle)) == N


def test_subsets_are_not_independent_halves(written):
    found = read_particles(written(AssignedSubset=[1, 2] * 3))
    assert not found.half_set.any()
    assert any("AssignedSubset" in line for line in found.warnings)


def test_optics_that_are_not_modelled_bound_the_detail(written):
    assert read_particles(written()).modelled_to_in_angstroms is None
    tilted = read_particles(written(BeamTiltX=[0.5] * N, ImageShiftX=[0.0] * N))
    assert any("cisTEMBeamTiltX" in line for line in tilted.warnings)
    # 2π Cs λ² t s³ = π/4, with Cs 2.7 mm, λ 0.019687 Å at 300 kV and t 0.5 mrad
    assert tilted.modelled_to_in_angstroms == pytest.approx((8 * 2.7e7 * 0.019687**2 * 0.5e-3) ** (1 / 3), rel=0.03)


def test_a_table_without_the_name_of_a_stack_means_the_one_beside_it(written, tmp_path, write_stack, refuses):
    path = written(StackFilename=None)
    with refuses("names no stack", "cisTEMStackFilename", "a.mrc"):
        read_particles(path)
    write_stack(tmp_path / "a.mrc", N)
    assert read_particles(path).stacks == (tmp_path / "a.mrc",)


@pytest.mark.parametrize(
    ("changes", "culprits"),
    [
        ({"AnglePsi": None}, ["missing column cisTEMAnglePsi"]),
        ({"Defocus1": None, "AmplitudeContrast": None}, ["missing columns cisTEMDefocus1, cisTEMAmplitudeContrast"]),
        ({"DefocusAngle": None}, ["column cisTEMDefocusAngle, and cisTEMDefocus1 differs from cisTEMDefocus2"]),
        ({"PositionInStack": [1, 2, 3, 4, 5, 0]}, ["row 6", "cisTEMPositionInStack", "from 1"]),
        ({"PositionInStack": [1, 2, 3, 4, 5, 7]}, ["holds 6 images", "number 7"]),
        ({"PixelSize": [1.5, 0.0, 1.5, 1.5, 1.5, 1.5]}, ["row 2", "cisTEMPixelSize is 0", "positive"]),
        ({"PixelSize": [1.5] * 5 + [1.7]}, ["two pixel sizes"]),
        ({"PixelSize": [2.5] * N}, ["pixel size 2.5", "1.5", "--pixel-size"]),
        ({"MicroscopeVoltagekV": [-300.0] * N}, ["cisTEMMicroscopeVoltagekV"]),
        ({"AmplitudeContrast": [7.0] * N}, ["cisTEMAmplitudeContrast", "within 0 and 1"]),
        ({"XShift": [float("nan")] * N}, ["cisTEMXShift", "finite"]),
        ({"StackFilename": ["other.mrc"] * N}, ["stack other.mrc not found"]),
    ],
)
def test_bad_values_are_refused_in_cistems_names(written, refuses, changes, culprits):
    with refuses(*culprits):
        read_particles(written(**changes))


def test_pixel_size_overrides_and_scales_the_shifts(written):
    found = read_particles(written(), pixel_size_in_angstroms=1.6)
    np.testing.assert_allclose(found.origin_in_angstroms[:, 0], -table(N)["XShift"] * 1.6 / 1.5, rtol=1e-6)


def test_a_compressed_star_of_cistems_is_read(tmp_path, write_stack):
    write_stack(tmp_path / "stack.mrcs", N)
    plain = write_cistem_star(tmp_path / "a.star", table(N))
    (tmp_path / "b.star.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert read_particles(tmp_path / "b.star.gz").ids.tolist() == read_particles(plain).ids.tolist()


def test_a_table_becomes_a_relion_star(written, tmp_path, monkeypatch, refuses):
    monkeypatch.chdir(tmp_path)
    path = written()
    with refuses("out.cistem", "as a .star alone"):
        subset(path, tmp_path / "out.cistem")
    assert subset(path, tmp_path / "out.star", settings=InputSettings())[:2] == (N, N)
    one, other = read_particles(path), read_particles(tmp_path / "out.star")
    for field in fields(one):
        if isinstance(value := getattr(one, field.name), np.ndarray) and field.name != "ids":
            np.testing.assert_allclose(getattr(other, field.name), value, atol=1e-5)


def test_damaged_binary_files_are_refused(tmp_path, refuses):
    plain = {name: v for name, v in table(N).items() if name != "StackFilename"}
    for columns in (table(N), plain):
        raw = write_cistem_binary(tmp_path / "a.cistem", columns).read_bytes()
        assert is_binary_table(raw)
        assert len(read_columns(tmp_path / "a.cistem")) == N
        for size in range(200, len(raw), 37):
            (tmp_path / "b.cistem").write_bytes(raw[:size])
            with refuses("b.cistem", "truncated"):
                read_columns(tmp_path / "b.cistem")
        (tmp_path / "b.cistem").write_bytes(raw + b"\0")
        with refuses("b.cistem", "damaged"):
            read_columns(tmp_path / "b.cistem")


def test_other_binary_files_are_not_taken_for_tables(tmp_path, shared_data):
    for path in [*shared_data.rglob("*.mrc*"), *shared_data.rglob("*.pkl"), *shared_data.rglob("*.cs")]:
        assert not is_binary_table(path.read_bytes()[:4096]), path
