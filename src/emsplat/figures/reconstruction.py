"""Pictures of a run: curves, slices, projections, viewing directions and losses.

Every function draws one figure and writes it whole or not at all. The ending of the path chooses the format. The
colours are those of Okabe & Ito, which survive colour blindness and black-and-white print.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike, NDArray

from emsplat.runtime.files import replacing
from emsplat.validation.validate import C_AT_RESOLUTION, Validation

INK, QUIET, FAINT = "#222222", "#8a8a8a", "#d9d9d9"
BLUE, ORANGE, GREEN, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00"
_TITLE_WIDTH = 72  # characters
_PNG_COMPRESSION = 2  # of 0 to 9

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.labelsize": 10,
    "axes.titlesize": 10.5,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "savefig.dpi": 160,
    "svg.hashsalt": "emsplat",  # the same figure gives the same file
}


def style() -> AbstractContextManager[None]:
    return matplotlib.rc_context(STYLE)


def save(figure: Figure, path: str | Path) -> None:
    """Save a figure, under a temporary name first. A Figure without pyplot uses Agg and needs no display."""
    path = Path(path)
    kind = path.suffix.lstrip(".") or "png"
    options: dict[str, Any] = {}
    if kind == "png":
        _lay_out(figure)
        # Higher levels of compression make the files little smaller and take several times as long.
        options["pil_kwargs"] = {"compress_level": _PNG_COMPRESSION}
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, **options)


def _lay_out(figure: Figure) -> None:
    """Fix the layout of a figure; otherwise matplotlib draws all of it twice, the first time for the layout alone."""
    layout = figure.get_layout_engine()
    if layout is not None:
        figure.set_dpi(matplotlib.rcParams["savefig.dpi"])
        layout.execute(figure)
        figure.set_layout_engine(None)


# --- curves -----------------------------------------------------------------------------------------------------------


def correlation_axes(figure: FigureBase, frequency: NDArray[np.float64], label: str, least_gap: float = 0.065) -> Axes:
    """Axes of a correlation against frequency in 1/Å, with the resolution in Å along the top.

    Args:
        least_gap: smallest distance between two labels of the resolution, as a share of the axis.
    """
    axes = figure.add_subplot()
    last = float(frequency[-1])
    axes.set(xlim=(0, last), xlabel="spatial frequency (1/Å)", ylabel=label)
    axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
    top = axes.secondary_xaxis("top")
    ticks = _round_resolutions(last, least_gap)
    top.set_xticks([1 / r for r in ticks], [f"{r:g}" for r in ticks])
    top.set_xlabel("resolution (Å)", labelpad=6)
    top.tick_params(length=3)
    return axes


def fit_height(axes: Axes) -> None:
    """Set the range from just below 0, or from the lowest curve if it is lower, to 1."""
    lowest = min(float(np.nanmin(line.get_ydata(), initial=0.0)) for line in axes.get_lines())
    axes.set_ylim(max(-0.5, min(-0.08, lowest - 0.03)), 1.04)


def _round_resolutions(last_frequency: float, least_gap: float) -> list[float]:
    """Round numbers of Å from Nyquist down whose frequencies lie at least `least_gap` of the axis apart."""
    decades = [m * 10.0**e for e in range(-1, 4) for m in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]
    kept: list[float] = []
    for resolution in decades:
        f = 1 / resolution
        clear = not kept or 1 / kept[-1] - f >= least_gap * last_frequency
        if f <= last_frequency * 1.0001 and clear and f > 0.04 * last_frequency:
            kept.append(resolution)
    return kept


def _threshold(axes: Axes, value: float, text: str) -> None:
    axes.axhline(value, color=QUIET, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.annotate(
        text, (0.006, value), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
        color=QUIET, fontsize=8, va="bottom",
    )  # fmt: skip


def figure_fsc(
    validation: Validation,
    path: str | Path,
    truth: ArrayLike | None = None,
    title: str | None = None,
    fitted: str = "Gaussians",
) -> None:
    """Draw c_map with ± one standard error, and behind it the classical curves of the FSC.

    Args:
        truth: (D//2,) correlation with the known truth of a simulation within the same mask.
        title: the title, of any length.
        fitted: what was fitted, in the plural.
    """
    v = validation
    shown = np.arange(len(v.frequency)) < v.limit_shell
    with style():
        figure = Figure(figsize=(7.4, 4.8), layout="constrained")
        axes = correlation_axes(figure, v.frequency, "correlation")
        behind = (
            (v.gaussian_half, ORANGE, "-", f"FSC, half maps of {fitted} (overstates: shared prior)"),
            (v.raw_half_masked, SKY, "-", "FSC, direct inversions, masked"),
            (v.raw_half_corrected, SKY, (0, (1, 1.2)), "FSC, direct inversions, corrected for the mask"),
            (v.raw_half_unmasked, QUIET, (0, (5, 2)), "FSC, direct inversions, unmasked"),
        )
        for curve, colour, dashes, label in behind:
            axes.plot(v.frequency, curve, color=colour, ls=dashes, lw=1.2, label=label, zorder=2)
        if np.any(shown):
            f, c, se = v.frequency[shown], v.c_map[shown], v.c_map_se[shown]
            axes.fill_between(f, c - se, c + se, color=BLUE, alpha=0.2, lw=0, zorder=3)
            axes.plot(f, v.c_half[shown], color=GREEN, lw=1.3, label="c_half: one half and the truth", zorder=3)
            if np.any(v.inversion_share > 0):
                axes.plot(
                    f,
                    v.c_gaussians[shown],
                    color=VERMILION,
                    lw=1.3,
                    label=f"the {fitted} alone and the truth",
                    zorder=3,
                )
                axes.plot(
                    f, v.inversion_share[shown], color=INK, lw=0.9, ls=(0, (6, 2, 1, 2)),
                    label="share of the direct inversion in the map", zorder=2,
                )  # fmt: skip
            axes.plot(f, c, color=BLUE, lw=2.4, label="c_map: final map and the truth, ± 1 s.e.", zorder=5)
        if truth is not None:
            axes.plot(
                v.frequency, truth, color=INK, ls=(0, (1, 1.5)), lw=1.6, label="true correlation of the map", zorder=6
            )
        fit_height(axes)
        _threshold(axes, C_AT_RESOLUTION, "0.5")
        _mark_limit(axes, v)
        if v.resolution is not None:
            _mark_resolution(axes, 1 / v.resolution)
        axes.set_title(textwrap.fill(title or "", _TITLE_WIDTH), loc="left", fontweight="bold", pad=10)
        handles, labels = axes.get_legend_handles_labels()
        order = np.argsort([-h.get_zorder() for h in handles], kind="stable")
        figure.legend(
            [handles[i] for i in order], [labels[i] for i in order], loc="outside lower left", ncols=2,
            handlelength=2.2, columnspacing=1.2,
        )  # fmt: skip
        save(figure, path)


def _mark_limit(axes: Axes, v: Validation) -> None:
    """Make the background grey beyond the limit of measurability."""
    if v.limit_shell >= len(v.frequency):
        return
    start = v.frequency[v.limit_shell - 1] if v.limit_shell else 0.0
    axes.axvspan(start, v.frequency[-1], color="#f2f2f2", lw=0, zorder=0)
    room = 1 - start / v.frequency[-1]
    text = "beyond the limit\nof measurability" if v.limit_shell else "no estimate"
    right = room < 0.25
    axes.annotate(
        text, (v.frequency[-1] if right else start, 1.02), xytext=(-4 if right else 5, 0), textcoords="offset points",
        color=QUIET, fontsize=8, va="top", ha="right" if right else "left", zorder=1,
    )  # fmt: skip


def _mark_resolution(axes: Axes, frequency: float) -> None:
    axes.plot(
        [frequency, frequency], [axes.get_ylim()[0], C_AT_RESOLUTION], color=BLUE, lw=0.9, ls=(0, (2, 2)), zorder=4
    )
    axes.plot(frequency, C_AT_RESOLUTION, "o", ms=6, mfc="white", mec=BLUE, mew=1.8, zorder=7)


def figure_fsc_pair(
    curve: ArrayLike,
    frequency: NDArray[np.float64],
    path: str | Path,
    resolutions: dict[float, float | None] | None = None,
    masked: ArrayLike | None = None,
) -> None:
    """Draw the FSC of two maps, for `emsplat fsc`.

    Args:
        curve, masked: (D//2,) FSC in shells 1 .. D//2, without and with a mask.
        frequency: (D//2,) frequencies in 1/Å.
        resolutions: resolution in Å at each threshold, or None if the curve never falls below it.
    """
    with style():
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = correlation_axes(figure, frequency, "Fourier shell correlation")
        plain = QUIET if masked is not None else BLUE
        axes.plot(frequency, curve, color=plain, lw=1.4 if masked is not None else 2.2, label="unmasked")
        if masked is not None:
            axes.plot(frequency, masked, color=BLUE, lw=2.2, label="masked")
            axes.legend(loc="upper right")
        fit_height(axes)
        for threshold, resolution in (resolutions or {}).items():
            found = f"{threshold:g}: {resolution:.2f} Å" if resolution is not None else f"{threshold:g}: not reached"
            _threshold(axes, threshold, found)
            if resolution is not None:
                axes.plot(1 / resolution, threshold, "o", ms=5, mfc="white", mec=BLUE, mew=1.6, zorder=5)
        save(figure, path)


def figure_loss(
    steps: Sequence[ArrayLike],
    losses: Sequence[ArrayLike],
    held_out: Sequence[Sequence[tuple[int, float]]],
    path: str | Path,
) -> None:
    """Draw the loss of each half against the step, beside the loss of its held-out part if there is one.

    Args:
        steps, losses: one entry for each half, (n,) each.
        held_out: one entry for each half: steps of the search for the number of steps, and the losses after them.
    """
    with style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for half, (colour, x, y, held) in enumerate(zip((BLUE, VERMILION), steps, losses, held_out, strict=False), 1):
            axes.plot(x, y, color=colour, lw=1.8, label=f"half {half}")
            if len(held):
                label = f"half {half}, its held-out part (search)"
                axes.plot(*zip(*held, strict=True), color=colour, lw=1.2, ls=(0, (3, 2)), label=label)
        axes.set(xlabel="step", ylabel="loss", xlim=(0, None))
        axes.grid(axis="y", color=FAINT, lw=0.6)
        axes.legend(loc="upper right")
        save(figure, path)


# --- maps -------------------------------------------------------------------------------------------------------------

AXES = ("x", "y", "z")  # directions of view; the array axes are 2, 1, 0


def figure_slices(
    volume: NDArray[np.float32], path: str | Path, pixel_size: float, raw: NDArray[np.float32] | None = None
) -> None:
    """Draw three central slices of a map, and below them those of the direct inversion, with a grey scale for each row.

    Args:
        volume, raw: (D, D, D) ``[z, y, x]``.
        pixel_size: pixel size in Å.
    """
    middle = len(volume) // 2
    rows = [("map", volume)] + ([("direct inversion", raw)] if raw is not None else [])
    images = [(label, [v[:, :, middle], v[:, middle, :], v[middle, :, :]]) for label, v in rows]
    _image_rows(images, path, pixel_size, "central slice across {}")


def figure_projections(
    volume: NDArray[np.float32], path: str | Path, pixel_size: float, raw: NDArray[np.float32] | None = None
) -> None:
    """Draw three projections along the axes, laid out like `figure_slices`."""
    rows = [("map", volume)] + ([("direct inversion", raw)] if raw is not None else [])
    images = [(label, [v.sum(axis=axis) for axis in (2, 1, 0)]) for label, v in rows]
    _image_rows(images, path, pixel_size, "projection along {}")


def _image_rows(
    rows: Iterable[tuple[str, list[NDArray[np.float32]]]], path: str | Path, pixel_size: float, title: str
) -> None:
    """Draw rows of three square pictures with a scale bar, and one grey scale for each row."""
    rows = list(rows)
    with style():
        close = ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.03, hspace=0.0, wspace=0.0)
        figure = Figure(figsize=(8.1, 2.64 * len(rows) + 0.3), layout=close)
        grid = figure.subplots(len(rows), 3, squeeze=False)
        for row, (label, images) in zip(grid, rows, strict=True):
            low, high = grey_range(images)
            for axes, image, along in zip(row, images, AXES, strict=True):
                axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="bicubic")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if label == rows[0][0]:
                    axes.set_title(title.format(along))
                horizontal, vertical = {"x": ("y", "z"), "y": ("x", "z"), "z": ("x", "y")}[along]
                axes.text(
                    0.97, 0.03, f"{horizontal} → {vertical} ↑", transform=axes.transAxes, ha="right", va="bottom",
                    color="white", fontsize=8, alpha=0.85,
                )  # fmt: skip
            row[0].set_ylabel(label, fontsize=10.5)
        scale_bar(grid[0][0], images[0].shape[0], pixel_size)
        save(figure, path)


def grey_range(images: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """Limits that leave out the extreme 0.2 %, so that hot voxels do not darken the rest."""
    values = np.concatenate([image.ravel() for image in images])
    low, high = (float(x) for x in np.quantile(values, (0.002, 0.998)))
    return low, high if high > low else low + 1.0


def scale_bar(axes: Axes, box_size: int, pixel_size: float) -> None:
    """A bar of a round length, about a quarter of the picture."""
    target = 0.28 * box_size * pixel_size
    length = max(x for x in (m * 10.0**e for e in range(-1, 5) for m in (1, 2, 5)) if x <= target)
    x = 0.05 * box_size
    y = 0.06 * box_size
    axes.plot([x, x + length / pixel_size], [y, y], color="white", lw=3, solid_capstyle="butt")
    axes.text(x, y + 0.025 * box_size, f"{length:g} Å", color="white", fontsize=8.5, va="bottom")


# --- orientations -----------------------------------------------------------------------------------------------------


def direction_counts(euler_angles_in_degrees: ArrayLike, rows: int) -> NDArray[np.float64]:
    """(rows, 2 rows) images in bins of equal area on the sphere: height cos(tilt) from −1 up, rot from −180° across."""
    rot, tilt = np.deg2rad(np.asarray(euler_angles_in_degrees, dtype=np.float64)[:, :2]).T
    longitude = np.arctan2(np.sin(tilt) * np.sin(rot), np.sin(tilt) * np.cos(rot))
    edges = ((-1.0, 1.0), (-np.pi, np.pi))
    # On an edge, rounding decides the bin. A small increase puts all of them into the upper bin.
    height = np.clip(np.cos(tilt) + 1e-9, -1, 1)
    return np.histogram2d(height, np.clip(longitude + 1e-9, -np.pi, np.pi), bins=(rows, 2 * rows), range=edges)[0]


def figure_orientations(euler_angles_in_degrees: ArrayLike, path: str | Path) -> None:
    """Draw the number of images for each direction (rot, tilt) on an equal-area map of the sphere.

    Args:
        euler_angles_in_degrees: (N, 3) rot, tilt, psi.
    """
    with style():
        figure = Figure(figsize=(6.8, 3.9), layout="constrained")
        draw_orientations(figure, euler_angles_in_degrees)
        save(figure, path)


def draw_orientations(figure: FigureBase, euler_angles_in_degrees: ArrayLike, bar_length: float = 0.72) -> None:
    """Draw the map of `figure_orientations` on an empty figure or a part of one, with a bar of this relative length."""
    n = len(np.asarray(euler_angles_in_degrees))
    rows = int(np.clip(np.sqrt(n / 40), 6, 30))  # about 20 images in each bin
    counts = direction_counts(euler_angles_in_degrees, rows)
    relative = counts / max(counts.mean(), 1e-9)
    # Each bin is drawn as a stack of thin ones, so that its edges follow the curved meridians up to the poles.
    thin = 40
    latitudes = np.arcsin(np.linspace(-1, 1, rows * thin + 1))
    longitudes = np.linspace(-np.pi, np.pi, 2 * rows + 1)
    axes = figure.add_subplot(projection="mollweide")
    pieces = np.repeat(relative, thin, axis=0)
    mesh = axes.pcolormesh(longitudes, latitudes, pieces, cmap="cividis", vmin=0, rasterized=True)
    axes.set_axisbelow(False)
    axes.grid(color="white", lw=0.4, alpha=0.35)
    axes.set_xticks(np.deg2rad([-120, -60, 0, 60, 120]), ["−120°", "−60°", "0°", "60°", "120°"])
    axes.tick_params(axis="x", colors="white", labelcolor="white", labelsize=8)
    axes.set_yticks(np.deg2rad([-60, -30, 0, 30, 60]), ["150°", "120°", "90°", "60°", "30°"])
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title(f"viewing directions of {n:,} images (rot across, tilt up)", pad=10)
    bar = figure.colorbar(mesh, ax=axes, shrink=bar_length, pad=0.03)
    bar.set_label("images per direction, mean = 1")
    bar.outline.set_visible(False)
