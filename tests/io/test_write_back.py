"""Particles handed back: what nobody asked to change is what it was."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.io import read_star
from emsplat.io.unpickle import read_arrays
from emsplat.io.write_back import open_source, write_back

PARTICLE_STARS = (
    *("metadata/empiar-10204-betagal-run_data.star", "metadata/relion31.6opticsgroups.star", "metadata/relion5.star"),
    *("metadata/sample_incomplete_ctf_params.star", "metadata/sample_particles_relion30.star"),
    *("metadata/sample_relion_symmetry_group_D4.star", "real/empiar-10076/empiar_10076_7.star"),
    *("real/relion31-5/relion31.star", "real/ribosome-sta/sta_testing_bin8.star", "real/ribosome-tilts/particles.star"),
    *("real/spa-17/sample_relion_data.star",),
    "metadata/relion5-tomo/warptools_test_4-tomos_10-ptcls_box-32_angpix-12.star",
)
TABLES = (
    "metadata/cryosparc_J2_particles_exported.cs",
    "metadata/cryosparc_P12_J24_001_particles.cs",
    "real/empiar-10076/empiar_10076_7.cs",
)
PICKLES = (
    *("metadata/ctf2.pkl", "metadata/pose.cs.pkl", "real/ribosome-sta/sta_ctf.pkl", "real/ribosome-sta/sta_pose.pkl"),
)


def every_third(n: int) -> NDArray[np.int64]:
    return np.arange(0, n, 3)


def columns_of(path: Path) -> dict[str, dict[str, list[str]]]:
    return {name: {c: table.column(c) for c in table.columns} for name, table in read_star(path).items()}


@pytest.mark.parametrize("name", PARTICLE_STARS)
def test_stars_of_others(name: str, shared_data: Path, tmp_path: Path) -> None:
    """Kept whole they are the same bytes; in part, every block and column of the rows that are kept."""
    source, out = shared_data / name, tmp_path / "out.star"
    ids = open_source(source).ids
    assert write_back(source, out) == len(ids)
    assert out.read_bytes() == source.read_bytes()

    rows = every_third(len(ids))
    write_back(source, out, [ids[row] for row in reversed(rows)])
    before, after = columns_of(source), columns_of(out)
    assert list(before) == list(after)
    for block, columns in before.items():
        particles = "rlnImageName" in columns and block != "optics"
        expected = {c: [values[row] for row in rows] if particles else values for c, values in columns.items()}
        assert after[block] == expected


@pytest.mark.parametrize("name", TABLES)
def test_cryosparc_tables_of_others(name: str, shared_data: Path, tmp_path: Path) -> None:
    source, out = shared_data / name, tmp_path / "out.cs"
    before = np.load(source)
    write_back(source, out)
    assert np.load(out).dtype == before.dtype
    assert np.load(out).tobytes() == before.tobytes()
    rows = every_third(len(before))
    write_back(source, out, before["uid"][rows].astype(str))
    assert np.load(out).tobytes() == before[rows].tobytes()


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_of_others(name: str, shared_data: Path, tmp_path: Path) -> None:
    source, out = shared_data / name, tmp_path / "out.pkl"
    before = read_arrays(source)
    rows = every_third(len(before[0]))
    write_back(source, out, [str(row + 1) for row in rows])
    after = pickle.loads(out.read_bytes())  # as cryoDRGN opens it
    assert type(after) is type(pickle.loads(source.read_bytes()))
    for array, found in zip(before, after if isinstance(after, tuple) else (after,), strict=True):
        assert found.dtype == array.dtype
        assert np.array_equal(found, array[rows])
    assert b"numpy._core" not in out.read_bytes()  # which NumPy 1 does not have


# Updates

STAR = """
# version 50001
data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
1 "a scope"

# a remark
data_particles

loop_
_rlnImageName #1
_rlnAngleRot #2
_note #3
000001@a.mrcs   10.000000 'one  two' # first
000002@a.mrcs   20.000000 _x

# version 50001
data_other

_key value
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_star_with_columns_changed_and_added(end: str, tmp_path: Path) -> None:
    (tmp_path / "in.star").write_bytes(STAR.replace("\n", end).encode())
    updates = {"rlnAngleRot": [1.5, 123456.0], "rlnAngleTilt": [7, 8], "rlnComment": ["", "a b"]}
    write_back(tmp_path / "in.star", tmp_path / "out.star", ["000002@a.mrcs", "000001@a.mrcs"], updates)
    expected = (
        STAR.replace("_note #3\n", "_note #3\n_rlnAngleTilt #4\n_rlnComment #5\n")
        .replace("10.000000 'one  two'", "123456.000000 'one  two' 8 \"a b\"")
        .replace("20.000000 _x", ' 1.500000 _x 7 ""')
    )
    assert (tmp_path / "out.star").read_bytes() == expected.replace("\n", end).encode()
    assert columns_of(tmp_path / "out.star")["particles"]["rlnComment"] == ["a b", ""]


def test_rows_that_show_one_image_are_told_apart(tmp_path: Path) -> None:
    """As after a symmetry expansion."""
    source, out = tmp_path / "in.star", tmp_path / "out.star"
    source.write_text(STAR.replace("000002@", "000001@"))
    write_back(source, out, ["000001@a.mrcs"] * 2, {"rlnAngleRot": [1.0, 2.0]})
    assert columns_of(out)["particles"]["rlnAngleRot"] == ["1.000000", "2.000000"]
    assert columns_of(out)["particles"]["note"] == ["one  two", "_x"]


def test_a_cryosparc_table_with_columns_changed_and_added(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = [("uid", "<u8"), ("alignments3D/pose", "<f4", (3,)), ("blob/path", "S9"), ("ctf/df1_A", "<f4")]
    table = np.zeros(5, dtype=kinds)
    table["uid"] = rng.integers(2**63, size=5, dtype=np.uint64) * 2 + 1
    table["alignments3D/pose"] = rng.normal(size=(5, 3))
    table["blob/path"] = b">x.mrc"
    np.save(tmp_path / "in.npy", table)
    rows = np.array([3, 1])
    poses = rng.normal(size=(2, 3))
    updates = {"alignments3D/pose": poses, "alignments3D/split": np.array([1, 0], dtype=np.uint32)}
    write_back(tmp_path / "in.npy", tmp_path / "out.npy", table["uid"][rows].astype(str), updates)
    found = np.load(tmp_path / "out.npy")
    assert found.dtype.descr == [*table.dtype.descr, ("alignments3D/split", "<u4")]
    assert found["uid"].tolist() == table["uid"][[1, 3]].tolist()
    assert np.array_equal(found["alignments3D/pose"], poses[::-1].astype(np.float32))
    assert found["alignments3D/split"].tolist() == [0, 1]
    assert found["blob/path"].tolist() == [b">x.mrc"] * 2
    with pytest.raises(ValueError, match="shape"):
        write_back(tmp_path / "in.npy", tmp_path / "out.npy", None, {"alignments3D/pose": np.zeros(5)})


# Mistakes


def test_what_is_refused(tmp_path: Path, refuses: Callable) -> None:
    source = tmp_path / "in.star"
    source.write_text(STAR)
    with refuses("out.star", "choose another"):
        (tmp_path / "out.star").symlink_to(source)
        write_back(source, tmp_path / "out.star")
    for ids in (["000003@a.mrcs"], ["000001@a.mrcs"] * 2):
        with refuses(ids[0], "in.star"):
            write_back(source, tmp_path / "other.star", ids)
    with pytest.raises(ValueError, match="rlnAngleRot: 3 values for 2 rows"):
        write_back(source, tmp_path / "other.star", None, {"rlnAngleRot": [1.0, 2.0, 3.0]})
    assert source.read_text() == STAR
    assert not (tmp_path / "other.star").exists()


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (b"data_\n\n_rlnTomoParticlesFile a.star\n", "optimisation set"),
        (b"data_\n\n_rlnOther 1\n", "rlnImageName"),
        (b"data_\n\nloop_\n_rlnImageName #1\n\n", "no loop of particles"),
        (b"data_\n\n_rlnImageName 1@a.mrcs\n", "no loop of particles"),
        (b"\x93NUMPY\x01\x00", "in.file"),
        (pickle.dumps((np.zeros((3, 3, 3)), np.zeros((2, 2)))), "differ in length"),
        (pickle.dumps(np.zeros((0, 9))), "empty"),
        (pickle.dumps({"poses": 1}), "in.file"),
        (b"", "in.file"),
    ],
)
def test_what_is_no_particle_file(content: bytes, culprit: str, tmp_path: Path, refuses: Callable) -> None:
    (tmp_path / "in.file").write_bytes(content)
    with refuses(culprit):
        open_source(tmp_path / "in.file")
    with refuses("nowhere"):
        open_source(tmp_path / "nowhere")
