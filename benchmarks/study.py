"""What each choice of the method is worth: one part, one figure and one page each (docs/study.md).

python benchmarks/study.py --part positivity --work WORK
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from cases import QUICK, RUVB, resized
from common import REPOSITORY, RESULTS, Case, Report, arguments, mean_fsc, simulated, truth_and_mask
from emsplat import fit, imaging, maps
from emsplat.correlation import fsc
from emsplat.count import automatic_count
from emsplat.figures import BLUE, GREEN, ORANGE, SKY, VERMILION, correlation_axes, save, style
from emsplat.fit import FitSettings, confine, fit_gaussians, gaussians_of, initial_gaussians
from emsplat.fit_images import HalfSet, Schedule, fit_images
from emsplat.gaussians import Gaussians
from emsplat.io import ImageSource, read_particles
from emsplat.loss import QuadraticLoss, fitting_period
from emsplat.parameters import NAMES, Parameters
from emsplat.particles import Particles
from emsplat.preview import look_at_sample
from emsplat.splat import bandlimit, voxelise
from emsplat.statistics import PassSettings, Statistics, gather_statistics
from emsplat.threads import threads

_WHOLE = np.eye(3)[None]
_SIZE = (5.0, 3.5)  # inches
_COMMON = """One half of the images ({case}, {half:,} images of it, SNR {snr:g}); F is the mean FSC of the fitted
Gaussians with the truth within the true mask, over all shells to Nyquist; means over {seeds} starting points. Times are
seconds of processor time on one core, so that what else runs on the machine matters little. """


@dataclass(frozen=True)
class Data:
    """One half of a simulation, and what its maps are judged by."""

    case: Case
    particles: Particles
    noise: NDArray[np.float64]
    seen: Statistics
    unseen: Statistics
    is_unseen: NDArray[np.bool_]
    extent: int
    truth: NDArray[np.float32]
    mask: NDArray[np.float32]  # the true one
    data_mask: NDArray[np.float32]  # as a job finds it
    pass_seconds: float

    @property
    def count(self) -> int:
        """Gaussians that the program would choose for a single fit."""
        return automatic_count(self.seen, self.unseen, self.data_mask, 1)[0]

    def settings(self, count: int | None = None, seed: int = 0, isotropic: bool = False) -> FitSettings:
        return FitSettings.for_particle(count or self.count, float(self.data_mask.sum()), isotropic, seed)

    def start(self, settings: FitSettings) -> Parameters:
        return initial_gaussians(self.seen, self.data_mask, self.extent, settings, _WHOLE)

    def volume(self, model: Gaussians) -> NDArray[np.float32]:
        pixel_size = self.particles.pixel_size_in_angstroms
        return model.voxelise(len(self.truth), pixel_size)

    def quality(self, volume: NDArray[np.float32]) -> float:
        return mean_fsc(volume, self.truth, self.mask)


def prepared(case: Case, work: Path) -> Data:
    """Simulate, look at a sample and stream over the first half, as a job does."""
    star = simulated(case, work)
    table = read_particles(star)
    half = table.select(np.flatnonzero(table.half_set == 1))
    with ImageSource(half) as images:
        preview = look_at_sample(half, images, _WHOLE, 0)
        size, pixel_size = half.box_size, half.pixel_size_in_angstroms
        diameter = preview.diameter_in_angstroms or 0.85 * size * pixel_size
        extent = min(size, next_fast_len(math.ceil(diameter / pixel_size) + 6, real=True))
        subset = (np.random.default_rng(0).permutation(len(half)) % 5 == 0).astype(np.int8)
        start = time.process_time()
        settings = PassSettings(size, fitting_period(extent), preview.noise, _WHOLE)
        seen, unseen = gather_statistics(half, images, subset, settings)
        seconds = time.process_time() - start
    data_mask = maps.soft_mask((seen + unseen).raw_map(), pixel_size, diameter)
    truth, mask = truth_and_mask(star)
    is_unseen = subset == 1
    data = Data(case, half, preview.noise, seen, unseen, is_unseen, extent, truth, mask, data_mask, seconds)
    by_statistics(data, replace(data.settings(100), max_steps=2))  # compiled before any time is taken
    return data


def by_statistics(data: Data, settings: FitSettings) -> tuple[NDArray[np.float32], float, int]:
    """The map, processor seconds of the fit, and Gaussians."""
    start = data.start(settings)
    begin = time.process_time()
    parameters, _ = fit_gaussians(data.seen, data.unseen, start, data.extent, settings)
    seconds = time.process_time() - begin
    model = gaussians_of(parameters, data.particles.pixel_size_in_angstroms)
    return data.volume(model), seconds, len(parameters)


def averaged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows that differ by the seed alone: the means of their numbers."""
    numbers = {k: float(np.mean([r[k] for r in runs])) for k, v in runs[0].items() if isinstance(v, float)}
    return runs[0] | numbers | {"± F": float(np.std([r["F"] for r in runs])) if len(runs) > 1 else None}


# --- the parts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """What all parts are given."""

    cases: tuple[Case, ...]  # of falling SNR; the first is the one that all parts use
    work: Path
    seeds: int
    quick: bool

    @property
    def counts(self) -> list[int]:
        return [100, 200] if self.quick else [500, 1000, 2000, 4000, 8000]


Row = dict[str, Any]


def solvers(study: Study) -> Iterator[Row]:
    """Both solvers, ended early and late."""
    data = prepared(study.cases[0], study.work)
    for steps in (10, 20) if study.quick else (8, 15, 30, 60, 90, 180):
        settings = replace(data.settings(), max_steps=steps, anneal_steps=max(2, steps // 5), patience=10**6)
        volume, seconds, count = by_statistics(data, settings)
        yield _solver_row("statistics", f"{steps} steps", data, volume, seconds, count)
    rounds = ((1, 1),) if study.quick else ((1, 1), (3, 3), (10, 10))
    # The first run is not counted: it compiles.
    for number, (approach, anneal) in enumerate((rounds[0], *rounds)):
        parameters, seconds = by_images(data, approach, anneal)
        volume = data.volume(gaussians_of(parameters, data.particles.pixel_size_in_angstroms))
        if number:
            yield _solver_row("images", f"{approach} + {anneal} rounds", data, volume, seconds, len(parameters))


def by_images(data: Data, approach: int, anneal: int) -> tuple[Parameters, float]:
    """The Gaussians, and processor seconds of the fit."""
    settings, rows = data.settings(), np.arange(len(data.particles))
    schedule = Schedule(max_rounds=approach, anneal_rounds=anneal, anneal_epochs=1, patience=10**6)
    with ImageSource(data.particles) as images:
        split = rows[~data.is_unseen], rows[data.is_unseen]
        half = HalfSet(data.particles, images, *split, data.noise, len(data.truth), data.extent, _WHOLE)
        start, begin = data.start(settings), time.process_time()
        parameters, _ = fit_images(half, start, settings, schedule)
        return parameters, time.process_time() - begin


def _solver_row(solver: str, length: str, data: Data, volume: NDArray, seconds: float, count: int) -> Row:
    row = {"solver": solver, "length": length, "F": data.quality(volume), "fit, s": seconds}
    return row | {"pass, s": data.pass_seconds, "Gaussians": count}


def anisotropy(study: Study) -> Iterator[Row]:
    """Ellipsoids and balls, by number."""
    data = prepared(study.cases[0], study.work)
    for isotropic in (False, True):
        for count in study.counts:
            runs = []
            for seed in range(study.seeds):
                volume, seconds, kept = by_statistics(data, data.settings(count, seed, isotropic))
                runs.append({"shape": "balls" if isotropic else "ellipsoids", "Gaussians": kept,
                             "F": data.quality(volume), "fit, s": seconds})  # fmt: skip
            yield averaged(runs)


def count(study: Study) -> Iterator[Row]:
    """How many, at several SNRs."""
    for case in study.cases:
        data = prepared(case, study.work)
        for number in sorted({*study.counts, data.count}):
            runs = []
            for seed in range(study.seeds):
                volume, seconds, kept = by_statistics(data, data.settings(number, seed))
                runs.append({"SNR": f"{case.settings.snr:g}", "Gaussians": kept, "F": data.quality(volume),
                             "fit, s": seconds, "chosen": "◀" if number == data.count else ""})  # fmt: skip
            yield averaged(runs)


def positivity(study: Study) -> Iterator[Row]:
    """Masses that must be positive, and masses that may have any sign, in one loop that is the same but for that."""
    for case in study.cases:
        data = prepared(case, study.work)
        for masses in _MASSES:
            for number in study.counts[::2]:
                runs = []
                for seed in range(study.seeds):
                    volume, negative = _plain_fit(data, data.settings(number, seed), masses)
                    runs.append({"SNR": f"{case.settings.snr:g}", "masses": masses,
                                 "Gaussians": number, "F": data.quality(volume),
                                 "negative mass / positive": negative})  # fmt: skip
                yield averaged(runs)


_MASSES = ("positive", "any sign", "any sign, half start negative")


def _plain_fit(data: Data, settings: FitSettings, masses: str) -> tuple[NDArray[np.float32], float]:
    """The fit to statistics without density control, and negative mass over positive.

    Masses are parametrised by their logarithms or, of any sign, as they are; steps are then the same share of the
    median mass at the start that those of a logarithm are of each.
    """
    signed = masses != "positive"
    settings = replace(settings, start_share=1.0)
    start = data.start(settings)
    median = float(start.log_masses.exp().median())
    leaves = {name: getattr(start, name).clone().requires_grad_() for name in NAMES[:3]}
    if signed:
        leaves["mass"] = (start.log_masses.exp() / median).requires_grad_()
        if masses == _MASSES[2]:
            with torch.no_grad():
                leaves["mass"][::2] *= -1
    else:
        leaves["log_mass"] = start.log_masses.clone().requires_grad_()
    sizes = [*(settings.step_sizes[name] for name in NAMES[:3]), settings.step_sizes["log_masses"]]
    groups = [{"params": [leaf], "lr": size} for leaf, size in zip(leaves.values(), sizes, strict=True)]
    optimiser = torch.optim.Adam(groups, betas=(0.8, 0.99), eps=1e-12)
    period = fitting_period(data.extent)
    loss = QuadraticLoss(data.seen + data.unseen, data.extent, period)
    steps, anneal = settings.max_steps, settings.anneal_steps

    def density(sign: int) -> Tensor:
        if signed:
            chosen = sign * leaves["mass"] > 0
            log_masses = torch.log(sign * median * leaves["mass"][chosen])
            shapes = [leaves[name][chosen] for name in NAMES[:3]]
            return sign * voxelise(*shapes, log_masses, data.extent, settings.cutoff)
        shapes = [leaves[name] for name in NAMES[:3]]
        return voxelise(*shapes, leaves["log_mass"], data.extent, settings.cutoff)

    for step in range(steps):
        volume = density(1) + density(-1) if signed else density(1)
        _, gradient = loss.value_and_gradient(volume.detach().numpy())
        optimiser.zero_grad()
        volume.backward(torch.from_numpy(gradient))
        left = max(0.0, (step - (steps - anneal)) / anneal)
        for group, size in zip(optimiser.param_groups, sizes, strict=True):
            group["lr"] = size * (0.5 + 0.5 * math.cos(math.pi * left))
        optimiser.step()
        with torch.no_grad():
            held = [leaves[name].detach() for name in NAMES[:3]]
            confine(Parameters(*held, start.log_masses), data.extent, settings.max_scale)
    found = median * leaves["mass"].detach() if signed else leaves["log_mass"].detach().exp()
    pixel_size = data.particles.pixel_size_in_angstroms
    total = np.zeros_like(data.truth)
    for sign in (1, -1):
        chosen = sign * found > 0
        if chosen.any():
            part = Parameters(*(leaves[n].detach()[chosen] for n in NAMES[:3]), torch.log(sign * found[chosen]))
            total += sign * data.volume(gaussians_of(part, pixel_size))
    return total, float(-found[found < 0].sum() / found[found > 0].sum())


def truncation(study: Study) -> Iterator[Row]:
    """Where a Gaussian is cut off."""
    data = prepared(study.cases[0], study.work)
    for cutoff in (2.0, 3.0) if study.quick else (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0):
        runs = []
        for seed in range(study.seeds):
            settings = replace(data.settings(seed=seed), cutoff=cutoff)
            volume, seconds, _ = by_statistics(data, settings)
            runs.append({"cut-off": f"{cutoff:g}", "F": data.quality(volume), "fit, s": seconds})
        yield averaged(runs)


@contextmanager
def widening(kappa: float, least_scale: float) -> Iterator[None]:
    """κ, and the smallest σ, of all that is splatted meanwhile."""
    before = bandlimit.WIDENING, fit._MIN_SCALE
    try:
        for module in (bandlimit, fit, imaging):
            module.WIDENING = kappa
        fit._MIN_SCALE = least_scale
        yield
    finally:
        for module in (bandlimit, fit, imaging):
            module.WIDENING = before[0]
        fit._MIN_SCALE = before[1]


def bandlimiting(study: Study) -> Iterator[Row]:
    """Splatted wider and undone in Fourier space, or not; and with other cut-offs, which the undoing amplifies."""
    data = prepared(study.cases[0], study.work)
    ways = [(0.0, 0.2), (0.0, 0.8), (0.25, 0.2), (0.5, 0.2), (1.0, 0.2)]
    for cutoff in (3.0,) if study.quick else (3.0, 5.0):
        for kappa, least in ways:
            runs, curves = [], []
            for seed in range(study.seeds):
                with widening(kappa, least):
                    settings = replace(data.settings(seed=seed), cutoff=cutoff)
                    volume, seconds, _ = by_statistics(data, settings)
                runs.append({"κ": kappa, "σ at least": least, "cut-off": f"{cutoff:g}", "F": data.quality(volume),
                             "fit, s": seconds})  # fmt: skip
                curves.append(fsc(volume, data.truth, data.mask))
            curve = np.mean(curves, axis=0)
            last = float(curve[-len(curve) // 4 :].mean())
            yield averaged(runs) | {"F of the last quarter": last, "curve": curve}


# --- the figures ------------------------------------------------------------------------------------------------------


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
    "solvers": (solvers, draw_solvers),
    "anisotropy": (anisotropy, draw_anisotropy),
    "count": (count, draw_count),
    "positivity": (positivity, draw_positivity),
    "truncation": (truncation, draw_truncation),
    "bandlimiting": (bandlimiting, draw_bandlimiting),
}


def run_part(part: str, study: Study, args: Any) -> list[Row]:
    """Its page, written row by row."""
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
