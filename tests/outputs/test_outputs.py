"""A run folder: complete and readable by others, or not there at all."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from safetensors import safe_open

from emsplat.models.gaussians import Gaussians
from emsplat.outputs import reconstruction as outputs
from emsplat.outputs.claims import check_output
from emsplat.outputs.reconstruction import write_run
from emsplat.reconstruction.reconstruct import Reconstruction
from emsplat.runtime import files
from emsplat.runtime.reporting import Reporter
from emsplat.validation.validate import CSV_COLUMNS
from relion import run_relion

Run = tuple[Reconstruction, Reporter]

TEXTS = {"fsc.csv", "summary.json", "config.json", "run.log", "report.html", "report_data.npz"}
MODELS = {f"gaussians{part}.safetensors" for part in ("", "_half1", "_half2")}
MAPS = {f"{kind}_half{half}.mrc" for kind in ("map", "raw") for half in (1, 2)} | {
    *("map.mrc", "mask.mrc", "local_resolution.mrc", "uncertainty.mrc")
}
FILES = {*MAPS, *TEXTS, *MODELS}


@pytest.fixture(scope="module")
def run_folder(reconstructed: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "made" / "run"  # neither of the last two is there
    write_run(folder, *reconstructed)
    return folder


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "draw_figures", lambda files, *_: files.figures.mkdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_everything_is_there(run_folder: Path) -> None:
    figures = {
        f"figures/{n}.png"
        for n in ("fsc", "slices", "projections", "orientations", "loss", "local_resolution", "uncertainty")
    }
    assert set(contents(run_folder)) == FILES | figures
    assert os.listdir(run_folder.parent) == ["run"]  # no staging left


def test_maps_say_where_they_are(run_folder: Path, reconstructed: Run) -> None:
    for name in MAPS:
        with mrcfile.open(run_folder / name) as file:
            assert file.data.shape == (48, 48, 48)
            assert float(file.voxel_size.x) == pytest.approx(3.4, rel=1e-5)
            assert file.header.origin.tolist() == (0, 0, 0)
    assert mrcfile.validate(run_folder / "map.mrc")
    assert np.array_equal(mrcfile.read(run_folder / "raw_half2.mrc"), reconstructed[0].halves[1].raw)


def test_gaussians_give_the_average_of_the_halves_back(run_folder: Path, reconstructed: Run) -> None:
    path = run_folder / "gaussians.safetensors"
    with safe_open(path, framework="pt") as file:
        assert "Å" in file.metadata()["centres"]
        assert file.metadata()["box_size"] == "48"
    model = Gaussians.load(path)
    halves = [half.map for half in reconstructed[0].halves]
    mean = 0.5 * (halves[0] + halves[1])
    assert np.linalg.norm(model.voxelise(48, 3.4) - mean) < 1e-3 * np.linalg.norm(mean)
    assert model.voxelise(61, 2.0).shape == (61, 61, 61)
    assert path.stat().st_mode == (run_folder / "map.mrc").stat().st_mode  # others may read it


def test_the_map_is_the_average_of_its_halves(run_folder: Path) -> None:
    halves = [mrcfile.read(run_folder / f"map_half{i}.mrc") for i in (1, 2)]
    np.testing.assert_allclose(mrcfile.read(run_folder / "map.mrc"), 0.5 * (halves[0] + halves[1]), atol=1e-6)


def test_curves(run_folder: Path, reconstructed: Run) -> None:
    with (run_folder / "fsc.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [int(row["shell"]) for row in rows] == list(range(1, 25))
    expected = reconstructed[0].validation.gaussian_half
    assert np.allclose([float(row["gaussian_half"]) for row in rows], expected, atol=1e-6)


def test_summary_and_settings(run_folder: Path, reconstructed: Run) -> None:
    result, _ = reconstructed
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["resolution"] == result.validation.resolution
    assert summary["resolution_kind"] in ("measured", "better_than")
    assert summary["nyquist"] == pytest.approx(6.8)
    assert summary["n_images"] == 600
    assert summary["n_gaussians"] == len(result.gaussians) == sum(summary["n_gaussians_of_halves"])
    assert {"read", "preview", "pass", "fit", "validation", "figures"} <= set(summary["seconds"])
    assert 1e8 < summary["peak_memory_in_bytes"] < 4e9
    assert summary["images_per_second"] > 0
    assert summary["seed"] == 3
    assert not summary["poses_shared"]
    assert "torch" in summary["versions"]
    assert len(summary["sources"]) == 6
    assert summary["sources"][-1]["to"] == pytest.approx(summary["measurable_limit"], abs=1e-3)
    config = json.loads((run_folder / "config.json").read_text())
    assert config["settings"]["seed"] == 3
    assert config["settings"]["symmetry"] == "C1"
    assert Path(config["particles"]).is_absolute()


def test_the_log_tells_choices_and_verdict(run_folder: Path) -> None:
    log = (run_folder / "run.log").read_text()
    for said in (
        "600 images",
        "diameter",
        "Gaussians",
        "the direct inversion brings",
        "resolution: ",
        "(c_map",
        "peak memory",
    ):
        assert said in log


def test_log_and_configuration_name_the_stacks_that_were_read(run_folder: Path, simulated: Path) -> None:
    stack = simulated / "particles.mrcs"
    (listed,) = json.loads((run_folder / "config.json").read_text())["stacks"]
    assert (listed["path"], listed["n_images"]) == (str(stack), 600)
    assert listed["size_in_bytes"] == stack.stat().st_size
    assert listed["modified"].startswith("20")
    assert f"{stack}: 600 images, {stack.stat().st_size:,} bytes, of 20" in (run_folder / "run.log").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"poses_shared": True}, "8.00 Å (c_map = 0.5, measured), upper bound: poses shared"),
        ({"resolution": None, "resolution_kind": "not_measurable"}, "not measurable: c_map is below 0.5 from shell 6"),
        (
            {"resolution": None, "resolution_kind": "not_measurable", "measurable_limit": None},
            "not measurable: the direct inversions of the halves share no significant signal",
        ),
    ],
)
def test_the_verdict_in_words(changes: dict, said: str) -> None:
    measured = {"resolution": 8.0, "resolution_kind": "measured", "poses_shared": False, "nyquist": 6.8}
    assert said in outputs.resolution_text(measured | {"measurable_limit": 7.0} | changes)


@pytest.mark.parametrize("kind", ["raw", "map"])
def test_relion_reads_the_half_maps(kind: str, run_folder: Path, tmp_path: Path) -> None:
    halves = ("--i", run_folder / f"{kind}_half1.mrc", "--i2", run_folder / f"{kind}_half2.mrc")
    options = ("--mask", run_folder / "mask.mrc", "--angpix", 3.4)  # RELION 3.1.3 fails without a mask
    assert "FINAL RESOLUTION" in run_relion("relion_postprocess", *halves, *options, "--o", tmp_path / "post")
    with mrcfile.open(tmp_path / "post.mrc") as file:
        assert float(file.voxel_size.x) == pytest.approx(3.4, rel=1e-4)


@pytest.mark.parametrize("part", ["gather_evidence", "write_report"])
def test_a_report_that_fails_costs_no_run(
    part: str, reconstructed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_figures: None
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("a bug\nof two lines")

    monkeypatch.setattr(outputs, part, fail)
    reporter = Reporter()
    write_run(tmp_path / "run", reconstructed[0], reporter)
    assert set(contents(tmp_path / "run")) == FILES
    assert len(reporter.warnings) == 1
    assert "(ValueError: a bug of two lines)" in reporter.warnings[0]
    assert f"emsplat report {tmp_path / 'run'}" in reporter.warnings[0]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page == "" if part == "write_report" else "This run has nothing to show here" in page


# What is there stays, what fails leaves nothing


def test_a_folder_with_a_run_is_refused(run_folder: Path, reconstructed: Run, refuses: Callable) -> None:
    before = contents(run_folder)
    with refuses(str(run_folder), "--overwrite"):
        check_output(run_folder)
    with refuses("--overwrite"):
        write_run(run_folder, *reconstructed)
    assert contents(run_folder) == before
    check_output(run_folder, overwrite=True)


@pytest.mark.parametrize(
    ("holds", "names"),
    [
        ("a search for heterogeneity", ["latents.csv", "consensus/map.mrc"]),
        ("a search for classes", ["classes.csv"]),
    ],
)
def test_a_job_of_another_kind_is_not_overwritten(
    holds: str, names: list[str], tmp_path: Path, refuses: Callable
) -> None:
    """Its files would stay, and the folder would be taken for what it was."""
    for name in [*names, "summary.json"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    before = contents(tmp_path)
    with refuses(str(tmp_path), holds, "a reconstruction", "give another folder"):
        check_output(tmp_path, overwrite=True)
    assert contents(tmp_path) == before
    (tmp_path / names[0]).unlink()
    check_output(tmp_path, overwrite=True)


def test_a_folder_with_other_files_is_used_and_they_stay(
    reconstructed: Run, tmp_path: Path, without_figures: None
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write_run(tmp_path, *reconstructed)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_what_is_no_folder_is_refused(kind: str, tmp_path: Path, refuses: Callable) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" if kind == "file" else tmp_path / "file" / "run"
    with refuses(str(folder)):
        check_output(folder, overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="RUN AS ROOT: who may write everywhere is never refused")
def test_a_folder_one_may_not_write_to_is_refused(tmp_path: Path, refuses: Callable) -> None:
    tmp_path.chmod(0o500)
    with refuses(str(tmp_path)):
        check_output(tmp_path / "run")


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt(), MemoryError(), OSError(errno.ENOSPC, "No space left on device")]
)
@pytest.mark.parametrize("old", [False, True], ids=["new folder", "old run"])
def test_a_failure_half_way_leaves_everything_as_it_was(
    failure: BaseException, old: bool, reconstructed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "above" / "run"
    monkeypatch.setattr(outputs, "draw_figures", lambda files, *_: files.figures.mkdir())
    if old:
        write_run(folder, *reconstructed)
    before = contents(tmp_path)

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(outputs, "draw_figures", fail)
    with pytest.raises((type(failure), files.InputError)):
        write_run(folder, *reconstructed, overwrite=True)
    assert contents(tmp_path) == before
    assert (tmp_path / "above").exists() == old


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_files_are_moved_waits(
    sent: signal.Signals, reconstructed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_figures: None
) -> None:
    def interrupted(source: Path, target: Path) -> None:
        if target.parent == folder:  # not while the files are being written
            signal.raise_signal(sent)
        os.rename(source, target)

    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(files.os, "replace", interrupted)
    before = signal.signal(sent, signal.default_int_handler)  # as the command line has it
    try:
        with pytest.raises(KeyboardInterrupt):
            write_run(folder, *reconstructed)
    finally:
        signal.signal(sent, before)
    assert (folder / "summary.json").exists()
    assert set(contents(folder)) == FILES
    assert os.listdir(tmp_path) == ["run"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode
    if mounted != 0:
        pytest.skip("NO RIGHT TO MOUNT: the full disk is only imitated (see the failure half way)")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(reconstructed: Run, small_disk: Path, refuses: Callable) -> None:
    with refuses("disk is full", str(small_disk / "run")):
        write_run(small_disk / "run", *reconstructed)
    assert os.listdir(small_disk) == []


def test_a_full_disk_stops_a_model_file_too(reconstructed: Run, small_disk: Path, refuses: Callable) -> None:
    (small_disk / "filler").write_bytes(bytes(1000 * 1024))
    with refuses("disk is full"):
        reconstructed[0].gaussians.save(small_disk / "model.safetensors")
    assert os.listdir(small_disk) == ["filler"]
