"""Local refinement of images against a map that is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.fourier.background import outside_circle, subtract_background
from emsplat.fourier.slices import central_slices, fourier_volume
from emsplat.imaging.likelihood import Recorded
from emsplat.optics.aberrations import antisymmetric_factors, slice_matrices
from emsplat.optics.ctf import ctf
from emsplat.poses import refine
from emsplat.poses.refine import Blocks, RefineSettings, changed, reference, refine_half
from emsplat.settings import REFINABLE
from misaligned import (
    BOX,
    COLUMNS,
    DIAMETER,
    KINDS,
    LIMIT,
    PIXEL_SIZE,
    RANGES,
    SPREAD,
    drawn,
    errors,
    particles_of,
    recorded,
    rms,
    true_reference,
)
from phantom import ImagesInMemory, lopsided_map

# The derivatives


@pytest.mark.parametrize("kind", KINDS)
def test_slopes_and_curvatures_are_those_of_the_misfit(kind: str) -> None:
    """By differences over finite steps of images that are made the long way: exact slices, CTF, aberrations."""
    n, rng = 8, np.random.default_rng(3)
    particles = particles_of(n, **KINDS[kind])
    noise = rng.uniform(50, 200, (2, BOX // 2 + 1))
    images = 100 * rng.standard_normal((n, BOX, BOX)).astype(np.float32)
    subtract_background(images, outside_circle(BOX))
    volume, samples = fourier_volume(lopsided_map(BOX)), refine._samples(LIMIT)
    at = (slice(None), samples[:, 1] % BOX, samples[:, 0])
    radius = np.hypot(*samples.T)
    weights = np.array([np.interp(radius, np.arange(BOX // 2 + 1), 1 / row) for row in noise])[particles.optics_group]
    weights *= np.where(samples[:, 0] > 0, 2, 1)
    premultiplied = np.array([g.premultiplied for g in particles.optics])[particles.optics_group][:, None]
    spectra = np.fft.rfft2(images)[at]

    def predicted(changes: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
        """Before the CTF, and the CTF."""
        moved = replace(changed(particles, changes), ctf_scale=particles.ctf_scale)
        p = central_slices(volume, slice_matrices(moved), moved.origin_in_angstroms / PIXEL_SIZE)
        factors, factor_of = antisymmetric_factors(moved, BOX)
        for image in np.flatnonzero(factor_of >= 0):
            p[image] *= factors[factor_of[image]]
        return p[at].astype(np.complex128) * (1 + changes[:, 5:6]), ctf(moved)[at].astype(np.float64)

    def misfits(changes: NDArray[np.float64]) -> NDArray[np.float64]:
        p, c = predicted(changes)
        met = np.where(premultiplied, 1, c) * spectra
        return (weights * (0.5 * np.abs(c * p) ** 2 - (met.conj() * p).real)).sum(axis=1)

    start = drawn(n, REFINABLE)
    block = np.arange(n)
    problem = refine._Problem(Recorded(particles, ImagesInMemory(images), noise), block, true_reference(), samples)
    values, slopes, curvatures = problem.evaluate(start, len(samples), with_defocus=True)
    p, c = predicted(start)
    norms = np.sqrt(np.sum(weights * np.abs(c * p) ** 2, axis=1) * np.sum(weights * np.abs(spectra) ** 2, axis=1))
    assert np.all(np.abs(values - misfits(start)) < 2e-3 * norms)
    steps = np.array([2e-3] * 3 + [0.05] * 2 + [0.02, 20.0])
    differences = []
    for column, step in enumerate(steps):
        one = np.zeros((n, 7))
        one[:, column] = step
        ahead, behind = refine._turned(start, one), refine._turned(start, -one)
        slope = (misfits(ahead) - misfits(behind)) / (2 * step)
        if column == 6:  # no matter where the CTF is in the images already
            slope[premultiplied[:, 0]] = slopes[premultiplied[:, 0], 6]
        assert np.linalg.norm(slopes[:, column] - slope) < 0.05 * np.linalg.norm(slope)
        (p1, c1), (p0, c0) = predicted(ahead), predicted(behind)
        differences.append((c1 * p1 - c0 * p0) / (2 * step))
    expected = np.einsum("anm,bnm,nm->nab", np.conj(differences), differences, weights).real
    unit = np.sqrt(np.einsum("naa->na", expected))
    np.testing.assert_allclose(
        curvatures / unit[:, :, None] / unit[:, None], expected / unit[:, :, None] / unit[:, None], atol=0.03
    )


# What is found


@pytest.mark.parametrize("kind", ["plain", "aberrated"])
@pytest.mark.parametrize("quantity", REFINABLE)
def test_what_was_wrong_is_put_right(quantity: str, kind: str) -> None:
    """Sign and unit of each column of the particles: one is wrong by a known amount, and all four may be refined."""
    n = 100
    true = particles_of(n, **KINDS[kind])
    images, noise = recorded(true, snr=1.0)
    wrong = changed(true, drawn(n, (quantity,)))
    found = np.zeros((n, 7))
    settings = RefineSettings(REFINABLE, *RANGES)
    gain = refine_half(Recorded(wrong, images, noise), found, np.arange(n), true_reference(), settings)
    assert gain > 1
    before, after = errors(wrong, true)[quantity], errors(changed(wrong, found), true)[quantity]
    assert rms(after) < 0.35 * rms(before)
    others = [column for name, columns in COLUMNS.items() if name != quantity for column in columns]
    assert np.all(np.sqrt(np.mean(found[:, others] ** 2, axis=0)) < 0.35 * SPREAD[others])


@pytest.mark.parametrize("quantities", [("poses", "shifts"), ("shifts",), ("defocus", "contrast"), REFINABLE])
def test_all_that_is_asked_for_moves_and_nothing_else(quantities: tuple[str, ...]) -> None:
    n = 100
    true = particles_of(n)
    images, noise = recorded(true, snr=1.0)
    wrong = changed(true, drawn(n, quantities))
    found = np.zeros((n, 7))
    refine_half(
        Recorded(wrong, images, noise), found, np.arange(n), true_reference(), RefineSettings(quantities, *RANGES)
    )
    before, after = errors(wrong, true), errors(changed(wrong, found), true)
    for name, columns in COLUMNS.items():
        if name in quantities:
            assert rms(after[name]) < 0.4 * rms(before[name])
        else:
            assert np.all(found[:, columns] == 0)


def test_premultiplied_images_move_as_the_others_do() -> None:
    n = 60
    true = particles_of(n)
    images, noise = recorded(true, snr=0.5)
    wrong = changed(true, drawn(n, ("poses", "shifts")))
    spectra = np.fft.rfft2(images.images) * ctf(true)
    multiplied = ImagesInMemory(np.fft.irfft2(spectra, s=(BOX, BOX)).astype(np.float32))
    groups = tuple(replace(group, premultiplied=True) for group in true.optics)
    found = np.zeros((2, n, 7))
    settings = RefineSettings(("poses", "shifts"), *RANGES)
    for number, (particles, source) in enumerate(((wrong, images), (replace(wrong, optics=groups), multiplied))):
        refine_half(Recorded(particles, source, noise), found[number], np.arange(n), true_reference(), settings)
    assert rms(found[1] - found[0]) < 0.02 * rms(found[0])


def test_what_is_right_stays_where_noise_would_move_it() -> None:
    """The widths are learnt: with true values little moves, far less than the uncertainty of a single image."""
    n, settings = 300, RefineSettings(("poses", "shifts"), *RANGES)
    true = particles_of(n)
    images, noise = recorded(true, snr=0.02)
    moved = []
    for spread in (0.0, 1.0):
        wrong = changed(true, spread * drawn(n, settings.quantities))
        found = np.zeros((n, 7))
        refine_half(Recorded(wrong, images, noise), found, np.arange(n), true_reference(), settings)
        moved.append(errors(changed(wrong, found), true))
    for name in settings.quantities:
        assert rms(moved[0][name]) < 0.5 * rms(moved[1][name])


def test_noise_moves_little() -> None:
    n, settings = 300, RefineSettings(("poses", "shifts"), *RANGES)
    particles = particles_of(n)
    images = np.random.default_rng(5).standard_normal((n, BOX, BOX)).astype(np.float32)
    noise = np.full((2, BOX // 2 + 1), float(BOX**2))
    found = np.zeros((n, 7))
    scaled = 0.05 * lopsided_map(BOX)
    against = reference(scaled.astype(np.float32), np.ones(BOX // 2), LIMIT, DIAMETER)
    gain = refine_half(Recorded(particles, ImagesInMemory(images), noise), found, np.arange(n), against, settings)
    assert 0 <= gain < 0.5 * 5  # half a unit a parameter is what fitting noise freely would bring
    assert np.rad2deg(rms(np.linalg.norm(found[:, :3], axis=1))) < 2.0


def test_nothing_leaves_its_range() -> None:
    n = 60
    true = particles_of(n)
    images, noise = recorded(true, snr=1.0)
    wrong = changed(true, 2 * drawn(n, ("poses", "shifts")))
    found = np.zeros((n, 7))
    settings = RefineSettings(("poses", "shifts"), 2.0, 2.5)
    gain = refine_half(Recorded(wrong, images, noise), found, np.arange(n), true_reference(), settings)
    assert gain > 0
    assert np.rad2deg(np.linalg.norm(found[:, :3], axis=1).max()) <= 2.0 + 1e-9
    assert np.linalg.norm(found[:, 3:5], axis=1).max() <= 2.5 + 1e-9
    turned = errors(changed(wrong, found), wrong)
    assert turned["poses"].max() <= 2.0 + 1e-6


def test_blocks_are_as_good_as_the_whole() -> None:
    n, settings = 90, RefineSettings(("poses", "shifts"), *RANGES)
    true = particles_of(n)
    images, noise = recorded(true, snr=1.0)
    wrong, found = changed(true, drawn(n, settings.quantities)), np.zeros((2, n, 7))
    for number, at_once in enumerate((n, 31)):
        settings = replace(settings, blocks=Blocks(fewest=at_once, most=at_once, read_bytes=7 * 4 * BOX**2))
        whole = Recorded(wrong, images, noise)
        blocks = refine.refined_blocks(whole, found[number], np.arange(n), true_reference(), settings)
        done = [images_done for images_done, _ in blocks]
    assert done == [30, 60, 90]
    assert rms(found[1] - found[0]) < 0.1 * rms(found[0])
