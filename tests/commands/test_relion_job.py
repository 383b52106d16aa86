"""A reconstruction as a job of RELION's: whatever ends it, RELION is told; and RELION itself runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emsplat.commands.relion_job import Work, main
from emsplat.io.mrc import read_map
from emsplat.io.star import read_star
from emsplat.simulation import SimulationSettings, bundled_model, simulate
from processes import PATIENCE
from relion import run_relion

JOB = "External/job001"
MARKERS = {"RELION_JOB_EXIT_SUCCESS", "RELION_JOB_EXIT_FAILURE", "RELION_JOB_EXIT_ABORTED"}
EMPTY_PIPELINE = "\n# version 30001\n\ndata_pipeline_general\n\n_rlnPipeLineJobCounter 1\n\n"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = SimulationSettings(n_images=24, box_size=32, pixel_size_in_angstroms=5.0, snr=1.0)
    return simulate(bundled_model(), tmp_path_factory.mktemp("images"), settings, overwrite=True).parent


@pytest.fixture
def project(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A RELION project with particles in it, and the working directory."""
    for name in ("particles.star", "particles.mrcs"):
        shutil.copy(images / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def instead(project: Path) -> Callable[..., Work]:
    """Work that is done by a shell script in the reconstruction's place, and looked at often."""

    def work(script: str, cleaning_up: float = 60.0) -> Work:
        (project / "script").write_text(f"#!/bin/sh\n{script}\n")
        (project / "script").chmod(0o755)
        return Work((str(project / "script"),), between_looks=0.1, cleaning_up=cleaning_up)

    return work


def run_job(*arguments: str, work: Work = Work()) -> int:  # noqa: B008 (frozen)
    return main(["--o", f"{JOB}/", "--in_parts", "particles.star", *arguments, "--j", "2"], work)


def markers() -> set[str]:
    return MARKERS & set(os.listdir(JOB))


def asked_to_abort_soon() -> threading.Thread:
    """As RELION's GUI does when the user presses the button, once the job is under way."""

    def ask() -> None:
        while not Path("started").exists():
            time.sleep(0.05)
        Path(JOB, "RELION_JOB_ABORT_NOW").touch()

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_relion_runs_it(project: Path) -> None:
    """From RELION's own pipeline: command line, threads, parameters with labels, other arguments, output nodes."""
    (project / "default_pipeline.star").write_text(EMPTY_PIPELINE)
    options = {
        "fn_exe": f"{sys.executable} -m emsplat.commands.relion_job",  # a command of several words will do
        "in_part": "particles.star",
        "param1_label": "n_gaussians",
        "param1_value": "50",
        "nr_threads": "2",
        "other_args": "--isotropic --sharpen -80",
    }
    listed = ";".join(f"{name} == {value}" for name, value in options.items())
    run_relion("relion_pipeliner", "--addJob", "External", "--addJobOptions", listed, folder=project)
    run_relion("relion_pipeliner", "--RunJobs", f"{JOB}/", "--schedule", "s", "--sec_wait_after", 1, folder=project)

    assert markers() == {"RELION_JOB_EXIT_SUCCESS"}
    pipeline = read_star(project / "default_pipeline.star")
    assert pipeline["pipeline_processes"].column("rlnPipeLineProcessStatus") == ["2"]  # finished
    nodes = pipeline["pipeline_nodes"]
    found = dict(zip(nodes.column("rlnPipeLineNodeName"), nodes.column("rlnPipeLineNodeType"), strict=True))
    assert found == {
        "particles.star": "3",
        f"{JOB}/run_class001.mrc": "6",
        f"{JOB}/run_half1_class001_unfil.mrc": "10",
        f"{JOB}/mask.mrc": "7",
    }
    for name in (*found, f"{JOB}/run_half2_class001_unfil.mrc"):
        assert name == "particles.star" or read_map(name).values.shape == (32, 32, 32)
    settings = json.loads(Path(JOB, "config.json").read_text())["settings"]
    asked = {"n_gaussians": 50, "isotropic": True, "sharpen": -80.0, "threads": 2}
    assert asked.items() <= settings.items()
    labels = read_star(f"{JOB}/RELION_OUTPUT_NODES.star")["output_nodes"].column("rlnPipeLineNodeTypeLabel")
    assert labels == ["DensityMap.mrc", "DensityMap.mrc.halfmap", "Mask3D.mrc"]


def test_what_is_passed_on(instead: Callable, project: Path) -> None:
    work = instead('printf "%s\\n" "$@" > arguments; exit 1')
    options = ("--symmetry", "D2", "--sharpen", "-80", "--invert", "--in_mask", "Mask/mask.mrc")
    assert run_job(*options, "--pipeline_control", f"{JOB}/", work=work) == 1
    assert (project / "arguments").read_text().split() == [
        *("reconstruct", "particles.star", "-o", JOB, "--overwrite", "--mask", "Mask/mask.mrc", "--threads", "2"),
        *("--symmetry", "D2", "--sharpen", "-80", "--invert"),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--symetry", "D2"], "--symetry"),
        (["--max-resolution", "-1"], "--max-resolution -1"),
        (["--in_3dref", "map.mrc"], "--in_3dref"),
    ],
)
def test_mistakes_are_failures(
    arguments: list[str], said: str, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_job(*arguments) == 1
    assert markers() == {"RELION_JOB_EXIT_FAILURE"}
    assert set(os.listdir(JOB)) == {"RELION_JOB_EXIT_FAILURE"}
    captured = capfd.readouterr()
    assert said in captured.out + captured.err


def test_no_particles_is_a_failure(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--o", JOB, "--j", "1"]) == 1
    assert markers() == {"RELION_JOB_EXIT_FAILURE"}
    assert capfd.readouterr().err.count("\n") == 1


def test_a_killed_reconstruction_is_a_failure(instead: Callable) -> None:
    """As the operating system does where memory runs out."""
    assert run_job(work=instead("kill -9 $$")) == 1
    assert markers() == {"RELION_JOB_EXIT_FAILURE"}


def test_an_abort_lets_it_clean_up(instead: Callable, project: Path) -> None:
    work = instead("trap 'touch cleaned; exit 130' TERM; touch started; while :; do sleep 0.1; done")
    thread = asked_to_abort_soon()
    assert run_job(work=work) == 130
    thread.join()
    assert os.listdir(JOB) == ["RELION_JOB_EXIT_ABORTED"]
    assert (project / "cleaned").exists()


def test_an_abort_ends_what_does_not_listen(instead: Callable) -> None:
    work = instead("trap '' TERM; touch started; while :; do sleep 0.1; done", cleaning_up=0.5)
    thread = asked_to_abort_soon()
    assert run_job(work=work) == 130
    thread.join()
    assert os.listdir(JOB) == ["RELION_JOB_EXIT_ABORTED"]


@pytest.mark.usefixtures("signals_of_a_terminal")
@pytest.mark.parametrize("sent", [None, signal.SIGTERM, signal.SIGINT])
def test_stopping_a_reconstruction_that_is_at_work(sent: signal.Signals | None, project: Path) -> None:
    """By RELION's file, by a queue, by Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-m", "emsplat.commands.relion_job",
         "--o", f"{JOB}/", "--in_parts", "particles.star", "--j", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while "images of" not in process.stdout.readline():
        assert process.poll() is None
    if sent is None:
        Path(JOB, "RELION_JOB_ABORT_NOW").touch()
    else:
        process.send_signal(sent)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.splitlines() == ["emsplat: interrupted; no half-written file is left"]
    assert os.listdir(JOB) == ["RELION_JOB_EXIT_ABORTED"]


def test_what_the_last_run_said_is_forgotten(instead: Callable) -> None:
    Path(JOB).mkdir(parents=True)
    for name in (*MARKERS, "RELION_JOB_ABORT_NOW", "RELION_OUTPUT_NODES.star"):
        Path(JOB, name).touch()
    assert run_job(work=instead("exit 2")) == 1
    assert os.listdir(JOB) == ["RELION_JOB_EXIT_FAILURE"]


def test_a_folder_that_cannot_be_made(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "External").touch()
    assert run_job() == 1
    assert "cannot be written" in capfd.readouterr().err
