"""Colours that every kind of colour vision tells apart, and legends in words."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

RGB = tuple[float, float, float]  # shares of 1, as a screen takes them

PLAIN: RGB = (0.43, 0.66, 0.86)
HALVES: tuple[RGB, RGB] = ((0.90, 0.62, 0.0), (0.34, 0.71, 0.91))  # orange and sky blue
# The colours of chains: Okabe & Ito (2008), https://jfly.uni-koeln.de/color, without black.
CHAINS: tuple[RGB, ...] = (
    (0.90, 0.62, 0.0), (0.34, 0.71, 0.91), (0.0, 0.62, 0.45), (0.94, 0.89, 0.26), (0.80, 0.47, 0.65), (0.84, 0.37, 0.0),
    (0.0, 0.45, 0.70),
)  # fmt: skip
# Blue to yellow, steadily lighter, for every kind of colour vision; its dark end is visible on a dark background.
_RAMP = ((38, 92, 196), (88, 122, 186), (138, 149, 165), (188, 180, 134), (232, 212, 100), (255, 238, 130))
_RANGE = (0.02, 0.98)  # quantiles between which the ramp runs


@dataclass(frozen=True)
class Scale:
    """The range of values of the colour ramp, and its legend."""

    name: str
    unit: str
    low: float
    high: float
    reversed: bool = False  # whether the lowest values are the brightest

    @staticmethod
    def over(name: str, unit: str, values: NDArray[np.floating], reversed: bool = False) -> Scale:
        """A scale over the range of most of these values."""
        low, high = (float(q) for q in np.quantile(values, _RANGE)) if len(values) else (0.0, 1.0)
        return Scale(name, unit, low, high if high > low else low + 1.0, reversed)

    def colours(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """(K, 3) colours of the values, as shares of 1."""
        shares = np.clip((values - self.low) / (self.high - self.low), 0, 1)
        at = (1 - shares if self.reversed else shares) * (len(_RAMP) - 1)
        ramp = np.array(_RAMP, dtype=np.float32) / 255
        return np.stack([np.interp(at, np.arange(len(ramp)), channel) for channel in ramp.T], axis=-1).astype(
            np.float32
        )

    def legend(self) -> str:
        """The ramp with its ends in numbers, as HTML."""
        stops = ", ".join(_css(colour) for colour in self.colours(np.linspace(self.low, self.high, 9)))
        low, high = (f"{value:.3g} {escape(self.unit)}".strip() for value in (self.low, self.high))
        label = f"colour: {escape(self.name)}, from {low} to {high}"
        return (
            f'<figure role="img" aria-label="{label}" style="margin:0.2em 1em 0.6em">'
            f'<div style="height:0.8em;border-radius:3px;background:linear-gradient(to right, {stops})"></div>'
            '<figcaption style="display:flex;justify-content:space-between;font-size:0.8em">'
            f"<span>{low}</span><span>{escape(self.name)}</span><span>{high}</span></figcaption></figure>"
        )


def swatches(named: dict[str, RGB]) -> str:
    """Colours and their names, as HTML."""
    items = "".join(
        f'<span style="white-space:nowrap"><span aria-hidden="true" style="display:inline-block;width:0.8em;'
        f'height:0.8em;border-radius:3px;background:{_css(colour)}"></span> {escape(name)}</span>'
        for name, colour in named.items()
    )
    return f'<div style="margin:0.2em 1em 0.6em;display:flex;gap:1.2em;font-size:0.8em">{items}</div>'


def _css(colour: RGB | NDArray[np.floating]) -> str:
    return f"rgb({', '.join(str(round(255 * float(c))) for c in colour)})"
