"""The picture of the local resolution: its slices below those of the map, and its distribution over the particle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emsplat.figures.reconstruction import AXES, BLUE, INK, QUIET, SKY, grey_range, save, scale_bar, style
from emsplat.validation.local_resolution import LocalResolution

_UNKNOWN = "#b5b5b5"  # places within the mask where nothing is measurable


def figure_local_resolution(
    local: LocalResolution,
    volume: NDArray[np.float32],
    path: str | Path,
    pixel_size: float,
    global_resolution: float | None = None,
    truth: NDArray[np.float64] | None = None,
) -> None:
    """Draw central slices of the map and, where the mask is at least ½, of its local resolution, and a histogram.

    Args:
        volume: (D, D, D) the map.
        pixel_size: pixel size in Å.
        global_resolution: resolution of the whole map in Å, which is marked in the histogram.
        truth: (D, D, D) true local resolution in Å of a simulation, drawn as a row of its own.
    """
    particle = local.mask >= 0.5
    rows = {"local resolution": local.resolution} | ({} if truth is None else {"true local resolution": truth})
    limits = _range(np.concatenate([values[particle & np.isfinite(values)] for values in rows.values()]))
    near = around(particle)
    with style():
        figure = Figure(figsize=(8.1, 2.5 * (len(rows) + 1) + 2.2), layout="constrained")
        grid = figure.add_gridspec(len(rows) + 2, 3, height_ratios=[1.0] * (len(rows) + 1) + [0.75])
        axes = [[figure.add_subplot(grid[i, j]) for j in range(3)] for i in range(len(rows) + 1)]
        draw_map(axes[0], central(volume[near]))
        scale_bar(axes[0][0], len(volume[near]), pixel_size)
        for row, (label, values) in zip(axes[1:], rows.items(), strict=True):
            row[0].set_ylabel(label, fontsize=10.5)
            drawn = _draw_resolution(row, central(values[near]), central(particle[near]), limits)
        bar = figure.colorbar(drawn, ax=[one for row in axes[1:] for one in row], shrink=0.8, pad=0.02, extend="both")
        bar.set_label("Å; grey: not measurable")
        bar.outline.set_visible(False)
        _histogram(figure.add_subplot(grid[-1, :]), local, limits, global_resolution)
        save(figure, path)


def draw_map(row: list[Axes], slices: list[NDArray[np.float32]]) -> None:
    black, white = grey_range(slices)
    row[0].set_ylabel("map", fontsize=10.5)
    for axes, image, along in zip(row, slices, AXES, strict=True):
        axes.imshow(image, cmap="gray", vmin=black, vmax=white, origin="lower", interpolation="bicubic")
        axes.set_title(f"central slice across {along}")
        bare(axes)


def _draw_resolution(
    row: list[Axes], slices: list[NDArray[Any]], inside: list[NDArray[np.bool_]], limits: tuple[float, float]
) -> Any:
    for axes, values, within in zip(row, slices, inside, strict=True):
        axes.imshow(np.where(within, 1.0, np.nan), cmap=ListedColormap([_UNKNOWN]), origin="lower")
        shown = np.where(within, values, np.nan)
        drawn = axes.imshow(shown, cmap="cividis", vmin=limits[0], vmax=limits[1], origin="lower")
        bare(axes)
    return drawn


def bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def around(particle: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The cube about voxel D//2 that holds the particle with a small margin."""
    middle = len(particle) // 2
    places = np.argwhere(particle)
    reach = 3 + int(np.abs(places - middle).max()) if len(places) else middle
    return (slice(max(middle - reach, 0), middle + reach + 1),) * 3


def central(volume: NDArray[Any]) -> list[NDArray[Any]]:
    """Slices through the middle voxel across x, y and z."""
    middle = len(volume) // 2
    return [volume[:, :, middle], volume[:, middle, :], volume[middle, :, :]]


def _range(values: NDArray[Any]) -> tuple[float, float]:
    """The range of 98 % of the values. A single value is widened to a range, and no values give an arbitrary one."""
    if len(values) == 0:
        return 0.0, 1.0
    low, high = (float(q) for q in np.quantile(values, (0.01, 0.99)))
    return (low, high) if high > 1.02 * low else (0.95 * low, 1.05 * low)


def _histogram(
    axes: Axes, local: LocalResolution, limits: tuple[float, float], global_resolution: float | None
) -> None:
    """Shares of the particle's voxels. Those with a bound are shown apart; the end bins hold what lies beyond them."""
    particle = local.mask >= 0.5
    values, bound = np.clip(local.resolution[particle], *limits), local.better_than[particle]
    found = np.isfinite(values)
    parts = [values[found & ~bound], values[found & bound]]
    axes.hist(
        parts, bins=np.linspace(*limits, 41).tolist(), stacked=True, color=[BLUE, SKY],
        weights=[np.full(len(part), 100 / max(len(values), 1)) for part in parts],
        label=["c_map falls to 0.5", "better than: c_map is above 0.5 up to the limit"],
    )  # fmt: skip
    axes.set(xlabel="local resolution (Å)", ylabel="% of the particle", xlim=limits)
    if global_resolution is not None and limits[0] <= global_resolution <= limits[1]:
        axes.axvline(global_resolution, color=INK, lw=1.2, ls=(0, (4, 3)), label="resolution of the whole map")
    lost = 100 * np.mean(~found) if len(found) else 100.0
    axes.set_title(f"not measurable: {lost:.1f} % of the particle", loc="right", fontsize=8.5, color=QUIET)
    axes.legend(loc="upper right")
