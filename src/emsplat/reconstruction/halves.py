"""One half set: its raw inversion, its fits, and their average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.fit.by_statistics import FitSettings, fit_gaussians, gaussians_of, initial_gaussians
from emsplat.fit.count import FEWEST, automatic_count
from emsplat.fit.state import FitHistory
from emsplat.fourier import maps
from emsplat.models.gaussians import Gaussians, merge
from emsplat.models.parameters import Parameters
from emsplat.particles.parts import HELD_OUT, TRAINING, Part
from emsplat.reconstruction.job import Job
from emsplat.reconstruction.working_grid import Grid
from emsplat.runtime import devices
from emsplat.runtime.checkpoint import Checkpoint, State
from emsplat.settings import ReconstructSettings
from emsplat.statistics.accumulate import Statistics

_FITS = 3  # of a half, averaged
_STEPS_WITHOUT_SPLIT = 30  # nothing tells when to stop, and so few images need no more

Fit = Callable[[int, Parameters, FitSettings, Callable[[int, int], None], Checkpoint], tuple[Parameters, FitHistory]]


@dataclass(frozen=True)
class Half:
    """One half set's result on the particles' own grid."""

    gaussians: Gaussians  # the average of its fits
    histories: tuple[FitHistory, ...]  # of its fits
    raw: NDArray[np.float32]  # (D, D, D) direct inversion
    map: NDArray[np.float32]  # (D, D, D) the Gaussians on the grid

    def saved(self) -> State:
        """For a checkpoint."""
        tensors = {f"gaussians.{field.name}": getattr(self.gaussians, field.name) for field in fields(Gaussians)}
        volumes = {"raw": torch.from_numpy(self.raw), "map": torch.from_numpy(self.map)}
        return State(tensors | volumes, {"histories": [asdict(history) for history in self.histories]})

    @staticmethod
    def restored(state: State) -> Half:
        """What `saved` was taken from."""
        gaussians = Gaussians(*(state.tensors[f"gaussians.{field.name}"] for field in fields(Gaussians)))
        raw, density = (state.tensors[name].numpy() for name in ("raw", "map"))
        histories = tuple(FitHistory.restored(history) for history in state.facts["histories"])
        return Half(gaussians, histories, raw, density)

    @property
    def history(self) -> FitHistory:
        """Of the first fit; the others look alike."""
        return self.histories[0]

    @property
    def n_steps(self) -> int:
        """Of all fits together."""
        return sum(history.n_steps for history in self.histories)


def fits_of_half(settings: ReconstructSettings) -> int:
    """How many fits of each half are averaged."""
    return settings.n_fits or (1 if settings.solver == "images" else _FITS)


def fit_half(job: Job, number: int, parts: dict[Part, Statistics], by_images: Fit | None) -> Half:
    """Fit one half's Gaussians, some times over, and put their average, and the raw inversion, on the particles' grid.

    Args:
        parts: the statistics of the half's training images, and of its held-out ones if it has any.
        by_images: fits to the images instead of the statistics, which are given up then, if nobody else holds them.
    """
    grid, reporter = job.grid, job.reporter
    training, held_out = parts[Part(number, TRAINING)], parts.get(Part(number, HELD_OUT))
    whole = training + held_out if held_out else training
    with reporter.stage("inversion"):
        raw = whole.raw_map()
        mask = maps.soft_mask(raw, grid.pixel_size, grid.diameter_in_angstroms)
    del whole
    each = _settings_of_fits(job, number, training, held_out, mask)
    device = devices.CPU if by_images else job.device  # where images are projected
    with reporter.stage("fit"):
        starts = [initial_gaussians(training, mask, grid.extent, one, grid.symmetry, device) for one in each]
    fit = by_images or partial(_by_statistics, job, training, held_out)
    del training, held_out, parts
    fits: list[tuple[Parameters, FitHistory]] = []
    for place, (start, one) in enumerate(zip(starts, each, strict=True), 1):
        if fits:  # the first one has found out how many steps are best
            one = replace(one, approach_steps=fits[0][1].anneal_from)
        fits.append(_one_fit(job, number, place, start, one, fit))
    with reporter.stage("fit"):
        gaussians = merge(*(gaussians_of(parameters, grid.pixel_size) for parameters, _ in fits))
        density = gaussians.voxelise(grid.box_size, grid.pixel_size)
    if grid.box_size != grid.full_box_size:
        raw, density = (maps.fourier_resize(v, grid.full_box_size) for v in (raw, density))
    half = Half(gaussians, tuple(history for _, history in fits), raw, density)
    _keep(job, number, half)
    return half


def watching(job: Job, number: int) -> Callable[[Parameters], None]:
    """What a fit of this half shows itself to."""
    return lambda parameters: job.reporter.watch(number, parameters, job.grid.pixel_size)


def _settings_of_fits(
    job: Job, number: int, training: Statistics, held_out: Statistics | None, mask: NDArray[np.float32]
) -> list[FitSettings]:
    """The settings of every fit of a half; they differ in their seeds."""
    settings, n_fits = job.settings, fits_of_half(job.settings)
    count = settings.n_gaussians
    if count is None:
        count, reason = _count(training, held_out, mask, job.grid, n_fits)
        of = f", {n_fits} fits each" if n_fits > 1 else ""
        job.reporter.line(f"half {number}: {count:,} Gaussians{of}, {reason}")
    first = FitSettings.for_particle(count, float(mask.sum()), settings.isotropic, settings.seed + number)
    if held_out is None:
        first = replace(first, max_steps=_STEPS_WITHOUT_SPLIT)
    return [replace(first, seed=first.seed + 2 * fit) for fit in range(n_fits)]


def _one_fit(
    job: Job, number: int, place: int, start: Parameters, settings: FitSettings, fit: Fit
) -> tuple[Parameters, FitHistory]:
    title = f"half {number}" + (f", fit {place}" if fits_of_half(job.settings) > 1 else "")
    checkpoint = job.checkpoints.named(f"fit{number}-{place}")
    with job.reporter.stage("fit"), job.reporter.bar(f"fitting {title}", "steps") as advance:
        parameters, history = fit(number, start, settings, advance, checkpoint)
    job.reporter.line(
        f"{title}: {len(parameters):,} Gaussians after {len(history.losses)} steps, "
        f"annealed from step {history.anneal_from} ({history.stopped_by})"
    )
    return parameters, history


def _by_statistics(
    job: Job,
    training: Statistics,
    held_out: Statistics | None,
    number: int,
    start: Parameters,
    settings: FitSettings,
    advance: Callable[[int, int], None],
    checkpoint: Checkpoint,
) -> tuple[Parameters, FitHistory]:
    return fit_gaussians(
        training, held_out, start, job.grid.extent, settings, advance, job.device, job.reporter.line,
        watching(job, number), checkpoint,
    )  # fmt: skip


def _keep(job: Job, number: int, half: Half) -> None:
    """Write a finished half down, if it is worth it, in place of what it came from."""
    n_fits = len(half.histories)
    last = job.checkpoints.named(f"fit{number}-{n_fits}")
    if last.followed_by(f"half{number}").offer(half.saved):
        for name in (f"statistics{number}", *(f"fit{number}-{fit}" for fit in range(1, n_fits + 1))):
            job.checkpoints.named(name).remove()


def kept_half(job: Job, number: int) -> Half | None:
    """One that was finished before the job was ended."""
    state = job.checkpoints.named(f"half{number}").load()
    return Half.restored(state) if state else None


def _count(
    training: Statistics, held_out: Statistics | None, mask: NDArray[np.float32], grid: Grid, n_fits: int
) -> tuple[int, str]:
    """The automatic number of Gaussians of a fit, and why."""
    if held_out is None:
        return FEWEST, "too few images to measure what they hold"
    count, shell = automatic_count(training, held_out, mask, n_fits)
    volume = float(mask.sum()) * grid.pixel_size**3
    finest = grid.box_size * grid.pixel_size / shell
    return count, f"for {volume / 1e3:,.0f} nm³ that its images show down to {finest:.3g} Å"
