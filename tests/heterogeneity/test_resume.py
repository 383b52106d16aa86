"""A search for heterogeneity goes on from its last finished stage, or is shared by ranks, to the same result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import heterogeneous
from emsplat.errors import InputError
from emsplat.heterogeneity import run as job
from emsplat.heterogeneity.kept import packed, unpacked
from emsplat.heterogeneity.posterior import ContrastPrior
from emsplat.heterogeneity.subspace import Diverged, Subspace
from emsplat.runtime.checkpoint import Checkpoints
from heterogeneous import assert_same, results, two_conformations
from processes import PATIENCE
from ranks import TESTS, free_port, step_of_srun
from small_work import always


@pytest.fixture(scope="module")
def images(one_chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_conformations(one_chain, tmp_path_factory.mktemp("conformations"), n_images=450)


@pytest.fixture(scope="module")
def undisturbed(images: Path) -> tuple[dict[str, NDArray], Path]:
    """The results of a search, and the states that it has kept."""
    folder = images.parent.parent / "checkpoints"
    return results(heterogeneous.found(images, Checkpoints(folder, pace=always()))), folder


def states_of(folder: Path) -> set[str]:
    return {path.name.removesuffix(".safetensors") for path in folder.glob("*.safetensors")}


def again(images: Path, folder: Path) -> dict[str, NDArray]:
    return results(heterogeneous.found(images, Checkpoints(folder, True, pace=always())))


def test_every_stage_is_kept(undisturbed: tuple[dict[str, NDArray], Path]) -> None:
    kept = states_of(undisturbed[1])
    halves = ("subspace", "components", "kept-subspace", "decoder0", "decoder1")
    assert kept >= {"latents", "posterior0", "posterior1"} | {
        f"{name}-half{half}" for name in halves for half in (1, 2)
    }
    assert not [name for name in kept if name.startswith("bins")]  # they are large, and the decoders replace them


def test_a_search_goes_on_from_its_last_stage(
    images: Path, undisturbed: tuple[dict[str, NDArray], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, whole = undisturbed
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    for path in folder.glob("*.safetensors"):  # as if it had ended within the first round after the bins'
        if not path.name.startswith(
            ("subspace", "components", "kept", "latents", "decoder0", "posterior0", "decoder1-half1")
        ):
            path.unlink()
    monkeypatch.setattr(job, "learn", lambda *_, **__: pytest.fail("a finished stage was done again"))
    assert_same(again(images, folder), expected)


def test_components_that_grow_without_bounds_are_no_components(
    images: Path, undisturbed: tuple[dict[str, NDArray], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consensus remains, and the outcome is kept like any other."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(undisturbed[1], folder)
    for path in folder.glob("*.safetensors"):  # all but the consensus
        path.unlink()

    def diverge(*_: object) -> Subspace:
        raise Diverged

    for learn in (diverge, lambda *_: pytest.fail("a finished stage was done again")):
        monkeypatch.setattr(job, "learn", learn)
        found = heterogeneous.found(images, Checkpoints(folder, True, pace=always()))
        assert (found.components.count, found.halves, found.states) == (0, None, ())
        assert "grew without bounds" in found.components.not_sought
        assert any("grew without bounds" in warning for warning in found.reporter.warnings)


def test_a_search_of_other_settings_is_not_continued(
    images: Path, undisturbed: tuple[dict[str, NDArray], Path]
) -> None:
    other = heterogeneous.replace(heterogeneous.SEARCH, components=2)
    checkpoints = Checkpoints(undisturbed[1], True, pace=always())
    with pytest.raises(InputError, match="components 1 there, 2 here"):
        job.find_heterogeneity(images, other, checkpoints=checkpoints)


def test_two_ranks_come_to_what_one_process_does(
    images: Path, undisturbed: tuple[dict[str, NDArray], Path], tmp_path: Path
) -> None:
    port, path = free_port(), os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    line = [sys.executable, str(TESTS / "heterogeneous.py"), str(images), str(tmp_path)]
    environments = [os.environ | step_of_srun(rank, 2, port) | {"PYTHONPATH": path} for rank in (0, 1)]
    ranks = [subprocess.Popen(line, env=environment) for environment in environments]
    try:
        assert [rank.wait(PATIENCE) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    for number in (0, 1):
        with np.load(tmp_path / f"rank{number}.npz") as found:
            assert_same(dict(found), undisturbed[0])


def test_what_is_kept_comes_back() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 4, 4, 4)).astype(np.float32)
    space = Subspace(maps[0], maps[1:], ContrastPrior(0.1, 0.02), 1 / 3, 0.1)
    first, (back, history, nothing) = unpacked(packed((1.5, [space, "mass", None])))
    assert first == 1.5 and history == "mass" and nothing is None
    np.testing.assert_array_equal(back.components, space.components)
    assert (back.contrast, back.turn_sigma) == (space.contrast, space.turn_sigma)
    with pytest.raises(TypeError, match="Path"):
        packed(Path())
