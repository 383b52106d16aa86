"""Pieces of work side by side."""

from __future__ import annotations

import threading

import numba
import numpy as np
import pytest
import scipy.fft

from emsplat.runtime.threads import side_by_side, threads

PATIENCE = 10.0  # seconds


def test_pieces_share_the_threads() -> None:
    with threads(2):
        wanted = numba.get_num_threads(), scipy.fft.get_workers()
        shares = side_by_side(lambda _: (numba.get_num_threads(), scipy.fft.get_workers()), range(2))
        assert shares == [tuple(max(1, number // 2) for number in wanted)] * 2
        assert (numba.get_num_threads(), scipy.fft.get_workers()) == wanted


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="ONE THREAD ONLY: work side by side is untested")
def test_a_failure_of_one_piece_ends_the_other() -> None:
    given_up = threading.Event()

    def work(number: int) -> bool:
        if number == 1:
            raise ValueError("the second piece fails")
        return given_up.wait(PATIENCE)  # the first would go on

    with threads(2), pytest.raises(ValueError, match="second piece"):
        side_by_side(work, np.arange(2), give_up=given_up.set)
    assert given_up.is_set()
