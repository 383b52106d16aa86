"""The device that does the heavy work: which one, why no other, and whether its memory is enough.

What only a graphics card needs (streams, pinned memory, its free bytes) is here and in `stopwatch`, so that everything
else also runs on torch's "cpu" device, where the tests run it.
"""

from __future__ import annotations

import errno
import math
import subprocess
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emsplat.errors import InputError, is_out_of_card
from emsplat.runtime.reporting import Reporter

Choice = Literal["auto", "cpu", "cuda"]
CPU = torch.device("cpu")
T = TypeVar("T")

_OLDEST_CAPABILITY = (7, 0)  # lowest compute capability that Triton compiles for
SIGNS_OF_A_CARD = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))


def chosen(asked: Choice, reporter: Reporter, signs: Sequence[Path] = SIGNS_OF_A_CARD) -> torch.device:
    """The device that was asked for. "auto" takes a graphics card if one can be used, and says so.

    Args:
        signs: files of which one exists where a card seems to be.
    Raises:
        InputError: "cuda" was asked for, and no card can be used; the message says why and what to do.
    """
    if asked == "cpu":
        reporter.line("device: CPU, as asked for")
        return CPU
    obstacle = _obstacle()
    if obstacle is None:
        device = torch.device("cuda", torch.cuda.current_device())
        free, total = torch.cuda.mem_get_info(device)
        reporter.line(f"device: {name_of(device)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
        return device
    why, remedy = obstacle
    if asked == "cuda":
        raise InputError(f"--device cuda: {why}; {remedy}, or leave out --device to work on the CPU")
    if any(sign.exists() for sign in signs):
        reporter.warn(f"working on the CPU, although there seems to be a graphics card: {why}; {remedy}")
    else:
        reporter.line(f"device: CPU ({why})")
    return CPU


def usable_card() -> torch.device | None:
    """The graphics card, if one can be used."""
    return None if _obstacle() else torch.device("cuda", torch.cuda.current_device())


def _obstacle() -> tuple[str, str] | None:
    """Why no card can be used, and what to do; None if one can be used."""
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA", "install a build of torch with CUDA (pytorch.org)"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return _of_the_driver(str(error))
    capability = torch.cuda.get_device_capability()
    if capability < _OLDEST_CAPABILITY:
        has, needs = (".".join(map(str, c)) for c in (capability, _OLDEST_CAPABILITY))
        return (
            f"{torch.cuda.get_device_name()} has compute capability {has}, and the kernels need {needs}",
            "choose a newer card with CUDA_VISIBLE_DEVICES",
        )
    if find_spec("triton") is None:
        return "Triton, which compiles its kernels, is not installed", "type pip install triton"
    try:
        _try_a_kernel(torch.device("cuda", torch.cuda.current_device()))
    except Exception as error:  # whatever it is, it is reported
        return _of_the_kernel(error)
    return None


def _try_a_kernel(device: torch.device) -> None:
    import_module("emsplat.runtime.trial_gpu").run(device)  # which imports Triton


def _of_the_kernel(error: Exception) -> tuple[str, str]:
    """The obstacle that a first kernel met."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = lines[0][:200]
    if "C compiler" in said:
        return "Triton finds no C compiler, which it needs to launch kernels", "install gcc, or name a compiler in CC"
    if isinstance(error, subprocess.CalledProcessError):
        return (
            "the C compiler fails to build what Triton launches kernels with (it says above why)",
            "install the headers of this Python (python3-dev)",
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC):
        return f"Triton cannot keep what it compiles ({said})", "set TRITON_CACHE_DIR to a folder that can be written"
    card = torch.cuda.get_device_name()
    if is_out_of_card(error):
        return f"{card} has no memory free for a first kernel", "look at nvidia-smi for what else uses it"
    return (
        f"a first kernel fails on {card} ({said})",
        "check that the installed torch and Triton support this card and its driver",
    )


def _of_the_driver(message: str) -> tuple[str, str]:
    """The obstacle that torch describes."""
    said = message.strip().split(". ")[0].split("\n")[0][:200]
    built_for = torch.version.cuda
    if "too old" in message:
        return (
            f"the NVIDIA driver is too old for a torch built for CUDA {built_for} ({said})",
            "update the driver, or install a torch built for an older CUDA (pytorch.org)",
        )
    if "no NVIDIA driver" in message:
        return "no NVIDIA driver was found", "install the driver"
    if "No CUDA GPUs" in message:
        return "the driver shows no card", "check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return f"CUDA does not start ({said})", "check that nvidia-smi works"


def name_of(device: torch.device) -> str:
    """The name of a device for the log."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def free_bytes(device: torch.device) -> int | None:
    """Bytes of memory that are still free, including what torch holds in reserve; None if unknown."""
    if device.type != "cuda":
        return None
    in_reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + in_reserve


def with_room(
    device: torch.device, needed: int, asked: Choice, resolution_in_angstroms: float, reporter: Reporter
) -> torch.device:
    """The device if it has this many bytes free; otherwise the CPU, unless the device was asked for.

    Args:
        resolution_in_angstroms: the finest resolution of the grids; the bytes they need fall with its third power.
    Raises:
        InputError: the device was asked for and has too little memory; the message says what to set.
    """
    free = free_bytes(device)
    if free is None or needed <= free:
        return device
    lacks = f"{name_of(device)} has {free / 1e9:.2f} GB of free memory, and this job needs {needed / 1e9:.2f} GB"
    coarser = resolution_in_angstroms * (needed / max(free, 1)) ** (1 / 3)
    remedy = f"look at coarser detail with --max-resolution {math.ceil(10 * coarser) / 10:g}"
    if asked == "cuda":
        raise InputError(f"--device cuda: {lacks}; {remedy}, or work on the CPU with --device cpu")
    reporter.warn(f"working on the CPU: {lacks}; to use the card, {remedy}")
    return CPU


def attempt(work: Callable[[], T], device: torch.device) -> tuple[T, int | None] | None:
    """What some work returns and the memory it took at most, None if nobody counts it; or None: it found too little."""
    cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        result = work()
    except RuntimeError as error:
        if not is_out_of_card(error):
            raise
        return None
    return result, torch.cuda.max_memory_allocated(device) - before if cuda else None


def release_reserve(device: torch.device) -> None:
    """Hand back what torch keeps of freed memory, which may be in pieces too small for what comes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def memory_to_send(shape: Sequence[int], device: torch.device) -> Tensor:
    """float32 host memory that a device can fetch from by itself: pinned, where it is a graphics card.

    Raises:
        MemoryError: the host has none left, or lends none, whatever CUDA says of it.
    """
    if device.type != "cuda":
        return torch.empty(tuple(shape), dtype=torch.float32)
    try:
        with torch.cuda.device(device):  # another thread's may be another card
            return torch.empty(tuple(shape), dtype=torch.float32, pin_memory=True)
    except RuntimeError as error:
        if not is_out_of_card(error):
            raise
        size = 4 * math.prod(shape) / 1e6
        raise MemoryError(f"{size:.0f} MB of the host's memory cannot be pinned for the graphics card") from error


class Courier:
    """Carries tensors between host and device while the device works on: on a stream of its own.

    Pinned memory is kept by torch until the copy out of it has been made, however early it is let go here.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors on the device; its current stream waits for them, the host does not."""
        if self._stream is None:
            return list(tensors)
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            sent = [t.to(self._device, non_blocking=True) for t in tensors]
        current.wait_stream(self._stream)
        for tensor in sent:
            tensor.record_stream(current)  # its memory was taken on our stream and is used on that one
        return sent

    def fetch(self, tensor: Tensor) -> Callable[[], NDArray[np.float32]]:
        """A function that waits for a float32 tensor, and for all that was asked of the device before it."""
        if self._stream is None:
            return tensor.numpy
        here = memory_to_send(tensor.shape, self._device)
        here.copy_(tensor, non_blocking=True)
        arrived = torch.cuda.current_stream(self._device).record_event()

        def result() -> NDArray[np.float32]:
            arrived.synchronize()
            return here.numpy()

        return result
