"""One half set: its direct inversion, its fits, and their average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.fit.by_statistics import FitSettings, fit_statistics
from emsplat.fit.count import FEWEST, automatic_count
from emsplat.fit.initial import initial_sets
from emsplat.fit.state import FitHistory
from emsplat.fourier import maps
from emsplat.models.gaussian_model import GaussianModel, GaussianSettings
from emsplat.models.gaussians import Gaussians, merge
from emsplat.reconstruction.job import Job
from emsplat.reconstruction.working_grid import Grid
from emsplat.runtime import devices
from emsplat.runtime.checkpoint import State
from emsplat.runtime.context import Task
from emsplat.settings import ReconstructSettings
from emsplat.statistics.sufficient import Statistics

_FITS = 2  # number of fits of a half that are averaged
_STEPS_WITHOUT_SPLIT = 30  # steps if there is no held-out part to say when to stop; so few images need no more

Parts = tuple[Statistics, Statistics | None]  # of a half: of its training and of its held-out images, if it has any
Fit = Callable[[int, GaussianModel, FitSettings, Task], tuple[GaussianModel, FitHistory]]


@dataclass(frozen=True)
class Half:
    """The result of one half set on the grid of the particles."""

    gaussians: Gaussians  # the average of its fits
    histories: tuple[FitHistory, ...]  # of its fits
    raw: NDArray[np.float32]  # (D, D, D) direct inversion
    map: NDArray[np.float32]  # (D, D, D) the Gaussians on the grid

    def saved(self) -> State:
        """The half as the state of a checkpoint."""
        tensors = {f"gaussians.{field.name}": getattr(self.gaussians, field.name) for field in fields(Gaussians)}
        volumes = {"raw": torch.from_numpy(self.raw), "map": torch.from_numpy(self.map)}
        return State(tensors | volumes, {"histories": [asdict(history) for history in self.histories]})

    @staticmethod
    def restored(state: State) -> Half:
        """The half that a state was made from."""
        gaussians = Gaussians(*(state.tensors[f"gaussians.{field.name}"] for field in fields(Gaussians)))
        raw, density = (state.tensors[name].numpy() for name in ("raw", "map"))
        histories = tuple(FitHistory.restored(history) for history in state.facts["histories"])
        return Half(gaussians, histories, raw, density)

    @property
    def history(self) -> FitHistory:
        """The history of the first fit, which the others resemble."""
        return self.histories[0]

    @property
    def n_steps(self) -> int:
        """Total number of steps over all fits."""
        return sum(history.n_steps for history in self.histories)


def fits_of_half(settings: ReconstructSettings) -> int:
    """Number of fits of each half that are averaged."""
    return settings.n_fits or (1 if settings.solver == "images" else _FITS)


def fit_half(job: Job, number: int, parts: Parts, by_images: Fit | None) -> Half:
    """Fit the Gaussians of a half several times, and put their average and the direct inversion on the particles' grid.

    Args:
        by_images: fits to the images instead of the statistics, which are given up then, if nobody else holds them.
    """
    grid, reporter = job.grid, job.reporter
    training, held_out = parts
    whole = training + held_out if held_out else training
    with reporter.stage("inversion"):
        raw = whole.raw_map()
        mask = maps.soft_mask(raw, grid.pixel_size, grid.diameter_in_angstroms)
    del whole
    gaussian_settings, each = _settings_of_fits(job, number, parts, mask)
    device = devices.CPU if by_images else job.context.device  # images are projected there
    with reporter.stage("fit"):
        seeds = [one.seed for one in each]
        starts = initial_sets(training, mask, grid.extent, gaussian_settings, seeds, grid.symmetry, device)
    fit = by_images or partial(_by_statistics, parts)
    del training, held_out, parts
    fits: list[tuple[GaussianModel, FitHistory]] = []
    for place, (start, one) in enumerate(zip(starts, each, strict=True), 1):
        if fits:  # the first fit has found how many steps are best
            one = replace(one, approach_steps=fits[0][1].anneal_from)
        fits.append(_one_fit(job, number, place, start, one, fit))
    with reporter.stage("fit"):
        gaussians = merge(*(model.parameters.gaussians(grid.pixel_size) for model, _ in fits))
        density = gaussians.voxelise(grid.box_size, grid.pixel_size)
    if grid.box_size != grid.full_box_size:
        raw, density = (maps.fourier_resize(v, grid.full_box_size) for v in (raw, density))
    half = Half(gaussians, tuple(history for _, history in fits), raw, density)
    _keep(job, number, half)
    return half


def watching(job: Job, number: int) -> Callable[[GaussianModel], None]:
    """A function that shows the model of a half to the watcher of the job."""
    return lambda model: job.reporter.watch(number, model.parameters, job.grid.pixel_size)


def _settings_of_fits(
    job: Job, number: int, parts: Parts, mask: NDArray[np.float32]
) -> tuple[GaussianSettings, list[FitSettings]]:
    """The settings of a half's Gaussians, and those of every fit of them, which differ in their seeds."""
    settings, n_fits = job.settings, fits_of_half(job.settings)
    count = settings.n_gaussians
    if count is None:
        count, reason = _count(*parts, mask, job.grid, n_fits)
        of = f" in each of {n_fits} fits" if n_fits > 1 else ""
        job.reporter.line(f"half {number}: {count:,} Gaussians{of}, {reason}")
    first = FitSettings(seed=settings.seed + number)
    if parts[1] is None:
        first = replace(first, max_steps=_STEPS_WITHOUT_SPLIT)
    gaussian_settings = GaussianSettings.for_particle(count, float(mask.sum()), settings.isotropic)
    return gaussian_settings, [replace(first, seed=first.seed + 2 * fit) for fit in range(n_fits)]


def _one_fit(
    job: Job, number: int, place: int, start: GaussianModel, settings: FitSettings, fit: Fit
) -> tuple[GaussianModel, FitHistory]:
    title = f"half {number}" + (f", fit {place}" if fits_of_half(job.settings) > 1 else "")
    checkpoint = job.checkpoints.named(f"fit{number}-{place}")
    bar = job.context.task(f"fitting {title}", "steps", checkpoint, watch=watching(job, number))
    with job.reporter.stage("fit"), bar as task:
        model, history = fit(number, start, settings, task)
    job.reporter.line(
        f"{title}: {len(model):,} Gaussians after {len(history.losses)} steps, "
        f"annealed from step {history.anneal_from} ({history.stopped_by})"
    )
    return model, history


def _by_statistics(
    parts: Parts, number: int, start: GaussianModel, settings: FitSettings, task: Task
) -> tuple[GaussianModel, FitHistory]:
    del number
    return fit_statistics(*parts, start, settings, task)


def _keep(job: Job, number: int, half: Half) -> None:
    """Write the state of a finished half, if that pays, in place of the states that led to it."""
    n_fits = len(half.histories)
    last = job.checkpoints.named(f"fit{number}-{n_fits}")
    if last.followed_by(f"half{number}").offer(half.saved):
        for name in (f"statistics{number}", *(f"fit{number}-{fit}" for fit in range(1, n_fits + 1))):
            job.checkpoints.named(name).remove()


def kept_half(job: Job, number: int) -> Half | None:
    """The half, if it was finished before the job ended."""
    state = job.checkpoints.named(f"half{number}").load()
    return Half.restored(state) if state else None


def _count(
    training: Statistics, held_out: Statistics | None, mask: NDArray[np.float32], grid: Grid, n_fits: int
) -> tuple[int, str]:
    """The automatic number of Gaussians of a fit, and the reason for it."""
    if held_out is None:
        return FEWEST, "because there are too few images to measure what they support"
    count, shell = automatic_count(training, held_out, mask, n_fits)
    volume = float(mask.sum()) * grid.pixel_size**3
    finest = grid.box_size * grid.pixel_size / shell
    return count, f"for a particle of {volume / 1e3:,.0f} nm³ that its images show down to {finest:.3g} Å"
