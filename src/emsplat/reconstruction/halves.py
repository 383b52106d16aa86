"""One half set: its direct inversion, its fits, and their average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.fit.by_statistics import FitSettings, fit_statistics
from emsplat.fit.count import FEWEST, automatic_count
from emsplat.fit.fields import initial_field, settings_for
from emsplat.fit.initial import initial_sets
from emsplat.fit.state import FitHistory
from emsplat.fourier import maps
from emsplat.models.density_model import Model
from emsplat.models.gaussian_model import GaussianModel, GaussianSettings
from emsplat.models.gaussians import Gaussians, merge
from emsplat.models.neural_field import NeuralField
from emsplat.reconstruction.job import Job
from emsplat.reconstruction.working_grid import Grid
from emsplat.runtime import devices
from emsplat.runtime.checkpoint import State
from emsplat.runtime.context import Task
from emsplat.settings import MODEL_NAMES, ReconstructSettings
from emsplat.statistics.sufficient import Statistics

_FITS = 2  # number of fits of a half that are averaged
_INVERSION = Lock()  # held by the half that is inverted, because two at once would need the most memory of the job
_STEPS_WITHOUT_SPLIT = 30  # steps if there is no held-out part to say when to stop; so few images need no more

Parts = tuple[Statistics, Statistics | None]  # of a half: of its training and of its held-out images, if it has any
Fit = Callable[[int, GaussianModel, FitSettings, Task], tuple[GaussianModel, FitHistory]]
FittedModel = GaussianModel | NeuralField


@dataclass(frozen=True)
class Half:
    """The result of one half set on the grid of the particles."""

    gaussians: Gaussians | None  # the average of its fits; None if neural fields were fitted
    histories: tuple[FitHistory, ...]  # of its fits
    raw: NDArray[np.float32]  # (D, D, D) direct inversion
    map: NDArray[np.float32]  # (D, D, D) the average of its fits on the grid
    n_parameters: int  # of all its fits

    @property
    def n_gaussians(self) -> int | None:
        """Number of Gaussians of all fits; None if neural fields were fitted."""
        return None if self.gaussians is None else len(self.gaussians)

    def saved(self) -> State:
        """The half as the state of a checkpoint."""
        names = fields(Gaussians) if self.gaussians is not None else ()
        tensors = {f"gaussians.{field.name}": getattr(self.gaussians, field.name) for field in names}
        facts = {"histories": [asdict(history) for history in self.histories], "n_parameters": self.n_parameters}
        volumes = {"raw": torch.from_numpy(self.raw), "map": torch.from_numpy(self.map)}
        return State(tensors | volumes, facts)

    @staticmethod
    def restored(state: State) -> Half:
        """The half that a state was made from."""
        names = [f"gaussians.{field.name}" for field in fields(Gaussians)]
        has_gaussians = names[0] in state.tensors
        gaussians = Gaussians(*(state.tensors[name] for name in names)) if has_gaussians else None
        raw, density = (state.tensors[name].numpy() for name in ("raw", "map"))
        histories = tuple(FitHistory.restored(history) for history in state.facts["histories"])
        return Half(gaussians, histories, raw, density, state.facts["n_parameters"])

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
    slow = settings.solver == "images" or settings.model != "gaussians"
    return settings.n_fits or (1 if slow else _FITS)


def fit_half(job: Job, number: int, parts: Parts, by_images: Fit | None) -> Half:
    """Fit the model of a half several times, and put the average and the direct inversion on the particles' grid.

    Args:
        by_images: fits Gaussians to the images instead of the statistics, which are given up then, if nobody else
            holds them.
    """
    grid, reporter = job.grid, job.reporter
    training, held_out = parts
    with reporter.stage("inversion"), _INVERSION:
        whole = training + held_out if held_out else training
        raw = whole.raw_map()
        mask = maps.soft_mask(raw, grid.pixel_size, grid.diameter_in_angstroms)
        if job.mask is not None:  # the model must explain all of the images, also what the user leaves out
            mask = np.maximum(mask, job.mask.in_box(grid.box_size))
        del whole
    del training, held_out
    if job.settings.model == "gaussians":
        device = devices.CPU if by_images else job.context.device  # images are projected there
        begun = _gaussian_starts(job, number, parts, mask, device)
    else:
        begun = _field_starts(job, number, parts[0], mask)
    fit: Callable[..., tuple[FittedModel, FitHistory]] = by_images or partial(_by_statistics, parts)
    del parts
    fits: list[tuple[FittedModel, FitHistory]] = []
    for place, (start, one) in enumerate(begun, 1):
        if fits:  # the first fit has found how many steps are best
            one = replace(one, approach_steps=fits[0][1].anneal_from)
        fits.append(_one_fit(job, number, place, start, one, fit))
    with reporter.stage("fit"):
        gaussians, density = _averaged([model for model, _ in fits], grid)
    if grid.box_size != grid.full_box_size:
        raw, density = (maps.fourier_resize(v, grid.full_box_size) for v in (raw, density))
    n_parameters = sum(leaf.numel() for model, _ in fits for leaf in model.leaves.values())
    half = Half(gaussians, tuple(history for _, history in fits), raw, density, n_parameters)
    _keep(job, number, half)
    return half


def _averaged(models: list[FittedModel], grid: Grid) -> tuple[Gaussians | None, NDArray[np.float32]]:
    """The average of the fits as a model, if it is one, and its density in the working box."""
    sets = [model.parameters.gaussians(grid.pixel_size) for model in models if isinstance(model, GaussianModel)]
    if sets:
        gaussians = merge(*sets)
        return gaussians, gaussians.voxelise(grid.box_size, grid.pixel_size)
    fields_on_grid = [model.on_grid(grid.box_size) for model in models if isinstance(model, NeuralField)]
    return None, np.mean(fields_on_grid, axis=0, dtype=np.float32)


def watching(job: Job, number: int) -> Callable[[FittedModel], None]:
    """A function that shows the Gaussians of a half to the watcher of the job."""

    def watch(model: FittedModel) -> None:
        if isinstance(model, GaussianModel):
            job.reporter.watch(number, model.parameters, job.grid.pixel_size)

    return watch


def _gaussian_starts(
    job: Job, number: int, parts: Parts, mask: NDArray[np.float32], device: torch.device
) -> list[tuple[FittedModel, FitSettings]]:
    """The Gaussians that each fit of a half begins with, and its settings; the fits differ in their seeds."""
    settings, n_fits = job.settings, fits_of_half(job.settings)
    count = settings.n_gaussians
    if count is None:
        count, reason = _count(*parts, mask, job.grid, n_fits)
        of = f" in each of {n_fits} fits" if n_fits > 1 else ""
        job.reporter.line(f"half {number}: {count:,} Gaussians{of}, {reason}")
    limits = GaussianSettings.for_particle(count, float(mask.sum()), settings.isotropic)
    each = FitSettings() if parts[1] else FitSettings(max_steps=_STEPS_WITHOUT_SPLIT)
    seeds, grid = _seeds(job, number), job.grid
    with job.reporter.stage("fit"):
        starts = initial_sets(parts[0], mask, grid.extent, limits, seeds, grid.symmetry, device)
    return [(start, replace(each, seed=seed)) for start, seed in zip(starts, seeds, strict=True)]


def _field_starts(
    job: Job, number: int, training: Statistics, mask: NDArray[np.float32]
) -> list[tuple[FittedModel, FitSettings]]:
    """The neural field that each fit of a half begins with, and its settings; the fits differ in their seeds."""
    kind = job.settings.model
    assert kind != "gaussians"
    with job.reporter.stage("fit"):
        starts = [initial_field(kind, training, mask, job.grid.extent, seed) for seed in _seeds(job, number)]
    job.reporter.line(f"half {number}: {MODEL_NAMES[kind]} instead of Gaussians, for comparison")
    return [(start, settings_for(kind, start, seed)) for start, seed in zip(starts, _seeds(job, number), strict=True)]


def _seeds(job: Job, number: int) -> list[int]:
    """The seeds of the fits of a half."""
    return [job.settings.seed + number + 2 * fit for fit in range(fits_of_half(job.settings))]


def _one_fit(
    job: Job,
    number: int,
    place: int,
    start: FittedModel,
    settings: FitSettings,
    fit: Callable[..., tuple[FittedModel, FitHistory]],
) -> tuple[FittedModel, FitHistory]:
    title = f"half {number}" + (f", fit {place}" if fits_of_half(job.settings) > 1 else "")
    checkpoint = job.checkpoints.named(f"fit{number}-{place}")
    bar = job.context.task(f"fitting {title}", "steps", checkpoint, watch=watching(job, number))
    with job.reporter.stage("fit"), bar as task:
        model, history = fit(number, start, settings, task)
    elements = "Gaussians" if isinstance(model, GaussianModel) else "parameters"
    job.reporter.line(
        f"{title}: {len(model):,} {elements} after {len(history.losses)} steps, "
        f"annealed from step {history.anneal_from} ({history.stopped_by})"
    )
    return model, history


def _by_statistics(
    parts: Parts, number: int, start: Model, settings: FitSettings, task: Task
) -> tuple[Model, FitHistory]:
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
