"""The folder of a search for heterogeneity whose decoder is known, without a search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from emsplat.heterogeneity.decoder import Decoder, average
from emsplat.models.gaussians import Gaussians
from emsplat.runs.heterogeneity_folder import HeterogeneityFolder

N, J = 400, 60  # images, and Gaussians of a half


def decoder() -> Decoder:
    """Gaussians of which the first third moves by 20 Å along x with z1, and the second fades with z2."""
    torch.manual_seed(0)
    model = Gaussians(
        8 * torch.randn(J, 3), torch.full((J, 3), 1.2), torch.tensor([[1.0, 0, 0, 0]]).repeat(J, 1), torch.zeros(J)
    )
    slopes, moves = torch.zeros(J, 2), torch.zeros(J, 2, 3)
    moves[: J // 3, 0, 0] = 20
    slopes[J // 3 : 2 * J // 3, 1] = -3
    return Decoder(model, slopes, moves)


def searched(folder: Path) -> Path:
    """Write what is read of a search with two components and one state: maps of 32³ voxels of 2 Å."""
    files = HeterogeneityFolder(folder)
    files.path.mkdir()
    files.consensus.mkdir()
    for half in ("1", "2"):
        decoder().save(files.decoder(half))
    average(decoder(), decoder()).save(files.decoder())
    z = np.clip(np.random.default_rng(4).normal(size=(N, 2)), -2, 2)
    rows = [f"{i}@a.mrcs,1,{a:.4f},{b:.4f},{0.9 if i < 10 else 0.0}" for i, (a, b) in enumerate(z)]
    files.latents.write_text("\n".join(["id,half,z1,z2,junk", *rows]) + "\n")
    for k in (1, 2):
        files.trajectory(k).path.mkdir(parents=True)
        points = [",".join(["01.mrc", *(f"{x}" for x in np.where(np.arange(2) == k - 1, t, 0.0))]) for t in (-2, 0, 2)]
        files.trajectory(k).points.write_text("\n".join(["file,z1,z2", *points]) + "\n")
    state = {"number": 1, "population": 1.0, "z": [0.5, 0.0], "resolution": 8.0, "resolution_kind": "measured"}
    summary = {"n_components": 2, "box_size": 32, "pixel_size": 2.0, "states": [state]}
    files.summary.write_text(json.dumps(summary))
    return files.path
