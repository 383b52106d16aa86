"""How fast this machine does the work of a reconstruction, from a few seconds of real work on the real images.

What takes too long in the real box is measured in a smaller one, and `model` has the powers to scale it up. All cores
that the job would use are used. Each time is the better of two, since the first may compile or wait for others.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.fit.state import FitState
from emsplat.fourier import maps
from emsplat.fourier.cropping import fourier_crop, fourier_cropped
from emsplat.fourier.transforms import transforms_of
from emsplat.io.images import ImageSource, reading_order
from emsplat.models.densification import round_gaussians
from emsplat.models.density_model import propagate
from emsplat.models.gaussian_model import GaussianModel, GaussianSettings
from emsplat.particles.batches import Rows
from emsplat.particles.parts import Part, PartWeights
from emsplat.particles.table import Particles
from emsplat.plan.model import Job, volume_work
from emsplat.runtime import devices
from emsplat.runtime.reporting import peak_memory_in_bytes
from emsplat.statistics.accumulate import AccumulationSettings, accumulate
from emsplat.statistics.loss import QuadraticLoss, fitting_period
from emsplat.statistics.preview import Preview
from emsplat.statistics.sufficient import Statistics
from emsplat.validation.local_resolution import frequency_bands, local_resolution
from emsplat.validation.validate import validate

_READ_SECONDS, _READ_BYTES = 1.0, 256 << 20  # limits for reading from the stacks
_PIECE_BYTES = 8 << 20
_LARGEST_PASS = 128  # voxels: the grids of four subsets stay below 0.5 GB
_PASS_BYTES, _MOST_IMAGES = 32 << 20, 1024
_MAP_EDGE, _LOCAL_EDGE, _FIT_EDGE, _FIT_GAUSSIANS = 48, 96, 64, 4000
_TRANSFORMS_BYTES = 8 << 20
_CARD_BYTES = 256 << 20


@dataclass(frozen=True)
class Rates:
    """Rates of this machine. Seconds are with `cores` cores at work, unless they are those of one process."""

    cores: int
    loading_seconds: float  # loading the program itself
    disk_bytes_per_second: float  # reading one stack after the other, without the page cache
    disk_bytes_per_image: float
    table_seconds_per_image: float
    table_bytes_per_image: float
    load_seconds_per_image: float  # from the page cache, with checks, as float32
    transform_seconds_per_image: float  # in the box of the images
    insert_seconds_per_image: float  # weighting and both insertions, at `pass_box`
    pass_box: int
    grids_seconds: float  # making and inverting the grids of four subsets at `pass_box`
    pass_reach: int
    preview_seconds: float
    inversion_seconds: float  # per unit of `model.volume_work`, as the next ones
    convolution_seconds: float
    splat_seconds_per_gaussian: float  # forward, backward and the step of the optimiser
    validation_seconds: float
    local_seconds: float  # and per band of frequencies
    base_bytes: int  # memory of a process that has loaded everything


@dataclass(frozen=True)
class Card:
    """A graphics card, measured or assumed."""

    name: str
    bytes_per_second: float  # rate of its memory, read and written
    link_bytes_per_second: float  # rate from the memory of the machine to that of the card
    transform_seconds: float  # time of a 3D FFT per unit of `model.volume_work`
    memory_bytes: float
    measured: bool


# NVIDIA's data sheet of the H100 SXM says 3.35 TB/s, PCIe 5.0 × 16 and 80 GB. We assume that memory-bound kernels reach
# 60 % of the first and copies 80 % of the second, and that an FFT goes through the memory twelve times.
ASSUMED_CARD = Card("H100 SXM, assumed", 0.6 * 3.35e12, 0.8 * 64e9, 12 * 8 / (0.6 * 3.35e12) / 8, 80e9, False)


def best_of(work: Callable[[], object], times: int = 2) -> float:
    """Seconds."""
    seconds = math.inf
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds = min(seconds, time.perf_counter() - start)
    return seconds


def measured(
    particles: Particles,
    images: ImageSource,
    preview: Preview,
    job: Job,
    symmetry: NDArray[np.float64],
    cores: int,
    loading_seconds: float,
    table_seconds: float,
    preview_seconds: float,
) -> Rates:
    """All rates for a job on these particles.

    Args:
        symmetry: (m, 3, 3) operators.
        loading_seconds, table_seconds, preview_seconds: the time that it has just taken to load the program, to read
            the table, and to look at a sample.
    """
    base = max(resident_bytes() - _held_bytes(particles), 0)
    rows = reading_order(particles)[: max(8, min(_MOST_IMAGES, _PASS_BYTES // (4 * particles.box_size**2)))]
    disk = disk_rate(particles.stacks)
    load = best_of(lambda: images.read(rows)) / len(rows)
    block = images.read(rows)
    box = min(job.working_box, _LARGEST_PASS)
    few = block[: max(1, _TRANSFORMS_BYTES // (4 * particles.box_size**2))]
    transform = best_of(lambda: fourier_crop(transforms_of(few), job.working_box))
    inserted, grids = _pass_rates(particles.select(rows), fourier_cropped(block, box), preview, job, box, symmetry)
    convolution, splat = _fit_rates(job)
    inversion, validation, local = _map_rates()
    return Rates(
        cores=cores,
        loading_seconds=loading_seconds,
        disk_bytes_per_second=disk,
        disk_bytes_per_image=_stored_bytes(particles),
        table_seconds_per_image=table_seconds / len(particles),
        table_bytes_per_image=_held_bytes(particles) / len(particles),
        load_seconds_per_image=load,
        transform_seconds_per_image=transform / len(few),
        insert_seconds_per_image=inserted,
        pass_box=box,
        grids_seconds=grids,
        pass_reach=_reach(job, box),
        preview_seconds=preview_seconds,
        inversion_seconds=inversion,
        convolution_seconds=convolution,
        splat_seconds_per_gaussian=splat,
        validation_seconds=validation,
        local_seconds=local,
        base_bytes=base,
    )


def resident_bytes() -> int:
    """Bytes of memory that this process holds now or, if the system does not say, the most that it has held."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak_memory_in_bytes()


def disk_rate(paths: tuple[Path, ...]) -> float:
    """Bytes per second for the beginning of the first stacks, after they have been dropped from the page cache."""
    total, start = 0, time.perf_counter()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            while piece := os.read(descriptor, _PIECE_BYTES):
                total += len(piece)
                if time.perf_counter() - start > _READ_SECONDS or total > _READ_BYTES:
                    return total / (time.perf_counter() - start)
        finally:
            os.close(descriptor)
    return total / (time.perf_counter() - start)


def _stored_bytes(particles: Particles) -> float:
    """Bytes of an image in its stack."""
    from emsplat.io.mrc import StackReader

    path = particles.stacks[int(particles.stack[0])]
    with StackReader(path) as reader:
        return path.stat().st_size / reader.shape[0]


def _held_bytes(particles: Particles) -> int:
    arrays = (getattr(particles, field.name) for field in fields(particles))
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


class _InMemory:
    """Images that are already in memory."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self.images, self.box_size = images, images.shape[-1]

    def read(self, rows: Rows) -> NDArray[np.float32]:
        return self.images[rows]

    def read_into(self, rows: Rows, images: NDArray[np.float32]) -> None:
        images[:] = self.images[rows]


def _reach(job: Job, box: int) -> int:
    return max(16, fitting_period(math.ceil(job.extent * box / job.working_box)))


def _pass_rates(
    particles: Particles,
    images: NDArray[np.float32],
    preview: Preview,
    job: Job,
    box: int,
    symmetry: NDArray[np.float64],
) -> tuple[float, float]:
    """Seconds of an image without its transform, and of the grids, from accumulations of n and n/4 images."""
    settings = AccumulationSettings(box, _reach(job, box), preview.noise, symmetry)
    n = len(images)
    order = reading_order(particles)
    source = _InMemory(images)

    def a_pass(some: Rows) -> float:
        subset = np.full(n, -1, dtype=np.int8)
        subset[some] = np.random.default_rng(0).choice(4, len(some), p=(0.4, 0.1, 0.4, 0.1))
        subset[some[:4]] = np.arange(4)[: len(some)]  # each has some
        parts = PartWeights.one_part_each([Part(state=number) for number in range(4)], subset)
        return best_of(lambda: accumulate(particles, source, parts, settings))

    quarter, whole = order[: max(4, n // 4)], order
    small, large = a_pass(quarter), a_pass(whole)
    each = max((large - small) / max(len(whole) - len(quarter), 1), 1e-7)
    few = images[: max(1, _TRANSFORMS_BYTES // (4 * box**2))]
    transform = best_of(lambda: transforms_of(few)) / len(few)
    return max(each - transform, 0.1 * each), max(large - each * n, 0.0)


def _fit_rates(job: Job) -> tuple[float, float]:
    """Seconds of the loss and its gradient per unit of work, and of the splat and step of a Gaussian."""
    edge = min(job.extent, _FIT_EDGE)
    period = fitting_period(edge)
    rng = np.random.default_rng(0)
    volume = rng.standard_normal((edge,) * 3, dtype=np.float32)
    statistics = Statistics(volume, rng.standard_normal((period + period % 2,) * 3, dtype=np.float32), 1, 1.0)
    loss = QuadraticLoss(statistics, edge, period)
    convolution = best_of(lambda: loss.value_and_gradient(volume)) / volume_work(period)
    centres = rng.uniform(-0.35 * edge, 0.35 * edge, (_FIT_GAUSSIANS, 3)).astype(np.float32)
    spheres = round_gaussians(centres, math.log(job.sigma), 0.0, 3)
    start = GaussianModel(spheres, edge, GaussianSettings(_FIT_GAUSSIANS))
    state = FitState.beginning(start, {"centres": 1e-3, "log_scales": 1e-3}, seed=0)

    def step() -> None:
        propagate(torch.from_numpy(volume), state.model.density())
        state.optimiser.step(state.model.leaves, 1.0)

    return convolution, best_of(step, 3) / _FIT_GAUSSIANS


def _map_rates() -> tuple[float, float, float]:
    """Seconds per unit of work: inverting and masking a half, validation, a band of the local resolution."""
    shape, mask, r1, r2, v1, v2 = _map_like(_MAP_EDGE)
    statistics = Statistics(r1, r2, 1, 1.0)
    work = volume_work(_MAP_EDGE)
    invert = best_of(lambda: (statistics.raw_map(), maps.soft_mask(shape, 1.0, 0.8 * _MAP_EDGE))) / work
    judge = best_of(lambda: validate(r1, r2, v1, v2, mask, 1.0, 0)) / work
    # Bands of low frequency are cheap, and small maps all overhead.
    _, mask, r1, r2, v1, v2 = _map_like(_LOCAL_EDGE)
    work, limit = volume_work(_LOCAL_EDGE), _LOCAL_EDGE // 2 - 2
    locate = best_of(lambda: local_resolution(r1, r2, v1, v2, mask, 1.0, limit), 1) / work / len(frequency_bands(limit))
    return invert, judge, locate


def _map_like(edge: int) -> list[NDArray[np.float32]]:
    """A particle, its mask, two direct inversions and two Gaussian half maps, with signal up to Nyquist."""
    rng = np.random.default_rng(0)
    shape = np.exp(-0.5 * (maps.distance_from_origin(edge) / (edge / 6)) ** 2).astype(np.float32)
    signal = shape * (1 + rng.standard_normal(shape.shape, dtype=np.float32))
    halves = [signal + 0.05 * rng.standard_normal(shape.shape, dtype=np.float32) for _ in range(4)]
    return [shape, maps.soft_mask(shape, 1.0, 0.8 * edge), *halves]


def card() -> Card:
    """The graphics card of this machine as measured, or the one that is assumed."""
    device = devices.usable_card()
    return measured_card(device) if device else ASSUMED_CARD


def measured_card(device: torch.device) -> Card:
    """A card as measured: copies within its memory, copies to it from memory like that of the images, and an FFT."""
    here = devices.memory_to_send((_CARD_BYTES // 4,), device).zero_()
    there, other = (torch.zeros(here.shape, device=device) for _ in range(2))
    edge = 128
    volume = torch.zeros((edge,) * 3, device=device)

    def waiting(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run

    on_cuda = device.type == "cuda"
    return Card(
        torch.cuda.get_device_name(device) if on_cuda else "this machine's processor",
        2 * _CARD_BYTES / best_of(waiting(lambda: other.copy_(there)), 3),
        _CARD_BYTES / best_of(waiting(lambda: there.copy_(here)), 3),
        best_of(waiting(lambda: torch.fft.rfftn(volume)), 3) / volume_work(edge),
        float(torch.cuda.get_device_properties(device).total_memory) if on_cuda else float("inf"),
        True,
    )
