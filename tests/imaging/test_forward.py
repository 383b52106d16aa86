from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from emsplat.fourier.background import outside_circle, subtract_background
from emsplat.fourier.slices import fourier_volume
from emsplat.imaging.forward import (
    contrast_transfer,
    image_spectra,
    predicted_images,
    projection_factors,
    shifts_in_pixels,
)
from emsplat.imaging.likelihood import negative_log_likelihoods, observe
from emsplat.io.mrc import write_map
from emsplat.io.star import write_star
from emsplat.optics.aberrations import slice_matrices
from emsplat.optics.ctf import ctf
from emsplat.particles.table import Particles
from emsplat.simulation.acquisition import star_tables
from emsplat.simulation.run import signal_images
from emsplat.splat import project, voxelise
from emsplat.splat.bandlimit import WIDENING, boosted
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.statistics.loss import QuadraticLoss
from phantom import ImagesInMemory, accumulated, imagined_particles
from relion import run_relion

Model = list[Tensor]


def helix(box_size: int, n: int = 30, seed: int = 0) -> Model:
    """Gaussians without symmetry, in pixels of the box, widened so that a grid can hold them; float32 leaves."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, n)
    radius = (0.08 + 0.14 * t) * box_size
    centres = np.stack([radius * np.cos(9 * t), radius * np.sin(9 * t), (t - 0.5) * 0.4 * box_size], axis=1)
    values = (
        centres,
        0.5 * np.log(rng.uniform(0.9, 1.2, (n, 3)) ** 2 + WIDENING),
        rng.normal(size=(n, 4)),
        np.log(rng.uniform(5, 20, n)),
    )
    return [torch.tensor(value, dtype=torch.float32).requires_grad_() for value in values]


def spectra_of(model: Model, particles: Particles, box_size: int, **nuisances: Tensor) -> Tensor:
    """p of the particles, the way a solver makes it."""
    matrices = torch.from_numpy(slice_matrices(particles))
    projections = project(*model, matrices, shifts_in_pixels(particles, box_size), box_size, cutoff=6.0)
    return image_spectra(projections, projection_factors(particles, box_size, widened=True), **nuisances)


def two_kinds(particles: Particles, **changes: object) -> Particles:
    """Every other image from an optics group of another voltage."""
    first = particles.optics[0]
    second = replace(first, name="other", voltage_in_kilovolts=200.0, **changes)
    return replace(particles, optics=(first, second), optics_group=np.arange(len(particles), dtype=np.int32) % 2)


KINDS = {
    "plain": {},
    "premultiplied": {"premultiplied": True},
    "aberrated": {
        "beam_tilt_in_milliradians": (3.0, -2.0),
        "even_zernike": (0.0, 0.0, 40.0, 300.0),
        "magnification": (1.02, 0.01, 0.01, 0.97),
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("box_size", "working"), [(40, 40), (41, 41), (48, 36), (48, 35)])
@pytest.mark.parametrize(("band", "tolerance"), [(0.8, 2e-3), (1.0, 2e-2)])
def test_the_gradient_is_that_of_the_statistics(
    kind: str, box_size: int, working: int, band: float, tolerance: float
) -> None:
    """Image by image, and by b and T of the same images: by every parameter of the Gaussians.

    Beyond the band there is much noise. Near Nyquist the aliases of a grid in the volume's axes are not those of grids
    in the images' axes, so that the two differ more where that weighs.
    """
    rng = np.random.default_rng(0)
    n, model = 100, helix(working)
    particles = two_kinds(imagined_particles(n, box_size, pixel_size=3.0), **KINDS[kind])
    shells = np.arange(box_size // 2 + 1)
    noise = rng.uniform(50, 200, (2, len(shells))) * [[1], [3]] * np.where(shells > band * working / 2, 1e6, 1)
    transfer = contrast_transfer(particles, working)
    generator = torch.Generator().manual_seed(1)
    truth = [t.detach() + 0.2 * torch.randn(t.shape, generator=generator) for t in model]
    premultiplied = torch.tensor([g.premultiplied for g in particles.optics])[particles.optics_group]
    signal = predicted_images(spectra_of(truth, particles, working), transfer, premultiplied)
    images = upsampled(signal.numpy(), box_size) + 10 + rng.standard_normal((n, box_size, box_size), np.float32)

    settings = AccumulationSettings(working, 2 * working, noise, np.eye(3)[None])
    [statistics] = accumulated(particles, ImagesInMemory(images), np.zeros(n, dtype=np.int8), settings)
    volume = voxelise(*model, working, cutoff=6.0)
    expected, by_volume = QuadraticLoss(statistics, working).value_and_gradient(volume.detach().numpy())
    expected_gradients = torch.autograd.grad(volume, model, torch.from_numpy(by_volume))

    loss = negative_log_likelihoods(
        spectra_of(model, particles, working), transfer, observe(images, particles, noise, working)
    ).mean()
    gradients = torch.autograd.grad(loss, model)
    assert loss.item() == pytest.approx(expected, rel=1e-3)
    for g, e in zip(gradients, expected_gradients, strict=True):
        assert torch.linalg.norm(g - e) < tolerance * torch.linalg.norm(e)


def upsampled(images: NDArray[np.float32], box_size: int) -> NDArray[np.float32]:
    """(n, D, D) images with the spectra of (n, D′, D′) ones, in the units of the larger box."""
    n, working = images.shape[:2]
    spectra = np.zeros((n, box_size, box_size // 2 + 1), dtype=np.complex64)
    ky = np.fft.fftfreq(working, 1 / working).astype(int) % box_size
    spectra[:, ky, : working // 2 + 1] = np.fft.rfft2(images) * (box_size / working) ** 3
    return np.fft.irfft2(spectra, s=(box_size, box_size)).astype(np.float32)


@pytest.mark.parametrize("box_size", [15, 16])
@pytest.mark.parametrize("premultiplied", [False, True])
def test_negative_log_likelihoods_are_squared_distances(box_size: int, premultiplied: bool) -> None:
    """By the definition, on the whole plane in float64: the gradient by the image p, and the value without constant."""
    rng = np.random.default_rng(2)
    n = 5
    particles = two_kinds(imagined_particles(n, box_size), premultiplied=premultiplied)
    noise = rng.uniform(1, 3, (2, box_size // 2 + 1))
    images, p = (rng.standard_normal((n, box_size, box_size)).astype(np.float32) for _ in range(2))
    k = np.fft.fftfreq(box_size, 1 / box_size)
    radius = np.hypot(k[:, None], k)
    weights = np.stack([np.interp(radius, np.arange(len(row)), 1 / row) for row in noise])[particles.optics_group]
    weights *= (radius > 0) & (radius < box_size / 2)
    half = ctf(particles).astype(np.float64)
    rows, columns = np.meshgrid(k.astype(int), k.astype(int), indexing="ij")
    transfer = half[:, np.where(columns < 0, -rows, rows) % box_size, np.abs(columns)]
    seen = np.fft.fft2(p.astype(np.float64))
    without_background = images.copy()
    subtract_background(without_background, outside_circle(box_size))
    recorded = np.fft.fft2(without_background.astype(np.float64))
    if premultiplied:
        other = (particles.optics_group == 1)[:, None, None]
        back = weights * np.where(other, transfer**2 * seen - recorded, transfer * (transfer * seen - recorded))
    else:
        back = weights * transfer * (transfer * seen - recorded)
    leaf = torch.from_numpy(p).requires_grad_()
    observed = observe(images, particles, noise, box_size)
    losses = negative_log_likelihoods(torch.fft.rfft2(leaf), contrast_transfer(particles, box_size), observed)
    [gradient] = torch.autograd.grad(losses.sum(), leaf)
    # The gradient by pixels is the transform's adjoint.
    np.testing.assert_allclose(gradient, box_size**2 * np.fft.ifft2(back).real, rtol=0, atol=1e-4 * np.abs(back).max())
    if not premultiplied:
        squared = 0.5 * weights * (np.abs(transfer * seen - recorded) ** 2 - np.abs(recorded) ** 2)
        np.testing.assert_allclose(losses.detach(), squared.sum(axis=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_says_what_its_images_say_among_all(kind: str) -> None:
    """Also where it holds images of one optics group only."""
    particles = two_kinds(imagined_particles(6, 24), **KINDS[kind])
    images = np.random.default_rng(5).standard_normal((6, 24, 24)).astype(np.float32)
    noise = np.random.default_rng(6).uniform(1, 3, (2, 13))
    model = [t.detach() for t in helix(20)]

    def losses(rows: NDArray[np.int64]) -> Tensor:
        batch = particles.select(rows)
        observed = observe(images[rows], batch, noise, 20)
        return negative_log_likelihoods(spectra_of(model, batch, 20), contrast_transfer(batch, 20), observed)

    together = losses(np.arange(6))
    for rows in ([1, 3, 5], [0], [2, 1]):
        torch.testing.assert_close(losses(np.array(rows)), together[rows])


@pytest.mark.parametrize("name", ["contrasts", "shifts", "defocus"])
def test_nuisances_have_the_right_gradients(name: str) -> None:
    """By differences over a finite step, image by image."""
    box_size, n = 32, 6
    particles = two_kinds(imagined_particles(n, box_size, pixel_size=3.0), magnification=(1.02, 0.01, 0.01, 0.97))
    model = [t.detach() for t in helix(box_size)]
    images = np.random.default_rng(3).standard_normal((n, box_size, box_size)).astype(np.float32)
    observed = observe(images, particles, np.full((2, 17), 100.0), box_size)
    generator = torch.Generator().manual_seed(4)
    at = {
        "contrasts": 1 + 0.2 * torch.randn(n, 1, generator=generator),
        "shifts": torch.randn(n, 2, generator=generator),
        "defocus": 300 * torch.randn(n, 1, generator=generator),
    }
    step = {"contrasts": 0.02, "shifts": 0.02, "defocus": 20.0}[name]

    def losses(values: Tensor) -> Tensor:
        given = at | {name: values}
        transfer = contrast_transfer(particles, box_size, given["defocus"][:, 0])
        spectra = spectra_of(model, particles, box_size, contrasts=given["contrasts"][:, 0], shifts=given["shifts"])
        return negative_log_likelihoods(spectra, transfer, observed)

    leaf = at[name].clone().requires_grad_()
    [gradient] = torch.autograd.grad(losses(leaf).sum(), leaf)
    for axis in range(gradient.shape[1]):
        change = step * torch.nn.functional.one_hot(torch.tensor(axis), gradient.shape[1])
        slope = (losses(at[name] + change) - losses(at[name] - change)) / (2 * step)
        assert torch.linalg.norm(slope - gradient[:, axis]) < 2e-3 * torch.linalg.norm(slope)


@pytest.mark.parametrize("kind", ["plain", "aberrated"])
@pytest.mark.parametrize("box_size", [48, 49])
def test_predictions_are_what_the_simulation_makes_of_the_same_map(kind: str, box_size: int) -> None:
    """Slices of the voxelised map, shifted, aberrated and times the CTF, in Fourier space throughout."""
    particles = two_kinds(imagined_particles(6, box_size, pixel_size=3.0), **KINDS[kind])
    model = [t.detach() for t in helix(box_size)]
    volume = boosted(voxelise(*model, box_size, cutoff=6.0).numpy())
    expected = np.fft.rfft2(signal_images(fourier_volume(volume), particles))
    spectra = spectra_of(model, particles, box_size) * contrast_transfer(particles, box_size)
    ky, kx = np.fft.fftfreq(box_size)[:, None], np.fft.rfftfreq(box_size)
    low = np.hypot(ky, kx) < 0.4
    difference = spectra.numpy()[:, low] - expected[:, low]
    assert np.linalg.norm(difference) < 1e-3 * np.linalg.norm(expected[:, low])


def test_a_fourier_shift_is_the_projections_own() -> None:
    box_size, n = 32, 4
    particles = imagined_particles(n, box_size)
    model, rotations = [t.detach() for t in helix(box_size)], torch.from_numpy(particles.rotations())
    shifts = torch.tensor([[1.0, 0.0], [0.0, -2.0], [0.4, 0.7], [-1.3, 0.2]])
    flat = torch.ones(1, box_size, box_size // 2 + 1)
    by_splat = project(*model, rotations, shifts, box_size, cutoff=6.0)
    by_phases = image_spectra(project(*model, rotations, 0 * shifts, box_size, cutoff=6.0), flat, shifts=shifts)
    difference = predicted_images(by_phases, flat) - by_splat
    assert torch.linalg.norm(difference) < 5e-4 * torch.linalg.norm(by_splat)


def test_the_defocus_of_premultiplied_images_is_not_refined() -> None:
    particles = two_kinds(imagined_particles(4, 16), premultiplied=True)
    observed = observe(np.zeros((4, 16, 16), dtype=np.float32), particles, np.ones((2, 9)), 16)
    transfer = contrast_transfer(particles, 16, torch.zeros(4, requires_grad=True))
    with pytest.raises(ValueError, match="premultiplied"):
        negative_log_likelihoods(torch.zeros(4, 16, 9, dtype=torch.complex64), transfer, observed)


@pytest.mark.parametrize("with_ctf", [False, True])
def test_predictions_are_relions_projections(tmp_path: Path, with_ctf: bool) -> None:
    """`relion_project` of the voxelised Gaussians: axes, hand, signs of the shift and of the CTF, units."""
    box_size, n, pixel_size = 48, 8, 2.0
    particles = imagined_particles(n, box_size, pixel_size)
    model = [t.detach() for t in helix(box_size)]
    write_map(tmp_path / "map.mrc", voxelise(*model, box_size, cutoff=6.0).numpy(), pixel_size)
    write_star(tmp_path / "poses.star", star_tables(particles))
    options = ("--i", "map.mrc", "--o", "out", "--ang", "poses.star", *(("--ctf",) if with_ctf else ()))
    run_relion("relion_project", *options, folder=tmp_path)
    theirs = np.fft.rfft2(mrcfile.read(tmp_path / "out.mrcs"))
    shifts = shifts_in_pixels(particles, box_size)
    rotations = torch.from_numpy(particles.rotations())
    transfer = contrast_transfer(particles, box_size) if with_ctf else 1

    def spectra(*pose: Tensor) -> NDArray[np.complex64]:
        projections = project(*model, *pose, box_size, cutoff=6.0)
        return (image_spectra(projections, projection_factors(particles, box_size, widened=False)) * transfer).numpy()

    ours, rings = spectra(rotations, shifts), slice(0, int(0.8 * box_size / 2))
    assert agreement(ours, theirs)[rings].min() > 0.999
    assert np.vdot(theirs, ours).real / np.vdot(theirs, theirs).real == pytest.approx(1, abs=1e-2)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    for wrong in ((rotations, -shifts), (rotations @ mirror, shifts), (rotations.transpose(1, 2), shifts)):
        assert agreement(spectra(*wrong), theirs)[rings].min() < 0.7


def agreement(ours: NDArray, theirs: NDArray) -> NDArray[np.float64]:
    """Correlation of the images' transforms in each ring, all images together."""
    box_size = ours.shape[1]
    ring = np.rint(np.hypot(np.fft.fftfreq(box_size, 1 / box_size)[:, None], np.arange(box_size // 2 + 1))).astype(int)
    sums = [
        np.array([(a[:, ring == r].conj() * b[:, ring == r]).sum().real for r in range(box_size // 2)])
        for a, b in ((ours, theirs), (ours, ours), (theirs, theirs))
    ]
    return sums[0] / np.sqrt(sums[1] * sums[2])
