"""A few Gaussians of known place and shape, and a folder that looks like a finished run of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from emsplat.io.mrc import write_map
from emsplat.models.gaussians import Gaussians, merge

BOX, PIXEL_SIZE = 33, 2.0  # Å
WIDEST, FARTHEST = 3.0, 12.0  # Å: nothing reaches the box's faces, as in a run


@pytest.fixture(scope="session")
def some_gaussians() -> Callable[..., Gaussians]:
    """(n) of them, anywhere within the box, of any shape and orientation; lengths in Å."""

    def make(n: int, seed: int = 0, narrowest: float = 1.0, isotropic: bool = False) -> Gaussians:
        rng = np.random.default_rng(seed)
        sigmas = rng.uniform(narrowest, WIDEST, (n, 3))
        return Gaussians(
            torch.tensor(rng.uniform(-FARTHEST, FARTHEST, (n, 3)), dtype=torch.float32),
            torch.tensor(np.log(sigmas[:, :1].repeat(3, 1) if isotropic else sigmas), dtype=torch.float32),
            torch.tensor(rng.normal(size=(n, 4)), dtype=torch.float32),
            torch.tensor(np.log(rng.uniform(1, 50, n)), dtype=torch.float32),
        )

    return make


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Gaussians, Gaussians], Path]:
    """Writes what `export` reads of a run whose halves these are; its raw maps and mask are noise."""

    def write(first: Gaussians, second: Gaussians) -> Path:
        folder = tmp_path_factory.mktemp("runs") / "run"
        folder.mkdir()
        average = merge(first, second)
        models = {"gaussians": average, "gaussians_half1": first, "gaussians_half2": second}
        for name, model in models.items():
            model.save(folder / f"{name}.safetensors")
        write_map(folder / "map.mrc", average.voxelise(BOX, PIXEL_SIZE), PIXEL_SIZE)
        for seed, name in enumerate(("raw_half1", "raw_half2", "mask")):
            write_map(folder / f"{name}.mrc", np.random.default_rng(seed).normal(size=(BOX,) * 3), PIXEL_SIZE)
        (folder / "summary.json").write_text(json.dumps({"box_size": BOX, "pixel_size": PIXEL_SIZE}))
        return folder

    return write
