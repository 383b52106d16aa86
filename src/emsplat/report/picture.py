"""Pictures that need no drawing library: the surface of a map, and PNG files for the page."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from emsplat.report.volumes import resampled

_PICTURE_EDGE = 300  # pixels
_LIGHT = np.array([-0.35, 0.45, 0.82])  # direction towards the light; x right, y up, z to the eye
_AMBIENT, _DIFFUSE, _SHINE = 0.38, 0.62, 0.16
_RECESS_RADIUS, _RECESS_DEPTH = 13.0, 36.0  # pixels: what lies deeper than its surroundings is darker


def surface_picture(
    volume: NDArray[np.float32], level: float, colour: tuple[int, int, int]
) -> NDArray[np.uint8] | None:
    """(m, m, 4) RGBA picture of the isosurface, seen from +z with y up, without perspective.

    The picture shows the first crossing along each line of sight, lit by its gradient and darker in recesses. It is
    transparent where nothing is crossed, and None if no density reaches the level.
    """
    fine = resampled(volume, (len(volume), _PICTURE_EDGE, _PICTURE_EDGE))
    pixels_a_slab = _PICTURE_EDGE / len(fine)
    fine = fine[::-1, ::-1]  # from the eye on, and rows downwards
    above = fine > level
    hit = above.any(axis=0)
    if not hit.any():
        return None
    first = above.argmax(axis=0)
    rows, columns = np.nonzero(hit)
    depth = first[hit]
    here, before = fine[depth, rows, columns], fine[np.maximum(depth - 1, 0), rows, columns]
    between = np.where(depth > 0, (here - level) / np.maximum(here - before, 1e-12), 0.0)
    place = np.stack([depth - np.clip(between, 0, 1), rows, columns])
    deeper, down, right = (_slope(fine, place, axis) for axis in range(3))
    normal = np.stack([-right, down, deeper / pixels_a_slab])
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-12)
    lit = np.maximum(_LIGHT / np.linalg.norm(_LIGHT) @ normal, 0)
    surface = np.full(hit.shape, float(_PICTURE_EDGE))
    surface[hit] = place[0] * pixels_a_slab
    recess = np.clip((surface - ndimage.gaussian_filter(surface, _RECESS_RADIUS))[hit] / _RECESS_DEPTH, -0.5, 1)
    distance = (place[0] - place[0].min()) / max(float(np.ptp(place[0])), 1.0)
    brightness = (_AMBIENT + _DIFFUSE * lit) * (1 - 0.55 * recess) * (1.05 - 0.3 * distance)
    picture = np.zeros((*hit.shape, 4))
    picture[hit, :3] = np.array(colour) * brightness[:, None] + 255 * _SHINE * lit[:, None] ** 24
    picture[..., 3] = 255 * np.clip(ndimage.gaussian_filter(hit.astype(float), 0.7), 0, 1) * hit
    return np.clip(picture, 0, 255).astype(np.uint8)


def _slope(volume: NDArray[np.float32], place: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    step = np.zeros((3, 1))
    step[axis] = 1.5
    ahead, behind = (ndimage.map_coordinates(volume, place + s, order=1, mode="nearest") for s in (step, -step))
    return ahead - behind


def grey(image: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """Grey values: black at `low`, white at `high`."""
    return np.clip((image - low) * (255 / max(high - low, 1e-12)), 0, 255).astype(np.uint8)


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of (rows, columns) grey or (rows, columns, 4) RGBA pixels. Source: PNG specification, third edition."""
    rows, columns = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0 if pixels.ndim == 2 else 6, 0, 0, 0)
    lines = np.zeros((rows, 1 + pixels[0].size), dtype=np.uint8)  # each begins with the number of its filter: none
    lines[:, 1:] = pixels.reshape(rows, -1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def as_data_uri(pixels: NDArray[np.uint8]) -> str:
    return png_as_data_uri(as_png(pixels))


def png_as_data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
