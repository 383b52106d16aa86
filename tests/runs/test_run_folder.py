"""The names of files that users and other programs go by, and what is read back from a run folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emsplat.errors import InputError
from emsplat.runs.run import map_of, open_run, required
from emsplat.runs.run_folder import RunFolder


def test_the_names_are_those_that_the_readme_lists() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    folder = RunFolder(Path("run"))
    named = [*folder.maps, folder.gaussians(), folder.curves, folder.summary, folder.configuration, folder.log]
    for path in (*named, folder.report, folder.evidence):
        assert path.parent == folder.path
        assert f"`{path.name}`" in readme, f"{path.name} is not explained in README.md"
    assert f"`{folder.figures.name}/`" in readme


def test_every_path_is_in_the_folder_and_none_is_named_twice() -> None:
    folder = RunFolder(Path("some") / "run")
    paths = [*folder.results, folder.report, folder.evidence, folder.figures, folder.checkpoints]
    assert {path.parent for path in paths} == {folder.path}
    assert len(set(paths)) == len(paths)
    assert folder.figure("fsc").parent == folder.figures


def test_a_half_that_does_not_exist_has_no_files() -> None:
    with pytest.raises(ValueError, match="no half is called '3'"):
        RunFolder(Path("run")).map("3")


@pytest.mark.parametrize(
    "summary",
    [None, "{", "[]", '{"box_size": 48}', '{"box_size": 0, "pixel_size": 1}', '{"box_size": 48, "pixel_size": -1}'],
)
def test_a_folder_without_a_finished_run_is_refused_in_one_line(summary: str | None, tmp_path: Path) -> None:
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    with pytest.raises(InputError, match="no finished run in it") as raised:
        open_run(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_search_for_several_classes_names_the_folder_of_one(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"classes": []}))
    (tmp_path / "classes.csv").touch()
    with pytest.raises(InputError, match=r"several classes; give the folder of one, .*class1"):
        open_run(tmp_path)


def test_what_an_older_run_did_not_write_is_none(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"box_size": 48, "pixel_size": 3.4}))
    run = open_run(tmp_path)
    assert (run.box_size, run.pixel_size_in_angstroms, run.name) == (48, 3.4, tmp_path.name)
    assert (run.configuration, run.log, run.curves, run.evidence) == (None, None, None, {})
    assert map_of(run.folder.mask) is None
    with pytest.raises(InputError, match=r"mask\.mrc: is missing from the run; run emsplat reconstruct again"):
        required(run.folder.mask)
