"""The error of Gaussians on a grid of pixels against their analytic transform, plain and band-limited."""

from __future__ import annotations

import math
from typing import Any

import torch

from common import Report, arguments
from emsplat.splat import project
from emsplat.splat.bandlimit import WIDENING
from kernels import cloud
from project import poses

_BOX = 64
_FREQUENCIES = (0.1, 0.2, 0.3, 0.4, 0.45)
_HALF_WIDTH = 0.01


def analytic_spectra(centres: torch.Tensor, sigma: float, masses: torch.Tensor, views: tuple) -> torch.Tensor:
    """(B, D, D//2+1) Σ a exp(−2πi k·p − 2π²σ²k²) of round Gaussians, in float64."""
    rotations, shifts = views
    ky, kx = torch.meshgrid(torch.fft.fftfreq(_BOX), torch.fft.rfftfreq(_BOX), indexing="ij")
    k = torch.stack([kx, ky], dim=-1).view(-1, 2).double()
    places = torch.einsum("bij,kj->bki", rotations[:, :2], centres.double()) + shifts[:, None] + _BOX // 2
    waves = torch.exp(-2j * math.pi * (places @ k.T))
    falloff = torch.exp(-2 * math.pi**2 * sigma**2 * (k**2).sum(dim=1))
    return ((masses.double()[:, None] * waves).sum(dim=1) * falloff).view(-1, *kx.shape)


def error_row(sigma: float, cutoff: float, band_limited: bool) -> dict[str, Any]:
    centres, _, quaternions, log_masses = cloud(100, _BOX, sigma, 0.0)
    views = poses(4, 1.0)
    expected = analytic_spectra(centres, sigma, log_masses.exp(), views)
    scales = torch.full((100, 3), math.log(sigma))
    model = (centres, scales, quaternions, log_masses)
    images = project(*model, *views, _BOX, cutoff, "cpu", band_limited)
    difference = torch.fft.rfft2(images.double()) - expected
    f = torch.hypot(torch.fft.fftfreq(_BOX)[:, None], torch.fft.rfftfreq(_BOX))
    errors = {}
    for frequency in _FREQUENCIES:
        ring = (f - frequency).abs() < _HALF_WIDTH
        share = torch.linalg.norm(difference[:, ring]) / torch.linalg.norm(expected[:, ring])
        errors[f"f = {frequency}"] = f"{100 * float(share):.2g}"
    return {"σ, pixels": sigma, "cut-off": cutoff, "κ": WIDENING if band_limited else 0} | errors


def main() -> None:
    args = arguments(__doc__)
    report = Report("bandlimit", "Gaussians on a grid", args)
    sigmas, cutoffs = (0.3, 0.5, 0.6, 0.8, 1.0, 1.3, 1.6), (3.0, 3.5, 4.0, 5.0)
    rows = [error_row(s, c, limited) for s in sigmas for c in cutoffs for limited in (False, True)]
    text = f"Relative error in % of the images' transforms in rings f ± {_HALF_WIDTH} cycles per pixel, {_BOX}² pixels."
    report.table("Error against the analytic transform", rows, text)


if __name__ == "__main__":
    main()
