"""A first kernel, to see whether Triton compiles for a card here and the card runs the result.

Many problems only show then: a missing C compiler, missing headers, a build of torch or Triton that does not know the
card, or a card that another process has reserved.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_N = tl.constexpr(32)


def run(device: torch.device) -> None:
    """Run the kernel; an exception of any kind comes from the driver, the compiler or the card."""
    values = torch.ones(_N.value, device=device)
    _double[(1,)](values, num_warps=1)
    if not bool((values == 2).all()):
        raise RuntimeError("its result is wrong")


@triton.jit
def _double(values):
    at = values + tl.arange(0, _N)
    tl.store(at, 2 * tl.load(at))
