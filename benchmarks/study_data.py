"""What all parts of the study share: one half of a simulation, the fit to its statistics, and its quality."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from common import Case, mean_fsc, simulated, truth_and_mask
from emsplat.fit.by_statistics import FitSettings, fit_statistics
from emsplat.fit.count import automatic_count
from emsplat.fit.initial import initial_gaussians
from emsplat.fourier import maps
from emsplat.io import ImageSource, read_particles
from emsplat.models.gaussian_model import GaussianModel, GaussianSettings
from emsplat.models.gaussians import Gaussians
from emsplat.particles.parts import HELD_OUT, TRAINING, Part, PartWeights
from emsplat.particles.table import Particles
from emsplat.statistics.accumulate import AccumulationSettings, accumulate
from emsplat.statistics.loss import fitting_period
from emsplat.statistics.preview import look_at_sample
from emsplat.statistics.sufficient import Statistics

WHOLE = np.eye(3)[None]  # no symmetry

Row = dict[str, Any]


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

    def start(
        self, count: int | None = None, seed: int = 0, isotropic: bool = False, cutoff: float | None = None
    ) -> GaussianModel:
        """The Gaussians that a fit begins with; without a count, as many as the program would choose."""
        settings = GaussianSettings.for_particle(count or self.count, float(self.data_mask.sum()), isotropic)
        settings = replace(settings, cutoff=cutoff or settings.cutoff)
        return initial_gaussians(self.seen, self.data_mask, self.extent, settings, seed, WHOLE)

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
        preview = look_at_sample(half, images, WHOLE, 0)
        size, pixel_size = half.box_size, half.pixel_size_in_angstroms
        diameter = preview.diameter_in_angstroms or maps.PARTICLE_SHARE * size * pixel_size
        extent = min(size, next_fast_len(math.ceil(diameter / pixel_size) + 6, real=True))
        subset = (np.random.default_rng(0).permutation(len(half)) % 5 == 0).astype(np.int8)
        start = time.process_time()
        parts = PartWeights.one_part_each([Part(1, TRAINING), Part(1, HELD_OUT)], subset)
        settings = AccumulationSettings(size, fitting_period(extent), preview.noise, WHOLE)
        seen, unseen = accumulate(half, images, parts, settings).values()
        seconds = time.process_time() - start
    data_mask = maps.soft_mask((seen + unseen).raw_map(), pixel_size, diameter)
    truth, mask = truth_and_mask(star)
    is_unseen = subset == 1
    data = Data(case, half, preview.noise, seen, unseen, is_unseen, extent, truth, mask, data_mask, seconds)
    by_statistics(data, data.start(100), FitSettings(max_steps=2))  # compiled before any time is taken
    return data


def by_statistics(data: Data, start: GaussianModel, settings: FitSettings) -> tuple[NDArray[np.float32], float, int]:
    """Fit, and return the map, the processor seconds, and the number of Gaussians."""
    begin = time.process_time()
    model, _ = fit_statistics(data.seen, data.unseen, start, settings)
    seconds = time.process_time() - begin
    return data.volume(model.parameters.gaussians(data.particles.pixel_size_in_angstroms)), seconds, len(model)


def averaged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The means of the numbers of rows that differ by the seed alone."""
    numbers = {k: float(np.mean([r[k] for r in runs])) for k, v in runs[0].items() if isinstance(v, float)}
    return runs[0] | numbers | {"± F": float(np.std([r["F"] for r in runs])) if len(runs) > 1 else None}
