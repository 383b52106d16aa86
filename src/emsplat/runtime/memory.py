"""Memory of the process: what the C library keeps of freed memory can go back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back_free_memory() -> None:
    """Return freed memory to the system, between stages of which one frees what the next has no use for.

    The C library of Linux keeps freed pieces between pieces that are in use, in a pool for each thread, and they count
    as memory of the process. Where there is no such function, nothing is done.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
