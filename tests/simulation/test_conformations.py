"""Simulations of particles that take several conformations, or whose images lie: the labels say what was done."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from emsplat.conventions import rotation_matrices
from emsplat.errors import InputError
from emsplat.fourier.slices import fourier_volume
from emsplat.io import read_map, read_particles
from emsplat.simulation import simulate
from emsplat.simulation.acquisition import acquire
from emsplat.simulation.run import signal_images
from simulations import TINY

CLEAN = replace(TINY, n_images=60, snr=np.inf)


@pytest.fixture
def two_models(one_chain: Path, tmp_path: Path) -> Path:
    """A file with two MODELs: a chain, and the same without its first half, in the same frame."""
    structure = gemmi.read_structure(str(one_chain))
    chain = structure[0].clone()
    for part in chain:
        for _ in range(len(part) // 2):
            del part[0]
    while len(structure) > 1:
        del structure[1]
    chain.num = 2
    structure.add_model(chain)
    path = tmp_path / "two.pdb"
    structure.write_pdb(str(path))
    return path


def labels_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_shows_the_conformation_its_label_says(two_models: Path, tmp_path: Path) -> None:
    star = simulate(two_models, tmp_path / "run", replace(CLEAN, populations=(2, 1)))
    labels = labels_of(star.parent)
    assert [row["state"] for row in labels] == ["1"] * 40 + ["2"] * 20
    particles, images = read_particles(star), mrcfile.read(star.with_name("particles.mrcs"))
    truths = [read_map(star.parent / "truths" / f"00{i}.mrc").values for i in (1, 2)]
    expected = [signal_images(fourier_volume(truth), particles) for truth in truths]
    for i, row in enumerate(labels):
        shown = int(row["state"]) - 1
        assert np.linalg.norm(images[i] - expected[shown][i]) < 1e-3 * np.linalg.norm(images[i])
        assert np.linalg.norm(images[i] - expected[1 - shown][i]) > 0.1 * np.linalg.norm(images[i])
    mean = read_map(star.parent / "truth.mrc").values
    np.testing.assert_allclose(mean, (2 * truths[0] + truths[1]) / 3, atol=1e-5 * abs(mean).max())


def test_conformations_stay_in_the_frame_of_the_first(two_models: Path, one_chain: Path, tmp_path: Path) -> None:
    simulate(two_models, tmp_path / "both", CLEAN)
    simulate(one_chain, tmp_path / "first", CLEAN)
    whole, part = (read_map(tmp_path / "both" / "truths" / f"00{i}.mrc").values for i in (1, 2))
    np.testing.assert_allclose(whole, read_map(tmp_path / "first" / "truth.mrc").values, atol=1e-4 * whole.max())
    # What is left of the chain lies where it lay: the difference holds no negative copy of it.
    assert np.vdot(whole, part) > 0.9 * np.vdot(part, part)


def test_one_conformation_without_errors_needs_no_labels(one_chain: Path, tmp_path: Path) -> None:
    simulate(one_chain, tmp_path / "run", CLEAN)
    assert not (tmp_path / "run" / "labels.csv").exists()


def test_the_star_is_off_by_the_errors_asked_for(one_chain: Path, tmp_path: Path) -> None:
    settings = replace(CLEAN, n_images=400, angle_error_in_degrees=2.0, shift_error_in_angstroms=1.5)
    star = simulate(one_chain, tmp_path / "run", settings)
    recorded = read_particles(star)
    labels = labels_of(star.parent)
    true = rotation_matrices(np.array([[float(row[name]) for name in ("rot", "tilt", "psi")] for row in labels]))
    turns = Rotation.from_matrix(recorded.rotations() @ true.transpose(0, 2, 1)).as_rotvec(degrees=True)
    np.testing.assert_allclose(turns.std(axis=0), 2.0, rtol=0.15)
    origins = np.array([[float(row[f"origin_{axis}"]) for axis in "xy"] for row in labels])
    np.testing.assert_allclose((recorded.origin_in_angstroms - origins).std(axis=0), 1.5, rtol=0.15)
    # The images are those of the true poses.
    exact = acquire(replace(settings, angle_error_in_degrees=0, shift_error_in_angstroms=0), star, star)
    truth = fourier_volume(read_map(star.with_name("truth.mrc")).values)
    images = mrcfile.read(star.with_name("particles.mrcs"))
    np.testing.assert_allclose(images, signal_images(truth, exact), atol=1e-3 * abs(images).max())


def test_contrast_scales_an_image(one_chain: Path, tmp_path: Path) -> None:
    star = simulate(one_chain, tmp_path / "run", replace(CLEAN, n_images=400, contrast_sigma=0.2))
    contrast = np.array([float(row["contrast"]) for row in labels_of(star.parent)])
    assert contrast.std() == pytest.approx(0.2, rel=0.15)
    plain = signal_images(fourier_volume(read_map(star.with_name("truth.mrc")).values), read_particles(star))
    images = mrcfile.read(star.with_name("particles.mrcs"))
    found = np.einsum("nyx,nyx->n", images, plain) / np.einsum("nyx,nyx->n", plain, plain)
    np.testing.assert_allclose(found, contrast, atol=1e-3)


def test_junk_shows_no_particle_or_two_neighbours(one_chain: Path, tmp_path: Path) -> None:
    star = simulate(one_chain, tmp_path / "run", replace(CLEAN, junk=0.2))
    kinds = np.array([row["junk"] for row in labels_of(star.parent)])
    assert {kind: int((kinds == kind).sum()) for kind in np.unique(kinds)} == {"": 48, "empty": 6, "neighbours": 6}
    images = mrcfile.read(star.with_name("particles.mrcs"))
    power = images.var(axis=(1, 2))
    assert power[kinds == "empty"].max() == 0
    plain = signal_images(fourier_volume(read_map(star.with_name("truth.mrc")).values), read_particles(star))
    explained = np.einsum("nyx,nyx->n", images, plain) / np.einsum("nyx,nyx->n", plain, plain)
    assert abs(explained[kinds == "neighbours"]).max() < 0.5 < explained[kinds == ""].min()
    assert power[kinds == "neighbours"].mean() > power[kinds == ""].mean()


def test_something_must_be_simulated(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model to simulate"):
        simulate([], tmp_path / "images", CLEAN)


def test_populations_must_fit_the_conformations(two_models: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 numbers for 2 conformations"):
        simulate(two_models, tmp_path / "run", replace(CLEAN, populations=(1, 1, 1)))
    with pytest.raises(InputError, match="populations"):
        replace(CLEAN, populations=(1, 0))


def test_maps_and_models_can_be_conformations_together(one_chain: Path, two_models: Path, tmp_path: Path) -> None:
    simulate(one_chain, tmp_path / "first", CLEAN)
    star = simulate([one_chain, tmp_path / "first" / "truth.mrc"], tmp_path / "run", CLEAN)
    first, second = (read_map(star.parent / "truths" / f"00{i}.mrc").values for i in (1, 2))
    assert np.linalg.norm(first - second) < 0.02 * np.linalg.norm(first)
