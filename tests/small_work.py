"""Jobs that do little at a time and write their state each time, so that few images make many blocks and rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

from emsplat.fit.by_images import Schedule
from emsplat.poses.refine import Blocks
from emsplat.reconstruction import reconstruct
from emsplat.reconstruction.tuning import Tuning
from emsplat.runtime import checkpoint, ranks
from emsplat.runtime.checkpoint import Pace
from emsplat.runtime.ranks import Patience


def small_work(accumulated: int, refined: int, box_size: int = 32) -> Tuning:
    """Work on so many images at a time, and few rounds of fits to images."""
    return Tuning(
        accumulation_block_bytes=accumulated * 4 * box_size**2,
        refinement_blocks=Blocks(fewest=refined, most=refined),
        schedule_by_images=Schedule(round=4, max_rounds=2, anneal_rounds=2, anneal_epochs=1),
    )


def always() -> Pace:
    """Write the state whenever it is offered."""
    return Pace(times=0, least=0)


@contextmanager
def command_works(tuning: Tuning, patience: Patience | None = None) -> Iterator[None]:
    """While it lasts, ``emsplat reconstruct`` in this process works like that and always writes its state."""
    given = [
        (reconstruct, "reconstruct", {"tuning": tuning}),
        (checkpoint, "checkpoints_of", {"pace": always()}),
        (ranks, "joined", {"patience": patience or Patience()}),
    ]
    with ExitStack() as stack:
        for module, name, arguments in given:
            stack.enter_context(mock.patch.object(module, name, partial(getattr(module, name), **arguments)))
        yield
