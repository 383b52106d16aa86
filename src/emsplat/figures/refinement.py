"""The picture of how far the refinement has moved the images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emsplat.figures.reconstruction import BLUE, ORANGE, save, style

_LABELS = {
    "poses_in_degrees": "turned by (°)",
    "shifts_in_angstroms": "shifted by (Å)",
    "contrast": "contrast − 1",
    "defocus_in_angstroms": "defocus changed by (Å)",
}


def figure_refinement(moved: Mapping[str, NDArray[np.float64]], half_set: NDArray[np.int8], path: str | Path) -> None:
    """Draw a histogram for each quantity, with a line for each half.

    Args:
        moved: (N,) changes of each quantity, from `Refinement.moved`.
    """
    with style():
        figure = Figure(figsize=(3.2 * len(moved) + 0.4, 2.8), layout="constrained")
        for axes, (name, values) in zip(figure.subplots(1, len(moved), squeeze=False)[0], moved.items(), strict=True):
            edges = np.histogram_bin_edges(values, bins=40).tolist()
            for half, colour in ((1, BLUE), (2, ORANGE)):
                axes.hist(values[half_set == half], bins=edges, histtype="step", color=colour, label=f"half {half}")
            axes.set(xlabel=_LABELS[name], ylabel="images")
            axes.legend()
        save(figure, path)
