"""Transforms of images: those of NumPy, and the same bits however many images are transformed at once."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.fourier.cropping import fourier_cropped
from emsplat.fourier.transforms import images_of, transforms_of
from emsplat.runtime.threads import threads

N = 37  # images: two calls of 16 and a rest
SIZES = [7, 8, 12, 15, 16, 17, 32, 36, 48, 64, 100, 128]


@pytest.mark.parametrize("box_size", SIZES)
def test_transforms_are_those_of_numpy_and_lead_back(box_size: int) -> None:
    images = np.random.default_rng(box_size).standard_normal((N, box_size, box_size), dtype=np.float32)
    spectra = transforms_of(images)
    exact = np.fft.rfft2(images.astype(np.float64))
    assert spectra.dtype == np.complex64
    assert np.abs(spectra - exact).max() < 2e-6 * np.abs(exact).max()
    np.testing.assert_allclose(images_of(spectra, box_size), images, atol=3e-6)


@pytest.mark.parametrize("box_size", SIZES)
def test_bits_depend_neither_on_the_company_nor_on_the_threads(box_size: int) -> None:
    """With what MKL takes another way for on some machines: one image alone, and two threads."""
    images = np.random.default_rng(box_size).standard_normal((N, box_size, box_size), dtype=np.float32)
    with threads(1):
        spectra, cropped = transforms_of(images), fourier_cropped(images, box_size - 2)
        back = images_of(spectra, box_size)
        for chosen in (slice(1), slice(5, 6), slice(36, 37), slice(2), slice(3, 20), slice(1, None, 2), slice(None)):
            for several in (1, 2, 3):
                np.testing.assert_array_equal(transforms_of(images[chosen], several), spectra[chosen])
                np.testing.assert_array_equal(images_of(spectra[chosen], box_size, several), back[chosen])
            np.testing.assert_array_equal(fourier_cropped(images[chosen], box_size - 2), cropped[chosen])


def test_no_images_have_no_transforms() -> None:
    assert transforms_of(np.empty((0, 8, 8), dtype=np.float32)).shape == (0, 8, 5)
    assert images_of(np.empty((0, 8, 5), dtype=np.complex64), 8).shape == (0, 8, 8)
