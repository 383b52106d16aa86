"""Work in Python that leaves nothing but files, such as figures, shared by this process and a copy of it."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress

_PATIENCE = 30.0  # seconds that the copy may take longer than this process
_WAIT = 0.002  # seconds between two looks at the copy

Work = Callable[[], None]


def in_two_processes(pieces: Sequence[Work], only_one: bool = False) -> None:
    """Do all pieces of work, every second one in a copy of this process where Linux and a second core allow it.

    The copy has none of the other threads of this process, so that a piece must not need them. If the copy does not
    finish its pieces, for whatever reason, they are done here, and their errors are raised here.

    Args:
        only_one: do them one after the other in this process, because the user allows no more than one thread.
    """
    theirs = pieces[1::2]
    copy = _copy_that_does(theirs) if _may_copy() and not only_one else None
    if copy is None:
        for piece in pieces:
            piece()
        return
    try:
        for piece in pieces[::2]:
            piece()
        finished = _waited_for(copy)
    finally:
        _end(copy)
    if not finished:
        for piece in theirs:
            piece()


def _may_copy() -> bool:
    """Whether copies are safe here and there is a core for one; elsewhere than on Linux, system libraries forbid it."""
    return sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1


def _copy_that_does(pieces: Sequence[Work]) -> int | None:
    """Number of a copy of this process that does the pieces and ends, with status 0 if it has done them all.

    None if the system has no room for another process. Interrupts are left to this process, which then ends the copy.
    An interrupt in the copy could make it clean up what belongs to the original.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    number: int | None = None
    try:
        number = _forked()
    finally:
        if number != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
    if number != 0:
        return number
    status = 1
    try:
        for piece in pieces:
            piece()
        status = 0
    finally:
        os._exit(status)  # without what the original does at its own end


def _forked() -> int | None:
    """As `os.fork`; None if the system has no room for another process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about other threads, which the copy does not need
        try:
            return os.fork()
        except OSError:
            return None


def _waited_for(copy: int) -> bool:
    """Whether the copy has done all of its work; it is given up after some time."""
    last = time.monotonic() + _PATIENCE
    with suppress(ChildProcessError):  # the system was told not to keep the status of processes that end
        while time.monotonic() < last:
            number, status = os.waitpid(copy, os.WNOHANG)
            if number:
                return os.waitstatus_to_exitcode(status) == 0
            time.sleep(_WAIT)
    return False


def _end(copy: int) -> None:
    """End the copy if it is still at work."""
    with suppress(ChildProcessError, ProcessLookupError):  # it has ended, and was waited for
        if os.waitpid(copy, os.WNOHANG)[0] == 0:
            os.kill(copy, signal.SIGKILL)
            os.waitpid(copy, 0)
