"""Classes of images as the command hands them back: a run folder, a list of images, and a verdict for each."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from emsplat import cli
from emsplat.abinitio import alternation
from emsplat.io import read_particles
from emsplat.outputs.classes import _remove_further
from emsplat.particles.table import Particles
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.runs.classes_folder import ClassesFolder
from emsplat.settings import ReconstructSettings
from emsplat.simulation import SimulationSettings, simulate
from small_work import small_work

N, N_JUNK = 240, 60


@pytest.fixture(scope="module")
def star(one_chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of something small, the last of which are noise alone."""
    settings = SimulationSettings(n_images=N, box_size=32, pixel_size_in_angstroms=4.0, snr=0.3, seed=4)
    star = simulate(one_chain, tmp_path_factory.mktemp("simulated"), settings)
    with mrcfile.open(star.parent / "particles.mrcs", "r+") as stack:
        border = stack.data[:, :4]
        noise = np.random.default_rng(0).normal(border.mean(), border.std(), (N_JUNK, 32, 32))
        stack.data[-N_JUNK:] = noise.astype(np.float32)
    return star


def few_steps(table: Particles, settings: ReconstructSettings, *arguments: Any, **named: Any) -> Any:
    """A reconstruction of which only the poses matter."""
    little = replace(settings, n_gaussians=60, n_fits=1, refine=None, refine_range=None)
    return reconstruct(table, little, *arguments, **named | {"tuning": small_work(accumulated=100, refined=80)})


def test_the_command_hands_back_a_map_and_the_images_without_a_particle(
    star: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(alternation, "reconstruct", few_steps)
    monkeypatch.setattr(alternation, "_MOST_SEARCHES", 1)
    folder = tmp_path / "found"
    command = ["abinitio", str(star), "-o", str(folder), "--classes", "1", "--starts", "1", "--max-resolution", "16"]
    command += ["--threads", "1", "--device", "cpu"]
    assert cli.main([*command, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    with (folder / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = np.array([int(row["class"]) for row in rows])
    assert len(rows) == summary["n_images"] == N
    assert np.count_nonzero(labels[-N_JUNK:] == 0) > 0.6 * N_JUNK
    assert np.count_nonzero(labels[:-N_JUNK] == 0) < 0.1 * N
    junk = (folder / "junk.csv").read_text().splitlines()[1:]
    assert len(junk) == summary["n_junk"] == np.count_nonzero(labels == 0)
    (of_class,) = summary["classes"]
    ids = (folder / "class1.csv").read_text().splitlines()[1:]
    assert len(ids) == of_class["n_images"] == np.count_nonzero(labels == 1)
    of_run = json.loads((folder / "class1" / "summary.json").read_text())
    assert of_run["ab_initio"]["criteria"]["classes"]["status"] == "converged"
    assert of_run["ab_initio"]["status"] == of_class["status"]
    assert "search" in summary["seconds"] and of_run["seconds"]["search"] < summary["seconds"]["search"]
    page = folder / "class1" / "report.html"
    page.unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert "emsplat" in page.read_text()
    assert cli.main(["report", str(folder), "-o", str(tmp_path / "all.html")]) == 2
    capsys.readouterr()
    particles = read_particles(folder / "class1" / "particles.star", datadir=star.parent)
    assert set(particles.ids) == set(ids)
    kept = tmp_path / "kept.star"
    assert cli.main(["subset", str(star), "-o", str(kept), "--drop", str(folder / "junk.csv")]) == 0
    assert len(read_particles(kept, datadir=star.parent)) == N - len(junk)
    capsys.readouterr()
    assert cli.main([*command, "--resume"]) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert cli.main(command) == 2  # the folder holds a run


def test_classes_of_the_replaced_run_do_not_stay(tmp_path: Path) -> None:
    files = ClassesFolder(tmp_path)
    for number in (1, 2, 3):
        files.of_class(number).path.mkdir()
        (files.of_class(number).path / "map.mrc").touch()
        files.ids(number).touch()
    files.junk.touch()
    _remove_further(files, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["class1", "class1.csv", "junk.csv"]
