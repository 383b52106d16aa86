"""How a search for poses from none went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emsplat.figures.reconstruction import BLUE, ORANGE, save, style


def figure_ab_initio(
    evidence: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    pictures: Sequence[NDArray[np.float32]],
    correlations: NDArray[np.float64],
    resolution_of_ring: NDArray[np.float64],
    certainty: NDArray[np.float32],
    euler_angles_in_degrees: NDArray[np.float64],
    half_set: NDArray[np.int8],
    title: str,
    path: str | Path,
) -> None:
    """Likelihood over time, the growing map, agreement of the halves, certainty, and where the poses lie.

    Args:
        evidence: for each half, log-likelihoods of an image in the first and in the second stage.
        pictures: maps (N, N, N) of the first half, in the order they came about.
        correlations: (R,) of the halves' unregularised maps; resolution_of_ring: (R,) Å.
        certainty: (N,) largest posteriors; euler_angles_in_degrees: (N, 3); half_set: (N,) 1 or 2.
    """
    with style():
        figure = Figure(figsize=(10, 5.6), layout="constrained")
        figure.suptitle(title)
        top, bottom = np.asarray(figure.subfigures(2, 1, squeeze=False)).ravel()
        left, *strip = top.subplots(1, 1 + max(len(pictures), 1), width_ratios=[2.2] + [1] * max(len(pictures), 1))
        for (first, second), colour, half in zip(evidence, (BLUE, ORANGE), (1, 2), strict=True):
            left.plot(np.arange(len(first)), first, color=colour, lw=0.8, label=f"half {half}")
            left.plot(len(first) + 4 * np.arange(len(second)), second, color=colour, marker=".", lw=0.8)
        left.set(xlabel="batches, then rounds over all images", ylabel="log-likelihood an image")
        left.legend()
        for axes, map_ in zip(strip, pictures, strict=False):
            shown = map_.sum(axis=0)
            axes.imshow(shown, cmap="gray", vmin=np.quantile(shown, 0.02), vmax=np.quantile(shown, 0.998))
        for axes in strip:
            axes.set_axis_off()
        agreement, histogram, sphere = bottom.subplots(1, 3)
        agreement.plot(1 / resolution_of_ring, correlations, color=BLUE)
        agreement.set(xlabel="spatial frequency (1/Å)", ylabel="correlation of the halves", ylim=(-0.1, 1.02))
        for half, colour in ((1, BLUE), (2, ORANGE)):
            histogram.hist(
                certainty[half_set == half], bins=np.linspace(0, 1, 26).tolist(), histtype="step", color=colour
            )
        histogram.set(xlabel="largest posterior of an image", ylabel="images")
        shown_rows = np.arange(len(certainty))[:: max(1, len(certainty) // 4000)]
        rot, tilt = euler_angles_in_degrees[shown_rows, 0], euler_angles_in_degrees[shown_rows, 1]
        dots = sphere.scatter(
            (rot + 180) % 360 - 180, np.cos(np.deg2rad(tilt)), c=certainty[shown_rows], s=2, vmin=0, vmax=1
        )
        sphere.set(xlabel="rot (°)", ylabel="cos tilt", xlim=(-180, 180), ylim=(-1, 1))
        bottom.colorbar(dots, ax=sphere, label="largest posterior")
        save(figure, path)
