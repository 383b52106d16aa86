"""What is drawn, as arrays: where it lies, how much of it there is, and that its colours can be told apart."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

from emsplat.io.mrc import read_map
from emsplat.models.gaussians import Gaussians
from emsplat.simulation import bundled_model
from emsplat.viewer.atoms import load_model, load_uploaded
from emsplat.viewer.colours import Scale
from emsplat.viewer.content import Content
from emsplat.viewer.fields import Field, Plane
from emsplat.viewer.glb import Mesh
from emsplat.viewer.splats import Look, thinned
from emsplat.viewer.surface import isosurface

trimesh = pytest.importorskip("trimesh")
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def content(run_folder: Path) -> Content:
    return Content.of(run_folder)


def ellipsoid() -> Field:
    """Positive within half axes of 30, 20 and 14 Å along x, y, z about (4, 0, −6) Å."""
    at = -40 + 2.0 * np.arange(41)
    z, y, x = np.meshgrid(at, at, at, indexing="ij")
    r = np.sqrt(((x - 4) / 30) ** 2 + (y / 20) ** 2 + ((z + 6) / 14) ** 2)
    return Field((1 - r).astype(np.float32), -40.0, 2.0)


def solid(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.places, mesh.faces, process=False)


def test_a_surface_encloses_its_body_and_faces_outwards() -> None:
    mesh = isosurface(ellipsoid(), 0.0)
    assert mesh is not None
    assert solid(mesh).is_watertight
    assert solid(mesh).volume == pytest.approx(4 / 3 * np.pi * 30 * 20 * 14, rel=0.02)  # positive: faces outwards
    np.testing.assert_allclose(solid(mesh).center_mass, (4, 0, -6), atol=0.1)
    towards = mesh.places - np.array([4, 0, -6])
    assert np.all(np.sum(towards * mesh.normals, axis=1) > 0)
    assert isosurface(ellipsoid(), 2.0) is None


@pytest.mark.parametrize("sign", [1, -1])
def test_a_plane_cuts_the_body_and_closes_it(sign: int) -> None:
    mesh = isosurface(ellipsoid(), 0.0, Plane((0.0, 0.0, float(sign)), sign * -6.0))
    assert mesh is not None
    assert solid(mesh).is_watertight
    assert solid(mesh).volume == pytest.approx(2 / 3 * np.pi * 30 * 20 * 14, rel=0.03)
    assert np.all(sign * (mesh.places[:, 2] + 6) < 0.5)


def test_meshes_are_read_by_others() -> None:
    mesh = isosurface(ellipsoid(), 0.0)
    assert mesh is not None
    colours = RNG.uniform(size=mesh.places.shape)
    file = mesh.glb(colours, 0.5)
    read = trimesh.load(BytesIO(file), file_type="glb", force="mesh", process=False)
    np.testing.assert_array_equal(read.vertices, mesh.places)
    np.testing.assert_array_equal(read.faces, mesh.faces)
    # It leaves out colours where there is a material: they are the third array of the file.
    first = len(file) - mesh.faces.nbytes - 4 * colours.size
    stored = np.frombuffer(file, dtype="<f4", count=colours.size, offset=first).reshape(-1, 3)
    np.testing.assert_allclose(stored, colours**2.2, atol=1e-5)
    assert read.visual.material.baseColorFactor[3] == pytest.approx(128, abs=1)


def test_the_surface_is_that_of_the_map(content: Content, run_folder: Path) -> None:
    read = read_map(run_folder / "map.mrc")
    n, pixel_size = len(read.values), read.pixel_size_in_angstroms
    voxels = RNG.integers(n // 4, 3 * n // 4, size=(500, 3))
    shown = content.density("average").at((voxels[:, ::-1] - n // 2) * pixel_size)
    assert np.corrcoef(shown, read.values[tuple(voxels.T)])[0, 1] > 0.995
    mesh = isosurface(content.density("average"), content.first_level * content.sigma)
    assert mesh is not None
    mask = Field(read_map(run_folder / "mask.mrc").values, content.origin, pixel_size)
    assert np.mean(mask.at(mesh.places) > 0.2) > 0.99


def test_splats_are_the_gaussians(content: Content, run_folder: Path) -> None:
    saved = Gaussians.load(run_folder / "gaussians.safetensors")
    model = content.model("average")
    drawn = model.splats(Look(), np.zeros((len(model), 3), dtype=np.float32))
    np.testing.assert_array_equal(drawn["centers"], saved.centres.numpy())
    np.testing.assert_allclose(drawn["covariances"], saved.covariances().numpy(), rtol=1e-6)
    assert drawn["opacities"].min() > 0 and drawn["opacities"].max() < 1
    assert np.median(drawn["opacities"]) > 0.02  # browsers leave out what is below 0.01
    order = np.argsort(saved.masses().numpy() / np.exp(2 * saved.log_scales.mean(dim=1).numpy()))
    assert np.all(np.diff(drawn["opacities"][order, 0]) >= -1e-6)
    assert content.half_of("average").sum() == content.model("2").total


def test_what_is_hidden_and_cut(content: Content) -> None:
    model = content.model("1")
    colours = np.arange(3 * len(model), dtype=np.float32).reshape(-1, 3)
    few = model.splats(Look(hidden_share=0.75), colours)
    assert len(few["centers"]) == pytest.approx(0.25 * len(model), rel=0.01)
    heaviest = np.flatnonzero(model.masses >= np.quantile(model.masses, 0.75))
    np.testing.assert_array_equal(few["rgbs"], colours[heaviest])
    cut = model.splats(Look(plane=Plane((0.0, -1.0, 0.0), -10.0)), colours)  # keeps y >= 10 Å
    assert len(cut["centers"]) == np.sum(model.centres[:, 1] >= 10) > 0
    small = model.splats(Look(size=0.5), colours)
    whole = model.splats(Look(), colours)
    np.testing.assert_allclose(small["covariances"], 0.25 * whole["covariances"], rtol=1e-6)
    thick = whole["opacities"] < 0.3  # where nothing is clipped: −ln(1 − α) is mass over area
    depths = [-np.log(1 - drawn["opacities"][thick]) for drawn in (small, whole)]
    np.testing.assert_allclose(depths[0], 4 * depths[1], rtol=1e-3)


def test_many_gaussians_are_thinned_and_as_opaque_together() -> None:
    n = 60_000
    centres = torch.from_numpy(RNG.normal(size=(n, 3)).astype(np.float32) * 30)
    many = Gaussians(centres, torch.zeros(n, 3), torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1), torch.zeros(n))
    model = thinned(many, 20_000)
    assert (len(model), model.total) == (20_000, n)
    np.testing.assert_array_equal(model.centres, centres.numpy()[model.rows])
    depth = [
        -np.log(1 - m.splats(Look(opacity=0.05), np.zeros((len(m), 3), np.float32))["opacities"]).sum()
        for m in (model, thinned(many, n))
    ]
    assert depth[0] == pytest.approx(depth[1], rel=0.05) or depth[0] < depth[1]


def test_properties_are_those_of_the_files(content: Content, run_folder: Path) -> None:
    local = content.local_resolution
    assert local is not None
    read = read_map(run_folder / "local_resolution.mrc")
    inside = np.argwhere((read.values > 0) & (read_map(run_folder / "mask.mrc").values > 0.9))
    shown = local.field.at((inside[:, ::-1] - len(read.values) // 2) * read.pixel_size_in_angstroms)
    assert np.abs(shown - read.values[tuple(inside.T)]).mean() < 0.05 * read.values[tuple(inside.T)].mean()
    assert local.scale.reversed and local.scale.unit == "Å"
    agreement = content.agreement.field.at(content.model("average").centres)
    assert np.all(agreement <= 1) and np.median(agreement) > 0.5


# Machado, Oliveira & Fernandes (2009), IEEE Trans. Vis. Comput. Graph. 15:1291, severity 1.
VISION = {
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("vision", VISION)
def test_the_ramp_grows_lighter_for_every_kind_of_colour_vision(vision: str) -> None:
    values = np.linspace(2.0, 5.0, 12)
    linear = Scale("size", "Å", 2.0, 5.0).colours(values) ** 2.2
    seen = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    lightness = 116 * np.cbrt(seen @ [0.2126, 0.7152, 0.0722]) - 16
    assert np.all(np.diff(lightness) > 2)
    assert lightness[0] > 30  # on a dark ground
    np.testing.assert_allclose(Scale("", "", 2.0, 5.0, True).colours(values) ** 2.2, linear[::-1], atol=0.01)


def test_a_legend_says_its_range() -> None:
    legend = Scale("size <σ>", "Å", 1.25, 3.5).legend()
    assert 'role="img"' in legend and "from 1.25 Å to 3.5 Å" in legend and "<σ>" not in legend


# --- the atomic model -------------------------------------------------------------------------------------------------


def test_a_model_lies_in_its_map(content: Content, tmp_path: Path) -> None:
    model = load_model(bundled_model(), content.origin, centred=True)
    density = content.density("average")
    inside = density.at(model.atoms).mean()
    assert inside > 2 * content.sigma
    assert inside > 1.5 * density.at(model.atoms[:, [1, 0, 2]]).mean()  # and not with its axes exchanged
    assert model.share_within(content.half_edge) == 1
    # The same coordinates from the map's first voxel are taken as they are.
    structure = gemmi.read_structure(str(bundled_model()))
    shift = gemmi.Transform()
    shift.vec.fromlist((-np.array(structure[0].calculate_center_of_mass().tolist()) - content.origin).tolist())
    structure[0].transform_pos_and_adp(shift)
    structure.make_mmcif_document().write_file(str(tmp_path / "fitted.cif"))
    fitted = load_model(tmp_path / "fitted.cif", content.origin, centred=False)
    np.testing.assert_allclose(fitted.atoms, model.atoms, atol=0.01)


def test_traces_and_bonds(content: Content) -> None:
    model = load_model(bundled_model(), content.origin, centred=True)
    found = model.tubes()
    assert found is not None
    mesh, colours = found
    assert len(colours) == len(mesh.places)
    body = solid(mesh)
    assert body.is_watertight
    length = sum(np.linalg.norm(np.diff(points, axis=0), axis=1).sum() for points, _ in model.traces)
    hexagon = 1.5 * np.sqrt(3) * 0.7**2
    assert body.volume == pytest.approx(length * hexagon, rel=0.1)
    ends, _ = model.bonds()
    lengths = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
    assert lengths.min() > 1.0 and lengths.max() <= 1.95
    assert len(ends) == pytest.approx(len(model.atoms), rel=0.1)  # a chain molecule has about one bond an atom


def test_what_is_no_model_is_refused(refuses: Callable) -> None:
    with refuses("notes.txt", ".pdb"):
        load_uploaded("notes.txt", b"", 0.0, False)
    with refuses("empty.pdb", "no atoms"):
        load_uploaded("empty.pdb", b"REMARK\n", 0.0, False)
    with refuses("broken.cif"):
        load_uploaded("../broken.cif", b"\xff\x00nonsense", 0.0, False)
