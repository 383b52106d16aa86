"""The picture of the map's standard error: its slices below those of the map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emsplat.figures.local_resolution import around, bare, central, draw_map
from emsplat.figures.reconstruction import save, scale_bar, style


def figure_uncertainty(
    errors: NDArray[np.float32],
    volume: NDArray[np.float32],
    mask: NDArray[np.float32],
    path: str | Path,
    pixel_size: float,
) -> None:
    """Central slices of the map and, where the mask is at least ½, of its standard error and of their quotient.

    Args:
        errors, volume, mask: (D, D, D), the first two in the map's units.
        pixel_size: Å.
    """
    particle = mask >= 0.5
    near = around(particle)
    sigma = float(volume.std()) or 1.0
    quotient = np.divide(volume, errors, out=np.zeros_like(volume), where=errors > 0)
    rows = {
        "standard error": (errors / sigma, "cividis", "standard deviations of the map"),
        "map / standard error": (quotient, "viridis", "map / standard error"),
    }
    with style():
        figure = Figure(figsize=(8.1, 7.6), layout="constrained")
        axes = figure.subplots(len(rows) + 1, 3)
        draw_map(axes[0], central(volume[near]))
        scale_bar(axes[0][0], len(volume[near]), pixel_size)
        for row, (label, (values, colours, unit)) in zip(axes[1:], rows.items(), strict=True):
            row[0].set_ylabel(label, fontsize=10.5)
            inside = values[particle]
            low, high = (float(q) for q in np.quantile(inside, (0.01, 0.99))) if inside.size else (0.0, 1.0)
            for one, image, within in zip(row, central(values[near]), central(particle[near]), strict=True):
                shown = np.where(within, image, np.nan)
                one.imshow(shown, cmap=colours, vmin=low, vmax=max(high, low + 1e-6), origin="lower")
                bare(one)
            bar = figure.colorbar(row[0].images[0], ax=list(row), shrink=0.85, pad=0.02, extend="both")
            bar.set_label(unit)
            bar.outline.set_visible(False)
        save(figure, path)
