"""Meeting the other ranks, and parting from them."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from emsplat.errors import BAD_INPUT, FAILED, InputError, in_one_line
from emsplat.runtime.ranks.launch import Launch, interface_towards, launch
from emsplat.runtime.ranks.watch import Lost, Patience, Watch
from emsplat.runtime.ranks.world import World

_TO_MEET = 120.0  # seconds; a shared file system can be slow to deliver libraries
_NO_LIMIT = timedelta(days=30)  # for an exchange: the first rank may write for long, and the watch notices a loss
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def joined(
    stage: Callable[[], str] = lambda: "start",
    patience: Patience = Patience(),  # noqa: B008 (frozen)
) -> Iterator[World]:
    """The world that this process was started in; all ranks run the block together.

    An error, an interrupt or the loss of a rank in the block ends the process, as on all ranks, with one line from one
    of them and the same exit code.

    Args:
        stage: returns the current stage of this rank.
        patience: how long the ranks wait for each other; the same on all of them.
    Raises:
        InputError: the environment makes no sense, or the ranks did not meet.
    """
    mine = launch()
    if mine is None:
        yield World()
        return
    try:
        world = _met(mine, stage, patience)
    except InputError as error:
        _exit(f"rank {mine.rank} on {socket.gethostname()}: {error}", BAD_INPUT)
    try:
        yield world
        world.barrier()
    except BaseException as error:
        _end(world, error)
    assert world.watch
    world.watch.farewell()
    import torch.distributed as dist

    dist.destroy_process_group()


def _met(mine: Launch, stage: Callable[[], str], patience: Patience) -> World:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # otherwise it prints traces when a connection ends
    import torch
    import torch.distributed as dist

    to_meet = timedelta(seconds=_TO_MEET)

    def connect(serve: bool = False) -> Any:
        store = dist.TCPStore(
            mine.address, mine.port, is_master=serve, wait_for_workers=False, timeout=to_meet, multi_tenant=True
        )
        return dist.PrefixStore(f"emsplat/{mine.attempt}", store)

    try:
        store = connect(mine.serves)
        store.set(f"here/{mine.rank}", json.dumps(_place()))
        places = _everyone(store, mine)
        hosts = tuple(host for host, _, _ in places)
        watch = Watch(connect, mine.rank, hosts, stage, patience)
    except RuntimeError as error:
        raise InputError(f"{mine.address}:{mine.port}, where the ranks meet: {_reason(error, mine.serves)}") from None
    watch.start()
    if interface := interface_towards(mine.address, mine.port):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        torch.cuda.set_device(mine.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=mine.rank, world_size=mine.size, timeout=_NO_LIMIT
    )
    return World(mine.rank, mine.size, hosts, _share_of_cores(mine.rank, places), watch)


def _place() -> tuple[str, str, list[int]]:
    """The name of this machine, an identifier that no other machine has, and the cores that this process may use."""
    machine = _BOOT.read_text().strip() if _BOOT.exists() else socket.gethostname()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return socket.gethostname(), machine, sorted(cores)


def _everyone(store: Any, mine: Launch) -> list[tuple[str, str, list[int]]]:
    """The places of all ranks; InputError names the ranks that do not come."""
    names = [f"here/{rank}" for rank in range(mine.size)]
    until = time.monotonic() + _TO_MEET
    while not store.check(names):
        if time.monotonic() > until:
            absent = [str(rank) for rank, name in enumerate(names) if not store.check([name])]
            raise InputError(
                f"rank {', '.join(absent)} of {mine.size} has not come within {_TO_MEET:.0f} s; look at its output"
            )
        time.sleep(0.05)
    return [json.loads(place) for place in store.multi_get(names)]


def _share_of_cores(rank: int, places: list[tuple[str, str, list[int]]]) -> int:
    """Number of cores for this rank. Cores that several ranks may use are divided among them."""
    _, machine, cores = places[rank]
    users = [set(others) for _, place, others in places if place == machine]
    return max(1, int(sum(1 / sum(core in others for others in users) for core in cores)))


def _reason(error: RuntimeError, serves: bool) -> str:
    text = " ".join(str(error).split())
    if serves and ("EADDRINUSE" in text or "address already in use" in text):
        return "the port is taken; set MASTER_PORT to another one, the same for all ranks"
    return f"not reached within {_TO_MEET:.0f} s; check that rank 0 runs, and that MASTER_ADDR is its machine"


def _end(world: World, error: BaseException) -> NoReturn:
    """Tell the other ranks, let one rank say why, and end."""
    assert world.watch
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the end has begun
    known = in_one_line(error)
    if isinstance(error, Lost):
        ending = world.watch.ending
    elif isinstance(error, KeyboardInterrupt):
        ending = world.watch.interrupted()
    elif known:
        ending = world.watch.failed(*known)
    else:
        traceback.print_exception(error)
        ending = world.watch.failed(f"{type(error).__name__}: {error}", FAILED)
    assert ending
    if ending.told_by == world.rank:
        _say(ending.text)
    world.watch.farewell()
    os._exit(ending.code)  # at once, because libraries would wait for exchanges that never end


def _exit(text: str, code: int) -> NoReturn:
    _say(text)
    os._exit(code)


def _say(text: str) -> None:
    with suppress(OSError):
        print("emsplat: " + " ".join(text.split()), file=sys.stderr, flush=True)
        if sys.stdout:
            sys.stdout.flush()
