"""The decoder's maps at many points as combinations of a few maps, so that images are compared with the few only.

``V(z_p) = Σ_r a_pr B_r`` up to an error that says next to nothing about an image. Of an image, the inner products of
the slices of B with each other and with the data are enough: those of V(z_p) follow by small matrix products, for as
many points as one likes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.heterogeneity.decoder import Decoder
from emsplat.heterogeneity.observations import Observations
from emsplat.heterogeneity.posterior import inner_products
from emsplat.heterogeneity.slices import Volumes
from emsplat.models.gaussians import Gaussians
from emsplat.splat import voxelise
from emsplat.splat.bandlimit import boost, widened

_IMAGES = 64  # images whose slices are held together
# On a hinge that turns through a circle (five latents), 60 maps were needed. With 32, log-likelihoods were off by 0.7.
_MOST_MAPS = 64
# Power in an image, in units of its noise, that is left out of the map of a point, on average over the points. It
# changes the log-likelihood of an image by about 0.1.
_LEFT_OUT = 0.02
_FINER = 1.4  # voxels of the grid of Gaussians by those of the box; a splat has aliases near the end of its grid
_CUTOFF = 5.0  # as far as `Gaussians.voxelise` goes


@dataclass(frozen=True)
class PointMaps:
    """P maps in a working box D′, as combinations of R."""

    basis: Volumes  # R maps
    coefficients: NDArray[np.float64]  # (P, R)

    @property
    def count(self) -> int:
        """P."""
        return len(self.coefficients)

    @staticmethod
    def of_volumes(volumes: list[NDArray[np.float32]]) -> PointMaps:
        """The maps as they are."""
        return PointMaps(Volumes.of(volumes), np.eye(len(volumes)))

    @staticmethod
    def of_decoder(
        decoder: Decoder,
        points: NDArray[np.float64],
        box_size: int,
        working_box: int,
        pixel_size: float,
        information: NDArray[np.float64],
    ) -> PointMaps:
        """The decoder's maps at (P, K) points.

        Args:
            box_size: D of the images, with this pixel size in Å; working_box: D′, with the same edge in Å.
            information: (D′//2+1,) mean C²W² of the images in each shell, from `information_of`.
        """
        spectra = np.stack(list(spectra_at(decoder, points, box_size, working_box, pixel_size)))
        flat = spectra.reshape(len(points), -1).view(np.float32)
        weights = np.repeat(np.sqrt(_weights(working_box, information)).ravel().astype(np.float32), 2)
        chosen = np.flatnonzero(weights)
        weighted = flat[:, chosen] * weights[chosen]
        power, vectors = np.linalg.eigh((weighted @ weighted.T).astype(np.float64))
        power, vectors = np.maximum(power[::-1], 0), vectors[:, ::-1]
        left = power.sum() - np.cumsum(power)
        count = min(int(np.count_nonzero(left > _LEFT_OUT * len(points))) + 1, _MOST_MAPS, len(points))
        coefficients = vectors[:, :count]
        mixed = (coefficients.T.astype(np.float32) @ flat).view(np.complex64).reshape(count, *spectra.shape[1:])
        return PointMaps(Volumes.of([maps.from_half_spectrum(b, working_box) for b in mixed]), coefficients)

    def inner(self, observations: Observations) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(n, P) A_pp and v_p of every image with every map."""
        shape = (len(observations), self.count)
        power, overlap = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
        a = self.coefficients
        pairs = (a[:, :, None] * a[:, None, :]).reshape(len(a), -1).T
        for begin in range(0, len(observations), _IMAGES):
            here = slice(begin, begin + _IMAGES)
            part = observations.part(here)
            found = inner_products(self.basis.slices(part.matrices, part.samples), part)
            power[here] = found.gram.reshape(len(part), -1) @ pairs
            overlap[here] = found.data @ a.T
        return power, overlap


def information_of(observations: Observations) -> NDArray[np.float64]:
    """(D′//2+1,) mean C²W² of some images in each shell; 0 where they have no samples."""
    shell = np.rint(np.sqrt((observations.samples**2).sum(axis=1))).astype(int)
    length = observations.box_size // 2 + 1
    mean = observations.weights.mean(axis=0, dtype=np.float64)
    return np.bincount(shell, mean, length)[:length] / np.maximum(np.bincount(shell, minlength=length)[:length], 1)


def _weights(box_size: int, information: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D, D, D//2+1) share of the power of each sample of a half spectrum that an image is expected to show.

    A slice has 2πr of the 4πr² samples at radius r. Samples of a half spectrum stand for two, except where kx is 0.
    """
    radius = maps.radius(box_size)
    shell = np.rint(radius).astype(int)
    within = (shell > 0) & (shell < len(information))
    weights = np.where(within, information[np.where(within, shell, 0)] / (2 * np.maximum(radius, 1)), 0)
    weights[:, :, 1 : (box_size - 1) // 2 + 1] *= 2
    return weights


def spectra_at(
    decoder: Decoder, points: NDArray[np.float64], box_size: int, working_box: int, pixel_size: float
) -> Iterable[NDArray[np.complex64]]:
    """The (D′, D′, D′//2+1) transform of the decoder's map at each point."""
    fine = min(box_size, scipy.fft.next_fast_len(int(np.ceil(_FINER * working_box)), real=True))
    pixel = pixel_size * box_size / fine
    keep = (working_box - 1) // 2
    rows = np.r_[0 : keep + 1, -keep:0] if keep else np.zeros(1, dtype=int)
    chosen = np.ix_(rows, rows, np.arange(keep + 1))
    factor = boost(fine)[chosen] * np.float32((working_box / fine) ** 3)
    for z in points:
        spectrum = np.zeros((working_box, working_box, working_box // 2 + 1), dtype=np.complex64)
        spectrum[chosen] = maps.half_spectrum(_splat(decoder.at(z), fine, pixel))[chosen] * factor
        yield spectrum


@torch.no_grad()
def _splat(model: Gaussians, box_size: int, pixel_size: float) -> NDArray[np.float32]:
    """(D, D, D) splat of Gaussians with widened scales, as `boost` expects them."""
    pixels = Gaussians.from_pixels(model.centres, model.log_scales, model.quaternions, model.log_masses, 1 / pixel_size)
    return voxelise(
        pixels.centres, widened(pixels.log_scales), pixels.quaternions, pixels.log_masses, box_size, _CUTOFF, "cpu"
    ).numpy()
