"""A first kernel: whether Triton compiles for a card here, and the card runs what it made.

Much can be in the way that only shows then: no C compiler, headers that are not installed, a build of torch or Triton
that knows nothing of the card, a card that another process has for itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_N = tl.constexpr(32)


def run(device: torch.device) -> None:
    """Raises whatever a driver, a compiler or a card has to say."""
    values = torch.ones(_N.value, device=device)
    _double[(1,)](values, num_warps=1)
    if not bool((values == 2).all()):
        raise RuntimeError("its result is wrong")


@triton.jit
def _double(values):
    at = values + tl.arange(0, _N)
    tl.store(at, 2 * tl.load(at))
