"""The kernels by themselves: splat, insertion and convolution, and the error of the splat against its reference."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numba
import numpy as np
import scipy.fft
import torch

from common import Report, arguments, cores
from emsplat.conventions import rotation_matrices
from emsplat.fourier.insertion import SliceGrid
from emsplat.splat import CUTOFF, voxelise
from emsplat.statistics.loss import QuadraticLoss, fitting_period
from emsplat.statistics.sufficient import Statistics

_REPEATS = 7


def median_seconds(work: Callable[[], object], repeats: int = _REPEATS) -> float:
    """The median seconds of a call; the first, which compiles, is left out."""
    work()
    times = []
    for _ in range(repeats):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return statistics.median(times)


def cloud(n: int, box_size: int, scale: float, spread: float, seed: int = 0) -> list[torch.Tensor]:
    """Gaussians in a ball of 0.35 D; σ is about `scale` voxels, and its log varies by `spread` along each axis."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n, 3))
    centres *= 0.35 * box_size * rng.random((n, 1)) ** (1 / 3) / np.linalg.norm(centres, axis=1, keepdims=True)
    log_scales = np.log(scale) + spread * rng.normal(size=(n, 3))
    values = (centres, log_scales, rng.normal(size=(n, 4)), 0.3 * rng.normal(size=n))
    return [torch.tensor(value, dtype=torch.float32) for value in values]


def threads(n: int) -> None:
    numba.set_num_threads(n)
    torch.set_num_threads(n)


def splat_row(n: int, box_size: int, scale: float, cutoff: float, used: int) -> dict[str, Any]:
    """Times of forward and backward, with the torch parts around the kernels."""
    threads(used)
    parameters = [p.requires_grad_() for p in cloud(n, box_size, scale, 0.2)]
    cotangent = torch.randn(box_size, box_size, box_size, generator=torch.Generator().manual_seed(1))

    def forward() -> torch.Tensor:
        return voxelise(*parameters, box_size, cutoff, "cpu")

    seconds_forward = median_seconds(forward)
    seconds_both = median_seconds(lambda: forward().backward(cotangent))
    per = 1e9 * used / n
    return {
        "Gaussians": n,
        "box": box_size,
        "σ, voxels": scale,
        "cut-off": cutoff,
        "cores": used,
        "forward, ms": 1e3 * seconds_forward,
        "backward, ms": 1e3 * (seconds_both - seconds_forward),
        "forward, ns a Gaussian and core": per * seconds_forward,
        "backward, ns a Gaussian and core": per * (seconds_both - seconds_forward),
    }


def parity_row(box_size: int, scale: float, cutoff: float) -> dict[str, Any]:
    """Relative L2 errors of the float32 kernels, for random cotangents."""
    generator = torch.Generator().manual_seed(2)
    cotangent = torch.randn(box_size, box_size, box_size, generator=generator, dtype=torch.float64)
    found = []
    for implementation, kind in (("cpu", torch.float32), ("reference", torch.float64)):
        parameters = [p.to(kind).requires_grad_() for p in cloud(200, box_size, scale, 0.2)]
        volume = voxelise(*parameters, box_size, cutoff, implementation)
        gradients = torch.autograd.grad(volume, parameters, cotangent.to(kind))
        found.append([volume.detach().double(), *(g.double() for g in gradients)])
    names = ("volume", "d centres", "d log σ", "d quaternions", "d log mass")
    errors = {
        name: f"{float((a - b).norm() / b.norm()):.1e}" for name, a, b in zip(names, found[0], found[1], strict=True)
    }
    return {"box": box_size, "σ, voxels": scale, "cut-off": cutoff} | errors


def insertion_row(box_size: int, dtype: type, n: int, used: int) -> dict[str, Any]:
    """Insertion of random slices into the grid of b (complex) or of T (real), mostly to the edge of the box."""
    threads(used)
    rng = np.random.default_rng(3)
    grid = SliceGrid.empty(box_size, box_size, dtype)
    shape = (n, box_size, box_size // 2 + 1)
    slices = rng.standard_normal(shape, dtype=np.float32)
    slices = slices.astype(dtype)
    view = np.stack([rng.uniform(-180, 180, n), np.degrees(np.arccos(rng.uniform(-1, 1, n))),
                     rng.uniform(-180, 180, n)], axis=1)  # fmt: skip
    rotations = rotation_matrices(view)
    seconds = median_seconds(lambda: grid.insert(slices, rotations), 3)
    return {
        "box": box_size,
        "into": "b" if dtype is np.complex64 else "T",
        "grid period": grid.period,
        "cores": used,
        "ms an image": 1e3 * seconds / n,
        "finish (adjoint), ms": 1e3 * median_seconds(grid.backprojection, 3),
    }


def convolution_row(extent: int, used: int) -> dict[str, Any]:
    """T∗V on a cube, and the loss with its gradient, at the period of a fit, beside SciPy's pair of transforms."""
    rng = np.random.default_rng(4)
    volume = rng.standard_normal((extent,) * 3, dtype=np.float32)
    period = fitting_period(extent)
    kernel = rng.standard_normal((period,) * 3, dtype=np.float32)
    loss = QuadraticLoss(Statistics(volume, kernel, 1, 1.0), extent, period)
    threads(used)
    with scipy.fft.set_workers(used):
        convolved = median_seconds(lambda: loss.convolve(volume))
        whole = median_seconds(lambda: loss.value_and_gradient(volume))
        padded = median_seconds(lambda: scipy.fft.irfftn(scipy.fft.rfftn(kernel), s=kernel.shape))
    return {
        "edge": extent,
        "period": period,
        "cores": used,
        "T∗V, ms": 1e3 * convolved,
        "loss and gradient, ms": 1e3 * whole,
        "plain pair, ms": 1e3 * padded,
    }


def main() -> None:
    args = arguments(__doc__)
    report = Report("kernels", "Kernels", args)
    all_cores = sorted({1, cores()})
    sizes = ((500, 32),) if args.quick else ((6000, 128), (24_000, 128), (24_000, 192))
    rows = [splat_row(n, d, scale, 3.0, used) for n, d in sizes for scale in (0.9, 1.2) for used in all_cores]
    report.table("Splat", rows, f"Anisotropic, medians of {_REPEATS}; the torch parts around the kernels included.")
    rows = [parity_row(d, scale, c) for d in (24, 25) for scale in (0.8, 1.5) for c in (3.0, CUTOFF, 5.0)]
    text = "Relative L2 against the float64 reference; where a Gaussian is cut off, one voxel in or out is an error."
    report.table("Parity of the splat", rows, text)
    boxes = (32,) if args.quick else (64, 96, 128, 192)
    n = 50 if args.quick else 500
    rows = [
        insertion_row(d, dtype, n, used) for d in boxes for dtype in (np.complex64, np.float32) for used in all_cores
    ]
    report.table("Insertion", rows, f"{n} slices at random orientations, as one block.")
    edges = (24,) if args.quick else (64, 80, 100, 128)
    report.table("Convolution T∗V", [convolution_row(edge, used) for edge in edges for used in all_cores])


if __name__ == "__main__":
    main()
