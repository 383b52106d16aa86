"""Memory that has been freed, and that the C library keeps, can go back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back_free_memory() -> None:
    """Return freed memory to the system. It is called between two stages, when the memory of the first is free.

    The C library of Linux keeps freed pieces that lie between pieces in use, in a pool for each thread, and they count
    as memory of the process. Other systems have no such function, and nothing is done.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
