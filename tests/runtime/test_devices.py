"""Which device is chosen, what is said of it, and what a card that is not used lacks: on any machine."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from emsplat.errors import in_one_line
from emsplat.runtime import devices
from emsplat.runtime.devices import CPU, Courier, attempt, chosen, with_room
from emsplat.runtime.reporting import Reporter
from emsplat.runtime.stopwatch import Stopwatch

CARD = torch.device("cuda", 0)
OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 10020). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: "
    "https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."
)
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
    "http://www.nvidia.com/Download/index.aspx"
)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch):
    """A torch with CUDA, a driver that says what it is given to say, and a card of some capability."""

    def pretend(
        failure: str | None = None,
        capability: tuple[int, int] = (9, 0),
        triton: bool = True,
        kernel: Exception | None = None,
    ) -> None:
        def init() -> None:
            if failure:
                raise RuntimeError(failure)

        def try_a_kernel(device: torch.device) -> None:
            assert device == CARD
            if kernel:
                raise kernel

        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some Card")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (7 * 10**9, 8 * 10**9))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 3 * 10**8)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 10**8)
        monkeypatch.setattr(devices, "find_spec", lambda name: object() if triton else None)
        monkeypatch.setattr(devices, "_try_a_kernel", try_a_kernel)

    return pretend


def test_the_card_is_found_and_named(cuda) -> None:
    cuda()
    for asked in ("auto", "cuda"):
        reporter = Reporter()
        assert chosen(asked, reporter) == CARD
        assert "Some Card, 7.0 of 8.0 GB free" in reporter.log[-1]
    assert chosen("cpu", Reporter()) == CPU
    assert devices.usable_card() == CARD
    cuda(failure=NO_DRIVER)
    assert devices.usable_card() is None


@pytest.mark.parametrize(
    ("pretence", "culprits"),
    [
        ({"failure": OLD_DRIVER}, ("driver is too old", "12.8", "10020", "update the driver")),
        ({"failure": NO_DRIVER}, ("no NVIDIA driver", "install the driver")),
        ({"failure": "No CUDA GPUs are available"}, ("shows no card", "CUDA_VISIBLE_DEVICES")),
        ({"failure": "CUDA unknown error\nmore"}, ("CUDA does not start", "unknown error", "nvidia-smi")),
        ({"capability": (6, 1)}, ("Some Card", "6.1", "7.0")),
        ({"triton": False}, ("Triton", "pip install triton")),
        ({"kernel": RuntimeError("Failed to find C compiler. Please specify ...")}, ("no C compiler", "install gcc")),
        ({"kernel": subprocess.CalledProcessError(1, ["gcc", "driver.c"])}, ("C compiler fails", "python3-dev")),
        ({"kernel": torch.OutOfMemoryError("CUDA out of memory. Tried ...")}, ("no memory free", "nvidia-smi")),
        (
            {"kernel": RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")},
            ("Some Card", "no kernel image is available", "torch and Triton"),
        ),
        ({"kernel": PermissionError(13, "Permission denied", "/no/cache")}, ("/no/cache", "TRITON_CACHE_DIR")),
        ({"kernel": AssertionError()}, ("Some Card", "AssertionError")),
    ],
)
def test_what_keeps_a_card_from_being_used_is_told(cuda, refuses, tmp_path, pretence, culprits) -> None:
    """An error where it was asked for; else the work falls to the CPU, aloud where there seems to be a card."""
    cuda(**pretence)
    with refuses("--device cuda", *culprits, "leave out --device"):
        chosen("cuda", Reporter())
    for signs in ((), (tmp_path,)):
        reporter = Reporter()
        assert chosen("auto", reporter, signs) == CPU
        assert culprits[0] in reporter.log[-1]
        assert len(reporter.warnings) == len(signs)


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch has CUDA")
def test_a_torch_without_cuda_is_told(refuses) -> None:
    with refuses("--device cuda", torch.__version__, "without CUDA", "pytorch.org"):
        chosen("cuda", Reporter())
    reporter = Reporter()
    assert chosen("auto", reporter) == CPU
    assert "without CUDA" in reporter.log[-1]


def test_too_little_memory_is_told_with_what_would_be_enough(cuda, refuses) -> None:
    """7.2 GB can be had, torch's reserve included; half as much is needed at a resolution 2^(1/3) coarser."""
    cuda()
    assert with_room(CARD, 7_200_000_000, "cuda", 3.0, Reporter()) == CARD
    needed = 14_400_000_000
    with refuses("Some Card", "7.20 GB", "14.40 GB", "--max-resolution 3.8", "--device cpu"):
        with_room(CARD, needed, "cuda", 3.0, Reporter())
    reporter = Reporter()
    assert with_room(CARD, needed, "auto", 3.0, reporter) == CPU
    [warning] = reporter.warnings
    assert "working on the CPU" in warning
    assert "--max-resolution 3.8" in warning
    assert with_room(CPU, 10**15, "auto", 3.0, Reporter()) == CPU


LACKS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]


@pytest.mark.parametrize("lack", LACKS)
def test_a_lack_of_memory_is_known_whoever_tells_it(lack: Exception) -> None:
    def fail() -> None:
        raise lack

    assert attempt(fail, CPU) is None
    said, _ = in_one_line(lack) or ("", 0)
    assert said.startswith("out of memory on the graphics card (")
    assert "\n" not in said


def test_a_host_without_memory_to_pin_is_not_taken_for_the_card(monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory\nmore")

    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(MemoryError) as caught:
        devices.memory_to_send((16, 1000, 1000), CARD)
    said, _ = in_one_line(caught.value) or ("", 0)
    assert said.startswith("out of memory (64 MB of the host's memory cannot be pinned for the graphics card)")


def test_only_a_lack_of_memory_is_answered_with_another_attempt() -> None:
    def fail(error: Exception) -> None:
        raise error

    assert attempt(lambda: 3, CPU) == (3, None)
    with pytest.raises(RuntimeError, match="illegal"):
        attempt(lambda: fail(RuntimeError("an illegal memory access was encountered")), CPU)


def test_a_card_that_runs_out_of_memory_is_told_in_one_line() -> None:
    """As torch says it, 2.13."""
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 9.06 GiB is "
        "free. See documentation for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html)"
    )
    said, code = in_one_line(error) or ("", 0)
    assert code == 1
    assert said.startswith("out of memory on the graphics card (Tried to allocate 20.00 GiB); look at coarser detail")
    assert said.endswith("--device cpu")


def test_a_job_asked_of_a_card_that_is_not_there_ends_in_one_line(simulated: Path, capsys, tmp_path) -> None:
    from emsplat.cli import main

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert (
        main(["reconstruct", str(simulated / "particles.star"), "-o", str(tmp_path / "run"), "--device", "cuda"]) == 2
    )
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("emsplat: --device cuda: ")
    assert not (tmp_path / "run").exists()


def test_a_stopwatch_adds_up_by_name() -> None:
    watch = Stopwatch()
    for name in ("reading", "inserting", "reading"):
        with watch.working(name):
            time.sleep(0.02)
    with pytest.raises(ZeroDivisionError), watch.waiting("reading"):
        1 / 0  # noqa: B018
    seconds = watch.seconds()
    assert list(seconds) == ["reading", "inserting"]
    assert seconds["reading"] >= 0.04
    assert seconds["inserting"] >= 0.02
    assert re.fullmatch(r"reading \d+\.\d s, inserting \d+\.\d s", watch.text())


@dataclass(frozen=True)
class Stream:
    """Stands for one: writes down what is asked of it, on a clock that goes on by a millisecond each time."""

    name: str
    log: list[str]

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self.log)
        self.log.append(f"event on {self.name}")
        event.time = len(self.log)
        return event


class Event:
    def __init__(self, log: list[str]) -> None:
        self.log, self.time = log, 0

    def synchronize(self) -> None:
        self.log.append("waited for the event")

    def elapsed_time(self, end: Event) -> float:
        return end.time - self.time


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> tuple[Stream, Stream]:
    """The courier's and the current one."""
    log: list[str] = []
    own, current = Stream("own", log), Stream("current", log)

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        log.append(f"onto {stream.name}")
        yield
        log.append(f"off {stream.name}")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("waited for all"))
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(log))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: log.append(f"kept for {stream.name}"))
    return own, current


def test_the_current_stream_waits_for_a_courier_and_keeps_what_it_brings(streams, monkeypatch) -> None:
    """The host waits only for what it fetches, and only when it asks for it."""
    own, current = streams
    courier = Courier(CPU)
    monkeypatch.setattr(courier, "_stream", own)
    sent = courier.send(torch.ones(2), torch.zeros(3))
    assert [len(tensor) for tensor in sent] == [2, 3]
    assert own.log == ["onto own", "off own", "current waits for own", "kept for current", "kept for current"]
    own.log.clear()
    fetched = courier.fetch(sent[0])
    assert current.log == ["event on current"]
    assert fetched().tolist() == [1, 1]
    assert current.log == ["event on current", "waited for the event"]


def test_a_card_is_timed_by_its_events(streams) -> None:
    """Each pair is a millisecond apart; what the host waits for is timed by the host."""
    watch = Stopwatch(CARD)
    for name in ("transforms", "insertion", "transforms"):
        with watch.working(name):
            pass
    with watch.waiting("images"):
        time.sleep(0.01)
    seconds = watch.seconds()
    assert seconds["transforms"] == pytest.approx(0.002)
    assert seconds["insertion"] == pytest.approx(0.001)
    assert seconds["images"] >= 0.01
    assert streams[0].log[-1] == "waited for all"
    assert watch.seconds() == seconds
