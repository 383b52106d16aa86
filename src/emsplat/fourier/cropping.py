"""Conversion of images to other box sizes, by cropping or padding in Fourier space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emsplat.fourier.transforms import images_of, transforms_of


def fourier_crop(spectra: NDArray[np.complex64], box_size: int) -> NDArray[np.complex64]:
    """(n, D', D'//2+1) half planes from (n, D, D//2+1), ky in fft order: cropped, or padded with zeros.

    The Nyquist row of the smaller box is kept only in part.
    """
    full = spectra.shape[1]
    if box_size == full:
        return spectra
    small = min(box_size, full)
    ky = np.fft.fftfreq(small, 1 / small).astype(int)
    if box_size < full:
        return np.ascontiguousarray(spectra[:, ky % full, : small // 2 + 1])
    padded = np.zeros((len(spectra), box_size, box_size // 2 + 1), dtype=spectra.dtype)
    padded[:, ky % box_size, : small // 2 + 1] = spectra
    return padded


def fourier_cropped(images: NDArray[np.float32], box_size: int) -> NDArray[np.float32]:
    """(n, B, B) images whose transforms are the middle of the transforms of (n, D, D) images; B ≤ D.

    Sums over pixels are therefore kept and grey values are not; origins stay at the same fraction of the edge.
    """
    if box_size == images.shape[-1]:
        return images
    return images_of(fourier_crop(transforms_of(images), box_size), box_size)
