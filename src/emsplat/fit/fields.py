"""The neural field that a fit begins with, and how it is fitted.

The numbers here were found by a search on simulated sets of their own (docs/study.md, "Neural fields").
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from emsplat.errors import InputError
from emsplat.fit.by_statistics import FitSettings
from emsplat.models.encodings import Encoding, HashGrid, PositionalEncoding
from emsplat.models.neural_field import NeuralField
from emsplat.settings import FieldKind
from emsplat.statistics.loss import cube
from emsplat.statistics.sufficient import Statistics

_BLUR = 1.0  # pixels; smoothing of the inversion that the scale is taken from, as for the first Gaussians
_ROWS_PER_VOXEL = 1 / 27  # of the cube, in the table of each level of the hash grid
_WIDTHS: dict[FieldKind, tuple[int, ...]] = {"neural-field": (64, 64, 64), "hash-grid": (64,)}
# The numbers of steps are larger than those of Gaussians, and the checks of the stopping rule are as much rarer.
_SETTINGS: dict[FieldKind, FitSettings] = {
    "neural-field": FitSettings(max_steps=300, anneal_steps=60, check_every=12, step_sizes={"network": 0.01}),
    "hash-grid": FitSettings(max_steps=90, anneal_steps=18, step_sizes={"network": 0.005, "table": 0.04}),
}


def initial_field(
    kind: FieldKind,
    statistics: Statistics,
    mask: NDArray[np.float32],
    extent: int,
    seed: int,
    positive: bool = True,
) -> NeuralField:
    """A field with random weights, whose output is measured in the density of the low-resolution inversion.

    Args:
        mask: (D, D, D) soft mask of the particle.
        extent: edge of the cube, in voxels, in which the field has density.
    Raises:
        InputError: the inversion has no positive density to measure.
    """
    middle = cube(statistics.box_size, extent)
    inside = mask[middle] > 0.5
    density = gaussian_filter(statistics.raw_map(), _BLUR)[middle][inside]
    scale = float(np.sqrt(np.mean(np.square(density)))) if len(density) else 0.0
    if not scale > 0:
        raise InputError(
            "the inversion shows no density within the particle's sphere; check --invert and --mask-diameter"
        )
    return NeuralField.random(extent, encoding(kind, extent), _WIDTHS[kind], scale, seed, positive)


def encoding(kind: FieldKind, extent: int) -> Encoding:
    """The encoding for a cube of this edge in voxels: the finest features are those of the grid."""
    if kind == "neural-field":
        return PositionalEncoding(frequencies=max(4, extent // 2), highest=extent / 2)
    rows = max(8, round(math.log2(extent**3 * _ROWS_PER_VOXEL)))
    return HashGrid(levels=12, coarsest=4, finest=max(8, extent), log2_rows=rows)


def settings_for(kind: FieldKind, field: NeuralField, seed: int) -> FitSettings:
    """The number of steps and their sizes; all tensors of the network have the same."""
    settings = _SETTINGS[kind]
    sizes = {name: settings.step_sizes.get(name, settings.step_sizes["network"]) for name in field.leaves}
    return replace(settings, step_sizes=sizes, seed=seed)
