"""Pictures of latents and of what decided how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from emsplat.figures.reconstruction import save, style

_MOST_PANELS = 6
_BINS = 80


def figure_landscape(
    latents: NDArray[np.float64], states: NDArray[np.float64], shares: NDArray[np.float64], path: Path
) -> None:
    """Density of the latents over pairs of components, the states numbered.

    Args: latents: (n, K); states: (S, K) means; shares: (S,) populations.
    """
    count = latents.shape[1]
    pairs = list(combinations(range(count), 2))[:_MOST_PANELS] or [(0, 0)]
    with style():
        columns = min(3, len(pairs))
        rows = -(-len(pairs) // columns)
        figure = Figure(figsize=(3.6 * columns, 3.4 * rows), layout="constrained")
        for place, (i, j) in enumerate(pairs, 1):
            axes = figure.add_subplot(rows, columns, place)
            if count == 1:
                axes.hist(latents[:, 0], _BINS, color="0.6")
                for number, z in enumerate(states[:, 0], 1):
                    axes.axvline(z, lw=0.8, color="C1")
                    axes.annotate(str(number), (z, axes.get_ylim()[1]), ha="center", va="bottom", color="C1")
                axes.set(xlabel="component 1", ylabel="images")
                continue
            axes.hist2d(latents[:, i], latents[:, j], _BINS, cmap="Greys", cmin=1)
            axes.scatter(states[:, i], states[:, j], s=20 + 400 * shares, facecolors="none", edgecolors="C1")
            for number, z in enumerate(states, 1):
                axes.annotate(str(number), (z[i], z[j]), ha="center", va="center", color="C1", fontsize=8)
            axes.set(xlabel=f"component {i + 1}", ylabel=f"component {j + 1}")
        save(figure, path)


def figure_components(
    variances: Sequence[NDArray[np.float64]],
    significances: Sequence[NDArray[np.float64]],
    least: tuple[float, float],
    chosen: int,
    path: Path,
) -> None:
    """What decided the number of components: the variance and significance of each among the other half's images.

    Args: variances, significances: of both directions, (K,) each; least: what is asked of the two.
    """
    with style():
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        panels = ((variances, least[0], "variance of the latents there"), (significances, least[1], "σ above noise"))
        for place, (values, limit, label) in enumerate(panels, 1):
            axes = figure.add_subplot(1, 2, place)
            for half, of_half in enumerate(values, 1):
                x = np.arange(1, len(of_half) + 1)
                axes.plot(x, of_half, "o-", label=f"half {half}'s, seen by half {3 - half}")
            axes.axhline(limit, ls="--", lw=0.8, color="0.4")
            axes.axvspan(0.5, chosen + 0.5, color="0.92", zorder=0)
            axes.set(xlabel="component", ylabel=label)
            axes.set_xlim(0.5, max(1, max((len(v) for v in values), default=1)) + 0.5)
            if place == 2:
                axes.set_yscale("symlog", linthresh=5)
            else:
                axes.legend(fontsize=7)
        save(figure, path)


def figure_states(
    volumes: Sequence[NDArray[np.float32]], shares: NDArray[np.float64], labels: Sequence[str], path: Path
) -> None:
    """The projections of each state's map along x, y and z, at one grey scale."""
    with style():
        n = len(volumes)
        figure = Figure(figsize=(1.5 * n + 0.4, 4.8), layout="constrained")
        pictures = [[volume.sum(axis=axis) for axis in range(3)] for volume in volumes]
        low, high = np.percentile(np.array(pictures), (1, 99.8))
        for column, (of_state, share, label) in enumerate(zip(pictures, shares, labels, strict=True)):
            for row, picture in enumerate(of_state):
                axes = figure.add_subplot(3, n, row * n + column + 1)
                axes.imshow(picture, cmap="gray", vmin=low, vmax=high, origin="lower")
                axes.set_xticks([])
                axes.set_yticks([])
                if row == 0:
                    axes.set_title(f"{column + 1}: {100 * share:.0f} %\n{label}", fontsize=7)
        save(figure, path)


def movie(volumes: Sequence[NDArray[np.float32]], path: Path, magnified_to: int = 320) -> None:
    """A GIF of projections along x, y and z side by side, there and back, at one grey scale.

    Args: magnified_to: pixels of the edge of one projection, at least.
    """
    frames = [np.concatenate([volume.sum(axis=axis)[::-1] for axis in (2, 1, 0)], axis=1) for volume in volumes]
    low, high = np.percentile(np.array(frames), (1, 99.8))
    factor = max(1, -(-magnified_to // len(volumes[0])))
    pictures = []
    for frame in frames:
        grey = np.clip(255 * (frame - low) / max(high - low, 1e-12), 0, 255).astype(np.uint8)
        size = (grey.shape[1] * factor, grey.shape[0] * factor)
        pictures.append(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))
    round_trip = [*pictures, *pictures[-2:0:-1]]
    round_trip[0].save(path, save_all=True, append_images=round_trip[1:], duration=120, loop=0)
