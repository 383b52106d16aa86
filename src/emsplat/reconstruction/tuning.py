"""Sizes of the pieces that a reconstruction is cut into, and limits of its loops."""

from __future__ import annotations

from dataclasses import dataclass, field

from emsplat.fit.by_images import Schedule
from emsplat.poses.refine import Blocks
from emsplat.statistics.accumulate import BLOCK_BYTES


@dataclass(frozen=True)
class Tuning:
    """What suits images by the thousand on any machine; tests and benchmarks of small data ask for less.

    The result depends on the sizes of pieces only by rounding.
    """

    accumulation_block_bytes: int = BLOCK_BYTES  # of the images that are accumulated at once
    refinement_blocks: Blocks = field(default_factory=Blocks)
    refinement_rounds: int = 4  # at most
    schedule_by_images: Schedule = field(default_factory=Schedule)  # of fits by images
