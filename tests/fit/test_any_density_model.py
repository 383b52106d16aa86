"""Both fits with something that is no set of Gaussians: a grid of voxels, each of which is a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from emsplat.fit.by_images import HalfSet, Schedule, fit_images
from emsplat.fit.by_statistics import FitSettings, fit_statistics
from emsplat.fourier.slices import fourier_volume
from emsplat.models.density_model import DensityModel
from emsplat.models.optimiser import Adam
from emsplat.runtime.checkpoint import Checkpoint, Checkpoints, Pace
from emsplat.runtime.context import Task
from emsplat.simulation.run import signal_images
from emsplat.splat.bandlimit import boosted
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.statistics.sufficient import Statistics
from emsplat.validation.correlation import fsc
from phantom import ImagesInMemory, accumulated, imagined_particles, lopsided_map

BOX = 20
SETTINGS = FitSettings(step_sizes={"values": 0.2}, seed=1)
SHORT = Schedule(round=5, max_rounds=5, anneal_rounds=2, anneal_epochs=1, step_share=0.5)


@dataclass
class VoxelGrid:
    """Densities at the voxels of a cube, of either sign; between them it is linear."""

    values: Tensor  # (d, d, d)
    gradient_floors: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    rounds: int = 0  # of densification that were asked for

    @property
    def extent(self) -> int:
        return len(self.values)

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {"values": self.values}

    def with_leaves(self, leaves: dict[str, Tensor]) -> VoxelGrid:
        return VoxelGrid(leaves["values"])

    def __len__(self) -> int:
        return self.values.numel()

    def density(self) -> Tensor:
        return self.values * 1.0

    def project(self, matrices: Tensor, shifts: Tensor, box_size: int) -> Tensor:
        """Sums over the samples of each line of sight."""
        d = self.extent
        axis = torch.arange(box_size) - box_size // 2
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        points = torch.stack([x, y, z], dim=-1).to(matrices.dtype)
        points = points - torch.nn.functional.pad(shifts, (0, 1))[:, None, None, None].to(matrices.dtype)
        inside = torch.einsum("nij,nzyxi->nzyxj", matrices, points) + d // 2
        samples = torch.nn.functional.grid_sample(
            self.values.expand(len(matrices), 1, d, d, d), (2 * inside / (d - 1) - 1).float(), align_corners=True
        )
        return samples[:, 0].sum(dim=1)

    def constrain(self) -> None:
        """Any value will do."""

    def densify(self, optimiser: Adam, rng: np.random.Generator) -> None:
        del optimiser, rng
        self.rounds += 1


@pytest.fixture(scope="module")
def half() -> HalfSet:
    particles = imagined_particles(300, BOX, pixel_size=4.0)
    images = signal_images(fourier_volume(lopsided_map(BOX)), particles)
    images += 2.0 * np.random.default_rng(2).standard_normal(images.shape, np.float32)
    noise, rows = np.full((1, BOX // 2 + 1), 4.0 * BOX**2), np.arange(300)
    kept = rows % 5 == 0
    return HalfSet(particles, ImagesInMemory(images), rows[~kept], rows[kept], noise, BOX, np.eye(3)[None])


@pytest.fixture(scope="module")
def statistics(half: HalfSet) -> tuple[Statistics, Statistics]:
    subset = np.isin(np.arange(300), half.held_out).astype(np.int8)
    settings = AccumulationSettings(BOX, 2 * BOX, half.noise, half.symmetry)
    training, held_out = accumulated(half.particles, half.images, subset, settings)
    return training, held_out


def nothing() -> VoxelGrid:
    model = VoxelGrid(torch.zeros(BOX, BOX, BOX))
    accepted: DensityModel = model  # the type checker's word that it is one
    assert accepted is model
    return model


def quality(model: VoxelGrid) -> float:
    """Mean FSC with the truth; what is fitted is the density blurred by the splat's widening."""
    ones = np.ones((BOX,) * 3, dtype=np.float32)
    return float(fsc(boosted(model.values.numpy()), lopsided_map(BOX), ones).mean())


def test_the_fit_to_statistics_stops_by_the_held_out_images(statistics: tuple[Statistics, Statistics]) -> None:
    """Before the noise is fitted: many more steps make a worse map."""
    start = nothing()
    model, history = fit_statistics(*statistics, start, SETTINGS)
    endless, _ = fit_statistics(
        *statistics, start, FitSettings(max_steps=300, approach_steps=280, step_sizes={"values": 0.2})
    )
    assert history.stopped_by == "loss of held-out images"
    assert quality(model) > 0.7
    assert quality(model) > quality(endless) + 0.02
    assert not start.values.any()  # what it began with is as it was


def test_the_fit_to_images_leads_to_the_map_of_the_statistics(
    half: HalfSet, statistics: tuple[Statistics, Statistics]
) -> None:
    by_statistics, _ = fit_statistics(*statistics, nothing(), SETTINGS)
    by_images, history = fit_images(half, nothing(), SETTINGS, SHORT)
    assert history.losses[-1] < history.losses[0]
    assert quality(by_images) > quality(by_statistics) - 0.05


class Ended(Exception):
    """Stands in for a kill."""


@pytest.mark.parametrize("solver", ["statistics", "images"])
def test_it_goes_on_from_a_checkpoint_to_the_same_bits(
    solver: str, half: HalfSet, statistics: tuple[Statistics, Statistics], tmp_path: Path
) -> None:
    shorter = replace(SHORT, round=3, max_rounds=4, batch=(8, 8))

    def fit(task: Task) -> VoxelGrid:
        if solver == "statistics":
            return fit_statistics(*statistics, nothing(), SETTINGS, task)[0]
        return fit_images(half, nothing(), SETTINGS, shorter, task)[0]

    def kept(resume: bool) -> Checkpoint:
        return Checkpoints(tmp_path, resume, pace=Pace(0, 0)).named("fit1")

    def end(done: int, total: int) -> None:
        if done == 13:
            raise Ended

    with pytest.raises(Ended):
        fit(Task(checkpoint=kept(False), progress=end))
    done: list[int] = []
    again = fit(Task(checkpoint=kept(True), progress=lambda n, total: done.append(n)))
    assert done[0] > 5
    assert torch.equal(again.values, fit(Task()).values)


def test_it_is_asked_to_densify_when_it_is_due(statistics: tuple[Statistics, Statistics]) -> None:
    shown: list[VoxelGrid] = []
    settings = FitSettings(max_steps=60, anneal_steps=10, step_sizes={"values": 0.05})
    fit_statistics(statistics[0], None, nothing(), settings, Task(watch=shown.append))
    assert shown[-1].rounds == 2  # after the steps 24 and 36, and none in the last quarter


def test_a_card_takes_the_same_steps(statistics: tuple[Statistics, Statistics]) -> None:
    """The device that stands in for one: the same loss in torch, the model's leaves on it."""
    few = FitSettings(max_steps=12, step_sizes={"values": 0.02})
    one, other = (
        fit_statistics(statistics[0], None, nothing(), few, Task(device=device))[0]
        for device in (torch.device("cpu"), torch.device("cpu", 0))
    )
    assert torch.allclose(one.values, other.values, atol=1e-3 * float(one.values.abs().max()))
