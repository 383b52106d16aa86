"""A run folder in, files of other programs out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gemmi
import numpy as np
import pytest

from emsplat.export.formats import export
from emsplat.io.mrc import read_map
from emsplat.outputs.reconstruction import write_run
from emsplat.reconstruction.reconstruct import Reconstruction
from emsplat.runtime.reporting import Reporter
from relion import run_relion


@pytest.fixture
def run(some_gaussians: Callable, run_of: Callable) -> Path:
    return run_of(some_gaussians(40, seed=1), some_gaussians(30, seed=2))


def test_an_mrc_is_the_runs_map_again(run: Path, tmp_path: Path) -> None:
    found = read_map(export(run, "mrc", tmp_path / "again.mrc"))
    expected = read_map(run / "map.mrc")
    assert found.pixel_size_in_angstroms == expected.pixel_size_in_angstroms
    assert np.array_equal(found.origin_in_angstroms, expected.origin_in_angstroms)
    assert np.linalg.norm(found.values - expected.values) < 1e-5 * np.linalg.norm(expected.values)
    finer = read_map(export(run, "mrc", tmp_path / "finer.mrc", pixel_size=1.5))
    assert finer.values.shape == (44, 44, 44)
    assert finer.values.sum() * 1.5**3 == pytest.approx(expected.values.sum() * 2.0**3, rel=1e-3)


def test_halves_and_their_average(run: Path, tmp_path: Path) -> None:
    counts = {}
    for half in ("1", "2", "average"):
        structure = gemmi.read_structure(str(export(run, "cif", tmp_path / f"{half}.cif", half)))
        counts[half] = structure[0].count_atom_sites()
    assert counts == {"1": 40, "2": 30, "average": 70}
    assert b"element vertex 30\n" in export(run, "ply", tmp_path / "2.ply", "2").read_bytes()


def test_names_are_found(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (("ply",), ("cif", None, "1"), ("relion",)):
        export(run, *arguments)
    assert sorted(os.listdir()) == ["run.ply", "run_half1.cif", "run_relion"]


def test_relion_has_the_raw_halves_under_its_names(run: Path, tmp_path: Path) -> None:
    folder = export(run, "relion", tmp_path / "relion")
    for name, source in (
        ("run_class001.mrc", "map.mrc"),
        ("run_half1_class001_unfil.mrc", "raw_half1.mrc"),
        ("run_half2_class001_unfil.mrc", "raw_half2.mrc"),
        ("mask.mrc", "mask.mrc"),
    ):
        assert (folder / name).read_bytes() == (run / source).read_bytes()


def test_relion_postprocess_runs_on_it(reconstructed: tuple[Reconstruction, Reporter], tmp_path: Path) -> None:
    """RELION finds the second half by the first's name, and its FSC of the masked halves is ours."""
    write_run(tmp_path / "run", *reconstructed)
    folder = export(tmp_path / "run", "relion", tmp_path / "relion")
    said = run_relion(
        "relion_postprocess",
        *("--i", folder / "run_half1_class001_unfil.mrc", "--mask", folder / "mask.mrc", "--angpix", 3.4),
        *("--o", folder / "post"),
    )
    assert "FINAL RESOLUTION" in said
    curve = (
        gemmi.cif.read(str(folder / "post.star"))
        .find_block("fsc")
        .find(["_rlnSpectralIndex", "_rlnFourierShellCorrelationMaskedMaps"])
    )
    relion = {int(row[0]): float(row[1]) for row in curve}
    ours = reconstructed[0].validation.raw_half_masked
    assert np.allclose([relion[shell] for shell in range(1, 20)], ours[:19], atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        ({"format": "relion", "half": "1"}, ("--half 1", "relion")),
        ({"format": "ply", "pixel_size": 2.0}, ("--pixel-size", "ply")),
        ({"format": "cif", "box_size": 64}, ("--box-size", "cif")),
        ({"format": "mrc", "pixel_size": 0.0}, ("--pixel-size 0.0",)),
        ({"format": "mrc", "pixel_size": float("nan")}, ("--pixel-size nan",)),
        ({"format": "mrc", "box_size": 2}, ("--box-size 2",)),
        ({"format": "mrc", "pixel_size": 0.01}, ("--pixel-size 0.01", "GB")),
    ],
)
def test_what_cannot_be_asked_for(
    arguments: dict, culprits: tuple[str, ...], run: Path, tmp_path: Path, refuses: Callable
) -> None:
    with refuses(*culprits):
        export(run, output=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "summary",
    [None, "", "[]", "{}", '{"box_size": "many", "pixel_size": 1}', '{"box_size": Infinity, "pixel_size": NaN}'],
)
def test_a_folder_without_a_finished_run(summary: str | None, tmp_path: Path, refuses: Callable) -> None:
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    with refuses(str(tmp_path), "emsplat reconstruct"):
        export(tmp_path, "ply")


def test_a_run_that_lost_a_file(run: Path, tmp_path: Path, refuses: Callable) -> None:
    (run / "raw_half2.mrc").unlink()
    with refuses("raw_half2.mrc", "missing"):
        export(run, "relion", tmp_path / "relion")
    (run / "gaussians.safetensors").write_bytes(b"nonsense")
    with refuses("gaussians.safetensors"):
        export(run, "ply", tmp_path / "model.ply")
    assert os.listdir(tmp_path) == []


def test_what_exists_is_not_replaced_unasked(run: Path, tmp_path: Path, refuses: Callable) -> None:
    for format in ("ply", "relion"):
        first = export(run, format, tmp_path / format)
        with refuses(str(first), "--overwrite"):
            export(run, format, tmp_path / format)
        assert export(run, format, tmp_path / format, overwrite=True) == first
