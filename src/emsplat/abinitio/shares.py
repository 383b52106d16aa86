"""Division of the images of a search among the ranks of a job.

Sums over images round by the order of their terms. The images are therefore always cut into the same shares, of which
every rank works on some; the sums of the shares are exchanged, and added in their order on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from emsplat.runtime.ranks.world import World

_SHARES = 4  # the result is the same up to so many ranks; more have a share each
T = TypeVar("T")


def in_shares(n: int, world: World, work: Callable[[NDArray[np.int64]], T]) -> list[tuple[NDArray[np.int64], T]]:
    """Do some work on every share of n things, together with the other ranks.

    Args:
        work: what is done with the things of these numbers, which are never none.
    Returns:
        The numbers and the results of all shares, in the same order on every rank.
    """
    number = max(_SHARES, world.size)
    shares = np.array_split(np.arange(n), number)
    owners = [share * world.size // number for share in range(number)]
    own = {
        share: work(rows)
        for share, (rows, owner) in enumerate(zip(shares, owners, strict=True))
        if owner == world.rank and len(rows)
    }
    return [
        (rows, world.broadcast(own.get(share), owner))
        for share, (rows, owner) in enumerate(zip(shares, owners, strict=True))
        if len(rows)
    ]
