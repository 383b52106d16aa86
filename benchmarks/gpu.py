"""The splats on a graphics card, beside the limits of the card; without a card, what can be measured without one.

Times are medians of CUDA events after a warm-up. The input sets are used in turn, so that none stays in a cache. There
are three lower limits: the bytes that must move over the measured bandwidth of a copy, the values that must be computed
over the measured rate of doing only that, and the rows that are added to the images over the measured rate of atomics.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

_CARD = torch.cuda.is_available()
if not _CARD:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from common import REPOSITORY, Report, arguments  # noqa: E402
from emsplat.splat import CUTOFF, covariances, project, voxelise  # noqa: E402
from kernels import cloud  # noqa: E402
from project import footprint, poses  # noqa: E402

_SETS, _REPEATS, _WARM_UP = 4, 20, 5
_NAMES = ("values", "d centres", "d log σ", "d quaternions", "d log mass", "d rotations", "d shifts")
_TIMED = [(30_000, 256, 256, 1.0), (12_000, 512, 128, 1.0), (12_000, 512, 128, 2.0)]  # Gaussians, images, box, σ
_SHAPES = ((1.0, CUTOFF), (0.6, 5.0))  # σ and cut-off, for parity
_LANES = tl.constexpr(8)


# --- parity, on a card or by the interpreter --------------------------------------------------------------------------


def parity_row(splat: str, n: int, box_size: int, scale: float, cutoff: float) -> dict[str, Any]:
    """Relative L2 errors of the kernels and the smallest cosine of their gradients, for random cotangents."""
    generator = torch.Generator().manual_seed(2)
    shape = (3, box_size, box_size) if splat == "project" else (box_size,) * 3
    cotangent = torch.randn(shape, generator=generator, dtype=torch.float64)
    found = []
    for implementation, kind, device in (("gpu", torch.float32, _device()), ("reference", torch.float64, "cpu")):
        leaves = [p.to(device, kind, copy=True).requires_grad_() for p in cloud(n, box_size, scale, 0.2)]
        if splat == "project":
            leaves += [t.to(device, copy=True).requires_grad_() for t in poses(3, 2.0)]
            values = project(*leaves, box_size, cutoff, implementation)
        else:
            values = voxelise(*leaves, box_size, cutoff, implementation)
        gradients = torch.autograd.grad(values, leaves, cotangent.to(values))
        found.append([t.detach().double().cpu() for t in (values, *gradients)])
    pairs = list(zip(*found, strict=True))
    errors = dict.fromkeys(_NAMES, "–")
    errors |= {name: f"{float((a - b).norm() / b.norm()):.1e}" for name, (a, b) in zip(_NAMES, pairs, strict=False)}
    lost = max(1 - float(torch.sum(a * b) / (a.norm() * b.norm())) for a, b in pairs[1:])
    case = {"splat": splat, "Gaussians": n, "box": box_size, "σ, pixels": scale, "cut-off": cutoff}
    return case | errors | {"1 − cosine, worst": f"{lost:.0e}"}


def _device() -> str:
    return "cuda" if _CARD else "cpu"


# --- what the card could do at most -----------------------------------------------------------------------------------


@triton.jit
def _evaluate(out, steps, BLOCK: tl.constexpr):
    """Evaluate Gaussians as the kernels do, without their memory traffic."""
    t = tl.arange(0, BLOCK).to(tl.float32) * 1e-3
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for _ in range(steps):
        total += tl.exp2(-t * t)
        t += 1e-3
    tl.store(out + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), total)


@triton.jit
def _add_rows(out, places, n, ROWS: tl.constexpr, STEP: tl.constexpr):
    """Rows of eight ones, added at multiples of a step: of complex numbers, with 2, which a card may add at once."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = STEP * tl.load(places + row, mask=row < n, other=0)[:, None] + tl.arange(0, _LANES)[None, :]
    tl.atomic_add(out + at, tl.full([ROWS, _LANES], 1.0, tl.float32), mask=(row < n)[:, None], sem="relaxed")


def seconds_of(work: Callable[[int], object], repeats: int = _REPEATS) -> float:
    """Median time on the card of ``work(i)``, i the turn."""
    for turn in range(_WARM_UP):
        work(turn)
    times = []
    for turn in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work(turn)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def rates() -> dict[str, float]:
    """Rates per second: bytes copied both ways, Gaussian values, rows of eight and of four complex numbers added."""
    source, target = (torch.empty(1 << 28, device="cuda") for _ in range(2))
    copy = 2 * source.nbytes / seconds_of(lambda _: target.copy_(source))
    out, steps = torch.empty(1 << 22, device="cuda"), 512
    evaluate = seconds_of(lambda _: _evaluate[(out.numel() // 1024,)](out, steps, 1024, num_warps=4))
    n, pixels = 1 << 22, 64 * 256 * 256  # images as a batch of them: they stay in the cache
    places = [torch.randint(0, pixels // 2 - 8, (n,), device="cuda", dtype=torch.int32) for _ in range(_SETS)]

    def adding(step: int) -> float:
        return seconds_of(lambda turn: _add_rows[(n // 16,)](target, places[turn % _SETS], n, 16, step, num_warps=1))

    found = {"bytes": copy, "values": out.numel() * steps / evaluate}
    return found | {"rows": n / adding(1), "complex rows": n / adding(2)}


def rows_added(card: dict[str, float]) -> dict[str, float]:
    """The rates of adding rows, for a table."""
    return {"10⁹ rows of eight added/s": card["rows"] / 1e9, "of four complex": card["complex rows"] / 1e9}


# --- times ------------------------------------------------------------------------------------------------------------


def input_sets(n: int, images: int, box_size: int, scale: float) -> list[tuple[list[torch.Tensor], torch.Tensor]]:
    """Pairs of leaves and a cotangent on the card."""
    sets = []
    for seed in range(_SETS):
        leaves = [t.cuda() for t in cloud(n, box_size, scale, 0.2, seed)]
        leaves += [t.cuda() for t in poses(images, 2.0)] if images else []
        shape = (images, box_size, box_size) if images else (box_size,) * 3
        sets.append(([t.requires_grad_() for t in leaves], torch.randn(shape, device="cuda")))
    return sets


def there_and_back(splat: Callable, leaves: list[torch.Tensor], cotangent: torch.Tensor, box_size: int) -> None:
    torch.autograd.grad(splat(*leaves, box_size), leaves, cotangent)


def seconds_each_way(splat: Callable, sets: list, box_size: int) -> tuple[float, float]:
    """Seconds of the forward pass alone, and of forward and backward together, over the sets in turn."""
    forward = seconds_of(lambda turn: splat(*sets[turn % _SETS][0], box_size))
    return forward, seconds_of(lambda turn: there_and_back(splat, *sets[turn % _SETS], box_size))


def project_row(n: int, images: int, box_size: int, scale: float, card: dict[str, float]) -> dict[str, Any]:
    """Times of forward and backward, with gradients by Gaussians and poses, and the torch parts around the kernels."""
    sets = input_sets(n, images, box_size, scale)
    seconds_forward, seconds = seconds_each_way(project, sets, box_size)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    there_and_back(project, *sets[0], box_size)
    beyond = torch.cuda.max_memory_allocated() - before - 4 * images * box_size**2
    with torch.no_grad():
        parameters = [t.cpu() for t in sets[0][0][:4]]
        pixels, _ = footprint(parameters, sets[0][0][4].cpu(), CUTOFF)
        frames = sets[0][0][4][:8, :2].cpu()
        shapes = torch.einsum("bim,kmn,bjn->bkij", frames, covariances(*parameters[1:3]).double(), frames)
        rows = float(2 * CUTOFF * torch.sqrt(shapes[..., 1, 1]).mean())
    floors = {
        "bytes": 2 * 4 * box_size**2 / card["bytes"],  # an image written, a cotangent read
        "values": 2 * n * pixels / card["values"],
        "rows": n * rows / card["rows"],
    }
    return {
        "Gaussians": n,
        "images": images,
        "box": box_size,
        "σ, pixels": scale,
        "forward, µs an image": 1e6 * seconds_forward / images,
        "both, µs an image": 1e6 * seconds / images,
        "images/s": images / seconds,
        "floor by bytes, µs": 1e6 * floors["bytes"],
        "floor by values, µs": 1e6 * floors["values"],
        "floor by atomics, µs": 1e6 * floors["rows"],
        "of the highest floor": seconds / images / max(floors.values()),
        "MB beyond images and gradients": beyond / 1e6,
    }


def voxelise_row(n: int, box_size: int, scale: float, card: dict[str, float]) -> dict[str, Any]:
    sets = input_sets(n, 0, box_size, scale)
    seconds_forward, seconds = seconds_each_way(voxelise, sets, box_size)
    with torch.no_grad():
        scales = sets[0][0][1].double().exp()
        voxels = float(4 / 3 * torch.pi * CUTOFF**3 * scales.prod(dim=1).mean())
    return {
        "Gaussians": n,
        "box": box_size,
        "σ, voxels": scale,
        "forward, µs": 1e6 * seconds_forward,
        "both, µs": 1e6 * seconds,
        "floor by bytes, µs": 1e6 * 2 * 4 * box_size**3 / card["bytes"],
        "floor by values, µs": 1e6 * 2 * n * voxels / card["values"],
    }


def timed(report: Report, quick: bool) -> None:
    """The tables that need a card."""
    report.environment["card"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    card = rates()
    text = "Measured, as the floors below take them; a copied byte counts twice, read and written."
    shown = {"GB/s of a copy": card["bytes"] / 1e9, "10⁹ Gaussian values/s": card["values"] / 1e9}
    report.table("The card", [shown | rows_added(card)], text)
    cases = (
        [(500, 8, 32, 1.0)] if quick else [(30_000, 256, 256, 1.0), (12_000, 512, 128, 1.0), (12_000, 512, 128, 2.0)]
    )
    text = "**Required of the first case: 5,000 images/s and at most 380 MB (aim: 20,000 images/s).**"
    report.table("Project", [project_row(*case, card) for case in cases], text)
    grids = [(500, 32, 1.0)] if quick else [(50_000, 256, 1.0), (24_000, 128, 1.0)]
    report.table("Voxelise", [voxelise_row(*case, card) for case in grids])


# --- without a card too -----------------------------------------------------------------------------------------------


def compiled() -> list[dict[str, Any]]:
    """The resources of each kernel, compiled for cards that need not be there."""
    script = REPOSITORY / "tests" / "splat" / "gpu_compile.py"
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    args = arguments(__doc__)
    report = Report("gpu", "The splats on a graphics card", args)
    report.environment["libraries"] += f", triton {triton.__version__}"
    if not _CARD:
        report.environment["card"] = "none"
        untimed = {"images/s": None, "both, µs an image": None, "MB beyond images and gradients": None}
        rows = [{"Gaussians": n, "images": m, "box": d, "σ, pixels": scale} | untimed for n, m, d, scale in _TIMED]
        text = (
            "**No graphics card was at hand: nothing was timed, and nothing of this has run on one.** Images per\n"
            "second, memory and the distance to the floors are left out; the same command measures them on a card.\n"
            "Below is what can be checked without."
        )
        report.table("Project", rows, text)
    sizes = [(20, 9)] if args.quick else [(32, 12), (32, 13)] if not _CARD else [(200, 24), (200, 25)]
    cases = [(splat, *size, scale, c) for splat in ("project", "voxelise") for size in sizes for scale, c in _SHAPES]
    cases += [] if args.quick else [("project", 32, 300, *shape) for shape in _SHAPES]
    by = "on the card" if _CARD else "by Triton's interpreter, which runs the kernels with numpy"
    text = f"Relative L2 against the float64 reference, {by}; random cotangents."
    rows = []
    for case in cases:
        rows.append(parity_row(*case))
        report.table("Parity", rows, text)
    text = "By Triton and ptxas; no register spills where no byte is spilled. Atomics only forward."
    report.table("Compiled", compiled(), text)
    if _CARD:
        timed(report, args.quick)


if __name__ == "__main__":
    main()
