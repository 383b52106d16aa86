"""cryoSPARC tables: every column, and the conventions, against foreign files and the star of the same images."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from cs_project import BOX_SIZE, N_IMAGES, UID, column, complete, write_cs, write_project
from scipy.spatial.transform import Rotation

from emsplat.io import ImageSource, StackWriter, read_particles
from emsplat.io.cs import read_cs
from phantom import inverted


@pytest.fixture
def table(tmp_path, write_stack):
    """Writes a project; returns its table."""
    return lambda changes=None: write_project(tmp_path, write_stack, changes)


def test_every_column_is_read(table):
    particles, given = read_particles(table()), complete()
    assert particles.ids.tolist() == [str(uid) for uid in UID]
    assert (particles.box_size, len(particles.stacks), particles.warnings) == (BOX_SIZE, 1, ())
    np.testing.assert_array_equal(particles.section, np.arange(N_IMAGES)[::-1])
    assert particles.pixel_size_in_angstroms == pytest.approx(1.5)
    assert {(g.name, g.voltage_in_kilovolts) for g in particles.optics} == {("expGroup3", 300), ("expGroup7", 300)}
    assert [particles.optics[g].name for g in particles.optics_group[:2]] == ["expGroup7", "expGroup3"]
    assert particles.optics[0].spherical_aberration_in_millimetres == pytest.approx(2.7)
    assert particles.optics[0].amplitude_contrast == pytest.approx(0.1)
    np.testing.assert_allclose(particles.origin_in_angstroms, 1.5 * given["alignments3D/shift"], rtol=1e-6)
    np.testing.assert_array_equal(particles.defocus_u_in_angstroms, given["ctf/df1_A"])
    np.testing.assert_array_equal(particles.defocus_v_in_angstroms, given["ctf/df2_A"])
    np.testing.assert_allclose(particles.defocus_angle_in_degrees, 30, rtol=1e-6)
    np.testing.assert_allclose(particles.phase_shift_in_degrees, 90, rtol=1e-6)
    np.testing.assert_array_equal(particles.b_factor_in_square_angstroms, 50)
    np.testing.assert_array_equal(particles.ctf_scale, 0.5 * 1.5)
    np.testing.assert_array_equal(particles.half_set, [1, 2] * (N_IMAGES // 2))
    assert len(set(particles.particle)) == N_IMAGES
    assert particles.dark is None


def test_absent_columns_have_their_neutral_value(table):
    absent = ("ctf/phase_shift_rad", "ctf/bfactor", "ctf/scale", "ctf/exp_group_id", "blob/sign", "blob/shape")
    alignment_columns = ("alignments3D/split", "alignments3D/alpha", "alignments3D/psize_A")
    particles = read_cs(table(dict.fromkeys((*absent, *alignment_columns))))
    for neutral in ("phase_shift_in_degrees", "b_factor_in_square_angstroms", "pre_exposure", "half_set"):
        assert not getattr(particles, neutral).any()
    assert (particles.ctf_scale == 1).all()
    assert (particles.box_size, len(particles.optics), particles.dark) == (BOX_SIZE, 1, None)
    np.testing.assert_allclose(particles.origin_in_angstroms, 1.5 * complete()["alignments3D/shift"], rtol=1e-6)


def test_names_of_older_versions(table):
    old = {
        "ctf/amp_contrast": "ctf/ac",
        "ctf/cs_mm": "mscope_params/cs_mm",
        "ctf/exp_group_id": "location/exp_group_id",
    }
    renamed = {new: complete()[name] for name, new in old.items()}
    now, then = read_cs(table()), read_cs(table({**dict.fromkeys(old), **renamed}))
    assert then.optics == now.optics
    np.testing.assert_array_equal(then.optics_group, now.optics_group)


def test_a_pose_is_the_transposed_rotation_of_its_vector(table):
    pose = np.random.default_rng(0).normal(size=(N_IMAGES, 3))
    pose[0] = 0
    pose[1] *= 1e-6
    pose[2] *= np.pi / np.linalg.norm(pose[2])
    pose[3] *= 1.5 * np.pi / np.linalg.norm(pose[3])
    pose[4] = (0, 0, 1.0)
    particles = read_cs(table({"alignments3D/pose": pose.astype("<f8")}))
    expected = Rotation.from_rotvec(pose).as_matrix().transpose(0, 2, 1)
    np.testing.assert_allclose(particles.rotations(), expected, atol=1e-9)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str):
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def test_the_poses_that_cryodrgn_reads_from_the_same_table(shared_data):
    """Its rotations are RELION's matrices, its shifts are fractions of the box."""
    particles = read_cs(shared_data / "metadata/cryosparc_P12_J24_001_particles.cs", need_stacks=False)
    with (shared_data / "metadata/pose.cs.pkl").open("rb") as file:
        rotations, shifts = _ArraysOnly(file).load()
    assert len(particles) == len(rotations) == 2019
    np.testing.assert_allclose(particles.rotations(), rotations, atol=1e-6)
    box = particles.box_size * particles.pixel_size_in_angstroms
    np.testing.assert_allclose(particles.origin_in_angstroms / box, shifts, atol=1e-7)
    assert np.bincount(particles.half_set).tolist() == [0, 1010, 1009]
    assert (len(particles.stacks), particles.warnings) == (50, ())


def test_shifts_found_on_a_coarser_grid(table):
    plain = read_cs(table())
    coarse = {"alignments3D/psize_A": column(4.5), "alignments3D/shift": complete()["alignments3D/shift"] / 3}
    binned = read_cs(table(coarse))
    np.testing.assert_allclose(binned.origin_in_angstroms, plain.origin_in_angstroms, rtol=1e-6)
    # another pixel size than the table's: shifts stay what they are in pixels of the images
    rescaled = read_cs(table(coarse), pixel_size_in_angstroms=3.0)
    assert rescaled.pixel_size_in_angstroms == 3.0
    np.testing.assert_allclose(rescaled.origin_in_angstroms, 2 * plain.origin_in_angstroms, rtol=1e-6)


def test_negative_scales_count_nothing(table):
    particles = read_cs(table({"alignments3D/alpha": np.array([1, 2, -0.5, 0, 1, 1], dtype="<f4")}))
    np.testing.assert_array_equal(particles.ctf_scale, [0.5, 1, 0, 0, 0.5, 0.5])
    assert "negative for 1 images" in particles.warnings[0]


def test_the_scale_is_that_of_the_reference(shared_data):
    """What alpha means, by the table's own sums: it is the factor of the reference that fits the image best."""
    table = np.load(shared_data / "metadata/cryosparc_P12_J24_001_particles.cs")
    cross, power = (table[f"alignments3D/{name}"].astype(float) for name in ("cross_cor", "slice_pow"))
    particles = read_cs(shared_data / "metadata/cryosparc_P12_J24_001_particles.cs", need_stacks=False)
    np.testing.assert_allclose(particles.ctf_scale, cross / (2 * power), rtol=1e-6)  # error = |y|² − cross + power


@pytest.mark.parametrize("value", [0, 1, 2**32 - 1])
def test_images_in_one_half_were_never_split(table, value):
    assert not read_cs(table({"alignments3D/split": column(value, "<u4")})).half_set.any()
    assert not read_cs(table({"alignments3D/split": column(-1, "<i4")})).half_set.any()


@pytest.mark.parametrize("name", ["blob/idx", "sym_expand/src_uid"])
def test_copies_of_one_image_are_one_particle(table, name):
    copies = np.array([3, 3, 1, 1, 0, 0], dtype="<u4")
    particles = read_particles(table({name: copies, "alignments3D/split": copies % 2}))
    assert len(set(particles.particle)) == 3
    np.testing.assert_array_equal(particles.particle[::2], particles.particle[1::2])
    np.testing.assert_array_equal(particles.half_set, 1 + copies % 2)
    across = read_particles(table({name: copies}))
    assert not across.half_set.any()
    assert "copies of one particle into both" in across.warnings[-1]


def test_images_with_positive_sign_are_dark_and_negated(table, write_stack, tmp_path):
    sign = np.array([-1, 1, 1, -1, -1, 1], dtype="<f4")
    particles = read_cs(table({"blob/sign": sign}))
    images = write_stack(tmp_path / "again.mrcs")[::-1]  # blob/idx runs backwards
    white = images * -sign[:, None, None]
    np.testing.assert_array_equal(particles.dark, sign > 0)
    assert "3 images show dark particles" in particles.warnings[0]
    with ImageSource(particles) as source, ImageSource(particles, invert=True) as inverted:
        np.testing.assert_array_equal(source.read(np.arange(N_IMAGES)), white)
        np.testing.assert_array_equal(source.read([5, 0]), white[[5, 0]])
        np.testing.assert_array_equal(inverted.read(np.arange(N_IMAGES)), -white)
    with ImageSource(particles.select([2, 3])) as source:
        np.testing.assert_array_equal(source.read([0, 1]), white[[2, 3]])


@pytest.mark.parametrize("name", ["ctf/shift_A", "ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag"])
def test_aberrations_are_never_ignored_in_silence(table, name):
    width = 4 if name in ("ctf/tetra_A", "ctf/anisomag") else 2
    none = np.zeros((N_IMAGES, width), dtype="<f4")
    assert read_cs(table({name: none})).warnings == ()
    none[4, 1] = 1e-3
    (warning,) = read_cs(table({name: none})).warnings
    assert "not modelled" in warning
    assert name in warning


WAVELENGTH = 0.019687  # Å, at 300 kV


@pytest.mark.parametrize(
    ("name", "entry", "resolution"),  # where the phase is 45°, in Å
    [
        ("ctf/tilt_A", (3e4, -1e4), (8 * WAVELENGTH**2 * 4e4) ** (1 / 3)),
        ("ctf/trefoil_A", (0, 4e4), (8 * WAVELENGTH**2 * 4e4) ** (1 / 3)),
        ("ctf/tetra_A", (1e7, 0, 0, 1e7), (2 * WAVELENGTH**3 * 2e7) ** (1 / 4)),
        ("ctf/shift_A", (0.3, 0.2), 8 * 0.5),
        ("ctf/anisomag", (0.2, 0, 0, 0), 8 * 0.2 * BOX_SIZE * 1.5 / 4),
    ],
)
def test_detail_that_aberrations_spoil_is_not_modelled(table, name, entry, resolution):
    values = np.zeros((N_IMAGES, len(entry)), dtype="<f4")
    assert read_cs(table({name: values})).modelled_to_in_angstroms is None
    values[2] = entry
    assert read_cs(table({name: values})).modelled_to_in_angstroms == pytest.approx(resolution, rel=0.03)


def test_stacks_are_found_below_the_project(table, tmp_path, refuses, monkeypatch):
    path = table({"blob/path": column(b">J1/extract/stack.mrcs", "S")})
    expected = tmp_path / "J1/extract/stack.mrcs"
    assert read_cs(path).stacks == (expected,)
    monkeypatch.chdir(path.parent)
    assert read_cs(path.name).stacks == (expected,)
    moved = path.rename(tmp_path.parent / f"{tmp_path.name}.cs")
    with refuses("J1/extract/stack.mrcs", "--datadir"):
        read_cs(moved)
    assert read_cs(moved, datadir=tmp_path).stacks == (expected,)
    renamed = table({"blob/path": column(b">S1/J1/extract/stack.mrcs", "S")})
    assert read_cs(renamed, strip_prefix="S1/").stacks == (expected,)
    tables_alone = read_cs(moved, need_stacks=False)
    assert tables_alone.stacks == (Path("J1/extract/stack.mrcs"),)
    assert tables_alone.box_size == BOX_SIZE


def test_a_linked_and_a_plain_name_of_one_stack_are_one(table):
    names = np.array([b"J1/extract/stack.mrcs", b">J1/extract/stack.mrcs"] * 3)
    particles = read_cs(table({"blob/path": names}))
    assert len(particles.stacks) == 1
    assert not particles.stack.any()


def test_the_pixel_size_may_be_the_stacks(table, tmp_path, write_stack, refuses):
    path = table({"blob/psize_A": None})
    assert read_cs(path).pixel_size_in_angstroms == pytest.approx(1.5)
    with refuses("no pixel size", "--pixel-size"):
        read_cs(path, need_stacks=False)
    write_stack(tmp_path / "J1/extract/stack.mrcs", pixel_size=1.0)
    with refuses("no pixel size", "--pixel-size"):
        read_cs(path)


def test_real_images_by_table_and_by_star(shared_data, tmp_path):
    """Neither file of this set has poses: the table gets them from a passthrough, the star as columns."""
    folder = shared_data / "real/empiar-10076"
    rng = np.random.default_rng(0)
    angles, origins = rng.uniform(-90, 90, (7, 3)), rng.normal(size=(7, 2))
    lines = (folder / "empiar_10076_7.star").read_text().splitlines()
    added = ("AngleRot", "AngleTilt", "AnglePsi", "OriginXAngst", "OriginYAngst")
    rows = [line for line in lines if "@" in line]
    values = [" ".join(map(repr, [*a.tolist(), *o.tolist()])) for a, o in zip(angles, origins, strict=True)]
    head = [line for line in lines if "@" not in line and line.strip()] + [f"_rln{name}" for name in added]
    star = tmp_path / "posed.star"
    star.write_text("\n".join([*head, *(f"{row} {value}" for row, value in zip(rows, values, strict=True))]) + "\n")
    by_star = read_particles(star, datadir=folder, pixel_size_in_angstroms=1.31)

    uid = np.load(folder / "empiar_10076_7.cs")["uid"]
    rotation = Rotation.from_matrix(by_star.rotations().transpose(0, 2, 1))
    order = rng.permutation(7)
    posed = {
        "uid": uid[order],
        "alignments3D/pose": rotation.as_rotvec()[order].astype("<f4"),
        "alignments3D/shift": (origins[order] / 2.62).astype("<f4"),
        "alignments3D/psize_A": np.full(7, 2 * 1.3099979, dtype="<f4"),
    }
    table = folder / "empiar_10076_7.cs"
    by_table = read_particles(table, passthrough=[write_cs(tmp_path / "posed.cs", posed)], pixel_size_in_angstroms=1.31)
    np.testing.assert_allclose(by_table.rotations(), by_star.rotations(), atol=1e-6)
    np.testing.assert_allclose(by_table.origin_in_angstroms, by_star.origin_in_angstroms, atol=1e-5)
    for name in ("defocus_u_in_angstroms", "defocus_v_in_angstroms", "defocus_angle_in_degrees"):
        np.testing.assert_allclose(getattr(by_table, name), getattr(by_star, name), rtol=1e-6)
    (group,), (same,) = by_table.optics, by_star.optics
    for name in ("voltage_in_kilovolts", "spherical_aberration_in_millimetres", "amplitude_contrast", "box_size"):
        assert getattr(group, name) == pytest.approx(getattr(same, name), rel=1e-6)
    assert read_cs(table, passthrough=[tmp_path / "posed.cs"]).pixel_size_in_angstroms == pytest.approx(1.31, rel=1e-5)
    with ImageSource(by_table) as one, ImageSource(by_star) as other:
        np.testing.assert_array_equal(one.read(np.arange(7)), other.read(np.arange(7)))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("metadata/cryosparc_J2_particles_exported.cs", "only 2D alignments"),
        ("real/empiar-10076/empiar_10076_7.cs", "no column alignments3D/pose"),
    ],
)
def test_real_tables_without_poses_say_so(shared_data, refuses, name, why):
    with refuses(Path(name).name, why, "--passthrough"):
        read_particles(shared_data / name)


def test_a_real_table_gets_its_poses_from_a_passthrough(shared_data, tmp_path):
    path = shared_data / "metadata/cryosparc_J2_particles_exported.cs"
    n = 22
    posed = {"uid": np.load(path)["uid"], "alignments3D/pose": np.ones((n, 3)), "alignments3D/shift": np.ones((n, 2))}
    particles = read_cs(path, passthrough=[write_cs(tmp_path / "posed.cs", posed)], need_stacks=False)
    assert particles.stacks == (Path("J1/imported/000090334788266266069_18jam15b_0345_ali_DW.mrcs"),)
    assert (particles.box_size, particles.warnings) == (300, ())
    np.testing.assert_allclose(particles.origin_in_angstroms, 1.345, rtol=1e-6)


def test_the_inversion_is_that_of_the_star(simulated, tmp_path):
    """Dark images in shuffled rows, joined to poses in another order, their shifts found on a grid twice as coarse."""
    by_star = read_particles(simulated / "particles.star")
    n, pixel_size = len(by_star), by_star.pixel_size_in_angstroms
    with ImageSource(by_star) as source, StackWriter(tmp_path / "dark.mrcs", by_star.box_size, pixel_size) as stack:
        stack.append(-source.read(np.arange(n)))
    rng = np.random.default_rng(0)
    uid = rng.integers(0, 2**64, n, dtype="<u8")
    (optics,) = by_star.optics
    images = {
        "uid": uid,
        "blob/path": np.full(n, b"dark.mrcs"),
        "blob/idx": np.arange(n, dtype="<u4"),
        "blob/psize_A": np.full(n, pixel_size, dtype="<f4"),
        "blob/sign": np.ones(n, dtype="<f4"),
        "ctf/accel_kv": np.full(n, optics.voltage_in_kilovolts, dtype="<f4"),
        "ctf/cs_mm": np.full(n, optics.spherical_aberration_in_millimetres, dtype="<f4"),
        "ctf/amp_contrast": np.full(n, optics.amplitude_contrast, dtype="<f4"),
        "ctf/df1_A": by_star.defocus_u_in_angstroms.astype("<f4"),
        "ctf/df2_A": by_star.defocus_v_in_angstroms.astype("<f4"),
        "ctf/df_angle_rad": np.deg2rad(by_star.defocus_angle_in_degrees).astype("<f4"),
    }
    poses = {
        "uid": uid,
        "alignments3D/pose": Rotation.from_matrix(by_star.rotations()).inv().as_rotvec().astype("<f4"),
        "alignments3D/shift": (by_star.origin_in_angstroms / (2 * pixel_size)).astype("<f4"),
        "alignments3D/psize_A": np.full(n, 2 * pixel_size, dtype="<f4"),
    }
    order, other_order = rng.permutation(n), rng.permutation(n)
    path = write_cs(tmp_path / "images.cs", {name: values[order] for name, values in images.items()})
    posed = write_cs(tmp_path / "poses.cs", {name: values[other_order] for name, values in poses.items()})
    expected = inverted(by_star)
    found = inverted(read_particles(path, passthrough=[posed]))
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
