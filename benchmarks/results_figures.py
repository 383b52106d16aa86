"""The figures of docs/results.md, from the pages in benchmarks/results.

python benchmarks/results_figures.py
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from emsplat.figures.reconstruction import BLUE, GREEN, ORANGE, QUIET, SKY, VERMILION, save, style

_REPOSITORY = Path(__file__).resolve().parents[1]
_RESULTS, _FIGURES = _REPOSITORY / "benchmarks" / "results", _REPOSITORY / "docs" / "figures"
_COLOURS = {"Gaussians": BLUE, "hash grid": GREEN, "neural field": VERMILION}

Row = dict[str, Any]


def tables_of(name: str, results: Path = _RESULTS) -> dict[str, Any] | None:
    """The content of a page of results; None if there is no such page."""
    path = results / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def draw_fields(content: dict[str, Any], path: Path) -> None:
    """F against processor seconds, one panel for each set: the search dashed, the final fit solid."""
    rows, curves = content["tables"]["One half of the images"], content["curves"]
    names = list(dict.fromkeys(row["set"] for row in rows))
    height = (len(names) + 1) // 2
    with style():
        figure = Figure(figsize=(8.2, 3.1 * height), layout="constrained")
        for number, name in enumerate(names, 1):
            axes = figure.add_subplot(height, 2, number)
            inverted = next(row["F"] for row in rows if (row["set"], row["model"]) == (name, "direct inversion"))
            axes.axhline(inverted, color=QUIET, ls=":", lw=1.2, label="direct inversion")
            for model, colour in _COLOURS.items():
                points = curves.get(name, {}).get(model, [])
                for phase, dashes in (("search", (0, (3, 2))), ("fit", "-")):
                    line = np.array([(t, f) for t, f, when in points if when == phase])
                    if len(line):
                        axes.plot(*line.T, color=colour, ls=dashes, lw=1.5, label=model if phase == "fit" else None)
                if points:
                    axes.plot(*points[-1][:2], "o", color=colour, ms=5)
            axes.set(xscale="log", xlabel="processor seconds", ylabel="F", ylim=(max(0.0, inverted - 0.35), 1.0))
            axes.set_title(name, loc="left", fontsize=10)
        handles = {
            label: handle for one in figure.axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), fontsize=8)
        save(figure, path)


def draw_quality(content: dict[str, Any], path: Path) -> None:
    """What each map leaves of the error, 1 − F, one group of bars for each set."""
    rows: list[Row] = next(iter(content["tables"].values()))
    bars = [
        ("RELION all", "RELION's direct inversion of all images", ORANGE),
        ("raw all", "our direct inversion of all images", SKY),
        ("average", "Gaussians, average of the halves", BLUE),
        ("map", "map", GREEN),
    ]
    bars = [bar for bar in bars if any(row.get(bar[0]) is not None for row in rows)]
    with style():
        figure = Figure(figsize=(8.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for number, (column, label, colour) in enumerate(bars):
            places = np.arange(len(rows)) + (number - 0.5 * (len(bars) - 1)) / (len(bars) + 1)
            heights = [np.nan if row.get(column) is None else 1 - row[column] for row in rows]
            axes.bar(places, heights, 0.9 / (len(bars) + 1), color=colour, label=label)
        labels = [f"{textwrap.fill(row['case'], 17)}\nSNR {row['SNR']:g}" for row in rows]
        axes.set_xticks(range(len(rows)), labels, fontsize=7)
        axes.set(ylabel="error left, 1 − F")
        axes.legend(fontsize=8)
        save(figure, path)


def draw_poses(content: dict[str, Any], path: Path) -> None:
    """The share of the poses that each run without poses has found, coloured by its verdict, on a line for each set."""
    rows: list[Row] = [row for part in ("sets", "hard") for row in content["tables"].get(part, [])]
    runs: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row["near"] is not None:
            runs.setdefault((row["set"], row["images"]), []).append(row)
    of_sets = sorted(runs.values(), key=lambda of_set: min(row["near"] for row in of_set))
    rows = [row for of_set in of_sets for row in of_set]
    line = [place for place, of_set in enumerate(of_sets) for _ in of_set]
    names = [
        f"{of_set[0]['set']}, {of_set[0]['images']:,} images" + f", {len(of_set)} seeds" * (len(of_set) > 1)
        for of_set in of_sets
    ]
    with style():
        figure = Figure(figsize=(8.2, 0.9 + 0.22 * len(of_sets)), layout="constrained")
        axes = figure.add_subplot()
        for verdict, colour in (("converged", GREEN), ("uncertain", ORANGE), ("failed", VERMILION)):
            places = [place for place, row in zip(line, rows, strict=True) if row["verdict"] == verdict]
            found = [row["near"] for row in rows if row["verdict"] == verdict]
            axes.hlines(places, 0, found, color=colour, lw=1.2)
            axes.plot(found, places, "o", color=colour, ms=5, label=verdict)
        axes.axvline(0.5, color=QUIET, ls=":", lw=1.2, label="right from here on")
        axes.set_yticks(range(len(of_sets)), names, fontsize=7)
        axes.set(xlabel="share of the poses within 15° of the truth", xlim=(0, 1.02))
        axes.legend(fontsize=8, loc="lower right")
        save(figure, path)


def draw_states(content: dict[str, Any], path: Path) -> None:
    """The score of one map for all images, of the decoder, and of maps of the true labels, one group for each set."""
    rows: list[Row] = sorted(content["tables"]["Sets with known states"], key=lambda row: row["set"], reverse=True)
    scores = {
        "one map for all images": [_number(row["consensus"]) for row in rows],
        "decoder": [_number(row["decoder"]) if row["K"] else np.nan for row in rows],
        "maps of the true labels": [
            np.nanmax([_number(row["true labels, inverted"]), _number(row["true labels, fitted"])]) for row in rows
        ],
    }
    with style():
        figure = Figure(figsize=(8.2, 0.6 + 0.45 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for number, ((label, lengths), colour) in enumerate(zip(scores.items(), (SKY, BLUE, ORANGE), strict=True)):
            places = np.arange(len(rows)) - 0.25 * (number - 1)
            axes.barh(places, lengths, 0.22, color=colour, label=label)
        axes.set_yticks(range(len(rows)), [f"{row['set']}, K = {row['K']}" for row in rows], fontsize=8)
        axes.set(xlabel="mean FSC with each image's true map", xlim=(0, 1.02))
        figure.legend(fontsize=8, loc="outside upper center", ncols=3)
        save(figure, path)


def _number(text: str | None) -> float:
    return np.nan if text is None else float(text)


def main() -> None:
    drawings = {"fields": draw_fields, "quality": draw_quality, "abinitio": draw_poses, "heterogeneity": draw_states}
    for name, draw in drawings.items():
        content = tables_of(name)
        if content is None:
            print(f"{name}: no page of results yet")
        else:
            draw(content, _FIGURES / f"results-{name}.png")


if __name__ == "__main__":
    main()
