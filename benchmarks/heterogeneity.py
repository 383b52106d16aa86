"""Heterogeneity: sets with known states, sets of one state, and a mixture from another program.

Rows of earlier runs stay on the page, so that sets, seeds and parts can be added later. `--again PATTERN` makes the
rows anew in whose name the regular expression is found, `--only PATTERN` makes no others.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common import SHARED, ProcessorTimes, Report, arguments
from emsplat.errors import InputError
from emsplat.heterogeneity.result import Heterogeneity
from emsplat.heterogeneity.run import find_heterogeneity
from emsplat.io import read_map
from emsplat.runtime.reporting import peak_memory_in_bytes
from emsplat.settings import HeterogeneitySettings
from heterogeneity_scores import (
    decoded,
    error_of_latents,
    error_of_true_maps,
    honesty,
    inversions,
    reconstructions,
    score,
)
from heterogeneity_sets import (
    NULL,
    NULLS,
    QUICK,
    QUICK_NULL,
    SETS,
    SMALL,
    SMALL_NULL,
    Set,
    coordinates,
    simulated,
    simulated_null,
    states_of,
    truths_of,
)

_IMAGES_SCORED = 100
_ENOUGH = 0.985  # of what true labels give
UNITS = {"circle": "°", "discrete": " % wrong", "continuous": " % of sd"}

_SETS_TEXT = """The score is the mean FSC over shells 1 to D/2 − 1, in the mask of all conformations, of the map decoded
at an image's latent with that image's true map, over up to 100 images. *true labels*: the same of the direct inversion
of all images of a conformation, and of what `emsplat reconstruct` makes of them, where conformations are few.
*ratio*: the decoder's score by the better of these; required: .985. *latents*: the error of a quadratic regression on
one half's latents among the other half's images, as the median in degrees on a circle, the share of wrong
conformations, or the root mean square error of a coordinate of unit variance; *true maps*: the same of the posterior
under the true maps and populations, or, where conformations are continuous, the Cramér-Rao bound; *times*: the former
by the latter. Required: at most 1.7."""
_HONESTY_TEXT = """Means over the states of a run and over the shells up to the limit of measurability: of c_map,
and of the true correlation of the state's map with the average of the true maps of its images. Required: a mean
difference of at most .02."""
_NULLS_TEXT = """**Required: K = 0, or a plain warning where poses are wrong.** *variance* and *σ*: of the strongest
direction, in the half where it is weaker. A component counts if both halves find it from .3 and 5 σ on, or from .15 and
8 σ on."""
_TIMES_TEXT = """Processor time in ms an image, by stage, one thread."""
_FOREIGN_TEXT = """Two classes of a ribosome, simulated by tomoDRGN. *F*: mean FSC of a state's map with each class,
over shells 1 to D/2 − 1. The map is empty beyond the last shell in which the state's own images can be measured, and F
counts these shells as well."""


def run(star: Path, seed: int, **more: Any) -> tuple[Heterogeneity, ProcessorTimes, float]:
    """The job, its processor times, and the whole."""
    reporter, started = ProcessorTimes(), time.process_time()
    found = find_heterogeneity(star, HeterogeneitySettings(seed=seed, threads=1, **more), reporter)
    return found, reporter, time.process_time() - started


def set_rows(one: Set, work: Path, seed: int) -> dict[str, dict[str, Any]]:
    """The rows of one set, from images to scores, by the heading of their table."""
    star = simulated(one, work, seed)
    found, reporter, cpu = run(star, seed)
    labels, truths = states_of(star), truths_of(star)
    mask = read_map(star.with_name("mask.mrc")).values
    images = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), _IMAGES_SCORED)).astype(int)).tolist()

    def mean_score(of_image: Callable[[int], np.ndarray]) -> float:
        return float(np.mean([score(of_image(i), truths[labels[i]], mask) for i in images]))

    raw, fitted = inversions(found, labels), reconstructions(found, labels, seed)
    with_labels = [mean_score(lambda i: raw[labels[i]])]
    with_labels += [mean_score(lambda i: fitted[labels[i]])] if fitted else []
    decoder, true = mean_score(lambda i: decoded(found, i)), coordinates(one, truths)
    errors = [error_of_latents(one, found, labels, true)] if found.components.count else [np.nan]
    errors.append(error_of_true_maps(one, found, labels, truths, true))
    name = {"set": one.name, "images": one.n_images, "seed": seed}
    head = name | {
        "K": found.components.count,
        "consensus": f"{mean_score(lambda i: found.consensus.map):.3f}",
        "decoder": f"{decoder:.3f}",
        "true labels, inverted": f"{with_labels[0]:.3f}",
        "true labels, fitted": f"{with_labels[1]:.3f}" if fitted else None,
        "ratio": f"{decoder / max(with_labels):.3f}",
        "enough": decoder >= _ENOUGH * max(with_labels),
        "latents": f"{errors[0]:.1f}{UNITS[one.kind]}" if found.components.count else None,
        "true maps": f"{errors[1]:.1f}{UNITS[one.kind]}",
        "times": f"{errors[0] / errors[1]:.2f}" if found.components.count and errors[1] else None,
        "variances": " ".join(f"{v:.2f}" for v in _weaker(found)[0]),
        "CPU s": round(cpu),
        "GB": f"{peak_memory_in_bytes() / 1e9:.2f}",
    }
    pairs = np.array(honesty(found, labels, truths)).reshape(-1, 2)
    told = name | {"states": len(found.states), "measurable": len(pairs)}
    if len(pairs):
        told |= {"claimed": f"{pairs[:, 0].mean():.3f}", "true": f"{pairs[:, 1].mean():.3f}"}
        told |= {"mean difference": f"{np.abs(pairs[:, 0] - pairs[:, 1]).mean():.3f}"}
        told |= {"worst": f"{np.abs(pairs[:, 0] - pairs[:, 1]).max():.3f}"}
    stages = {stage: f"{1e3 * s / one.n_images:.2f}" for stage, s in reporter.processor_seconds.items()}
    times = name | {"stages": ", ".join(f"{stage} {ms}" for stage, ms in stages.items())}
    times["all"] = f"{1e3 * cpu / one.n_images:.1f}"
    return {_SETS: head, _HONESTY: told, _TIMES: times}


def _weaker(found: Heterogeneity) -> tuple[np.ndarray, np.ndarray]:
    """(K,) variance and significance of each direction, in the half where it is weaker."""
    seen = found.components.seen
    return np.minimum(seen[0].variance, seen[1].variance), np.minimum(seen[0].significance, seen[1].significance)


def _warned(warnings: list[str]) -> bool:
    """Whether a run has said that the poses are wrong, or may be."""
    return any("poses were off" in text or "poses are far off" in text for text in warnings)


def null_row(kind: str, one: Set, work: Path, seed: int) -> dict[str, Any]:
    """One set of one state: how many components are found, and what is said."""
    found, _, cpu = run(simulated_null(kind, one, work, seed), seed, refine=NULLS[kind].get("refine"))
    variance, significance = _weaker(found)
    sought = len(variance) > 0
    return {
        "one state": kind,
        "images": f"{one.n_images:,} × {one.box_size}²",
        "seed": seed,
        "K": found.components.count,
        "variance": f"{variance[0]:.2f}" if sought else "not sought",
        "σ": f"{significance[0]:.1f}" if sought else None,
        "largest canonical correlation": f"{found.components.canonical.max():.2f}" if sought else None,
        "warned of poses": "yes" if _warned(found.reporter.warnings) else "",
        "CPU s": round(cpu),
    }


def foreign_rows(seed: int) -> list[dict[str, Any]]:
    """tomoDRGN's mixture of two ribosomal classes: are the classes told apart?"""
    folder = SHARED.parent / "foreign" / "tomodrgn-10076"
    found, _, cpu = run(folder / "10076_both_32_sim.star", seed, invert=True)
    table = found.consensus.particles
    label = np.array(["classE" in str(table.stacks[s]) for s in table.stack]).astype(int)
    row: dict[str, Any] = {"set": _MIXTURE, "images": len(label), "seed": seed, "K": found.components.count}
    if not found.components.count:
        return [row | {"CPU s": round(cpu)}]
    two = Set("", "", 2, 32, 1.0, 0, 0.0)
    row["told apart"] = f"{100 - error_of_latents(two, found, label, np.eye(2)):.0f} %"
    truths = [read_map(folder / f"10076_class{c}_32.mrc").values for c in "DE"]
    rows = []
    for number, state in enumerate(found.states, 1):
        shown = label[found.latents.state == number - 1]
        of_state = {"state": number, "population": f"{100 * state.population:.0f} %"}
        of_state["of class E"] = f"{100 * np.mean(shown):.0f} %"
        scores = [score(state.map, t, state.mask) for t in truths]
        of_state |= {"F with class D": f"{scores[0]:.3f}", "F with class E": f"{scores[1]:.3f}"}
        rows.append(row | of_state | {"CPU s": round(cpu)})
    return rows


_SETS, _HONESTY, _TIMES = "Sets with known states", "Honesty of the states", "Times"
_NULLS, _FOREIGN, _MIXTURE = "Sets of one state", "Another program's mixture", "tomodrgn-10076"
_TEXTS = {_SETS: _SETS_TEXT, _HONESTY: _HONESTY_TEXT, _TIMES: _TIMES_TEXT, _NULLS: _NULLS_TEXT, _FOREIGN: _FOREIGN_TEXT}


class Page:
    """The page, with the rows of earlier runs and of others that add to it at the same time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.report, self.args = Report("heterogeneity", "Heterogeneity", args, keep=True), args
        self.revision = self.report.environment["emsplat"].split()[-1]
        if args.again:
            for heading, rows in self.report.tables.items():
                self.report.tables[heading] = [r for r in rows if not re.search(args.again, next(iter(r.values())))]
            self.report.write()

    def wants(self, heading: str, name: str, seed: int | None = None) -> bool:
        """Whether a row is asked for and was not there at the start."""
        rows = self.report.tables.get(heading, [])
        there = any(next(iter(r.values())) == name and seed in (None, r.get("seed")) for r in rows)
        return not there and re.search(self.args.only, name) is not None

    def add(self, heading: str, row: dict[str, Any]) -> None:
        """Add a row; all rows of a table get the columns of all."""
        written = self.report.folder / f"{self.report.name}.json"
        if written.exists():
            self.report.tables = json.loads(written.read_text(encoding="utf-8"))["tables"]
        rows = [*self.report.tables.get(heading, []), row | {"revision": self.revision}]
        names = list(dict.fromkeys(n for r in rows for n in r if n != "revision"))
        self.report.table(heading, [{n: r.get(n) for n in (*names, "revision")} for r in rows], _TEXTS[heading])


def main() -> None:
    args = arguments(
        __doc__, part=("sets,nulls,foreign", "parts to run"), only=("", "run rows whose name this is found in"),
        again=("", "make rows anew whose name this is found in"), seeds=(1, "seeds of each set"),
        null_seeds=(2, "seeds of each null"), foreign_seeds=(1, "seeds of another program's mixture"),
        small=(0, "1: smaller sets"),
    )  # fmt: skip
    page = Page(args)
    sets = QUICK if args.quick else SMALL if args.small else SETS
    null = QUICK_NULL if args.quick else SMALL_NULL if args.small else NULL
    if "sets" in args.part:
        for seed in range(1, args.seeds + 1):
            for one in sets:
                if page.wants(_SETS, one.name, seed):
                    for heading, row in set_rows(one, args.work, seed).items():
                        page.add(heading, row)
    if "nulls" in args.part:
        for seed in range(1, (1 if args.quick else args.null_seeds) + 1):
            for kind in list(NULLS)[: 2 if args.quick else None]:
                if page.wants(_NULLS, kind, seed):
                    page.add(_NULLS, null_row(kind, null, args.work, seed))
    for seed in range(1, args.foreign_seeds + 1) if "foreign" in args.part else ():
        if page.wants(_FOREIGN, _MIXTURE, seed):
            try:
                for row in foreign_rows(seed):
                    page.add(_FOREIGN, row)
            except InputError as error:
                print(f"skipped: {error}")


if __name__ == "__main__":
    main()
