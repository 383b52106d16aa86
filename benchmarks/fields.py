"""What Gaussians are worth beside neural fields, fitted by the same statistics, and beside direct inversion.

python benchmarks/fields.py --work WORK
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fields_parts
from cases import ANTIBODY, BETAGAL, FERRITIN, QUICK, QUICK_ODD, RUVB, RUVB_SMALL, resized
from common import REPOSITORY, RESULTS, Case, Report, arguments, mean_fsc, reconstructed, simulated, truth_and_mask
from emsplat.fit.by_statistics import FitSettings, fit_statistics
from emsplat.fit.fields import initial_field, settings_for
from emsplat.models.gaussian_model import GaussianModel
from emsplat.models.gaussians import merge
from emsplat.models.neural_field import NeuralField
from emsplat.runtime.context import Task
from emsplat.runtime.threads import threads
from fields_data import Recorder
from results_figures import draw_fields
from study_data import Data, prepared
from study_parts import _MASSES, _plain_fit

Volume = NDArray[np.float32]
Row = dict[str, Any]

_TABLE, _WHOLE = "One half of the images", "Whole jobs"
_TEXT = """One half of the images is fitted. F is the mean FSC of the fitted model with the truth within the true mask,
over all shells to Nyquist; "error left" is 1 − F over that of the direct inversion of the same images. All models see
the same statistics b and T, the same held-out images and the same stopping rule (the search included in "steps" and
"fit, s"). The fields were tuned on other sets (docs/study.md). "Any sign" leaves the density free to be negative.
"Memory" is the largest resident memory of the fit above that before it. Times are processor seconds on one thread, so
that the load of the machine matters little; the accumulation, which all need, is not counted. One fit was made of each,
except where the row says two. The loop of "any sign" Gaussians has no search. Rows of earlier runs are kept."""
_WHOLE_TEXT = """`emsplat reconstruct --model …` as a user runs it: both halves, and the combination with the direct
inversion; F as above, of map.mrc. "Fit alone" is the average of the fitted half maps before the combination. Two fits
of Gaussians are averaged in each half, and one of the fields is made."""
_KINDS = {"hash grid": "hash-grid", "neural field": "neural-field"}


@dataclass(frozen=True)
class Fitted:
    """The result of a fit, and what it cost."""

    volume: Volume
    parameters: int
    steps: int
    seconds: float
    memory: float | None  # bytes
    curve: list[tuple[float, float, str]]  # seconds, F, "search" or "fit"


def gaussians(data: Data) -> Fitted:
    """One fit of Gaussians, as many as the program would choose."""
    return _fitted(data, data.start(), FitSettings(), lambda m: _on_grid(data, m))


def two_fits(data: Data) -> Fitted:
    """The average of two fits of Gaussians, with the number of Gaussians that the program would then choose."""
    count = max(1, round(0.56 * data.count))  # `count.supported_count` of several fits
    steps, found, models = None, [], []
    for seed in (0, 2):
        settings = FitSettings(seed=seed, approach_steps=steps)
        recorder = Recorder(None)
        with recorder.running():
            model, history = fit_statistics(data.seen, data.unseen, data.start(count, seed), settings)
        steps = history.anneal_from
        models.append(model.parameters.gaussians(data.particles.pixel_size_in_angstroms))
        found.append((recorder, history.n_steps, _parameters(model)))
    memory = max(r.memory or 0 for r, *_ in found) or None
    total = [sum(values) for values in zip(*((r.seconds, n, size) for r, n, size in found), strict=True)]
    return Fitted(data.volume(merge(*models)), int(total[2]), int(total[1]), total[0], memory, [])


def any_sign(data: Data) -> Fitted:
    """Gaussians with masses of any sign, in a loop of its own without densification and search (study.py)."""
    start, recorder = data.start(), Recorder(None)
    with recorder.running():
        volume, _ = _plain_fit(data, start, _MASSES[1])
    return Fitted(volume, _parameters(start), FitSettings().max_steps, recorder.seconds, None, [])


def field(name: str, positive: bool) -> Callable[[Data], Fitted]:
    """A fit of a neural field."""

    def fit(data: Data) -> Fitted:
        kind: Any = _KINDS[name]
        start = initial_field(kind, data.seen, data.data_mask, data.extent, 0, positive)
        return _fitted(data, start, settings_for(kind, start, 0), lambda m: m.on_grid(len(data.truth)))

    return fit


MODELS: dict[str, Callable[[Data], Fitted]] = {
    "Gaussians": gaussians,
    "Gaussians (two fits)": two_fits,
    "Gaussians (any sign)": any_sign,
    "hash grid": field("hash grid", True),
    "hash grid (any sign)": field("hash grid", False),
    "neural field": field("neural field", True),
    "neural field (any sign)": field("neural field", False),
}


def _fitted(data: Data, start: Any, settings: FitSettings, on_grid: Callable[[Any], Volume]) -> Fitted:
    recorder = Recorder(lambda model: data.quality(on_grid(model)), every=max(1, settings.check_every))
    with recorder.running():
        model, history = fit_statistics(data.seen, data.unseen, start, settings, Task(watch=recorder.watch))
    curve = recorder.curve(len(history.searched))
    volume = on_grid(model)
    curve.append((recorder.seconds, data.quality(volume), "fit"))
    return Fitted(volume, _parameters(start), history.n_steps, recorder.seconds, recorder.memory, curve)


def _parameters(model: GaussianModel | NeuralField) -> int:
    return sum(leaf.numel() for leaf in model.leaves.values())


def _on_grid(data: Data, model: GaussianModel) -> Volume:
    return data.volume(model.parameters.gaussians(data.particles.pixel_size_in_angstroms))


def rows_of_set(case: Case, work: Path, models: list[str], had: set[str]) -> Iterator[tuple[Row, Fitted | None]]:
    """The rows of a set that the page does not have yet; the first is that of the direct inversion."""
    if had.issuperset({"direct inversion", *models}):
        return
    data = prepared(case, work)
    raw = (data.seen + data.unseen).raw_map()
    inverted = data.quality(raw)
    half = len(data.particles)
    facts: Row = {"set": case.name, "images": half, "SNR": case.settings.snr}
    _keep(work, case, "direct inversion", raw)
    if "direct inversion" not in had:
        nothing = {"parameters": None, "steps": None, "ms a step": None, "fit, s": None, "memory, MB": None}
        yield facts | {"model": "direct inversion", "F": inverted, "error left": 1.0} | nothing, None
    for name in models:
        if name in had:
            continue
        found = MODELS[name](data)
        _keep(work, case, name, found.volume)
        quality = data.quality(found.volume)
        yield (
            facts
            | {
                "model": name,
                "F": quality,
                "error left": (1 - quality) / (1 - inverted),
                "parameters": found.parameters,
                "steps": found.steps,
                "ms a step": 1000 * found.seconds / found.steps,
                "fit, s": found.seconds,
                "memory, MB": found.memory and found.memory / 1e6,
            },
            found,
        )


def _keep(work: Path, case: Case, name: str, volume: Volume) -> None:
    path = fields_parts.kept(work, case, name)
    path.parent.mkdir(exist_ok=True)
    np.save(path, volume)


def whole_job(case: Case, work: Path, name: str) -> Row:
    """A row of the table of whole jobs."""
    kind: Any = _KINDS.get(name, "gaussians")
    star = simulated(case, work)
    truth, mask = truth_and_mask(star)
    result, seconds = reconstructed(star, model=kind, threads=1)
    average = 0.5 * (result.halves[0].map + result.halves[1].map)
    inverted = mean_fsc(0.5 * (result.halves[0].raw + result.halves[1].raw), truth, mask)
    return {
        "set": case.name,
        "model": name,
        "F direct inversion": inverted,
        "F fit alone": mean_fsc(average, truth, mask),
        "F map": mean_fsc(result.map, truth, mask),
        "resolution, Å": result.validation.resolution,
        "fit, s (wall clock)": seconds["fit"],
    }


def sets(quick: bool) -> list[Case]:
    """The sets of the comparison. Args: quick: tiny ones."""
    if quick:
        return [QUICK, QUICK_ODD]
    ferritin = resized(FERRITIN, 64, 2000)
    ferritin = replace(ferritin, settings=replace(ferritin.settings, assembly="1", snr=0.03))
    antibody = resized(ANTIBODY, 64, 2000)
    antibody = replace(antibody, settings=replace(antibody.settings, snr=0.1))
    betagal = Case("8BK7, 64²", BETAGAL.model, replace(antibody.settings, pixel_size_in_angstroms=3.2, snr=0.05))
    return [RUVB_SMALL, betagal, ferritin, RUVB, antibody]


def main() -> None:
    args = arguments(
        __doc__,
        sets=(5, "the first so many sets"),
        models=(",".join(MODELS), "models to add, separated by commas"),
        whole=(0, "1: also whole jobs of the first set"),
        parts=(0, "1: also what can be read off the models of the antibody"),
        draw_only=(0, "1: only the figure, of the rows there are"),
    )
    cases = sets(args.quick)[: args.sets]
    report = Report("fields", "Gaussians beside neural fields", args, keep=True)
    last = args.results / "fields.json"
    curves = fields_parts.curves_of(last, args.quick)
    report.extra["curves"] = curves
    rows = list(report.tables.get(_TABLE, []))
    chosen = [name.strip() for name in args.models.split(",")]
    order = {case.name: number for number, case in enumerate(cases)}
    with threads(1):
        for case in [] if args.draw_only else cases:
            had = {row["model"] for row in rows if row["set"] == case.name}
            for row, found in rows_of_set(case, args.work, chosen, had):
                rows = sorted([*rows, row], key=lambda r: order.get(r["set"], len(order)))
                if found:
                    curves.setdefault(case.name, {})[row["model"]] = found.curve
                report.table(_TABLE, rows, _TEXT)
        if args.whole:
            whole = list(report.tables.get(_WHOLE, []))
            for name in ("Gaussians", *_KINDS):
                if name not in {row["model"] for row in whole if row["set"] == cases[0].name}:
                    whole.append(whole_job(cases[0], args.work, name))
                    report.table(_WHOLE, whole, _WHOLE_TEXT)
        if args.parts:
            fields_parts.add(report, cases[-1], args.work)
    figures = REPOSITORY / "docs" / "figures" if args.results == RESULTS else args.results / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    draw_fields({"tables": report.tables, "curves": curves}, figures / "results-fields.png")


if __name__ == "__main__":
    main()
