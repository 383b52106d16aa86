"""cryoDRGN's pickles and images, against stars that describe the same particles and against where a particle lies."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
from cs_project import write_project

from emsplat.conventions import rotation_matrices
from emsplat.io import ImageSource, StackWriter, read_particles

N_IMAGES, BOX_SIZE = 6, 8  # of the data set fixture
STA = "real/ribosome-sta"


def random_rotations(n):
    return rotation_matrices(np.random.default_rng(0).uniform(-180, 180, (n, 3)))


def ctf_rows(n=N_IMAGES, box_size=BOX_SIZE, pixel_size=1.5):
    rows = np.tile([box_size, pixel_size, 10000.0, 9000.0, 5.0, 300.0, 2.7, 0.1, 0.0], (n, 1))
    rows[:, 2] += np.arange(n)
    return rows


@pytest.fixture
def pickled(tmp_path):
    """Writes poses.pkl and ctf.pkl; returns them as the door's arguments."""

    def write(poses=None, ctf=None):
        default = (random_rotations(N_IMAGES), np.zeros((N_IMAGES, 2)))
        (tmp_path / "poses.pkl").write_bytes(pickle.dumps(default if poses is None else poses))
        (tmp_path / "ctf.pkl").write_bytes(pickle.dumps(ctf_rows() if ctf is None else ctf))
        return {"poses": tmp_path / "poses.pkl", "ctf": tmp_path / "ctf.pkl"}

    return write


def images_of_sta(shared_data, tmp_path, kind):
    """The real data set's images as cryoDRGN may be given them."""
    stack = next((shared_data / STA).glob("*.mrcs"))
    if kind == "star":
        return shared_data / STA / "sta_testing_bin8.star"
    if kind == "stack":
        return stack
    path = tmp_path / "stacks.txt"
    path.write_text(f"{stack}\n")
    return path


def test_real_pickles_describe_the_poses_of_the_star(shared_data):
    folder = shared_data / STA
    star = read_particles(folder / "sta_testing_bin8.star", pixel_size_in_angstroms=14.56)
    found = read_particles(folder / "sta_testing_bin8.star", poses=folder / "sta_pose.pkl", ctf=folder / "sta_ctf.pkl")
    np.testing.assert_allclose(found.rotations(), star.rotations(), atol=1e-12)
    for name in ("defocus_u_in_angstroms", "defocus_v_in_angstroms", "defocus_angle_in_degrees", "section"):
        np.testing.assert_allclose(getattr(found, name), getattr(star, name), rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(found.half_set, star.half_set)
    np.testing.assert_array_equal(found.ids, star.ids)
    assert found.warnings == ()
    assert found.pixel_size_in_angstroms == pytest.approx(14.56)  # 1.82 Å at 512 pixels, 64 in the stack
    assert found.optics[0].voltage_in_kilovolts == 300
    assert found.optics[0].spherical_aberration_in_millimetres == pytest.approx(2.7)
    assert found.optics[0].amplitude_contrast == pytest.approx(0.07)
    # the pickle's translations are below a pixel; the star has none
    assert 0 < np.abs(found.origin_in_angstroms).max() < 14.56


@pytest.mark.parametrize("kind", ["stack", "list"])
def test_every_kind_of_images_takes_the_pickles(shared_data, tmp_path, pickled, kind):
    folder = shared_data / STA
    poses, translations = pickle.loads((folder / "sta_pose.pkl").read_bytes())
    ctf = pickle.loads((folder / "sta_ctf.pkl").read_bytes())
    # the stack has one image more than the star
    arguments = pickled(
        (np.concatenate([poses, poses[:1]]), np.concatenate([translations, translations[:1]])),
        np.concatenate([ctf, ctf[:1]]),
    )
    star = read_particles(images_of_sta(shared_data, tmp_path, "star"), pixel_size_in_angstroms=14.56)
    found = read_particles(images_of_sta(shared_data, tmp_path, kind), **arguments)
    assert len(found) == len(star) + 1
    np.testing.assert_allclose(found.rotations()[star.section], star.rotations()[star.section], atol=1e-12)
    with ImageSource(found) as ours, ImageSource(star) as theirs:
        np.testing.assert_array_equal(ours.read([7, 100]), theirs.read([7, 100]))


def test_a_cryosparc_table_names_images_too(shared_data, pickled):
    """Neither file has poses of its own."""
    folder = shared_data / "real" / "empiar-10076"
    arguments = pickled(random_rotations(7), ctf_rows(7, 320, 1.31))
    cs, star, stack = (read_particles(folder / f"empiar_10076_7.{end}", **arguments) for end in ("cs", "star", "mrc"))
    with ImageSource(cs) as one, ImageSource(star) as other:
        np.testing.assert_array_equal(one.read(np.arange(7)), other.read(np.arange(7)))
    np.testing.assert_array_equal(cs.section, stack.section)
    np.testing.assert_allclose(cs.rotations(), random_rotations(7), atol=1e-12)


def test_a_list_of_stacks_is_all_their_images_in_order(tmp_path, write_stack, pickled):
    (tmp_path / "data").mkdir()
    first = write_stack(tmp_path / "data" / "b.mrcs", n=2)
    second = write_stack(tmp_path / "a.mrcs", n=4)
    path = tmp_path / "stacks.txt"
    path.write_text(f"data/b.mrcs\r\n\n{tmp_path}/a.mrcs\n")
    found = read_particles(path, **pickled())
    with ImageSource(found) as source:
        np.testing.assert_array_equal(source.read(np.arange(6)), np.concatenate([first, second]))
    assert list(found.ids[[0, 2]]) == ["1@data/b.mrcs", f"1@{tmp_path}/a.mrcs"]


def test_a_translation_is_the_shift_that_centres_the_image(tmp_path, pickled):
    """cryoDRGN moves the image by +t (``Lattice.translate_ht``), so the particle lies at the centre − t."""
    box_size, pixel_size = 16, 2.0
    places = np.array([[3, 0], [0, -2], [-5, 4], [0, 0], [1, 1], [-1, 6]])  # x, y from the box's centre
    images = np.zeros((N_IMAGES, box_size, box_size), np.float32)
    images[np.arange(N_IMAGES), box_size // 2 + places[:, 1], box_size // 2 + places[:, 0]] = 1
    with StackWriter(tmp_path / "stack.mrcs", box_size, pixel_size) as stack:
        stack.append(images)
    poses = (random_rotations(N_IMAGES), -places / box_size)
    found = read_particles(tmp_path / "stack.mrcs", **pickled(poses, ctf_rows(N_IMAGES, box_size, pixel_size)))
    np.testing.assert_allclose(-found.origin_in_angstroms / pixel_size, places, atol=1e-12)


@pytest.mark.parametrize("poses", [random_rotations(N_IMAGES), (random_rotations(N_IMAGES),)])
def test_rotations_alone_mean_no_translations(tmp_path, write_stack, pickled, poses):
    write_stack(tmp_path / "stack.mrcs")
    found = read_particles(tmp_path / "stack.mrcs", **pickled(poses))
    np.testing.assert_allclose(found.rotations(), random_rotations(N_IMAGES), atol=1e-12)
    assert not found.origin_in_angstroms.any()


def test_optics_and_phase_shift(tmp_path, write_stack, pickled):
    write_stack(tmp_path / "stack.mrcs")
    rows = ctf_rows()
    rows[3:, 5], rows[:, 8] = 200, 90
    found = read_particles(tmp_path / "stack.mrcs", **pickled(ctf=rows))
    voltages = np.array([group.voltage_in_kilovolts for group in found.optics])
    np.testing.assert_array_equal(voltages[found.optics_group], [300] * 3 + [200] * 3)
    np.testing.assert_array_equal(found.phase_shift_in_degrees, 90)


def test_a_star_may_be_nothing_but_names(dataset, pickled, tmp_path):
    only_names = tmp_path / "names.star"
    lines = "\n".join(f"{i + 1}@stack.mrcs" for i in range(N_IMAGES)[::-1])
    dataset()
    only_names.write_text(f"data_\n\nloop_\n_rlnImageName #1\n{lines}\n")
    found = read_particles(only_names, **pickled())
    np.testing.assert_array_equal(found.section, np.arange(N_IMAGES)[::-1])
    assert not found.half_set.any()


def test_rows_in_another_order_than_the_star_are_refused(dataset, pickled, refuses):
    rows = ctf_rows()
    rows[:, 2] += 1000 * np.arange(N_IMAGES)
    star = dataset(rlnDefocusU=list(rows[:, 2]))
    assert read_particles(star, **pickled(ctf=rows)).warnings == ()
    with refuses("ctf.pkl", "in another order", "6 of 6 rows"):
        read_particles(star, **pickled(ctf=rows[::-1]))
    refined = rows.copy()
    refined[:3, 2] += 400  # defoci that were refined after the star was written
    (warning,) = read_particles(star, **pickled(ctf=refined)).warnings
    assert "3 images" in warning


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (5, 200.0, ["voltage", "200 kV (the pickle)", "300 kV (rlnVoltage)"]),
        (6, 0.01, ["spherical aberration", "0.01 mm", "2.7 mm"]),
        (7, 0.4, ["amplitude contrast", "0.4", "0.1"]),
        (8, 90.0, ["phase shift", "90 degrees", "0 degrees"]),
        (1, 2.9, ["pixel size", "2.9 Å", "1.5 Å (rlnImagePixelSize)"]),
    ],
)
def test_a_pickle_that_contradicts_the_star_is_refused(dataset, pickled, refuses, column, value, said):
    rows = ctf_rows()
    unset = 1.0  # pixel size in the stack's header
    star = dataset(rlnDefocusU=list(rows[:, 2]), rlnPhaseShift=list(rows[:, 8]), pixel_size=unset)
    assert read_particles(star, **pickled(ctf=rows)).warnings == ()
    rows[:, column] = value
    with refuses(*said):
        read_particles(star, **pickled(ctf=rows))


def test_a_pickle_that_contradicts_a_cryosparc_table_is_refused(tmp_path, write_stack, pickled, refuses):
    spread = 10000 + 500 * np.arange(N_IMAGES, dtype="<f4")
    table = write_project(tmp_path, write_stack, {"ctf/df1_A": spread})
    rows = ctf_rows()
    rows[:, 2] = spread
    rows[:, 8] = 90.0
    assert read_particles(table, **pickled(ctf=rows)).warnings == ()
    with refuses("in another order"):
        read_particles(table, **pickled(ctf=rows[::-1]))


def test_a_pickle_of_the_images_before_they_were_made_smaller_agrees(dataset, pickled):
    """The box and the pixel size of the pickle are those of the larger images; the star may name either pixel size."""
    rows = ctf_rows()
    rows[:, 0] *= 2
    rows[:, 1] /= 2
    for size in (rows[0, 1], 2 * rows[0, 1]):
        star = dataset(optics={"rlnImagePixelSize": [size], "rlnImageSize": None}, rlnDefocusU=list(rows[:, 2]))
        assert read_particles(star, **pickled(ctf=rows)).warnings == ()


def test_stacks_that_moved(dataset, tmp_path, write_stack, pickled):
    star = dataset(rlnImageName=[f"{i + 1}@/gone/deep/stack.mrcs" for i in range(N_IMAGES)])
    (tmp_path / "new" / "deep").mkdir(parents=True)
    shutil.move(tmp_path / "stack.mrcs", tmp_path / "new" / "deep" / "stack.mrcs")
    found = read_particles(star, datadir=tmp_path / "new", strip_prefix="/gone", **pickled())
    assert found.stacks == (tmp_path / "new" / "deep" / "stack.mrcs",)
    assert read_particles(star, need_stacks=False, **pickled()).pixel_size_in_angstroms == 1.5


ROTATIONS = random_rotations(N_IMAGES)
BAD_POSES = {
    "5 rows": ((ROTATIONS[:5],), ["poses.pkl", "5 rows", "6 images"]),
    "7 rows": ((random_rotations(7), np.zeros((7, 2))), ["poses.pkl", "7 rows"]),
    "Euler angles": (np.zeros((6, 3)), ["(6, 3)", "--poses"]),
    "translations alone": (np.zeros((6, 2)), ["(6, 2)", "--poses"]),
    "one number": (np.array(3.0), ["()", "--poses"]),
    "three arrays": ((ROTATIONS, np.zeros((6, 2)), np.zeros(6)), ["--poses"]),
    "unequal arrays": ((ROTATIONS, np.zeros((5, 2))), ["(5, 2)"]),
    "CTFs": (ctf_rows(), ["(6, 9)", "--poses"]),
    "mirrored": ((ROTATIONS * [[1, 1, -1]],), ["row 1", "no rotation"]),
    "scaled": ((ROTATIONS * np.array([1, 1, 1.1, 1, 1, 1])[:, None, None],), ["row 3", "no rotation"]),
    "nan": ((ROTATIONS * np.array([1, np.nan, 1, 1, 1, 1])[:, None, None],), ["row 2", "no rotation"]),
    "translations in pixels": ((ROTATIONS, np.full((6, 2), 3.5)), ["row 1", "fraction of the box"]),
    "nan translation": ((ROTATIONS, np.full((6, 2), np.nan)), ["row 1", "fraction of the box"]),
}


def changed(column, value, row=2):
    rows = ctf_rows()
    rows[row, column] = value
    return rows


BAD_CTFS = {
    "5 rows": (ctf_rows(5), ["ctf.pkl", "5 rows", "6 images"]),
    "8 columns": (ctf_rows()[:, :8], ["(6, 8)", "--ctf"]),
    "poses": ((ROTATIONS, np.zeros((6, 2))), ["(6, 3, 3)", "--ctf"]),
    "nan": (changed(2, np.nan), ["row 3", "finite"]),
    "no box": (changed(0, 0), ["row 3", "box"]),
    "pixel size 0": (changed(1, 0), ["row 3", "pixel size"]),
    "volts": (changed(5, 300000), ["row 3", "kV"]),
    "contrast in percent": (changed(7, 10), ["row 3", "contrast"]),
    "two pixel sizes": (changed(1, 1.6), ["two sizes", "12 ", "12.8"]),
    "another pixel size than the stack's": (ctf_rows(pixel_size=3.0), ["1.5", "3 Å", "--pixel-size"]),
}


@pytest.mark.parametrize("case", BAD_POSES)
def test_bad_poses_are_refused(tmp_path, write_stack, pickled, refuses, case):
    write_stack(tmp_path / "stack.mrcs")
    poses, culprits = BAD_POSES[case]
    with refuses(*culprits):
        read_particles(tmp_path / "stack.mrcs", **pickled(poses=poses))


@pytest.mark.parametrize("case", BAD_CTFS)
def test_bad_ctfs_are_refused(tmp_path, write_stack, pickled, refuses, case):
    write_stack(tmp_path / "stack.mrcs")
    ctf, culprits = BAD_CTFS[case]
    with refuses(*culprits):
        read_particles(tmp_path / "stack.mrcs", **pickled(ctf=ctf))


def test_bad_lists_and_stars_are_refused(dataset, tmp_path, pickled, refuses):
    dataset()
    path = tmp_path / "stacks.txt"
    for text, culprits in (
        ("stack.mrcs\nabsent.mrcs\n", ["absent.mrcs", "--datadir"]),
        ("stack.mrcs\nstack.mrcs\n", ["twice"]),
    ):
        path.write_text(text)
        with refuses("stacks.txt", *culprits):
            read_particles(path, **pickled())
    with refuses("particles.star", "rlnRandomSubset"):
        read_particles(dataset(rlnRandomSubset=[1, 2, 0, 1, 2, 1]), **pickled())
    (tmp_path / "other.star").write_text("data_\n\nloop_\n_rlnMicrographName #1\na.mrc\n")
    with refuses("other.star", "rlnImageName"):
        read_particles(tmp_path / "other.star", **pickled())


def test_the_tilts_that_a_star_names_are_known(dataset, pickled):
    found = read_particles(dataset(rlnTomoParticleName=list("ababab")), **pickled())
    np.testing.assert_array_equal(found.tilted_particle, [0, 1] * 3)
