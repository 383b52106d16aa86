"""What each choice of the method is worth. Each choice has a part, a figure and a page (docs/study.md).

python benchmarks/study.py --part positivity --work WORK
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import study_figures
import study_parts
from cases import QUICK, RUVB, resized
from common import REPOSITORY, RESULTS, Report, arguments
from emsplat.figures.reconstruction import save, style
from emsplat.runtime.threads import threads
from study_data import Row, Study

_SIZE = (5.0, 3.5)  # inches
_COMMON = """One half of the images ({case}, {half:,} images of it, SNR {snr:g}); F is the mean FSC of the fitted
Gaussians with the truth within the true mask, over all shells to Nyquist; means over {seeds} starting points. Times are
seconds of processor time on one core, so that what else runs on the machine matters little. """
_TEXTS = {
    "solvers": "No early end: the lengths are the ones given. The images solver starts from the same Gaussians.",
    "anisotropy": "Ellipsoids have nine parameters, balls five.",
    "count": "◀ the number the program chooses by itself for a single fit of these images.",
    "positivity": "A loop of its own without density control, the same for all but for the masses: logarithms, or "
    "the masses themselves, whose steps are the same share of the median mass; the Gaussians start as positive ones, "
    "drawn from the inversion, or every other one with its sign turned.",
    "truncation": "The same cut-off forward and backward, rescaled by the mass kept.",
    "bandlimiting": "κ = 0: splatted as they are. The figure is of the first five rows.",
}


_PARTS: dict[str, tuple[Callable[[Study], Iterator[Row]], Callable[..., None]]] = {
    "solvers": (study_parts.solvers, study_figures.draw_solvers),
    "anisotropy": (study_parts.anisotropy, study_figures.draw_anisotropy),
    "count": (study_parts.count, study_figures.draw_count),
    "positivity": (study_parts.positivity, study_figures.draw_positivity),
    "truncation": (study_parts.truncation, study_figures.draw_truncation),
    "bandlimiting": (study_parts.bandlimiting, study_figures.draw_bandlimiting),
}


def run_part(part: str, study: Study, args: Any) -> list[Row]:
    """Write the page of a part, row by row."""
    report = Report(f"study-{part}", f"Study: {part}", args)
    case, settings = study.cases[0], study.cases[0].settings
    text = _COMMON.format(case=case.name, half=settings.n_images // 2, snr=settings.snr, seeds=study.seeds)
    text = text.replace("means over 1 starting points", "one starting point") + _TEXTS[part]
    rows: list[Row] = []
    with threads(1):
        for row in _PARTS[part][0](study):
            rows.append(row)
            report.extra["curves"] = [row["curve"].tolist() for row in rows if "curve" in row]
            report.table("Results", [{k: v for k, v in r.items() if k != "curve"} for r in rows], text)
    return rows


def rows_of_page(part: str, results: Path) -> list[Row]:
    content = json.loads((results / f"study-{part}.json").read_text(encoding="utf-8"))
    rows: list[Row] = content["tables"]["Results"]
    for row, curve in zip(rows, content["curves"], strict=False):
        row["curve"] = np.array(curve)
    return rows


def main() -> None:
    args = arguments(
        __doc__, part=("all", f"{', '.join(_PARTS)}, or all"), box_size=(64, "pixels"), images=(2000, "number"),
        seeds=(3, "starting points"), draw_only=(0, "1: only the figures, of the pages there are"),
    )  # fmt: skip
    base = QUICK if args.quick else resized(RUVB, args.box_size, args.images)
    cases = tuple(replace(base, settings=replace(base.settings, snr=snr)) for snr in (0.03, 0.005))
    study = Study(cases, args.work, 1 if args.quick else args.seeds, args.quick)
    figures = REPOSITORY / "docs" / "figures" if args.results == RESULTS else args.results / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for part in _PARTS if args.part == "all" else [args.part]:
        rows = rows_of_page(part, args.results) if args.draw_only else run_part(part, study, args)
        draw = _PARTS[part][1]
        if part == "bandlimiting":
            draw = partial(draw, pixel_size=base.settings.pixel_size_in_angstroms)
        with style():
            figure = Figure(figsize=_SIZE, layout="constrained")
            draw(figure, rows)
            save(figure, figures / f"study-{part}.png")


if __name__ == "__main__":
    main()
