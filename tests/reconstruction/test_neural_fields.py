"""``emsplat reconstruct --model``: a whole run whose model is no set of Gaussians."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emsplat.cli import main
from emsplat.export.formats import export
from emsplat.io import read_map, read_particles
from emsplat.outputs.claims import is_complete
from emsplat.reconstruction.halves import Half
from emsplat.reconstruction.identity import identity
from emsplat.runs.run_folder import RunFolder
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings
from emsplat.simulation import SimulationSettings, bundled_model, simulate


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = SimulationSettings(n_images=300, box_size=32, pixel_size_in_angstroms=5.0, snr=0.2, seed=1)
    return simulate(bundled_model(), tmp_path_factory.mktemp("images"), settings, overwrite=True)


@pytest.fixture(scope="module")
def run(star: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of hash grids, in a folder that held Gaussians of an earlier one."""
    files = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    files.path.mkdir()
    for path in files.models:
        path.write_bytes(b"of an older run")
    command = ["reconstruct", str(star), "-o", str(files.path), "--model", "hash-grid", "--overwrite", "--quiet"]
    assert main([*command, "--seed", "3"]) == 0
    return files


def test_a_run_leaves_everything_but_gaussians(run: RunFolder) -> None:
    assert all(path.exists() for path in (*run.maps, run.curves, run.configuration, run.report, run.figure("fsc")))
    assert not any(path.exists() for path in run.models)
    halves = [read_map(run.map(half)).values for half in "12"]
    np.testing.assert_allclose(read_map(run.map()).values, 0.5 * (halves[0] + halves[1]), atol=1e-6)
    summary = json.loads(run.summary.read_text())
    assert summary["model"] == "hash-grid"
    assert summary["n_gaussians"] is None
    assert min(summary["n_parameters_of_halves"]) > 1000
    assert summary["resolution"] is not None
    assert summary["resolution"] < 25.0


def test_log_and_report_speak_of_what_was_fitted(run: RunFolder) -> None:
    log, report = run.log.read_text(), run.report.read_text()
    assert "hash grids: " in log
    assert "the hash grids bring the rest" in log
    assert "Gaussians: " not in log
    assert "half maps of hash grids" in report
    assert "as the hash grids predict it" in report
    assert 'id="gaussians"' not in report
    assert "--format cif" not in report


def test_only_gaussians_are_exported_as_gaussians(run: RunFolder, tmp_path: Path, refuses: Callable) -> None:
    for format in ("ply", "cif", "mrc"):
        with refuses(str(run.path), "fitted hash grids", "--format relion"):
            export(run.path, format, tmp_path / f"model.{format}")
    assert export(run.path, "relion", tmp_path / "maps").is_dir()


def test_the_model_belongs_to_the_identity_of_a_run(run: RunFolder, star: Path) -> None:
    """A run of something else is not resumed, and does not count as complete."""
    settings = ReconstructSettings(model="hash-grid", seed=3)
    assert is_complete(run.path, star, settings, Reporter())
    assert not is_complete(run.path, star, ReconstructSettings(seed=3), Reporter())
    table = read_particles(star)
    assert identity(table, settings) != identity(table, replace(settings, model="neural-field"))


def test_a_half_without_gaussians_is_restored_from_its_state() -> None:
    volume = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    again = Half.restored(Half(None, (), volume, 2 * volume, n_parameters=7).saved())
    assert again.gaussians is None
    assert again.n_parameters == 7
    assert np.array_equal(again.map, 2 * volume)


def test_what_only_gaussians_have_is_refused(refuses: Callable) -> None:
    asked = {
        "--n-gaussians": {"n_gaussians": 5},
        "--isotropic": {"isotropic": True},
        "--solver images": {"solver": "images"},
    }
    for kind in ("neural-field", "hash-grid"):
        for option, given in asked.items():
            with refuses(f"--model {kind}: {option} is for Gaussians only"):
                ReconstructSettings(model=kind, **given)


@pytest.mark.parametrize("words", [["reconstruct", "-o", "run", "--view"], ["plan"]])
def test_other_commands_refuse_fields(
    words: list[str], star: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([words[0], str(star), *words[1:], "--model", "neural-field"]) == 2
    error = capsys.readouterr().err
    assert "--model neural-field" in error
    assert "Gaussians" in error
    assert not any(tmp_path.iterdir())
