"""Gaussians as a .ply file of 3D Gaussian splatting, only to look at.

Splats in a viewer cover each other, by their opacities and colours; an electron map is a sum of densities. Positions,
sizes and orientations are those of the model. Opacities and colours are invented here so that dense parts are visible.

Source: the layout that the first 3D Gaussian splatting program writes (Kerbl et al. 2023, ACM Trans. Graph. 42, 139),
as https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/ply describes it: logarithms of the scales,
logit of the opacity, quaternion w x y z, colour as the constant spherical harmonic.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.models.gaussians import Gaussians
from emsplat.runtime.files import replacing

_PROPERTIES = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
_CONSTANT_HARMONIC = 0.5 / np.sqrt(np.pi)  # the colour in a viewer is 0.5 + this × f_dc
_OPAQUE_SHARE = 0.8  # share of the Gaussians that are fainter than an opacity of 1 − 1/e
_OPACITIES = (0.01, 0.99)  # 0 and 1 have no logit


def write_ply(path: Path, gaussians: Gaussians) -> None:
    """Write positions and scales in Å, with the origin at the box centre."""
    masses = gaussians.masses().double().numpy()
    log_scales = gaussians.log_scales.double().numpy()
    quaternions = gaussians.quaternions.double().numpy()
    opacity = _opacities(masses, log_scales)
    columns = (
        gaussians.centres.double().numpy(),
        np.zeros((len(gaussians), 3)),  # normals, which viewers expect and do not use
        (_colours(masses, log_scales) - 0.5) / _CONSTANT_HARMONIC,
        np.log(opacity / (1 - opacity))[:, None],
        log_scales,
        quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True),
    )
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment emsplat: for looking only; Angstrom from the box centre; opacity and colour stand for density",
        f"element vertex {len(gaussians)}",
        *(f"property float {name}" for name in _PROPERTIES),
        "end_header\n",
    ]
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join(header).encode("ascii"))
        file.write(np.concatenate(columns, axis=1).astype("<f4").tobytes())


def _opacities(masses: NDArray[np.float64], log_scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) share of a beam that is lost along the axis of a round Gaussian of this mass and volume.

    It is 1 − exp(−column density), with the density scaled by `_OPAQUE_SHARE`.
    """
    column = masses / (2 * np.pi * np.exp(2 / 3 * log_scales.sum(axis=1)))
    return (1 - np.exp(-column / np.quantile(column, _OPAQUE_SHARE))).clip(*_OPACITIES)


def _colours(masses: NDArray[np.float64], log_scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, 3) colours that go from dark to light with the logarithm of the density at the centre."""
    import matplotlib

    log_density = np.log(masses) - log_scales.sum(axis=1)
    low, high = np.quantile(log_density, (0.05, 0.95))
    return matplotlib.colormaps["viridis"](((log_density - low) / max(high - low, 1e-6)).clip(0, 1))[:, :3]
