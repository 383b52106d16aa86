"""Lists of ids, and what they choose."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from emsplat.io import read_map, read_particles, read_star
from emsplat.io.lists import read_ids
from emsplat.io.subset import subset
from emsplat.settings import InputSettings
from emsplat.validation.correlation import fsc
from relion import run_relion

IDS = [f"{i + 1:06d}@stack.mrcs" for i in range(6)]


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str) -> Path:
        (tmp_path / "ids.csv").write_text("\n".join(lines) + "\n")
        return tmp_path / "ids.csv"

    return write


@pytest.mark.parametrize(
    "text",
    [
        "a\nb c\n",
        "id\na\nb c\n",
        "a\n\n  b c  ",
        '\ufeff"id","score"\r\na,1\r\n"b c",2\r\n',
        "score, id\n0.5, a\n0.7, b c\n",
    ],
)
def test_ways_to_list_ids(text: str, tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(text.encode())
    assert read_ids(tmp_path / "ids") == ["a", "b c"]


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (b"", "no id"),
        (b"id\n", "no id"),
        (b"a,b\nc,d\n", "none called id"),
        (b"score,id\n1\n", "row 1"),
        (b"\xff\xfe\x00", "not a list"),
        (b"a" * 200_000, "not a list"),
    ],
)
def test_lists_that_say_nothing(content: bytes, culprit: str, tmp_path: Path, refuses: Callable) -> None:
    (tmp_path / "ids.csv").write_bytes(content)
    with refuses("ids.csv", culprit):
        read_ids(tmp_path / "ids.csv")
    with refuses("nowhere.csv"):
        read_ids(tmp_path / "nowhere.csv")


def test_keep_and_drop_are_complements(dataset: Callable, listed: Callable, tmp_path: Path) -> None:
    star, ids = dataset(), listed(IDS[4], IDS[1])
    assert subset(star, tmp_path / "kept.star", InputSettings(keep=ids)) == (2, 6, ())
    assert subset(star, tmp_path / "left.star", InputSettings(drop=ids)) == (4, 6, ())
    assert read_star(tmp_path / "kept.star")["particles"].column("rlnImageName") == [IDS[1], IDS[4]]
    assert read_star(tmp_path / "left.star")["particles"].column("rlnImageName") == [IDS[i] for i in (0, 2, 3, 5)]
    whole, kept = read_particles(star), read_particles(tmp_path / "kept.star")
    assert np.array_equal(kept.euler_angles_in_degrees, whole.euler_angles_in_degrees[[1, 4]])


def test_relion_agrees_on_what_a_subset_is(simulated: Path, tmp_path: Path, listed: Callable) -> None:
    """Half 2 by its ids, and by RELION's own choice from the whole file."""
    shutil.copy(simulated / "particles.mrcs", tmp_path)
    table = read_star(simulated / "particles.star")["particles"]
    pairs = zip(table.column("rlnImageName"), table.column("rlnRandomSubset"), strict=True)
    ids = listed("id,half", *(f"{name},2" for name, half in pairs if half == "2"))
    subset(simulated / "particles.star", tmp_path / "half.star", InputSettings(keep=ids))
    run_relion("relion_reconstruct", "--i", "half.star", "--o", "ours.mrc", "--ctf", folder=tmp_path)
    chosen = ("--subset", 2, "--o", tmp_path / "relions.mrc")
    run_relion("relion_reconstruct", "--i", "particles.star", *chosen, "--ctf", folder=simulated)
    ours, relions = (read_map(tmp_path / f"{name}.mrc").values for name in ("ours", "relions"))
    assert np.linalg.norm(ours - relions) < 1e-5 * np.linalg.norm(relions)


@pytest.mark.parametrize(
    ("lines", "culprit"),
    [
        ([IDS[0], "7@stack.mrcs", "8@stack.mrcs"], "'7@stack.mrcs' and 1 more are not in"),
        ([IDS[0], IDS[0]], "2 times"),
        ([], "no id"),
    ],
)
def test_ids_that_do_not_fit(
    lines: list[str], culprit: str, dataset: Callable, listed: Callable, tmp_path: Path, refuses: Callable
) -> None:
    star = dataset()
    for how in ("keep", "drop"):
        with refuses("ids.csv", culprit):
            subset(star, tmp_path / "out.star", InputSettings(**{how: listed(*lines)}))
    assert not (tmp_path / "out.star").exists()


def test_other_mistakes(dataset: Callable, listed: Callable, tmp_path: Path, refuses: Callable) -> None:
    star, ids = dataset(), listed(*IDS)
    with refuses("--keep and --drop"):
        subset(star, tmp_path / "out.star", InputSettings(keep=ids, drop=ids))
    with refuses("--keep or --drop"):
        subset(star, tmp_path / "out.star")
    with refuses("drops all 6"):
        subset(star, tmp_path / "out.star", InputSettings(drop=ids))
    with refuses("out.cs", ".star"):
        subset(star, tmp_path / "out.cs", InputSettings(keep=ids))
    with refuses("choose another"):
        subset(star, star, InputSettings(keep=ids))
    with refuses("choose another"):
        subset(star, star, InputSettings(poses=Path("poses.pkl"), ctf=Path("ctf.pkl")))
    (tmp_path / "poses.pkl").write_bytes(pickle.dumps((np.zeros((2, 3, 3)), np.zeros((2, 2)))))
    with refuses("poses.pkl", "--poses and --ctf"):
        subset(tmp_path / "poses.pkl", tmp_path / "out.star", InputSettings(keep=ids))


def test_rows_of_a_pickle_are_known_by_number(listed: Callable, tmp_path: Path, refuses: Callable) -> None:
    poses = np.random.default_rng(0).normal(size=(4, 3, 3))
    (tmp_path / "poses.pkl").write_bytes(pickle.dumps((poses, np.arange(8.0).reshape(4, 2))))
    subset(tmp_path / "poses.pkl", tmp_path / "out.pkl", InputSettings(keep=listed("4", "2")))
    rotations, shifts = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert np.array_equal(rotations, poses[[1, 3]])
    assert np.array_equal(shifts, [[2, 3], [6, 7]])
    with refuses("000002@a.mrcs", "'1'"):
        subset(tmp_path / "poses.pkl", tmp_path / "out.pkl", InputSettings(keep=listed("000002@a.mrcs")))


# Other formats to RELION's


@pytest.fixture
def as_cryosparc(simulated: Path, tmp_path: Path) -> Callable[..., Path]:
    """The simulated particles as cryoSPARC has them: job folder, .mrc stack, inverse rotations, shifts in pixels."""

    def write(sign: float | list[float] = -1) -> Path:
        particles = read_particles(simulated / "particles.star")
        kinds = [("uid", "<u8"), ("blob/path", "S20"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,))]
        kinds += [(f"blob/{name}", "<f4") for name in ("psize_A", "sign")]
        kinds += [(f"ctf/{name}", "<f4") for name in ("accel_kv", "cs_mm", "amp_contrast", "phase_shift_rad")]
        kinds += [(f"ctf/{name}", "<f4") for name in ("df1_A", "df2_A", "df_angle_rad")]
        kinds += [("alignments3D/split", "<u4"), ("alignments3D/psize_A", "<f4")]
        kinds += [("alignments3D/pose", "<f4", (3,)), ("alignments3D/shift", "<f4", (2,))]
        table = np.zeros(len(particles), dtype=kinds)
        table["uid"] = 10**18 + np.arange(len(particles))
        table["blob/path"], table["blob/idx"], table["blob/shape"] = b"J1/particles.mrc", particles.section, 48
        table["blob/psize_A"] = table["alignments3D/psize_A"] = 3.4
        table["blob/sign"] = sign
        table["ctf/accel_kv"], table["ctf/cs_mm"], table["ctf/amp_contrast"] = 300, 2.7, 0.1
        table["ctf/df1_A"], table["ctf/df2_A"] = particles.defocus_u_in_angstroms, particles.defocus_v_in_angstroms
        table["ctf/df_angle_rad"] = np.deg2rad(particles.defocus_angle_in_degrees)
        table["alignments3D/split"] = particles.half_set - 1
        table["alignments3D/pose"] = Rotation.from_matrix(particles.rotations()).inv().as_rotvec()
        table["alignments3D/shift"] = particles.origin_in_angstroms / 3.4
        (tmp_path / "J1").mkdir()
        shutil.copy(simulated / "particles.mrcs", tmp_path / "J1/particles.mrc")
        with (tmp_path / "J1/particles.cs").open("wb") as file:
            np.save(file, table)
        return tmp_path / "J1/particles.cs"

    return write


def test_cryosparc_to_relion(
    as_cryosparc: Callable, simulated: Path, tmp_path: Path, listed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RELION makes the same map of the converted table as of the star the table was made from."""
    monkeypatch.chdir(tmp_path)
    table = as_cryosparc()
    assert subset(table, Path("all.star"))[:2] == (600, 600)
    run_relion("relion_reconstruct", "--i", "all.star", "--o", "converted.mrc", "--ctf", folder=tmp_path)
    run_relion(
        *("relion_reconstruct", "--i", "particles.star", "--o", tmp_path / "original.mrc", "--ctf"), folder=simulated
    )
    converted, original = (read_map(tmp_path / name).values for name in ("converted.mrc", "original.mrc"))
    # Beyond, hardly any image fills a voxel, and RELION's division makes much of a millionth of a degree.
    assert fsc(converted, original)[:20].min() > 0.999
    assert np.vdot(converted, original) / np.vdot(original, original) == pytest.approx(1, abs=0.01)

    few = listed("1000000000000000007", "1000000000000000003")
    assert subset(table, Path("few.cs"), InputSettings(keep=few))[:2] == (2, 600)
    assert np.load("few.cs").tobytes() == np.load(table)[[3, 7]].tobytes()
    subset(table, Path("few.star"), InputSettings(keep=few))
    names = read_star("few.star")["particles"].column("rlnImageName")
    assert names == ["000004@J1/particles.mrc:mrcs", "000008@J1/particles.mrc:mrcs"]


def test_dark_images_are_not_passed_off_as_white(as_cryosparc: Callable, tmp_path: Path, refuses: Callable) -> None:
    table = as_cryosparc([1.0] + [-1.0] * 599)
    with refuses("1 of 600", "dark"):
        subset(table, tmp_path / "mixed.star")
    assert not (tmp_path / "mixed.star").exists()
    (tmp_path / "dark.csv").write_text("1000000000000000000\n")
    *_, lost = subset(table, tmp_path / "dark.star", InputSettings(keep=tmp_path / "dark.csv"))
    assert "--invert" in lost[-1]


def test_cryodrgn_to_relion(shared_data: Path, tmp_path: Path, listed: Callable) -> None:
    """Poses and CTFs of real particles are those of the star they were made from."""
    folder = shared_data / "real/ribosome-sta"
    star, stack = folder / "sta_testing_bin8.star", "ay19102021_L3_position6_ribo_it09_bin8_1.82A.mrcs"
    settings = InputSettings(poses=folder / "sta_pose.pkl", ctf=folder / "sta_ctf.pkl", pixel_size=14.56)
    ids = listed(*(f"{number:06d}@{stack}" for number in (3, 100, 219)))
    subset(star, tmp_path / "out.star", replace(settings, keep=ids))
    found = read_particles(tmp_path / "out.star", pixel_size_in_angstroms=14.56)
    expected = read_particles(star, pixel_size_in_angstroms=14.56)
    expected = expected.select(np.isin(expected.section, [2, 99, 218]))
    assert np.allclose(found.rotations(), expected.rotations(), atol=1e-5)
    assert np.allclose(found.defocus_u_in_angstroms, expected.defocus_u_in_angstroms, atol=0.01)
    assert found.section.tolist() == [2, 99, 218]
