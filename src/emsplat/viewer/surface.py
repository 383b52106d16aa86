"""The isosurface of a density, cut open and closed again by a plane, and darker in hollows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import marching_cubes

from emsplat.viewer.fields import Field, Plane
from emsplat.viewer.glb import Mesh

_HOLLOW = 6.0  # size in Å of the neighbourhood that shades a place
_ROUGH = 2.5  # Å; finer structure gives no relief
_FLAT = 0.9  # quantile of the slopes below which relief fades
_RELIEF = (0.68, 0.42)  # brightness of a wall along the light, and what facing the light adds
_SHADE = (1.12, 1.25, 0.3)  # brightness in the open; what a solid neighbourhood takes away; the least brightness


def isosurface(density: Field, level: float, plane: Plane | None = None) -> Mesh | None:
    """The surface at a level, capped where a plane cuts the body; None if no density reaches the level.

    Source: Lewiner et al. (2003), J. Graph. Tools 8:1, as in scikit-image.
    """
    above = density.values - np.float32(level)
    if plane:
        steepness = np.float32(max(float(above.max()), 1e-12) / (2 * density.spacing))
        above = np.minimum(above, steepness * plane.depth_on(density))
    above = np.pad(
        above, 1, constant_values=min(float(above.min()), -abs(level), -1e-6)
    )  # so that the surface is closed at the faces of the box
    if above.max() <= 0:
        return None
    indices, faces, _, _ = marching_cubes(above, 0.0)
    places = density.start + density.spacing * (indices[:, ::-1] - 1)
    return Mesh(places.astype(np.float32), _outward(above, indices), faces.astype(np.uint32))


def _outward(field: NDArray[np.float32], indices: NDArray[np.floating]) -> NDArray[np.float32]:
    """(V, 3) unit vectors x y z down the slope of a field at (V, 3) indices z y x."""
    slopes = [ndimage.map_coordinates(slope, indices.T, order=1, mode="nearest") for slope in np.gradient(field)]
    normals = -np.stack(slopes[::-1], axis=1)
    return (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def surroundings(density: Field, level: float) -> Field:
    """Share of the neighbourhood of a place that is within the surface: 0 far outside, ½ on a flat wall, 1 inside."""
    sigma = _HOLLOW / density.spacing
    solid = ndimage.gaussian_filter((density.values > level).astype(np.float32), sigma, mode="constant", truncate=2.5)
    return Field(solid, density.start, density.spacing)


def brightness(mesh: Mesh, around: Field) -> NDArray[np.float32]:
    """(V, 1) factors on the colour, which are lower in hollows, where the `surroundings` are solid."""
    open_, share, least = _SHADE
    solid = around.at(mesh.places + np.float32(_HOLLOW) * mesh.normals)
    return np.clip(open_ - share * solid, least, 1.0).astype(np.float32)[:, None]


def relief(density: Field, light: NDArray[np.floating]) -> Field:
    """Factors on the colour of Gaussians, which have no surface: bright where the density falls towards the light."""
    smooth = ndimage.gaussian_filter(density.values, _ROUGH / density.spacing)
    slopes = np.gradient(smooth)[::-1]
    steep = np.sqrt(sum(slope * slope for slope in slopes))
    lit = -sum(slope * float(part) for slope, part in zip(slopes, light / np.linalg.norm(light), strict=True))
    lit /= np.maximum(steep, np.quantile(steep, _FLAT))
    ambient, diffuse = _RELIEF
    return Field(np.clip(ambient + diffuse * lit, 0.25, 1.0).astype(np.float32), density.start, density.spacing)
