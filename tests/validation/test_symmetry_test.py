"""Images with a symmetry, without it, and with it about other axes; with views that are uneven."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from emsplat.fourier.slices import central_slices, fourier_volume
from emsplat.models.gaussians import Gaussians
from emsplat.optics.ctf import ctf
from emsplat.symmetry import named_by, other_axes, symmetry_operators
from emsplat.validation.symmetry_test import choose_symmetry, sample_of, symmetry_that_shows
from phantom import imagined_particles

BOX, N = 24, 400


def symmetric_map(group):
    """(BOX,)*3 Gaussians off the axes, repeated by the group."""
    rng = np.random.default_rng(1)
    centres = rng.uniform(2, 7, (6, 3)) * np.array([1, 1, 0.7])
    repeated = np.concatenate([centres @ operator.T for operator in symmetry_operators(group)])
    n = len(repeated)
    return Gaussians(
        torch.tensor(repeated, dtype=torch.float32),
        torch.full((n, 3), float(np.log(1.2))),
        torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        torch.full((n,), 3.0 - float(np.log(n))),
    ).voxelise(BOX, 1.0)


def sampled(group, views="even", snr=0.3, program="RELION", seed=0):
    """Images of a particle with the symmetry of a group, or of noise alone."""
    particles = imagined_particles(N, BOX, seed=seed)
    rng = np.random.default_rng(seed)
    angles = particles.euler_angles_in_degrees.copy()
    if views == "in one asymmetric unit":
        angles[:, 0] = rng.uniform(0, 120, N)
        angles[:, 1] = np.rad2deg(np.arccos(rng.uniform(0, 1, N)))
    if views == "about one direction":
        angles[:, 1] = np.abs(rng.normal(0, 30, N))
    particles = replace(particles, euler_angles_in_degrees=angles, symmetry_axes=program)
    noise = rng.standard_normal((N, BOX, BOX)).astype(np.float32)
    images = noise
    if group is not None:
        shifts = particles.origin_in_angstroms / particles.pixel_size_in_angstroms
        spectra = central_slices(fourier_volume(symmetric_map(group)), particles.rotations(), shifts) * ctf(particles)
        clean = np.fft.irfft2(spectra, s=(BOX, BOX)).astype(np.float32)
        images = noise + clean * np.float32(np.sqrt(snr) / clean.std())
    spectrum = np.full((1, BOX // 2 + 1), float(BOX**2))
    half = (np.arange(N) % 2).astype(np.int8)
    return sample_of(particles, images, spectrum, half)


@pytest.mark.parametrize("views", ["even", "in one asymmetric unit", "about one direction"])
def test_a_symmetry_that_is_there_takes_nothing_away(views):
    sample = sampled("D3", views)
    for name in ("D3", "C3", "D1"):
        found = sample.evidence(name)
        assert found.is_shown, found
        assert abs(found.share) < 0.05
    choice = choose_symmetry(sample, "D3")
    assert choice.name == "D3"
    assert choice.warning is choice.refusal is None


@pytest.mark.parametrize("name", ["C4", "T", "C3@x", "C6"])
def test_a_symmetry_that_is_not_there_is_refused_with_figures(name):
    found = sampled("D3").evidence(name)
    assert found.is_absent
    assert "takes away" in found.text()


def test_what_the_images_have_is_named_in_a_refusal():
    choice = choose_symmetry(sampled("C3"), "D3")
    assert "do not have the symmetry D3" in choice.refusal
    assert "give --symmetry C3, which they have" in choice.refusal
    assert "give --symmetry C2@x" in choose_symmetry(sampled("C2@x"), "C2").refusal


@pytest.mark.parametrize("program", ["RELION", "cryoSPARC"])
@pytest.mark.parametrize("truth", ["D3", "D3@90"])
def test_d3_is_taken_in_the_axes_that_the_images_have_it_in(program, truth):
    choice = choose_symmetry(sampled(truth, program=program), "D3")
    assert choice.name == truth
    assert choice.refusal is None
    meant = "D3" if program == "RELION" else "D3@90"
    assert (choice.warning is None) == (truth == meant)


@pytest.mark.parametrize("truth", ["T@180", "T222"])
def test_t_is_taken_in_the_axes_that_the_images_have_it_in(truth):
    choice = choose_symmetry(sampled(truth), "T")
    assert (choice.name, choice.refusal) == (truth, None)
    assert (choice.warning is None) == (truth == "T")


@pytest.mark.parametrize("seed", range(2))
def test_noise_shows_no_symmetry_and_no_lack_of_one(seed):
    sample = sampled(None, seed=seed)
    for name in ("C2", "D3"):
        found = sample.evidence(name)
        assert not found.is_doubtful
        assert not found.is_certain
    assert symmetry_that_shows(sample) is None
    assert choose_symmetry(sample, "D3").name == "D3"


def test_a_symmetry_nobody_asked_for_is_found():
    assert symmetry_that_shows(sampled("D3@90", snr=2.0)).name == "D3@90"
    assert symmetry_that_shows(sampled("C1")) is None


def test_names_of_other_programs():
    assert named_by("cryoSPARC", "D7") == "D7@90"
    assert named_by("RELION", "D7") == "D7"
    assert named_by("cryoSPARC", "D2") == "D2"  # it has a two-fold along y as well
    assert named_by("cryoSPARC", "C7") == "C7"
    assert other_axes("D7@90") == ["D7"]
    assert other_axes("C4") == other_axes("D4") == []
