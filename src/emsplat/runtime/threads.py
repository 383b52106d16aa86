"""Threads: one number for numba, SciPy and torch, and no idle threads that keep a core busy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from threading import Thread
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def relax_openmp() -> None:
    """Let the threads of OpenMP sleep between kernels, unless the user's environment says otherwise.

    By default they spin on the cores that the FFTs need, and a fit on two cores took three times as long. OpenMP reads
    the variable when torch or numba loads it, so that this function must be called before their import.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@contextmanager
def threads(wanted: int | None) -> Iterator[None]:
    """Set the number of threads of all libraries, at most the number of cores; None: one for each core."""
    import numba
    import scipy.fft
    import torch

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = min(wanted or available, numba.config.NUMBA_NUM_THREADS)
    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(number)
    # The tensors of torch are small here, and its threads would get in the way of numba's.
    torch.set_num_threads(1)
    try:
        with scipy.fft.set_workers(number):
            yield
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])


def side_by_side(
    work: Callable[..., _Result], *arguments: Iterable[Any], give_up: Callable[[], None] = lambda: None
) -> list[_Result]:
    """`work` on the first of all arguments, on the second ones and so on, each on a thread of its own.

    They share the threads that the caller allows numba's kernels and SciPy's transforms. It is for few and large
    pieces of work that Python's lock does not keep from running at the same time.

    Args:
        give_up: called if a piece fails or the user interrupts; it should make the other pieces end soon, because all
            of them are waited for.
    """
    import numba
    import scipy.fft
    import torch

    pieces = list(zip(*arguments, strict=True))
    shared = numba.get_num_threads(), scipy.fft.get_workers()

    def one(piece: tuple[Any, ...]) -> _Result:
        kernels, transforms = (max(1, number // len(pieces)) for number in shared)
        numba.set_num_threads(kernels)
        torch.get_num_threads()  # only this call tells a new thread how many threads torch was given
        with scipy.fft.set_workers(transforms):
            return work(*piece)

    with ThreadPoolExecutor(max(1, min(*shared, len(pieces)))) as pool:
        running = [pool.submit(one, piece) for piece in pieces]
        try:
            for finished in wait(running, return_when=FIRST_EXCEPTION).done:
                finished.result()  # raises what a piece has raised, while others may still run
            return [each.result() for each in running]
        except BaseException:
            give_up()
            raise


def kernels_may_meet() -> bool:
    """Whether two threads may run parallel kernels of numba at the same time; its own layer of threads forbids it."""
    import numba

    try:
        return numba.get_num_threads() > 1 and numba.threading_layer() in ("omp", "tbb")
    except ValueError:  # no kernel has run, so that there is no layer yet
        return False


def import_beside(name: str) -> None:
    """Import a module on a thread of its own. If it cannot be imported, the import where it is used says why."""

    def import_it() -> None:
        with suppress(Exception):
            import_module(name)

    Thread(target=import_it).start()


@contextmanager
def pieces_side_by_side() -> Iterator[Callable[[Callable[[slice], None], int, int], None]]:
    """A function that does work on all pieces of a range, on the threads that the caller allows SciPy's transforms.

    It takes the work, the length of the range and the length of a piece, and returns when all pieces are done. Which
    thread works on a piece must not matter.
    """
    import scipy.fft

    workers = scipy.fft.get_workers()
    with ThreadPoolExecutor(workers) if workers > 1 else nullcontext() as pool:

        def each(work: Callable[[slice], None], length: int, at_once: int) -> None:
            starts = range(0, length, at_once)

            def share(worker: int) -> None:
                for start in starts[worker::workers]:
                    work(slice(start, start + at_once))

            for _ in (pool.map if pool else map)(share, range(workers)):
                pass

        yield each
