"""The picture of a check."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from emsplat.check.gallery import Gallery
from emsplat.check.inversion import QuickMap
from emsplat.check.run import Check, Inversion, closing_line
from emsplat.check.thon import ThonFit
from emsplat.figures.reconstruction import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    QUIET,
    VERMILION,
    correlation_axes,
    draw_orientations,
    fit_height,
    grey_range,
    save,
    scale_bar,
    style,
)
from emsplat.fourier import maps

_WIDTH, _GALLERY_HEIGHT, _CURVES_HEIGHT, _LINE = 13.0, 5.6, 4.0, 0.22  # inches
_HEAD_CHARACTERS, _CHARACTERS = 140, 180  # of a line across the picture


def draw_check(result: Check, path: Path) -> None:
    """Draws all of it into one file; the ending of the path chooses the format."""
    lines = _headline(result)
    head = 0.3 + _LINE * len(lines)
    with style(), rc_context({"figure.titlesize": 10.5}):
        figure = Figure(figsize=(_WIDTH, head + _GALLERY_HEIGHT + _CURVES_HEIGHT), layout="constrained")
        heights = [head, _GALLERY_HEIGHT, _CURVES_HEIGHT]
        top, middle, bottom = figure.subfigures(3, 1, squeeze=False, height_ratios=heights)[:, 0]
        _write_headline(top, lines, head)
        quick = result.inversion.quick if result.inversion else None
        images, volume = middle.subfigures(1, 2, squeeze=False, width_ratios=[6, 1.12])[0]
        _draw_gallery(images, result.gallery)
        _draw_slices(volume, quick)
        views, rings, halves = bottom.subfigures(1, 3, squeeze=False, width_ratios=[1.12, 1, 1])[0]
        draw_orientations(views, result.particles.euler_angles_in_degrees, bar_length=0.5)
        _draw_rings(rings, result.thon)
        _draw_halves(halves, result.inversion)
        save(figure, path)


def _headline(result: Check) -> list[tuple[str, str]]:
    """Text and colour of each line on top: what was looked at, what is wrong."""
    looked_at = f"{len(result.sample.rows):,} of {len(result.particles):,} images looked at"
    head = textwrap.wrap(f"{result.particles.source}: {looked_at}; {closing_line(result)}", _HEAD_CHARACTERS)
    lines = [(text, INK) for text in head]
    for finding in result.problems:
        wrapped = textwrap.wrap(finding.line(), _CHARACTERS)
        lines += [(("    " if i else "•  ") + text, VERMILION) for i, text in enumerate(wrapped)]
    return lines


def _write_headline(figure: FigureBase, lines: list[tuple[str, str]], height: float) -> None:
    for number, (text, colour) in enumerate(lines):
        y = 1 - (0.15 + _LINE * number) / height
        weight, size = ("bold", 11) if colour == INK else ("normal", 9.5)
        figure.text(0.012, y, text, color=colour, fontweight=weight, fontsize=size, va="top")


def _draw_gallery(figure: FigureBase, gallery: Gallery) -> None:
    rows = [("as recorded", gallery.recorded), (f"low-passed, {gallery.resolution:.0f} Å", gallery.low_passed)]
    if gallery.predicted is not None:
        rows.append(("predicted", gallery.predicted))
    grid = figure.subplots(len(rows), len(gallery.recorded), squeeze=False)
    for axes in grid.ravel():
        _bare(axes)
    table = gallery.particles
    defocus = 0.5 * (table.defocus_u_in_angstroms + table.defocus_v_in_angstroms)
    for number, (row, (label, images)) in enumerate(zip(grid, rows, strict=True)):
        for axes, image, z in zip(row, images, defocus, strict=True):
            low, high = grey_range([image])
            axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="bicubic")
            if number == 0:
                axes.set_title(f"{z:,.0f} Å", fontsize=9)
        row[0].set_ylabel(label, fontsize=9.5)
    scale_bar(grid[0][0], gallery.recorded.shape[-1], table.pixel_size_in_angstroms)
    figure.suptitle("images by defocus")


def _draw_slices(figure: FigureBase, quick: QuickMap | None) -> None:
    """Central slices of the small map, at one grey scale."""
    grid = figure.subplots(3, 1)
    figure.suptitle("small map, slices" if quick else "no map")
    for axes in grid:
        _bare(axes)
    if quick is None:
        return
    volume = maps.low_pass(quick.map, quick.pixel_size, 2 * quick.pixel_size)
    middle = len(volume) // 2
    slices = (volume[middle], volume[:, middle], volume[:, :, middle])
    low, high = grey_range(slices)
    for axes, image, name in zip(grid, slices, ("x → y ↑", "x → z ↑", "y → z ↑"), strict=True):
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="bicubic")
        axes.set_title(name, fontsize=9)
    scale_bar(grid[0], len(volume), quick.pixel_size)


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _draw_rings(figure: FigureBase, thon: ThonFit | None) -> None:
    axes = figure.add_subplot()
    seen = f"best at {thon.best_scale:.2f} × pixel size" if thon and thon.is_visible else "not seen"
    figure.suptitle(f"CTF in the power spectra: {seen}")
    axes.set(xlabel="phase χ / π of the given CTF: zeros at whole numbers", ylabel="power over the shell's mean")
    if thon is None or len(thon.phase) == 0:
        _say(axes, "nothing to be told")
        return
    axes.plot(thon.phase, thon.observed, ".", color=BLUE, ms=5, label="images")
    axes.plot(thon.phase, thon.expected, color=VERMILION, lw=1.4, label="fit: a line in CTF² for each shell")
    axes.set_xticks(range(int(thon.phase.max()) + 2))
    axes.grid(axis="x", color=FAINT, lw=0.8)
    low, high = axes.get_ylim()
    axes.set(xlim=(0, thon.phase.max() + 0.1), ylim=(low, high + 0.2 * (high - low)))  # room for the legend
    axes.legend(loc="upper right", ncols=2, handlelength=1.4, columnspacing=1.2)


def _draw_halves(figure: FigureBase, inversion: Inversion | None) -> None:
    if inversion is None:
        _say(figure.add_subplot(), "no half maps")
        return
    quick, agreement = inversion.quick, inversion.agreement
    figure.suptitle(f"own pose beats {100 * agreement.rank:.1f} % of others ({agreement.significance:.0f} σ)")
    n = len(quick.half_fsc)
    frequency = np.arange(1, n + 1) / (len(quick.map) * quick.pixel_size)
    axes = correlation_axes(figure, frequency, "FSC of half maps of the sample", least_gap=0.1)
    for number, curve in enumerate(inversion.shuffled_fsc):
        axes.plot(frequency, curve, color=QUIET, lw=0.9, label="poses shuffled" if number == 0 else None)
    axes.plot(frequency, quick.half_fsc, color=GREEN, lw=2.2, label="poses as given")
    fit_height(axes)
    axes.legend(loc="upper right")


def _say(axes: Axes, text: str) -> None:
    _bare(axes)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=QUIET)
