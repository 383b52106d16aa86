"""The figure for each part of the study."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from emsplat.figures.reconstruction import BLUE, GREEN, ORANGE, SKY, VERMILION, correlation_axes
from study_data import Row


def _line(axes: Axes, rows: list[Row], x: str, label: str | None, color: str, **kind: Any) -> None:
    points = sorted((float(row[x]), row["F"], row.get("± F") or 0.0) for row in rows)
    across, up, error = np.array(points).T
    axes.errorbar(across, up, error, label=label, color=color, marker="o", ms=4, lw=1.5, capsize=2, **kind)


def _groups(rows: list[Row], key: str) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row[key] == name] for name in dict.fromkeys(row[key] for row in rows)}


def _panel(figure: Figure, xlabel: str, log: bool = True) -> Axes:
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel="F, mean FSC with the truth", xscale="log" if log else "linear")
    if log:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    return axes


def draw_solvers(figure: Figure, rows: list[Row]) -> None:
    axes = _panel(figure, "processor seconds of the fit of one half")
    for (name, some), color in zip(_groups(rows, "solver").items(), (BLUE, VERMILION), strict=False):
        _line(axes, some, "fit, s", name, color)
    axes.axvline(rows[0]["pass, s"], color="#8a8a8a", ls=":", lw=1)
    axes.annotate(" the pass", (rows[0]["pass, s"], 0.03), xycoords=("data", "axes fraction"), color="#8a8a8a")
    axes.legend()


def draw_anisotropy(figure: Figure, rows: list[Row]) -> None:
    axes = _panel(figure, "Gaussians")
    for (name, some), color in zip(_groups(rows, "shape").items(), (BLUE, ORANGE), strict=False):
        _line(axes, some, "Gaussians", name, color)
    axes.legend()


def draw_count(figure: Figure, rows: list[Row]) -> None:
    axes = _panel(figure, "Gaussians")
    for (snr, some), color in zip(_groups(rows, "SNR").items(), (BLUE, GREEN, VERMILION), strict=False):
        _line(axes, some, "Gaussians", f"SNR {snr}", color)
        chosen = [row for row in some if row["chosen"]]
        axes.plot([r["Gaussians"] for r in chosen], [r["F"] for r in chosen], "o", ms=10, mfc="none", mec=color)
    axes.legend(title="circled: chosen by itself")


def draw_positivity(figure: Figure, rows: list[Row]) -> None:
    axes = _panel(figure, "Gaussians")
    for (snr, some), color in zip(_groups(rows, "SNR").items(), (BLUE, GREEN, VERMILION), strict=False):
        for (masses, line), dash in zip(_groups(some, "masses").items(), ("-", "--", ":"), strict=False):
            _line(axes, line, "Gaussians", f"SNR {snr}, {masses}", color, ls=dash)
    axes.legend(fontsize=8)


def draw_truncation(figure: Figure, rows: list[Row]) -> None:
    axes = _panel(figure, "cut-off (standard deviations)", log=False)
    _line(axes, rows, "cut-off", None, BLUE)
    times = axes.twinx()
    times.spines.right.set_visible(True)
    times.plot([float(r["cut-off"]) for r in rows], [r["fit, s"] for r in rows], color=ORANGE, marker="s", ms=4, lw=1)
    times.set_ylabel("processor seconds of a fit", color=ORANGE)
    times.set_ylim(bottom=0)


def draw_bandlimiting(figure: Figure, rows: list[Row], pixel_size: float) -> None:
    n = len(rows[0]["curve"])
    frequency = np.arange(1, n + 1) / (2 * n * pixel_size)
    axes = correlation_axes(figure, frequency, "FSC with the truth")
    for row, color in zip(rows[:5], (VERMILION, ORANGE, SKY, BLUE, GREEN), strict=True):
        label = f"κ = {row['κ']:g}" + (f", σ ≥ {row['σ at least']:g}" if row["κ"] == 0 else "")
        axes.plot(frequency, row["curve"], color=color, lw=1.5, label=label)
    lowest = min(float(row["curve"].min()) for row in rows[:5])
    axes.set(xlim=(0.3 * frequency[-1], frequency[-1]), ylim=(max(0.0, lowest - 0.02), 1.0))
    axes.legend(loc="lower left")
