"""Charts as SVG. They use the colours of the page, so that they print, scale and turn dark with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike, NDArray

_TICKS = 6
_DECADES = [m * 10.0**e for e in range(-1, 4) for m in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]  # round numbers of Å
_SLIVERS = 6  # of a bin of the sphere: its edges are curved
_LEAST_GAP = 0.075  # of the width, between ticks in Å


@dataclass(frozen=True)
class Axis:
    """The range of an axis, its label, and its ticks as pairs of value and label."""

    low: float
    high: float
    label: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Line:
    """A curve in which NaN leaves a gap. Its style is a CSS class of the page with colour, width and dashes."""

    x: ArrayLike
    y: ArrayLike
    style: str


@dataclass(frozen=True)
class Band:
    """The area between two curves."""

    x: ArrayLike
    low: ArrayLike
    high: ArrayLike
    style: str


@dataclass(frozen=True)
class Frame:
    """The size of a chart and its margins, in units that the page scales."""

    width: float = 640
    height: float = 360
    left: float = 62
    right: float = 14
    top: float = 14
    bottom: float = 56

    def x(self, axis: Axis, value: ArrayLike) -> NDArray[np.float64]:
        share = (np.asarray(value, dtype=np.float64) - axis.low) / (axis.high - axis.low)
        return self.left + share * (self.width - self.left - self.right)

    def y(self, axis: Axis, value: ArrayLike) -> NDArray[np.float64]:
        share = (np.asarray(value, dtype=np.float64) - axis.low) / (axis.high - axis.low)
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)


@dataclass(frozen=True)
class Chart:
    """Curves over two axes, drawn in the order given."""

    name: str  # the id of the element, unique on the page
    description: str  # for readers who cannot see the chart
    x: Axis
    y: Axis
    bands: Sequence[Band] = ()
    lines: Sequence[Line] = ()
    bars: tuple[ArrayLike, ArrayLike] | None = None  # edges (n + 1,) and heights (n,)
    level: tuple[float, str] | None = None  # a horizontal line and its label
    marks: Sequence[tuple[float, float]] = ()
    grey_from: tuple[float, str] | None = None  # the x from which the background is grey, and the reason
    top: Axis | None = None  # the same axis in other units, along the top
    frame: Frame = field(default_factory=Frame)

    def svg(self) -> Markup:
        f = self.frame
        parts = [
            *self._grey(),
            *self._axes(),
            *(self._band(band) for band in self.bands),
            *self._bars(),
            *(
                f'<path class="line {line.style}" d="{_path(f.x(self.x, line.x), f.y(self.y, line.y))}"/>'
                for line in self.lines
            ),
            *(
                f'<circle class="mark" cx="{f.x(self.x, x):.1f}" cy="{f.y(self.y, y):.1f}" r="5"/>'
                for x, y in self.marks
            ),
        ]
        plot = f"{f.left:g} {f.top:g} {f.width - f.right:g} {f.height - f.bottom:g}"
        return Markup(
            f'<svg id="{escape(self.name)}" class="chart" viewBox="0 0 {f.width:g} {f.height:g}" role="img" '
            f'aria-labelledby="{escape(self.name)}-title" data-plot="{plot}">'
            f'<title id="{escape(self.name)}-title">{escape(self.description)}</title>{"".join(parts)}</svg>'
        )

    def _axes(self) -> Iterable[str]:
        f = self.frame
        bottom, right = f.height - f.bottom, f.width - f.right
        for value, label in self.y.ticks:
            y = float(f.y(self.y, value))
            yield f'<line class="grid" x1="{f.left:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield _text(f.left - 8, y, label, "tick end middle")
        yield f'<line class="axis" x1="{f.left:g}" x2="{right:g}" y1="{bottom:g}" y2="{bottom:g}"/>'
        for value, label in self.x.ticks:
            x = float(f.x(self.x, value))
            yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:g}" y2="{bottom + 4:g}"/>'
            yield _text(x, bottom + 8, label, "tick centre under")
        yield _text(0.5 * (f.left + right), f.height - 4, self.x.label, "label centre")
        middle = 0.5 * (f.top + bottom)
        yield (
            f'<text class="label centre" transform="translate(14 {middle:g}) rotate(-90)">{escape(self.y.label)}</text>'
        )
        if self.top:
            for value, label in self.top.ticks:
                x = float(f.x(self.x, value))
                yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{f.top:g}" y2="{f.top - 4:g}"/>'
                yield _text(x, f.top - 8, label, "tick centre")
            yield _text(0.5 * (f.left + right), f.top - 28, self.top.label, "label centre")
        if self.level:
            y = float(f.y(self.y, self.level[0]))
            yield f'<line class="level" x1="{f.left:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield _text(f.left + 6, y - 5, self.level[1], "tick")

    def _grey(self) -> Iterable[str]:
        if self.grey_from is None:
            return
        f, (start, why) = self.frame, self.grey_from
        x, right = float(f.x(self.x, start)), f.width - f.right
        yield (
            f'<rect class="beyond" x="{x:.1f}" y="{f.top:g}" width="{max(right - x, 0):.1f}" '
            f'height="{f.height - f.top - f.bottom:g}"><title>{escape(why)}</title></rect>'
        )

    def _band(self, band: Band) -> str:
        known = np.isfinite(np.asarray(band.low)) & np.isfinite(np.asarray(band.high))
        x = self.frame.x(self.x, np.asarray(band.x)[known])
        low, high = (self.frame.y(self.y, np.asarray(edge)[known]) for edge in (band.low, band.high))
        outline = _path(np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]]))
        return f'<path class="band {band.style}" d="{outline}Z"/>' if len(x) else ""

    def _bars(self) -> Iterable[str]:
        if self.bars is None:
            return
        edges, heights = (np.asarray(part) for part in self.bars)
        x, base = self.frame.x(self.x, edges), float(self.frame.y(self.y, self.y.low))
        for left, right, top in zip(x[:-1], x[1:], self.frame.y(self.y, heights), strict=True):
            if top < base:
                size = f'width="{max(right - left - 1, 0.5):.1f}" height="{base - top:.1f}"'
                yield f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" {size}/>'


def linear_axis(low: float, high: float, label: str, ticks: int = _TICKS) -> Axis:
    """An axis from low to high with round ticks."""
    raw = (high - low) / ticks
    decade = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(m * decade for m in (1, 2, 2.5, 5, 10) if m * decade >= raw * 0.999)
    values = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    return Axis(low, high, label, [(float(v), f"{v:.6g}".replace("-", "−")) for v in values])


def resolution_axis(last_frequency: float) -> Axis:
    """An axis in Å along the top of frequencies in 1/Å from 0, with round numbers that do not collide."""
    kept: list[float] = []
    for resolution in _DECADES:
        f = 1 / resolution
        clear = not kept or 1 / kept[-1] - f >= _LEAST_GAP * last_frequency
        if 0.05 * last_frequency < f <= last_frequency * 1.0001 and clear:
            kept.append(resolution)
    return Axis(0, last_frequency, "resolution (Å)", [(1 / r, f"{r:g}") for r in kept])


def _path(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """A path through the points, interrupted at gaps."""
    steps: list[str] = []
    pen_down = False
    for a, b in zip(x, y, strict=True):
        if math.isfinite(a) and math.isfinite(b):
            steps.append(f"{'L' if pen_down else 'M'}{a:.1f} {b:.1f}")
            pen_down = True
        else:
            pen_down = False
    return "".join(steps)


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


# --- the sphere -------------------------------------------------------------------------------------------------------


def sphere_map(name: str, description: str, counts: NDArray[np.float64]) -> Markup:
    """Bins of equal area on the sphere in Mollweide's projection. The opacity of the fullest bin is 1.

    Args:
        counts: (rows, 2 rows) images in each bin; rows by height from −1, columns by longitude from −180°.
    """
    rows = len(counts)
    width, height, margin = 640.0, 340.0, 12.0
    top = float(counts.max()) or 1.0
    edges = _mollweide_angle(np.arcsin(np.linspace(-1, 1, rows + 1)))
    angle = np.interp(np.arange(_SLIVERS * rows + 1) / _SLIVERS, np.arange(rows + 1), edges)
    y = height / 2 - (height / 2 - margin) * np.sin(angle)
    half = (width / 2 - margin) * np.cos(angle)
    cells = []
    for row in range(rows):
        at = slice(_SLIVERS * row, _SLIVERS * (row + 1) + 1)
        for column in range(2 * rows):
            left, right = (width / 2 + half[at] * (c / rows - 1) for c in (column, column + 1))
            outline = _path(np.concatenate([left, right[::-1]]), np.concatenate([y[at], y[at][::-1]]))
            cells.append(f'<path d="{outline}Z" fill-opacity="{counts[row, column] / top:.3f}"/>')
    border = (
        f'<ellipse class="border" cx="{width / 2:g}" cy="{height / 2:g}" rx="{width / 2 - margin:g}" '
        f'ry="{height / 2 - margin:g}"/>'
    )
    middles = _mollweide_angle(np.deg2rad([-60.0, -30, 0, 30, 60]))
    lines = "".join(
        f'<line x1="{width / 2 - (width / 2 - margin) * math.cos(a):.1f}" '
        f'x2="{width / 2 + (width / 2 - margin) * math.cos(a):.1f}" '
        f'y1="{height / 2 - (height / 2 - margin) * math.sin(a):.1f}" '
        f'y2="{height / 2 - (height / 2 - margin) * math.sin(a):.1f}"/>'
        for a in middles
    )
    return Markup(
        f'<svg id="{escape(name)}" class="sphere" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-labelledby="{escape(name)}-title"><title id="{escape(name)}-title">{escape(description)}</title>'
        f'<g class="cells">{"".join(cells)}</g><g class="parallels">{lines}</g>{border}</svg>'
    )


def _mollweide_angle(latitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """The auxiliary angle θ of ``2θ + sin 2θ = π sin φ``, by interpolation. Source: Snyder (1987), USGS PP 1395."""
    theta = np.linspace(-np.pi / 2, np.pi / 2, 2001)
    return np.interp(np.pi * np.sin(latitude), 2 * theta + np.sin(2 * theta), theta)
