"""A few images as recorded, without their noise, and as the small map predicts them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.check.agreement import predict
from emsplat.check.inversion import SmallData
from emsplat.check.sample import Sample
from emsplat.conventions import spatial_frequency_radii
from emsplat.fourier import maps
from emsplat.io.images import ImageSource
from emsplat.particles.table import Particles

_SHOWN = 6
_FINEST, _SHARE_OF_BOX = 25.0, 0.12  # Å and box edges: single images say nothing beyond the larger of the two


@dataclass(frozen=True)
class Gallery:
    """m images of the sample in the order of their defocus."""

    particles: Particles  # (m rows) as in the file
    recorded: NDArray[np.float32]  # (m, D, D)
    low_passed: NDArray[np.float32]  # (m, d, d)
    predicted: NDArray[np.float32] | None  # (m, d, d), low-passed as well
    resolution: float  # Å, of the low pass


def choose_gallery(
    sample: Sample, images: ImageSource, data: SmallData | None = None, volume: NDArray[np.float32] | None = None
) -> Gallery:
    """Images spread evenly over the defocus, with predictions if there is a small map (d, d, d)."""
    defocus = sample.full.defocus_u_in_angstroms + sample.full.defocus_v_in_angstroms
    m = min(_SHOWN, len(defocus))
    chosen = np.argsort(defocus, kind="stable")[((np.arange(m) + 0.5) / m * len(defocus)).astype(int)]
    pixel_size = sample.small.pixel_size_in_angstroms
    resolution = max(_FINEST, _SHARE_OF_BOX * sample.small.box_size * pixel_size)
    predicted = None if data is None or volume is None else predict(data, volume, chosen)
    return Gallery(
        particles=sample.full.select(chosen),
        recorded=images.read(sample.rows[chosen]),
        low_passed=_low_passed(sample.images[chosen], pixel_size, resolution),
        predicted=None if predicted is None else _low_passed(predicted, pixel_size, resolution),
        resolution=resolution,
    )


def _low_passed(images: NDArray[np.float32], pixel_size: float, resolution: float) -> NDArray[np.float32]:
    box_size = images.shape[-1]
    curve = maps.low_pass_curve(box_size, pixel_size, resolution)
    factor = np.interp(spatial_frequency_radii(box_size), np.arange(len(curve)), curve)
    return scipy.fft.irfft2(scipy.fft.rfft2(images) * factor, s=images.shape[1:]).astype(np.float32, copy=False)
