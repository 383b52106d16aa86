"""``emsplat decode`` with a decoder that moves Gaussians: every way to choose points, every format, any grid."""

from __future__ import annotations

import csv
from pathlib import Path

import gemmi
import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.cli import main
from emsplat.heterogeneity.decoder import Decoder
from emsplat.io import read_map
from emsplat.models.gaussians import Gaussians
from searched import J, searched


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched(tmp_path_factory.mktemp("searched") / "states")


def direct_sum(decoder: Decoder, z: list[float], box_size: int, pixel_size: float) -> NDArray[np.float64]:
    """(D, D, D) sum of the Gaussians at the voxels, whose voxel D//2 is the box centre."""
    model = decoder.at(np.array(z))
    at = (np.arange(box_size) - box_size // 2) * pixel_size
    places = np.stack(np.meshgrid(at, at, at, indexing="ij")[::-1], axis=-1)
    total = np.zeros((box_size,) * 3)
    columns = (model.centres.numpy(), model.covariances().double().numpy(), model.masses().numpy())
    for centre, covariance, mass in zip(*columns, strict=True):
        apart = places - centre
        q = np.einsum("zyxi,ij,zyxj->zyx", apart, np.linalg.inv(covariance), apart)
        total += mass * np.exp(-0.5 * q) / np.sqrt((2 * np.pi) ** 3 * np.linalg.det(covariance))
    return total


@pytest.mark.parametrize(("box_size", "pixel_size"), [(None, None), (45, 2.3), (64, 1.5)])
def test_a_point_on_any_grid(folder: Path, tmp_path: Path, box_size: int | None, pixel_size: float | None) -> None:
    options = [] if box_size is None else ["--box-size", str(box_size), "--pixel-size", str(pixel_size)]
    assert main(["decode", str(folder), "--at=1.2,-0.4", "-o", str(tmp_path / "p.mrc"), *options]) == 0
    found = read_map(tmp_path / "p.mrc")
    expected = direct_sum(Decoder.load(folder / "decoder.safetensors"), [1.2, -0.4], box_size or 32, pixel_size or 2.0)
    assert found.pixel_size_in_angstroms == pytest.approx(pixel_size or 2.0)
    assert np.linalg.norm(found.values - expected) < 0.01 * np.linalg.norm(expected)


def test_pseudo_atoms_have_displacement_vectors(folder: Path, tmp_path: Path) -> None:
    assert main(["decode", str(folder), "--state", "1", "--format", "cif", "-o", str(tmp_path / "s.cif")]) == 0
    block = gemmi.cif.read(str(tmp_path / "s.cif")).sole_block()
    decoder = Decoder.load(folder / "decoder.safetensors")
    rows = block.find("_emsplat_displacement.", ["atom_id", "latent", "x", "y", "z"])
    moves = np.array([[float(v) for v in row] for row in rows])
    assert len(moves) == 2 * 2 * J
    expected = decoder.displacements.numpy()[moves[:, 0].astype(int) - 1, moves[:, 1].astype(int) - 1]
    np.testing.assert_allclose(moves[:, 2:], expected, atol=1e-5)
    x = [float(v) for v in block.find_loop("_atom_site.Cartn_x")]
    np.testing.assert_allclose(x, decoder.at(np.array([0.5, 0])).centres[:, 0] + 32, atol=1e-3)  # from voxel 0


def test_particles_and_paths_in_every_format(folder: Path, tmp_path: Path) -> None:
    with (folder / "latents.csv").open(newline="") as file:
        latents = {row["id"]: [float(row["z1"]), float(row["z2"])] for row in csv.DictReader(file)}
    chosen = ["300@a.mrcs", "12@a.mrcs", "300@a.mrcs"]
    (tmp_path / "ids.csv").write_text("\n".join(chosen))
    arguments = ["decode", str(folder), "--particles", str(tmp_path / "ids.csv"), "--format", "gaussians"]
    assert main([*arguments, "-o", str(tmp_path / "models")]) == 0
    decoder = Decoder.load(folder / "decoder.safetensors")
    for number, name in enumerate(chosen, 1):
        found = Gaussians.load(tmp_path / "models" / f"{number:03d}.safetensors")
        np.testing.assert_allclose(found.centres, decoder.at(np.array(latents[name])).centres, atol=1e-4)
    path = ["--path", "1", "0.5,1.5", "-n", "5", "--format", "ply", "-o", str(tmp_path / "path")]
    assert main(["decode", str(folder), *path]) == 0
    with (tmp_path / "path" / "points.csv").open(newline="") as file:
        points = [(float(row["z1"]), float(row["z2"])) for row in csv.DictReader(file)]
    np.testing.assert_allclose(points, np.linspace([0.5, 0.0], [0.5, 1.5], 5))
    assert len(list((tmp_path / "path").glob("*.ply"))) == 5
