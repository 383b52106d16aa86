"""The command ``emsplat`` as one rank of a job, in a hurry, for tests in which something happens to a rank.

    python tests/hurried_rank.py [--other-scipy] [--dwell] reconstruct PARTICLES -o RUN ...

It accumulates few images at a time, writes its state after each of these blocks, and soon loses patience with silent
ranks. With ``--dwell`` it says "accumulating" after its first block and then stays there until something ends it.
With ``--other-scipy`` it believes that another version of SciPy is installed.
"""

from __future__ import annotations

import importlib.metadata
import sys
import time
from typing import Any, NoReturn

ACCUMULATING = "accumulating"
_BLOCK = 30  # images


def pretend_another_scipy() -> None:
    """From now on, SciPy's version is another."""
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: "0.1" if name == "scipy" else version(name)


def dwell_after_the_first_block() -> None:
    """From now on, the accumulation stays where it has added its first block and offered its state."""
    from emsplat.statistics import distributed

    fill_grids = distributed.fill_grids

    def stay(done: int) -> NoReturn:
        print(ACCUMULATING, flush=True)
        while True:
            time.sleep(0.1)

    def fill_one_block(*arguments: Any) -> None:
        fill_grids(*arguments[:6], stay, *arguments[7:])  # in place of its `progress`

    distributed.fill_grids = fill_one_block


def main() -> int:
    """Run the command with the options that are not this program's."""
    if "--other-scipy" in sys.argv:
        sys.argv.remove("--other-scipy")
        pretend_another_scipy()
    from emsplat import cli
    from emsplat.runtime.ranks import Patience
    from small_work import command_works, small_work

    if "--dwell" in sys.argv:
        sys.argv.remove("--dwell")
        dwell_after_the_first_block()
    patience = Patience(silence=8.0, silence_when_interrupted=3.0, period=0.3, leaving=2.0)
    with command_works(small_work(accumulated=_BLOCK, refined=_BLOCK), patience):
        return cli.main()


if __name__ == "__main__":
    sys.exit(main())
