"""The background of an image: the plane that fits it best outside the circle that holds the particle."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

_CIRCLE = 0.9  # diameter of the particle's circle as a share of the box; noise is measured outside
_EDGE = 4.0  # width of the soft edge in pixels


def outside_circle(box_size: int) -> NDArray[np.float32]:
    """(D, D) 1 outside the circle that holds the particle, 0 inside, cosine edge."""
    axis = np.arange(box_size) - box_size // 2
    radius = np.hypot(axis[:, None], axis[None, :])
    edge = min(_EDGE, box_size / 16)
    ramp = np.clip((radius - _CIRCLE * box_size / 2) / edge + 0.5, 0, 1)
    return (0.5 - 0.5 * np.cos(np.pi * ramp)).astype(np.float32)


def subtract_background(images: NDArray[np.float32], window: NDArray[np.float32]) -> None:
    """Take off each image, in place, the plane that fits it best over the window: its mean, and a ramp.

    RELION does the same when it extracts particles. Images of other programs may slope, as ice and illumination do,
    and a slope that is left in them outweighs the particle at the lowest frequencies.

    Args:
        images: (n, D, D).
        window: (D, D) weights of the pixels, from `outside_circle`.
    """
    axis, inverse = plane_fit(window)
    _subtract_planes(images, axis, _planes(images, window, axis, inverse))


def background_slopes(images: NDArray[np.float32], window: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) rise of the plane that `subtract_background` would subtract, over the width of the box where it is steepest.

    Args:
        images: (n, D, D); window: (D, D) from `outside_circle`.
    """
    axis, inverse = plane_fit(window)
    return 2 * np.hypot(*_planes(images, window, axis, inverse)[:, 1:].T)  # the coordinates span 2


def plane_fit(window: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(D,) coordinates from −1 to 1, and (3, 3) what turns window-weighted sums of 1, x and y into a plane's terms."""
    size = len(window)
    axis: NDArray[np.float64] = (np.arange(size, dtype=np.float64) - (size - 1) / 2) * (2 / size)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    terms = np.stack([np.ones_like(x), x, y]).reshape(3, -1)
    inverse: NDArray[np.float64] = np.linalg.inv((terms * window.ravel()) @ terms.T).astype(np.float64)
    return axis, inverse


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _planes(images, window, axis, inverse):
    """(n, 3) level, and slopes along x and y in the coordinates of `plane_fit`, of the plane that fits each image."""
    planes = np.empty((images.shape[0], 3))
    for i in numba.prange(images.shape[0]):
        image = images[i]
        level, along_x, along_y = 0.0, 0.0, 0.0
        for y in range(image.shape[0]):
            row_sum, row_moment = np.float64(0), np.float64(0)
            for x in range(image.shape[1]):
                value = image[y, x] * window[y, x]
                row_sum += value
                row_moment += value * axis[x]
            level += row_sum
            along_x += row_moment
            along_y += row_sum * axis[y]
        for term in range(3):
            planes[i, term] = inverse[term, 0] * level + inverse[term, 1] * along_x + inverse[term, 2] * along_y
    return planes


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _subtract_planes(images, axis, planes):
    for i in numba.prange(images.shape[0]):
        for y in range(images.shape[1]):
            start = planes[i, 0] + planes[i, 2] * axis[y]
            for x in range(images.shape[2]):
                images[i, y, x] -= start + planes[i, 1] * axis[x]


def subtract_recorded_background(images: NDArray, box_size: int) -> None:
    """Subtract the background of images as they are read, in place.

    Images smaller than the box come from a cache, which subtracted the plane before it cropped them: a plane ends
    abruptly at the edges, so that what is left of it after cropping in Fourier space is a plane no more.

    Args:
        images: (n, B, B), B ≤ D; box_size: D of the particles.
    """
    if images.shape[-1] == box_size:
        subtract_background(images, outside_circle(box_size))
