"""Threads: one number for numba, SciPy and torch, and no idle ones that keep a core busy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def relax_openmp() -> None:
    """Let OpenMP's threads sleep between kernels, unless the user's environment says otherwise.

    They spin by default, on the cores that the FFTs want: a fit on two cores took three times as long. OpenMP reads
    the variable when torch or numba loads it, so this comes before their import.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@contextmanager
def threads(wanted: int | None) -> Iterator[None]:
    """All libraries on as many threads as asked for, at most the cores there are; None: one for each of these."""
    import numba
    import scipy.fft
    import torch

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = min(wanted or available, numba.config.NUMBA_NUM_THREADS)
    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(number)
    # Torch's tensors are small here, and its threads would be in the way of numba's.
    torch.set_num_threads(1)
    try:
        with scipy.fft.set_workers(number):
            yield
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])
