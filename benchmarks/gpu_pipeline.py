"""The job on a graphics card: the accumulation, the fit and the whole job, beside the limits of the card and the bus.

Without a card nothing is timed, and no number of a card is written. What can be checked without one is checked: the
statistics by Triton's interpreter beside those of the processor.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu import rates, rows_added, seconds_of  # first: it turns to Triton's interpreter where there is no card

# isort: split
import triton

import emsplat
from common import Report, arguments, cores
from emsplat.conventions import rotation_matrices
from emsplat.fit.by_statistics import FitSettings, fit_statistics
from emsplat.fit.initial import initial_gaussians
from emsplat.fourier import insertion_gpu
from emsplat.fourier.insertion_gpu import DeviceGrids, Views
from emsplat.fourier.maps import soft_sphere
from emsplat.io.images import ImageSource, reading_order
from emsplat.io.mrc import StackWriter
from emsplat.io.star import write_star
from emsplat.models.gaussian_model import GaussianSettings
from emsplat.optics.ctf import ctf
from emsplat.particles.parts import Kind, Part, PartWeights
from emsplat.particles.table import Particles
from emsplat.runtime.context import Task
from emsplat.runtime.reporting import Reporter
from emsplat.runtime.stopwatch import Stopwatch
from emsplat.settings import ReconstructSettings, SimulationSettings
from emsplat.simulation import bundled_model
from emsplat.simulation.acquisition import acquire, star_tables
from emsplat.simulation.atoms import read_atoms
from emsplat.splat import project
from emsplat.statistics.accumulate import AccumulationSettings, GridId, accumulate, statistics_of
from emsplat.statistics.accumulate_gpu import filled_on_device
from emsplat.statistics.loss import fitting_period
from emsplat.statistics.sufficient import Statistics
from emsplat.validation.correlation import fsc

_CARD = torch.cuda.is_available()
_DEVICE = torch.device("cuda" if _CARD else "cpu", 0)
_REPEATS = 3
_SNR = 0.03


class InMemory:
    """Images that need no disk, in place of an `ImageSource`."""

    def __init__(self, images: NDArray[np.float32], n: int) -> None:
        self._images, self._n, self.box_size = images, n, images.shape[-1]

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._images[rows % len(self._images)]

    def read_into(self, rows: NDArray[np.int64], images: NDArray[np.float32]) -> None:
        np.take(self._images, rows % len(self._images), axis=0, out=images)


def imagined(n: int, box_size: int, pixel_size: float) -> Particles:
    """Poses and CTFs of images that no file holds."""
    settings = SimulationSettings(n_images=n, box_size=box_size, pixel_size_in_angstroms=pixel_size)
    return acquire(settings, Path("imagined.star"), Path("imagined.mrcs"))


def accumulation_settings(box_size: int, extent: int) -> AccumulationSettings:
    return AccumulationSettings(box_size, fitting_period(extent), np.ones((1, box_size // 2 + 1)), np.eye(3)[None])


# --- the parts --------------------------------------------------------------------------------------------------------


def wait() -> None:
    if _CARD:
        torch.cuda.synchronize()


def bus_bytes_a_second() -> float:
    """The rate of copies from pinned memory to the card, in bytes per second."""
    here = torch.empty(1 << 26, pin_memory=True)
    there = torch.empty(1 << 26, device="cuda")
    return here.nbytes / seconds_of(lambda _: there.copy_(here, non_blocking=True))


def insertion_row(box_size: int, n: int, kind: str, card: dict[str, float]) -> dict[str, Any]:
    """The insertion kernel alone, into the grid of b (complex) or of T (real)."""
    dtype = torch.complex64 if kind == "b" else torch.float32
    extent = box_size if kind == "b" else fitting_period(round(0.8 * box_size))
    rng = np.random.default_rng(0)
    tilt = np.degrees(np.arccos(rng.uniform(-1, 1, n)))
    matrices = rotation_matrices(np.stack([rng.uniform(-180, 180, n), tilt, rng.uniform(-180, 180, n)], axis=1))
    views = Views(*(torch.from_numpy(a).to(_DEVICE) for a in Views.arrays(matrices, box_size)))
    slices = [torch.randn(n, box_size, box_size // 2 + 1, dtype=dtype, device=_DEVICE) for _ in range(3)]
    grids = DeviceGrids.empty(1, extent, box_size, dtype, _DEVICE)
    sets = torch.zeros(n, dtype=torch.int32, device=_DEVICE)
    seconds = seconds_of(lambda turn: grids.insert(slices[turn % 3], views, sets)) / n
    # Of eight floats; of T, a row has four. A card that adds complex numbers at once may be faster with b.
    rows, rate = (16, card["complex rows"]) if kind == "b" else (8, card["rows"])
    floor = rows * len(grids.samples) / rate
    finish = seconds_of(lambda _: grids.of(0).backprojection(), repeats=3)
    return {
        "box": box_size,
        "into": kind,
        "grid period": grids.period,
        "µs an image": 1e6 * seconds,
        "images/s": 1 / seconds,
        "floor by atomics, µs": 1e6 * floor,
        "of the floor": seconds / floor,
        "finish, ms": 1e3 * finish,
    }


def whole_on_device(particles: Particles, images: Any, order: Any, settings: AccumulationSettings) -> Statistics:
    """Accumulate the statistics of all images on the card."""
    parts, (b, t) = PartWeights.whole(len(particles)), [GridId(0, kind) for kind in Kind]
    grids = filled_on_device([b, t], particles, images, order, parts, settings, _DEVICE)
    return statistics_of(grids[b], grids[t], settings, parts, 0)


def pass_row(box_size: int, n: int, bus: float) -> dict[str, Any]:
    """The accumulation from host memory to full grids of both halves' training and held-out images; medians."""
    particles = imagined(n, box_size, 1.5)
    few = max(1, (1 << 30) // (4 * box_size**2))  # more than any cache holds
    images = InMemory(np.random.default_rng(1).standard_normal((min(n, few), box_size, box_size), dtype=np.float32), n)
    parts = PartWeights.one_part_each([Part(state=number) for number in range(4)], np.arange(n) % 4)
    wanted = [GridId(number, kind) for number in range(4) for kind in Kind]
    settings = accumulation_settings(box_size, round(0.8 * box_size))
    times, said, shares = [], [], {}
    for _ in range(1 + _REPEATS):  # the first one compiles
        watch = Stopwatch(_DEVICE)
        start = time.perf_counter()
        what = particles, images, np.arange(n), parts, settings, _DEVICE
        filled_on_device(wanted, *what, say=said.append, stopwatch=watch)
        wait()
        times.append(time.perf_counter() - start)
        shares = watch.seconds()
    seconds = statistics.median(times[1:])
    print(*said[-1:], flush=True)
    shares = {f"{name}, s": shares.get(name, 0.0) for name in
              ("waiting for images", "transforms and weights", "insertion", "waiting for the card")}  # fmt: skip
    floor = 4 * box_size**2 / bus
    return {
        "box": box_size,
        "images": n,
        "images/s": n / seconds,
        "required": 10_000 * 128**2 // box_size**2,
        **shares,
        "floor by the bus, images/s": 1 / floor,
        "of the floor": seconds / n / floor,
    }


def fit_row(box_size: int, n_gaussians: int, steps: int, n_images: int, work: Path) -> dict[str, Any]:
    """A fit of one half to the statistics of simulated images, with all of its steps; the upload is included."""
    star = simulated_on_card(work / f"fit-{box_size}-{n_images}", box_size, 384 / box_size, n_images)
    table = emsplat.read_particles(star)
    extent = round(0.8 * box_size)
    with ImageSource(table) as images:
        one = whole_on_device(table, images, reading_order(table), accumulation_settings(box_size, extent))
    mask = soft_sphere(box_size, 0.7 * box_size, 4.0)
    gaussians = GaussianSettings.for_particle(n_gaussians, float(mask.sum()))
    settings, task = FitSettings(max_steps=steps), Task(device=_DEVICE)
    times = []
    for _ in range(1 + _REPEATS):
        start = initial_gaussians(one, mask, extent, gaussians, seed=0, device=_DEVICE)
        wait()
        begun = time.perf_counter()
        _, history = fit_statistics(one, None, start, settings, task)
        wait()
        times.append(time.perf_counter() - begun)
    seconds = statistics.median(times[1:])
    return {
        "box": box_size,
        "Gaussians": history.counts[-1],
        "steps": history.n_steps,
        "seconds": seconds,
        "ms a step": 1e3 * seconds / history.n_steps,
        "required, s": 5,
    }


# --- the whole job ----------------------------------------------------------------------------------------------------


def simulated_on_card(folder: Path, box_size: int, pixel_size: float, n: int) -> Path:
    """A star and a stack of images of 7PBL's atoms as Gaussians, projected on the card; they are made once."""
    star = folder / "particles.star"
    if star.exists():
        return star
    folder.mkdir(parents=True, exist_ok=True)
    settings = SimulationSettings(n_images=n, box_size=box_size, pixel_size_in_angstroms=pixel_size, snr=_SNR)
    particles = acquire(settings, star, folder / "particles.mrcs")
    places = torch.from_numpy(atom_places() / pixel_size)
    atoms = [
        t.to(_DEVICE, torch.float32)
        for t in (
            places,
            torch.full((len(places), 1), math.log(1.0 / pixel_size)),
            torch.tensor([[1.0, 0, 0, 0]]).repeat(len(places), 1),
            torch.zeros(len(places)),
        )
    ]
    generator = torch.Generator(_DEVICE).manual_seed(0)
    sigma = None
    with StackWriter(folder / "particles.mrcs", box_size, pixel_size) as writer:
        for first in range(0, n, 512):
            some = particles.select(np.arange(first, min(first + 512, n)))
            shifts = torch.from_numpy(-some.origin_in_angstroms / pixel_size).to(_DEVICE)
            rotations = torch.from_numpy(some.rotations()).to(_DEVICE)
            images = project(*atoms, rotations, shifts, box_size, cutoff=5.0, band_limited=True)
            images = torch.fft.irfft2(
                torch.fft.rfft2(images) * torch.from_numpy(ctf(some)).to(_DEVICE), s=images.shape[1:]
            )
            sigma = sigma or float((images.var(dim=(1, 2)).mean() / _SNR).sqrt())
            images += sigma * torch.randn(images.shape, generator=generator, device=_DEVICE)
            writer.append(images.cpu().numpy())
    write_star(star, star_tables(particles))
    return star


def atom_places() -> NDArray[np.float64]:
    """(K, 3) x, y, z of the atoms in Å from their centre."""
    places = np.array([site.atom.pos.tolist() for site in read_atoms(bundled_model()).all()])
    return places - places.mean(axis=0)


def job_row(star: Path, device: str, folder: Path) -> dict[str, Any]:
    """The whole job from the star to the report, beside reading the file once."""
    table = emsplat.read_particles(star)
    begun = time.perf_counter()
    stack = star.with_suffix(".mrcs")
    with open(stack, "rb", buffering=0) as file:
        block = bytearray(64 << 20)
        while file.readinto(block):
            pass
    reading = time.perf_counter() - begun
    reporter = Reporter()
    begun = time.perf_counter()
    result = emsplat.reconstruct(star, ReconstructSettings(device=device), reporter)  # type: ignore[arg-type]
    emsplat.write_run(folder, result, overwrite=True)
    seconds = time.perf_counter() - begun
    print(*(line for line in reporter.log if "accumulation" in line or "blocks" in line), sep="\n", flush=True)
    stages = {f"{name}, s": reporter.seconds.get(name, 0.0) for name in ("preview", "pass", "inversion", "fit")}
    return {
        "images": len(table),
        "box": table.box_size,
        "device": device,
        "seconds": seconds,
        "reading the file, s": reading,
        "beyond reading, s": seconds - reading,
        **stages,
        "resolution, Å": result.validation.resolution,
    }


def parity_rows(star: Path) -> list[dict[str, Any]]:
    """Least FSC over the shells between maps of runs that should be the same; the last row is the yardstick."""
    runs = {
        "cuda": emsplat.reconstruct(star, ReconstructSettings(device="cuda")),
        "cpu": emsplat.reconstruct(star, ReconstructSettings(device="cpu")),
        "cpu, one thread": emsplat.reconstruct(star, ReconstructSettings(device="cpu", threads=1)),
    }
    rows = []
    for name in ("cuda", "cpu, one thread"):
        pairs = list(zip(runs["cpu"].halves, runs[name].halves, strict=True))
        limit = max(1, runs["cpu"].validation.limit_shell)
        raw = min(float(fsc(a.raw, b.raw).min()) for a, b in pairs)
        half = min(float(fsc(a.map, b.map).min()) for a, b in pairs)
        within = float(fsc(runs["cpu"].map, runs[name].map)[:limit].min())
        rows.append({
            "maps of the CPU and of": name,
            "raw halves": raw,
            "Gaussian halves": half,
            "final, to the measurable limit": within,
        })  # fmt: skip
    return rows


# --- without a card ---------------------------------------------------------------------------------------------------


def interpreted_row(box_size: int, n: int) -> dict[str, Any]:
    """Relative L2 between the statistics by the kernel and by numba's."""
    if not _CARD:
        insertion_gpu._VALUES = 1 << 12  # the interpreter's time goes by programs
    particles = imagined(n, box_size, 3.0)
    images = InMemory(np.random.default_rng(2).standard_normal((n, box_size, box_size), dtype=np.float32), n)
    settings = accumulation_settings(box_size, box_size)
    ours = whole_on_device(particles, images, np.arange(n), settings)
    [theirs] = accumulate(particles, images, PartWeights.whole(n), settings).values()
    errors = {
        name: f"{np.linalg.norm(a - b) / np.linalg.norm(b):.1e}"
        for name, a, b in (("b", ours.backprojection, theirs.backprojection), ("T", ours.kernel, theirs.kernel))
    }
    return {"box": box_size, "images": n} | errors


def nothing_timed(report: Report) -> None:
    report.environment["card"] = "none"
    rows: list[dict[str, Any]] = [
        {"what": "the pass, 128²", "required": "10,000 images/s", "measured": None},
        {"what": "the pass, 256²", "required": "2,500 images/s", "measured": None},
        {"what": "a fit of one half, 256³, 50,000 Gaussians, 100 steps", "required": "5 s", "measured": None},
        {"what": "100,000 images of 128², beyond reading the file", "required": "30 s", "measured": None},
        {"what": "FSC of maps of cuda and of cpu, every shell", "required": "0.999", "measured": None},
    ]
    text = (
        "**No graphics card was at hand: nothing was timed, and nothing of this has run on one.** The same command\n"
        "measures these on a card."
    )
    report.table("The job", rows, text)


def timed(report: Report, args: Any) -> None:
    report.environment["card"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {cores()} cores beside it"
    card, bus = rates(), bus_bytes_a_second()
    rows = [{"GB/s of a copy": card["bytes"] / 1e9, "GB/s of the bus": bus / 1e9} | rows_added(card)]
    report.table("The card", rows, "Measured, as the floors below take them.")
    boxes = ((32, 200),) if args.quick else ((128, 1024), (256, 256))
    found = [insertion_row(d, n, kind, card) for d, n in boxes for kind in ("b", "T")]
    report.table("Insertion", found, "Random views; CUDA events, medians.")
    sizes = ((32, 2000),) if args.quick else ((128, 100_000), (256, 25_000))
    text = "From host memory, wall time, medians; four subsets. What the card does and what is waited for overlaps."
    report.table("The pass", [pass_row(d, n, bus) for d, n in sizes], text)
    fit = (48, 500, 20, 500) if args.quick else (256, 50_000, 100, 2000)
    report.table(
        "The fit",
        [fit_row(*fit, args.work)],
        "One half, after its start was drawn; the first fit, which compiles, left out.",
    )
    grid = (48, 3.4) if args.quick else (128, 1.5)
    whole = simulated_on_card(args.work / "job", *grid, 1000 if args.quick else 100_000)
    jobs = [job_row(whole, "cuda", args.work / "run") for _ in range(2)]
    report.table("The job", jobs, "Twice: the first run compiles. Required: under 30 s beyond reading the file.")
    some = simulated_on_card(args.work / "some", *grid, 1000 if args.quick else 10_000)
    text = "Least FSC over the shells. Where rounding alone decides, one thread and many differ as the devices do."
    report.table("One map", parity_rows(some), text)


def main() -> None:
    args = arguments(__doc__)
    report = Report("gpu_pipeline", "The job on a graphics card", args)
    report.environment["libraries"] += f", triton {triton.__version__}"
    if not _CARD:
        nothing_timed(report)
    by = "on the card" if _CARD else "by Triton's interpreter, the rest by torch's CPU"
    rows = [interpreted_row(d, n) for d, n in (((16, 4),) if args.quick else ((24, 12), (25, 12)))]
    report.table("Statistics", rows, f"Relative L2 between those of the kernel, {by}, and the processor's.")
    if _CARD:
        timed(report, args)


if __name__ == "__main__":
    main()
