"""Gaussians of all sorts that every splat must cope with, and the boxes they are splatted into."""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = ("centres", "log_scales", "quaternions", "log_masses")
Gaussians = tuple[Tensor, Tensor, Tensor, Tensor]


def gaussians(k: int, box_size: int, seed: int = 0, isotropic: bool = False) -> Gaussians:
    """Scattered over the box and a little beyond, float32."""
    rng = torch.Generator().manual_seed(seed)
    return (
        (torch.rand(k, 3, generator=rng) - 0.5) * 1.2 * box_size,
        0.3 + 0.3 * torch.randn(k, 1 if isotropic else 3, generator=rng),
        torch.randn(k, 4, generator=rng),
        torch.randn(k, generator=rng),
    )


def with_scales(sigmas: list[float], box_size: int) -> Gaussians:
    centres, _, quaternions, masses = gaussians(12, box_size, seed=3)
    return 0.5 * centres, torch.log(torch.tensor(sigmas)).expand(12, 3).clone(), quaternions, masses


def off_the_grid(box_size: int) -> Gaussians:
    centres, scales, quaternions, masses = gaussians(12, box_size)
    return centres + 3 * box_size, scales, quaternions, masses


def on_the_faces(box_size: int) -> Gaussians:
    centres, scales, quaternions, masses = gaussians(12, box_size)
    return torch.sign(centres) * (0.5 * box_size + 0.3), scales, quaternions, masses


def coincident(box_size: int) -> Gaussians:
    one = gaussians(1, box_size // 2, seed=5)
    return tuple(t.expand(7, *t.shape[1:]).clone() for t in one)  # type: ignore[return-value]


CASES = {
    **{f"box {d}": gaussians(60, d) for d in (1, 2, 5, 7, 8, 16, 17, 24)},
    "isotropic": gaussians(60, 17, isotropic=True),
    "none": gaussians(0, 16),
    "single": gaussians(1, 4),
    "needles": with_scales([0.3, 0.3, 6.0], 16),
    "long needles": with_scales([0.2, 0.3, 5.0], 41),
    "discs": with_scales([0.3, 6.0, 6.0], 17),
    "0.3 px": with_scales([0.3, 0.3, 0.3], 16),
    "0.05 px": with_scales([0.05, 0.06, 0.07], 16),
    "wider than the box": with_scales([30.0, 40.0, 50.0], 9),
    "off the grid": off_the_grid(16),
    "on the faces": on_the_faces(17),
    "coincident": coincident(16),
}
ROUND = ("isotropic", "0.3 px")  # cases of round Gaussians
_BOX = {"isotropic": 17, "long needles": 41, "discs": 17, "wider than the box": 9, "on the faces": 17}


def box_of(case: str) -> int:
    """D in which a case is looked at."""
    return int(case.split()[1]) if case.startswith("box") else _BOX.get(case, 16)
