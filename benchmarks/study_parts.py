"""The parts of the study, each of which yields the rows of its table."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emsplat.fit.by_images import HalfSet, Schedule, fit_images
from emsplat.fit.by_statistics import FitSettings
from emsplat.imaging import forward as imaging
from emsplat.io import ImageSource
from emsplat.models import gaussian_model
from emsplat.models.gaussian_model import GaussianModel
from emsplat.models.parameters import NAMES, Parameters
from emsplat.splat import bandlimit, voxelise
from emsplat.statistics.loss import QuadraticLoss, fitting_period
from emsplat.validation.correlation import fsc
from study_data import WHOLE, Data, Row, Study, averaged, by_statistics, prepared


def solvers(study: Study) -> Iterator[Row]:
    """Compare both solvers, ended early and late."""
    data = prepared(study.cases[0], study.work)
    for steps in (10, 20) if study.quick else (8, 15, 30, 60, 90, 180):
        anneal = max(2, steps // 5)
        settings = FitSettings(approach_steps=steps - anneal, anneal_steps=anneal)
        volume, seconds, count = by_statistics(data, data.start(), settings)
        yield _solver_row("statistics", f"{steps} steps", data, volume, seconds, count)
    rounds = ((1, 1),) if study.quick else ((1, 1), (3, 3), (10, 10))
    # The first run is not counted: it compiles.
    for number, (approach, anneal) in enumerate((rounds[0], *rounds)):
        model, seconds = by_images(data, approach, anneal)
        volume = data.volume(model.parameters.gaussians(data.particles.pixel_size_in_angstroms))
        if number:
            yield _solver_row("images", f"{approach} + {anneal} rounds", data, volume, seconds, len(model))


def by_images(data: Data, approach: int, anneal: int) -> tuple[GaussianModel, float]:
    """Fit to images; return the Gaussians and the processor seconds."""
    rows = np.arange(len(data.particles))
    schedule = Schedule(max_rounds=approach, anneal_rounds=anneal, anneal_epochs=1, patience=10**6)
    with ImageSource(data.particles) as images:
        split = rows[~data.is_unseen], rows[data.is_unseen]
        half = HalfSet(data.particles, images, *split, data.noise, len(data.truth), WHOLE)
        start, begin = data.start(), time.process_time()
        model, _ = fit_images(half, start, FitSettings(), schedule)
        return model, time.process_time() - begin


def _solver_row(solver: str, length: str, data: Data, volume: NDArray, seconds: float, count: int) -> Row:
    row = {"solver": solver, "length": length, "F": data.quality(volume), "fit, s": seconds}
    return row | {"pass, s": data.pass_seconds, "Gaussians": count}


def anisotropy(study: Study) -> Iterator[Row]:
    """Compare ellipsoids with balls, by number."""
    data = prepared(study.cases[0], study.work)
    for isotropic in (False, True):
        for count in study.counts:
            runs = []
            for seed in range(study.seeds):
                volume, seconds, kept = by_statistics(data, data.start(count, seed, isotropic), FitSettings(seed=seed))
                runs.append({"shape": "balls" if isotropic else "ellipsoids", "Gaussians": kept,
                             "F": data.quality(volume), "fit, s": seconds})  # fmt: skip
            yield averaged(runs)


def count(study: Study) -> Iterator[Row]:
    """Compare numbers of Gaussians at several SNRs."""
    for case in study.cases:
        data = prepared(case, study.work)
        for number in sorted({*study.counts, data.count}):
            runs = []
            for seed in range(study.seeds):
                volume, seconds, kept = by_statistics(data, data.start(number, seed), FitSettings(seed=seed))
                runs.append({"SNR": f"{case.settings.snr:g}", "Gaussians": kept, "F": data.quality(volume),
                             "fit, s": seconds, "chosen": "◀" if number == data.count else ""})  # fmt: skip
            yield averaged(runs)


def positivity(study: Study) -> Iterator[Row]:
    """Compare masses that must be positive with masses of any sign, in one loop that is otherwise the same."""
    for case in study.cases:
        data = prepared(case, study.work)
        for masses in _MASSES:
            for number in study.counts[::2]:
                runs = []
                for seed in range(study.seeds):
                    volume, negative = _plain_fit(data, data.start(number, seed), masses)
                    runs.append({"SNR": f"{case.settings.snr:g}", "masses": masses,
                                 "Gaussians": number, "F": data.quality(volume),
                                 "negative mass / positive": negative})  # fmt: skip
                yield averaged(runs)


_MASSES = ("positive", "any sign", "any sign, half start negative")


def _plain_fit(data: Data, model: GaussianModel, masses: str) -> tuple[NDArray[np.float32], float]:
    """Fit to statistics without densification; return the map, and negative mass over positive.

    Masses are parametrised by their logarithms or, of any sign, as they are; steps are then the same share of the
    median mass at the start that those of a logarithm are of each.
    """
    signed = masses != "positive"
    start, settings, cutoff = model.parameters, FitSettings(), model.settings.cutoff
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
            return sign * voxelise(*shapes, log_masses, data.extent, cutoff)
        shapes = [leaves[name] for name in NAMES[:3]]
        return voxelise(*shapes, leaves["log_mass"], data.extent, cutoff)

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
            replace(model, parameters=Parameters(*held, start.log_masses)).constrain()
    found = median * leaves["mass"].detach() if signed else leaves["log_mass"].detach().exp()
    pixel_size = data.particles.pixel_size_in_angstroms
    total = np.zeros_like(data.truth)
    for sign in (1, -1):
        chosen = sign * found > 0
        if chosen.any():
            part = Parameters(*(leaves[n].detach()[chosen] for n in NAMES[:3]), torch.log(sign * found[chosen]))
            total += sign * data.volume(part.gaussians(pixel_size))
    return total, float(-found[found < 0].sum() / found[found > 0].sum())


def truncation(study: Study) -> Iterator[Row]:
    """Compare places at which a Gaussian is cut off."""
    data = prepared(study.cases[0], study.work)
    for cutoff in (2.0, 3.0) if study.quick else (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0):
        runs = []
        for seed in range(study.seeds):
            volume, seconds, _ = by_statistics(data, data.start(seed=seed, cutoff=cutoff), FitSettings(seed=seed))
            runs.append({"cut-off": f"{cutoff:g}", "F": data.quality(volume), "fit, s": seconds})
        yield averaged(runs)


@contextmanager
def widening(kappa: float, least_scale: float) -> Iterator[None]:
    """Use this κ, and this smallest σ, for all that is splatted while the context lasts."""
    before = bandlimit.WIDENING, gaussian_model._MIN_SCALE
    try:
        for module in (bandlimit, gaussian_model, imaging):
            module.WIDENING = kappa
        gaussian_model._MIN_SCALE = least_scale
        yield
    finally:
        for module in (bandlimit, gaussian_model, imaging):
            module.WIDENING = before[0]
        gaussian_model._MIN_SCALE = before[1]


def bandlimiting(study: Study) -> Iterator[Row]:
    """Compare splats that are widened and undone in Fourier space with those that are not, and their cut-offs."""
    data = prepared(study.cases[0], study.work)
    ways = [(0.0, 0.2), (0.0, 0.8), (0.25, 0.2), (0.5, 0.2), (1.0, 0.2)]
    for cutoff in (3.0,) if study.quick else (3.0, 5.0):
        for kappa, least in ways:
            runs, curves = [], []
            for seed in range(study.seeds):
                with widening(kappa, least):
                    start = data.start(seed=seed, cutoff=cutoff)
                    volume, seconds, _ = by_statistics(data, start, FitSettings(seed=seed))
                runs.append({"κ": kappa, "σ at least": least, "cut-off": f"{cutoff:g}", "F": data.quality(volume),
                             "fit, s": seconds})  # fmt: skip
                curves.append(fsc(volume, data.truth, data.mask))
            curve = np.mean(curves, axis=0)
            last = float(curve[-len(curve) // 4 :].mean())
            yield averaged(runs) | {"F of the last quarter": last, "curve": curve}
