"""Pictures of latents and of what decided how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image

from emsplat.figures.local_resolution import around
from emsplat.figures.reconstruction import save, style

_MOST_PANELS = 6
_BINS = 80
_SIGNIFICANCES = (2.5, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)  # σ that an axis names


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
            axes.hist2d(latents[:, i], latents[:, j], _BINS, cmap="Greys", norm="log")
            axes.scatter(states[:, i], states[:, j], s=20 + 400 * shares, facecolors="none", edgecolors="C1")
            for number, z in enumerate(states, 1):
                axes.annotate(str(number), (z[i], z[j]), ha="center", va="center", color="C1", fontsize=8)
            axes.set(xlabel=f"component {i + 1}", ylabel=f"component {j + 1}")
        save(figure, path)


def figure_components(
    variances: Sequence[NDArray[np.float64]],
    significances: Sequence[NDArray[np.float64]],
    least: tuple[float, float],
    beyond_doubt: tuple[float, float],
    chosen: int,
    path: Path,
) -> None:
    """What decided the number of components: the variance and significance of each among the other half's images.

    Args:
        variances, significances: of both directions, (K,) each.
        least: what is asked of the two.
        beyond_doubt: a smaller variance, and the significance from which on it is enough.
    """
    with style():
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        labels = "variance of the latents there", "σ above noise"
        panels = zip((variances, significances), least, beyond_doubt, labels, strict=True)
        for place, (values, limit, enough, label) in enumerate(panels, 1):
            axes = figure.add_subplot(1, 2, place)
            for half, of_half in enumerate(values, 1):
                x = np.arange(1, len(of_half) + 1)
                axes.plot(x, of_half, "o-", label=f"components of half {half}, in half {3 - half}")
            axes.axhline(limit, ls="--", lw=0.8, color="0.4")
            axes.axhline(enough, ls=":", lw=0.8, color="0.4")
            axes.axvspan(0.5, chosen + 0.5, color="0.92", zorder=0)
            axes.set(xlabel="component", ylabel=label)
            axes.set_xlim(0.5, max(1, max((len(v) for v in values), default=1)) + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.margins(y=0.08)
            if place == 2:
                axes.set_yscale("symlog", linthresh=5)
                axes.yaxis.set_major_locator(FixedLocator([*(-tick for tick in _SIGNIFICANCES), 0, *_SIGNIFICANCES]))
                axes.yaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_major_formatter("{x:g}")
            else:
                figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
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


def figure_differences(
    volumes: Sequence[NDArray[np.float32]],
    differences: Sequence[NDArray[np.float32]],
    errors: Sequence[NDArray[np.float32]],
    masks: Sequence[NDArray[np.float32]],
    labels: Sequence[str],
    path: Path,
) -> None:
    """The plane across z in which each state differs most from the consensus: its map, the difference and its error.

    Args: volumes, differences, errors, masks: of every state, (D, D, D) each; labels: of the states.
    """
    with style():
        n = len(volumes)
        figure = Figure(figsize=(1.6 * n + 1.2, 5.4), layout="constrained")
        axes = figure.subplots(3, n, squeeze=False)
        near = around(np.max(masks, axis=0) > 0.5)
        inside = [difference[mask > 0.5] for difference, mask in zip(differences, masks, strict=True)]
        most = max(float(np.quantile(np.abs(values), 0.998)) for values in inside if values.size) or 1.0
        low, high = np.percentile(np.array([volume[len(volume) // 2] for volume in volumes]), (1, 99.8))
        rows = (("map", "gray", low, high), ("difference", "RdBu_r", -most, most), ("standard error", "Greys", 0, most))
        for column, (volume, difference, error, mask) in enumerate(
            zip(volumes, differences, errors, masks, strict=True)
        ):
            plane = int(((difference * mask) ** 2).sum(axis=(1, 2)).argmax())
            planes = (volume[plane], difference[plane] * mask[plane], error[plane] * mask[plane])
            pictures = [picture[near[1:]] for picture in planes]
            for at, picture, (name, colours, least, largest) in zip(axes[:, column], pictures, rows, strict=True):
                drawn = at.imshow(picture, cmap=colours, vmin=least, vmax=largest, origin="lower")
                at.set(xticks=[], yticks=[])
                if column == 0:
                    at.set_ylabel(name, fontsize=9)
                if column == n - 1 and name != "map":
                    figure.colorbar(drawn, ax=at, shrink=0.8).ax.tick_params(labelsize=7)
            axes[0, column].set_title(f"{labels[column]}\nplane {plane + 1}", fontsize=7)
        save(figure, path)


@dataclass(frozen=True)
class Movement:
    """How the Gaussians move along one component."""

    volume: NDArray[np.float32]  # (D, D, D) map at the first end of the trajectory
    centres: NDArray[np.float64]  # (J, 3) Å from the box centre, there
    masses: NDArray[np.float64]  # (J,) there
    moved: NDArray[np.float64]  # (J, 3) Å, to the other end


def figure_movement(movements: Sequence[Movement], pixel_size: float, path: Path) -> None:
    """Arrows of how the density moves along each component, over projections of the map that they start from.

    Args: pixel_size: Å.
    """
    views = (("x", "y", 0, 1, 0), ("x", "z", 0, 2, 1), ("y", "z", 1, 2, 2))  # across, up, their axes, summed axis
    with style():
        n = len(movements)
        figure = Figure(figsize=(8.4, 2.9 * n), layout="constrained")
        axes = figure.subplots(n, 3, squeeze=False)
        reach = [np.abs(one.centres).max(axis=1)[one.masses > 0.1 * one.masses.mean()] for one in movements]
        near = float(np.quantile(np.concatenate(reach), 0.98)) * 1.2 + pixel_size
        for number, (row, one) in enumerate(zip(axes, movements, strict=True), 1):
            half = 0.5 * len(one.volume) * pixel_size
            shift = -0.5 * pixel_size if len(one.volume) % 2 == 0 else 0.0  # voxel D//2 is the box centre
            edges = (-half + shift, half + shift)
            found = [
                _mean_arrows(one.centres[:, [i, j]], one.moved[:, [i, j]], one.masses, near) for *_, i, j, _ in views
            ]
            longest = max(float(np.linalg.norm(arrows, axis=1).max(initial=0)) for _, arrows in found) or 1.0
            for at, (right, up, _, _, summed), (places, arrows) in zip(row, views, found, strict=True):
                at.imshow(one.volume.sum(axis=summed), cmap="Greys", origin="lower", extent=(*edges, *edges), alpha=0.6)
                drawn = at.quiver(
                    *places.T, *arrows.T, np.linalg.norm(arrows, axis=1), angles="xy", scale_units="xy", scale=1,
                    cmap="plasma", clim=(0, longest), width=0.008,
                )  # fmt: skip
                at.set(xlim=(-near, near), ylim=(-near, near), xlabel=f"{right} (Å)", ylabel=f"{up} (Å)")
            figure.colorbar(drawn, ax=row[-1], shrink=0.8, label="Å")
            row[0].set_title(f"component {number}, from its 5 % to its 95 % quantile", fontsize=9, loc="left")
        save(figure, path)


_LEAST_MASS = 0.05  # least mass of a cell that gets an arrow, as a share of the heaviest one's
_ARROW_CELLS = 14  # cells along an edge of the picture in which arrows are averaged


def _mean_arrows(
    places: NDArray[np.float64], arrows: NDArray[np.float64], masses: NDArray[np.float64], near: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean place and arrow, weighted by mass, of the Gaussians in each cell that holds enough of them."""
    cell = np.floor((places + near) / (2 * near) * _ARROW_CELLS).astype(int)
    inside = ((cell >= 0) & (cell < _ARROW_CELLS)).all(axis=1)
    number = cell[inside] @ (_ARROW_CELLS, 1)
    columns = np.column_stack([np.ones(inside.sum()), places[inside], arrows[inside]]) * masses[inside, None]
    sums = np.stack([np.bincount(number, column, _ARROW_CELLS**2) for column in columns.T], axis=1)
    kept = sums[:, 0] > _LEAST_MASS * sums[:, 0].max()
    means = sums[kept, 1:] / sums[kept, :1]
    return means[:, :2], means[:, 2:]


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
