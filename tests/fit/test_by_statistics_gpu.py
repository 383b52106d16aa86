"""The fit as a graphics card does it: on one, if there is one, and on torch's CPU, without streams and graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from emsplat.fit import by_statistics as fit
from emsplat.fit import by_statistics_gpu as fit_gpu
from emsplat.fit.by_statistics import FitSettings, fit_statistics
from emsplat.fit.by_statistics_gpu import DeviceLoss, Replayed
from emsplat.fit.initial import initial_gaussians
from emsplat.fourier import maps
from emsplat.fourier.slices import fourier_volume
from emsplat.models.densification import DensificationSchedule
from emsplat.models.gaussian_model import GaussianSettings
from emsplat.runtime.context import Task
from emsplat.runtime.devices import CPU
from emsplat.runtime.reporting import Reporter
from emsplat.simulation.run import signal_images
from emsplat.splat import reference
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.statistics.loss import QuadraticLoss
from emsplat.statistics.sufficient import Statistics
from emsplat.validation.correlation import fsc
from phantom import ImagesInMemory, accumulated, imagined_particles, lopsided_map

STAND_IN = torch.device("cpu", 0)  # is told apart from the processor, and is there
CARDS = [STAND_IN, *([torch.device("cuda", 0)] if torch.cuda.is_available() else [])]
BOX = 24
# Operations that read a value, or whose results are as large as a value says.
READING = {"_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "equal", "repeat_interleave"}
on_cards = pytest.mark.parametrize("card", CARDS, ids=str)


class Watch(TorchDispatchMode):
    """Notes the names of all that torch does."""

    def __init__(self) -> None:
        super().__init__()
        self.done: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.done.add(function._schema.name.removeprefix("aten::"))
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def statistics() -> tuple[Statistics, Statistics]:
    """Of the training and the held_out images of a half."""
    particles = imagined_particles(300, BOX, pixel_size=4.0)
    images = signal_images(fourier_volume(lopsided_map(BOX)), particles)
    images += 0.3 * images.std() * np.random.default_rng(0).standard_normal(images.shape, dtype=np.float32)
    settings = AccumulationSettings(BOX, 2 * BOX, np.ones((1, BOX // 2 + 1)), np.eye(3)[None])
    subset = (np.arange(300) % 5 == 0).astype(np.int8)
    training, held_out = accumulated(particles, ImagesInMemory(images), subset, settings)
    return training, held_out


@on_cards
@pytest.mark.parametrize(("extent", "period"), [(20, 40), (21, 27), (24, 48), (BOX, 30)])
def test_the_loss_is_that_of_the_processor(
    statistics: tuple[Statistics, Statistics], extent: int, period: int, card: torch.device
) -> None:
    volume = torch.from_numpy(np.random.default_rng(1).random((extent,) * 3, dtype=np.float32))
    ours, expected = DeviceLoss(statistics[0], extent, period, card), QuadraticLoss(statistics[0], extent, period)
    value, gradient = ours.at(volume.to(card))
    wanted, by_volume = expected.value_and_gradient(volume.numpy())
    assert float(value) == pytest.approx(wanted, rel=1e-4)
    assert np.linalg.norm(gradient.cpu().numpy() - by_volume) < 1e-5 * np.linalg.norm(by_volume)
    assert ours.best_mass(volume.to(card)) == pytest.approx(expected.best_mass(volume), rel=1e-4)


def test_the_gradient_of_the_loss_is_its_slope(statistics: tuple[Statistics, Statistics]) -> None:
    """Of which a finite difference along any direction is exact to rounding, for it is quadratic."""
    rng = np.random.default_rng(2)
    volume, direction = (torch.from_numpy(rng.random((20,) * 3, dtype=np.float32)) for _ in range(2))
    loss = DeviceLoss(statistics[0], 20, 40, STAND_IN)
    up, down = (float(loss.at(volume + step * direction)[0]) for step in (1, -1))
    assert float((loss.at(volume)[1] * direction).sum()) == pytest.approx(0.5 * (up - down), rel=1e-3)


@on_cards
@pytest.mark.parametrize("isotropic", [False, True])
def test_the_fit_leads_to_the_map_of_the_processor(
    statistics: tuple[Statistics, Statistics], isotropic: bool, card: torch.device
) -> None:
    """With rounds of densification and of annealing.

    Adam at its full step sizes magnifies rounding until another of many equal maps is found; smaller steps do not.
    """
    training, held_out = statistics
    mask = maps.soft_mask(training.raw_map(), 4.0, 4.0 * BOX)
    gaussians = GaussianSettings.for_particle(150, float(mask.sum()), isotropic)
    steps = {name: 0.2 * size for name, size in FitSettings().step_sizes.items()}
    schedule = DensificationSchedule(first=6, every=6)
    settings = FitSettings(step_sizes=steps, approach_steps=32, densification=schedule, seed=1)
    models, histories = [], []
    for device in (CPU, card):
        few = initial_gaussians(training, mask, BOX, replace(gaussians, n_gaussians=100), seed=1, device=device)
        start = replace(few, settings=gaussians)  # some to add
        reporter = Reporter()
        model, history = fit_statistics(training, held_out, start, settings, Task(device=device, reporter=reporter))
        assert reporter.log == []  # no step had to be launched one by one
        assert all(leaf.device == torch.zeros(0).device for leaf in model.leaves.values())
        models.append(model.parameters.gaussians(4.0).voxelise(BOX, 4.0))
        histories.append(history)
    assert histories[0].counts == histories[1].counts
    assert histories[1].counts[0] < histories[1].counts[-1]
    assert histories[1].losses[-1] == pytest.approx(histories[0].losses[-1], rel=1e-3)
    assert fsc(*models).min() > 0.999


def test_a_step_asks_nothing_of_the_host(
    statistics: tuple[Statistics, Statistics], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No value is read, nothing is as large as a value says: else no graph could hold it. By all that torch does."""
    watch = Watch()

    class Watched(Replayed):
        def __call__(self):
            with watch:
                return super().__call__()

    monkeypatch.setattr(fit, "Replayed", Watched)
    training, _ = statistics
    mask, settings = maps.soft_mask(training.raw_map(), 4.0, 4.0 * BOX), GaussianSettings.for_particle(60, 4000.0)
    start = initial_gaussians(training, mask, BOX, settings, seed=1, device=STAND_IN)
    fit_statistics(training, None, start, FitSettings(max_steps=3, seed=1), Task(device=STAND_IN))
    with watch:  # the stand-in is a processor, whose kernels make the shapes; a card makes them by torch
        scales, quaternions = (start.leaves[name].detach().requires_grad_() for name in ("log_scales", "quaternions"))
        reference.ellipsoids(scales.double(), quaternions.double(), power=-2).sum().backward()
    assert watch.done > {"_fft_r2c", "_fft_c2r", "lerp_", "clamp_", "bmm"}
    assert not watch.done & READING


def test_work_that_needs_no_recording_is_done_every_time() -> None:
    counted = torch.zeros(())
    work = Replayed(lambda: counted.add_(1), STAND_IN, say=pytest.fail)
    for number in range(1, 5):
        assert float(work()) == number
        work.forget()


@dataclass
class Streams:
    """What `Replayed` takes of torch.cuda, on the CPU: it keeps the rules, and writes down what is done where."""

    current: str = "default"
    recording: list | None = None  # what was asked for since a recording began
    fails: bool = False
    done: list[str] = field(default_factory=list)

    def stream(self, of: object) -> str:
        del of
        return self.current

    @contextmanager
    def use(self, stream: str) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Graph, stream: str, capture_error_mode: str) -> Iterator[None]:
        """As torch's: where the recording fails, the stream stays what it was for it."""
        assert capture_error_mode == "thread_local"
        before, self.current, self.recording = self.current, stream, []
        yield
        recorded, self.recording = self.recording, None
        if self.fails:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
        graph.recorded, self.current = recorded, before

    def add_to(self, total: torch.Tensor) -> torch.Tensor:
        """Work: adds one."""
        if self.recording is not None:
            self.recording.append(total)
        else:
            self.done.append(self.current)
            total.add_(1)
        return total


class Graph:
    def __init__(self, streams: Streams) -> None:
        self.streams, self.recorded = streams, []

    def replay(self) -> None:
        self.streams.done.append("replayed")
        for total in self.recorded:
            total.add_(1)


class Aside(str):
    def wait_stream(self, other: str) -> None:
        assert other != self


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    streams = Streams(current=Aside("default"))
    monkeypatch.setattr(fit_gpu, "_REFUSED", set())
    for name, value in {
        "Stream": lambda device: Aside("aside"),
        "current_stream": streams.stream,
        "stream": streams.use,
        "graph": streams.graph,
        "CUDAGraph": lambda: Graph(streams),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return streams


def test_work_is_recorded_after_two_times_and_replayed(streams: Streams) -> None:
    """And again, where the tensors it works on are others. Every time is done once, and its result is there."""
    total = torch.zeros(())
    work = Replayed(lambda: streams.add_to(total), torch.device("cuda", 0), say=pytest.fail)
    assert [float(work()) for _ in range(5)] == [1, 2, 3, 4, 5]
    work.forget()
    assert [float(work()) for _ in range(3)] == [6, 7, 8]
    assert streams.done == ["aside"] * 2 + ["replayed"] * 3 + ["aside"] * 2 + ["replayed"]
    assert streams.current == "default"


def test_work_that_cannot_be_recorded_is_done_all_the_same(streams: Streams) -> None:
    """On the stream it was asked for on, and said aloud once."""
    total, said = torch.zeros(()), []
    streams.fails = True
    work = Replayed(lambda: streams.add_to(total), torch.device("cuda", 0), say=said.append)
    assert [float(work()) for _ in range(4)] == [1, 2, 3, 4]
    work.forget()
    assert float(work()) == 5
    another = Replayed(lambda: streams.add_to(total), torch.device("cuda", 0), say=said.append)
    assert [float(another()) for _ in range(3)] == [6, 7, 8]
    assert streams.done == ["aside"] * 2 + ["default"] * 6
    assert said == ["steps are launched one by one: CUDA error: operation not permitted when stream is capturing"]


def test_memory_that_runs_out_while_work_is_recorded_is_told(streams: Streams) -> None:
    def scarce() -> torch.Tensor:
        if streams.recording is not None:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.zeros(())

    work = Replayed(scarce, torch.device("cuda", 0), say=pytest.fail)
    work(), work()
    with pytest.raises(torch.OutOfMemoryError):
        work()
