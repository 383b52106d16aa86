"""The command that finds poses, from a table without any to a folder that says whether to believe it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from emsplat import cli
from emsplat.io import read_particles, read_star, write_star
from emsplat.io.star import Table
from emsplat.outputs.flip import flipped
from emsplat.runs.closing import resolution_text
from emsplat.simulation import SimulationSettings, simulate

POSES = {"rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset"}


@pytest.fixture(scope="module")
def simulated(one_chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of something small, and a table of them as an extraction writes it: without poses."""
    settings = SimulationSettings(n_images=240, box_size=32, pixel_size_in_angstroms=4.0, snr=0.05, seed=4)
    folder = tmp_path_factory.mktemp("simulated")
    star = simulate(one_chain, folder / "images", settings)
    blocks = read_star(star)
    particles = blocks["particles"]
    blocks["particles"] = Table({name: particles.column(name) for name in particles.columns if name not in POSES})
    write_star(folder / "images" / "extracted.star", blocks)
    return folder / "images"


@pytest.fixture(scope="module")
def run(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "found"
    options = ["--starts", "1", "--max-resolution", "20", "--threads", "1", "--device", "cpu", "--quiet"]
    assert cli.main(["abinitio", str(simulated / "extracted.star"), "-o", str(folder), *options]) == 0
    return folder


def test_the_summary_holds_the_verdict_and_claims_a_resolution_only_if_the_search_converged(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    found = summary["ab_initio"]
    statuses = {criterion["status"] for criterion in found["criteria"].values()}
    worst = next(status for status in ("failed", "uncertain", "converged") if status in statuses)
    assert found["status"] == worst
    assert (summary["resolution"] is None) or worst == "converged"
    if worst != "converged":
        assert worst in resolution_text(summary) and found["what_to_try"]
        assert any("no resolution is claimed" in warning for warning in summary["warnings"])
        assert summary["local_resolution"] is None and summary["measurable_limit"] is None
        for name in ("local_resolution", "uncertainty"):
            assert not (run / f"{name}.mrc").exists() and not (run / "figures" / f"{name}.png").exists()
        with (run / "fsc.csv").open(newline="") as file:
            assert {row["c_map"] for row in csv.DictReader(file)} == {"nan"}
        assert "measurable to" not in (run / "run.log").read_text()
    assert summary["poses_shared"] is False
    assert json.loads((run / "config.json").read_text())["ab_initio_settings"]["starts"] == 1
    page = (run / "report.html").read_text()
    assert f"Ab initio: {worst}" in page
    assert worst == "converged" or not any(claim in page for claim in ("median local resolution", "measurable to"))
    assert (run / "figures" / "ab_initio.png").stat().st_size > 10_000


def test_the_particles_come_back_with_poses_half_sets_and_every_other_column(run: Path, simulated: Path) -> None:
    before = read_star(simulated / "extracted.star")["particles"]
    after = read_star(run / "particles.star")["particles"]
    assert set(after.columns) - set(before.columns) == POSES
    for name in before.columns:
        assert after.column(name) == before.column(name)
    particles = read_particles(run / "particles.star")  # the run says where the stacks lie, whatever the folder
    assert np.unique(particles.half_set, return_counts=True)[1].tolist() == [120, 120]
    assert np.ptp(particles.euler_angles_in_degrees[:, 1]) > 60


def test_flip_writes_the_mirror_image_and_its_poses(run: Path, simulated: Path) -> None:
    assert cli.main(["flip", str(run)]) == 0
    with mrcfile.open(run / "map.mrc") as a, mrcfile.open(run / "map_flipped.mrc") as b:
        assert b.voxel_size.x == pytest.approx(a.voxel_size.x)
        assert (b.data[1:] == a.data[1:][::-1]).all()
    before, after = (read_particles(run / f"particles{end}.star") for end in ("", "_flipped"))
    mirror = np.diag([1.0, 1.0, -1.0])
    assert after.rotations() == pytest.approx(mirror @ before.rotations() @ mirror, abs=1e-6)
    assert flipped(flipped(before)).rotations() == pytest.approx(before.rotations(), abs=1e-12)
    assert cli.main(["flip", str(run)]) == 2  # the files are there


def test_dark_particles_are_refused_with_the_remedy(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["abinitio", str(simulated / "extracted.star"), "-o", str(tmp_path / "run"), "--invert", "--threads", "1"]
    assert cli.main(command) == 2
    assert "leave out --invert" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_too_few_images_are_refused(simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    blocks = read_star(simulated / "extracted.star")
    blocks["particles"] = Table({name: values[:60] for name, values in blocks["particles"].columns.items()})
    write_star(simulated / "few.star", blocks)
    assert cli.main(["abinitio", str(simulated / "few.star"), "-o", str(tmp_path / "run")]) == 2
    assert "at least 40 in each" in capsys.readouterr().err
