"""Lists of images that are kept or left out, in every command."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emsplat.io import read_input, read_particles, read_star, write_star
from emsplat.io.lists import with_choice
from emsplat.io.subset import subset
from emsplat.settings import AbInitioSettings, HeterogeneitySettings, InputSettings, ReconstructSettings
from phantom import imagined_particles


@pytest.fixture
def pickled(tmp_path: Path) -> Callable[..., Path]:
    def write(content: object, name: str = "ind.pkl", protocol: int = 4) -> Path:
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
        return tmp_path / name

    return write


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_row_numbers_of_cryodrgn_count_from_zero(dataset, pickled, tmp_path, protocol, kind) -> None:
    star, ind = dataset(), pickled(np.array([4, 1], kind), protocol=protocol)
    whole = read_particles(star).ids.tolist()
    kept, left = (read_input(star, InputSettings(**{how: ind})) for how in ("keep", "drop"))
    assert kept.ids.tolist() == [whole[1], whole[4]]
    assert left.ids.tolist() == [whole[i] for i in (0, 2, 3, 5)]
    assert (kept.n_left_out, left.n_left_out) == (4, 2) and "4 others" in kept.left_out_text()
    assert subset(star, tmp_path / "out.star", InputSettings(keep=ind))[:2] == (2, 6)
    assert read_star(tmp_path / "out.star")["particles"].column("rlnImageName") == [whole[1], whole[4]]


def test_all_commands_take_a_list(dataset, tmp_path) -> None:
    star = dataset()
    first = read_particles(star).ids[0]
    (tmp_path / "odd.csv").write_text(f"id,reason\n{first},blank\n")
    for settings in (InputSettings, ReconstructSettings, HeterogeneitySettings, AbInitioSettings):
        found = read_input(star, settings(drop=tmp_path / "odd.csv"))
        assert len(found) == 5 and first not in found.ids
    assert HeterogeneitySettings(drop=tmp_path / "odd.csv").for_consensus().drop == tmp_path / "odd.csv"


def test_a_list_of_nothing_leaves_nothing_out(dataset, tmp_path, refuses) -> None:
    (tmp_path / "odd.csv").write_text("id,reason\n")
    assert len(read_input(dataset(), InputSettings(drop=tmp_path / "odd.csv"))) == 6
    with refuses("odd.csv", "no id"):
        read_input(dataset(), InputSettings(keep=tmp_path / "odd.csv"))


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        (np.array([0, 6]), ("row 6", "from 0 to 5")),
        (np.array([-1, 2]), ("row -1",)),
        (np.array([1, 3, 1]), ("row 1", "more than once")),
        (np.array([], np.int64), ("no row number",)),
        (np.array([0.0, 1.0]), ("float64", "ind.pkl")),
        (np.zeros((2, 2), np.int64), ("(2, 2)",)),
        ((np.arange(2), np.arange(2)), ("and others",)),
        ([1, 2], ("only a pickle of NumPy arrays",)),
        (np.arange(6), ("drops all 6",)),
    ],
)
def test_row_numbers_that_do_not_fit(dataset, pickled, refuses, content, culprits) -> None:
    with refuses("ind.pkl", *culprits):
        read_input(dataset(), InputSettings(drop=pickled(content)))


def test_a_pickle_runs_no_code(dataset, tmp_path, refuses) -> None:
    (tmp_path / "ind.pkl").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with refuses("ind.pkl", "os.system"):
        read_input(dataset(), InputSettings(keep=tmp_path / "ind.pkl"))


def test_ids_that_are_not_there_are_refused(dataset, tmp_path, refuses) -> None:
    (tmp_path / "ids.txt").write_text("7@nowhere.mrcs\n")
    for how in ("keep", "drop"):
        with refuses("ids.txt", "7@nowhere.mrcs", "whose ids read like"):
            read_input(dataset(), InputSettings(**{how: tmp_path / "ids.txt"}))


def test_row_numbers_must_not_divide_rows_of_one_image(dataset, pickled, tmp_path, refuses) -> None:
    star = dataset()
    blocks = read_star(star)
    names = blocks["particles"].columns["rlnImageName"]
    names[3] = names[2]
    write_star(star, blocks)
    with refuses("ind.pkl", names[2]):
        read_input(star, InputSettings(keep=pickled(np.array([0, 2]))))
    assert len(read_input(star, InputSettings(keep=pickled(np.array([0, 2, 3]))))) == 3
    subset(star, tmp_path / "out.star", InputSettings(keep=pickled(np.array([0, 3]))))  # the rows as they are written
    psi = blocks["particles"].column("rlnAnglePsi")
    assert read_star(tmp_path / "out.star")["particles"].column("rlnAnglePsi") == [psi[0], psi[3]]


def test_row_numbers_of_tilts_are_ambiguous(pickled, refuses) -> None:
    tilts = replace(imagined_particles(6, 16), pre_exposure=np.arange(6.0))
    with refuses("ind.pkl", "tilts"):
        with_choice(tilts, pickled(np.array([0, 1])), None)


@pytest.mark.parametrize("columns", [{"rlnCtfBfactor": [-4, -8, -12] * 2}, {"rlnMicrographPreExposure": [0, 3, 6] * 2}])
def test_row_numbers_of_tilts_are_ambiguous_in_every_command(dataset, pickled, tmp_path, refuses, columns) -> None:
    star, ind = dataset(rlnGroupName=list("aaabbb"), **columns), pickled(np.array([0, 1]))
    with refuses("ind.pkl", "tilts"):
        read_input(star, InputSettings(keep=ind))
    with refuses("ind.pkl", "tilts"):
        subset(star, tmp_path / "out.star", InputSettings(keep=ind))
    assert not (tmp_path / "out.star").exists()
