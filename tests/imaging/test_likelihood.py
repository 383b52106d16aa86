"""The kernels that evaluate the likelihood in a way of their own, against its definition in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from emsplat.fourier.background import outside_circle, subtract_background
from emsplat.fourier.slices import FourierVolume, central_slices, fourier_volume
from emsplat.imaging.forward import ForwardModel, shift_factors
from emsplat.imaging.likelihood import Observed, Recorded, negative_log_likelihoods, observe, slice_statistics
from emsplat.particles.parts import PartWeights
from emsplat.particles.table import Particles
from emsplat.poses import refine
from emsplat.poses.refine_kernels import tap_table
from emsplat.runtime.stopwatch import Stopwatch
from emsplat.statistics import accumulate
from emsplat.statistics.accumulate import AccumulationSettings
from kernels import transforms
from phantom import ImagesInMemory, imagined_particles, lopsided_map

KINDS = {
    "plain": {},
    "premultiplied": {"premultiplied": True},
    "aberrated": {
        "beam_tilt_in_milliradians": (3.0, -2.0),
        "odd_zernike": (0.0, 0.0, 30.0, -20.0),
        "even_zernike": (0.0, 0.0, 40.0, 300.0),
        "magnification": (1.02, 0.01, 0.01, 0.97),
    },
}
BOXES = [(24, 24), (25, 25), (32, 24), (33, 24), (32, 25)]
N = 7
cases = pytest.mark.parametrize(("kind", "box_size", "working"), [(k, *boxes) for k in KINDS for boxes in BOXES])


def some_particles(kind: str, box_size: int) -> Particles:
    """Two optics groups, one of this kind; B-factors, doses, and contrasts that differ."""
    rng = np.random.default_rng(1)
    particles = imagined_particles(N, box_size, pixel_size=3.0)
    second = replace(particles.optics[0], name="other", voltage_in_kilovolts=200.0, **KINDS[kind])
    return replace(
        particles,
        optics=(*particles.optics, second),
        optics_group=np.arange(N, dtype=np.int32) % 2,
        b_factor_in_square_angstroms=rng.uniform(0, 100, N),
        pre_exposure=rng.uniform(0, 30, N) * (np.arange(N) % 3 > 0),
        ctf_scale=rng.uniform(0.7, 1.3, N),
    )


def some_images(box_size: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Images and the power of their noise in two groups."""
    rng = np.random.default_rng(2)
    return rng.standard_normal((N, box_size, box_size), np.float32), rng.uniform(1, 3, (2, box_size // 2 + 1))


def defined(
    particles: Particles, images: NDArray[np.float32], noise: NDArray[np.float64], working: int
) -> tuple[NDArray[np.complex128], NDArray[np.float64], NDArray[np.bool_]]:
    """`slice_statistics` in float64, of single samples, and where they say anything."""
    forward = ForwardModel.of(particles, working, double=True)
    observed = observe(images.astype(np.float64), particles, noise, working, double=True)
    b, t = slice_statistics(forward, observed)
    b[:, :, 1:] /= 2
    t[:, :, 1:] /= 2
    return b.numpy(), t.numpy(), observed.weights.numpy() > 0


def off(found: NDArray, expected: NDArray, where: NDArray[np.bool_]) -> float:
    return float(np.linalg.norm(found[where] - expected[where]) / np.linalg.norm(expected[where]))


@cases
def test_the_accumulation_weighs_images_as_defined(kind: str, box_size: int, working: int) -> None:
    particles, (images, noise) = some_particles(kind, box_size), some_images(box_size)
    settings = AccumulationSettings(working, 2 * working, noise, np.eye(3)[None])
    everything = PartWeights.whole(N)

    def entries(block: int):
        return tuple(everything.entries(np.arange(N), what, np.array([True])) for what in accumulate.Kind)

    [((_, found_b), (_, found_t))] = accumulate.prepared_blocks(
        particles, ImagesInMemory(images), 1, entries, settings, Stopwatch()
    )
    subtract_background(images, outside_circle(box_size))
    b, t, where = defined(particles, images, noise, working)
    assert off(found_b, b, where) < 2e-6
    assert off(found_t, t, where) < 2e-6


@cases
def test_a_graphics_card_weighs_images_as_defined(kind: str, box_size: int, working: int) -> None:
    """Its arithmetic is torch's, which does it on the processor as well."""
    pytest.importorskip("triton", reason="NO TRITON: the weighting on graphics cards is untested")
    from emsplat.statistics.accumulate_gpu import Block, Weighting

    particles, (images, noise) = some_particles(kind, box_size), some_images(box_size)
    settings, device = AccumulationSettings(working, 2 * working, noise, np.eye(3)[None]), torch.device("cpu", 0)
    columns = columns_of(particles, working)
    nothing = torch.zeros(0, N, 3, 2), torch.zeros(N, 1, 2)
    block = Block(np.arange(N), torch.from_numpy(images.copy()), *columns, *nothing, {})
    prepared = Weighting.of(particles, box_size, settings, device).prepare(block)
    subtract_background(images, outside_circle(box_size))
    b, t, where = defined(particles, images, noise, working)
    assert off(prepared.spectra.numpy(), b, where) < 2e-6
    assert off(prepared.weights.numpy(), t, where) < 2e-6


def columns_of(particles: Particles, working: int) -> tuple[Tensor, Tensor, Tensor]:
    from emsplat.optics.aberrations import antisymmetric_factors, symmetric_phases
    from emsplat.statistics.accumulate_gpu import _coefficients

    phases = (f(particles, working)[1] for f in (symmetric_phases, antisymmetric_factors))
    kinds = np.stack([particles.optics_group, *phases], axis=1).astype(np.int64)
    return tuple(torch.from_numpy(a) for a in (_coefficients(particles), particles.centres_in_pixels, kinds))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("box_size", [32, 33])
def test_the_refinement_meets_images_as_defined(kind: str, box_size: int) -> None:
    """The negative log-likelihood, and its slopes by shift, contrast and defocus, from the same interpolated slices."""
    limit = 10
    particles, (images, noise) = some_particles(kind, box_size), some_images(box_size)
    against = refine.reference(lopsided_map(box_size), np.ones(box_size // 2), limit, 60.0)
    samples = refine._samples(limit)
    problem = refine._Problem(Recorded(particles, ImagesInMemory(images), noise), np.arange(N), against, samples)
    changes = np.zeros((N, 7))
    with_defocus = kind != "premultiplied"
    values, slopes, _ = problem.evaluate(changes, len(samples), with_defocus)

    working = against.volume.box_size
    observed = observe(images.astype(np.float64), particles, noise, working, double=True)
    ky, kx = np.fft.fftfreq(working, 1 / working)[:, None], np.arange(working // 2 + 1)
    within = torch.from_numpy(np.hypot(ky, kx) <= limit)
    observed = Observed(observed.spectra, observed.weights * within, observed.premultiplied)
    slices = interpolated(against.volume, ForwardModel.of(particles, working), limit)

    def losses(moves: Tensor, contrasts: Tensor, defocus: float = 0.0) -> Tensor:
        forward = ForwardModel.of(particles.with_defocus_changed(np.full(N, defocus)), working, double=True)
        pixel_size = particles.pixel_size_in_angstroms * box_size / working
        along_y, along_x = shift_factors(forward.shifts + working // 2 + moves / pixel_size, working)
        p = slices * along_y * along_x * contrasts[:, None, None]
        factors, factor_of = forward.phases
        turned = torch.ones_like(p)
        for number, factor in enumerate(factors):
            turned[factor_of == number] = factor
        return negative_log_likelihoods(p * turned, forward.transfer, observed)

    moves, contrasts = torch.zeros(N, 2, dtype=torch.float64), torch.ones(N, dtype=torch.float64)
    moves.requires_grad_(), contrasts.requires_grad_()
    expected = losses(moves, contrasts)
    by_move, by_contrast = torch.autograd.grad(expected.sum(), (moves, contrasts))
    np.testing.assert_allclose(values, expected.detach(), rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))
    np.testing.assert_allclose(slopes[:, 3:5], by_move, atol=1e-4 * float(by_move.abs().max()))
    np.testing.assert_allclose(slopes[:, 5], by_contrast, atol=1e-4 * float(by_contrast.abs().max()))
    if with_defocus:
        with torch.no_grad():
            by_defocus = (losses(moves, contrasts, 1.0) - losses(moves, contrasts, -1.0)) / 2
        np.testing.assert_allclose(slopes[:, 6], by_defocus, atol=1e-4 * float(by_defocus.abs().max()))


def interpolated(volume: FourierVolume, forward: ForwardModel, limit: int) -> Tensor:
    """(n, D′, D′//2+1) slices up to the limit as the kernel interpolates them, their origin at pixel 0."""
    working, matrices = forward.box_size, forward.matrices.numpy()
    ky, kx = np.meshgrid(np.fft.fftfreq(working, 1 / working), np.arange(working // 2 + 1), indexing="ij")
    inside = np.hypot(ky, kx) <= limit
    points = np.stack([kx[inside], ky[inside], np.zeros(inside.sum())], axis=1)
    slices = np.zeros((len(matrices), *inside.shape), dtype=np.complex128)
    for image, matrix in enumerate(matrices):
        slices[image, inside] = transforms(volume.grid, tap_table(), working, points @ matrix)[:, 0]
    return torch.from_numpy(slices)


@pytest.mark.parametrize(("box_size", "working"), [(24, 24), (25, 25), (32, 24), (33, 24), (32, 25)])
def test_single_precision_is_double_precision_but_for_rounding(box_size: int, working: int) -> None:
    particles, (images, noise) = some_particles("aberrated", box_size), some_images(box_size)
    single, double = ForwardModel.of(particles, working), ForwardModel.of(particles, working, double=True)
    assert off(single.transfer.numpy(), double.transfer.numpy(), np.array(True)) < 1e-6
    b, t = slice_statistics(single, observe(images, particles, noise, working))
    expected_b, expected_t = slice_statistics(
        double, observe(images.astype(np.float64), particles, noise, working, double=True)
    )
    assert b.dtype == torch.complex64 and expected_b.dtype == torch.complex128
    assert off(b.numpy(), expected_b.numpy(), np.array(True)) < 2e-6
    assert off(t.numpy(), expected_t.numpy(), np.array(True)) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("box_size", "working"), [(24, 24), (33, 24), (32, 25)])
def test_slice_statistics_are_the_likelihood_of_slices(kind: str, box_size: int, working: int) -> None:
    """``½ Σ t |s|² − Re Σ b* s`` of a map's slices is what `negative_log_likelihoods` gives for the same map."""
    particles, (images, noise) = some_particles(kind, box_size), some_images(box_size)
    forward = ForwardModel.of(particles, working)
    volume = fourier_volume(lopsided_map(working))
    observed = observe(images, particles, noise, working)
    expected = negative_log_likelihoods(forward.from_volume(volume), forward.transfer, observed)
    at_pixel_0 = np.full((N, 2), working // 2, dtype=np.float64)
    slices = torch.from_numpy(central_slices(volume, forward.matrices.numpy(), at_pixel_0))
    b, t = slice_statistics(forward, observed)
    found = (0.5 * t * slices.abs() ** 2 - (b.conj() * slices).real).sum(dim=(1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.detach().abs().max()))
