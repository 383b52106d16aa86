"""Ranks that were given different particles or settings say so before any work is done."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from emsplat.errors import InputError
from emsplat.particles.agreement import check_agreement
from emsplat.particles.table import Particles
from emsplat.runtime.ranks import World
from emsplat.settings import ReconstructSettings
from phantom import imagined_particles
from processes import PATIENCE

FEW = ReconstructSettings(n_gaussians=60, seed=3)


@dataclass(frozen=True)
class InThreads(World):
    """Ranks that are threads of this process, as far as telling each other something goes."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    told: list[Any] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        self.told[self.rank] = value
        self.barrier.wait(PATIENCE)
        result = list(self.told)
        self.barrier.wait(PATIENCE)
        return result

    def broadcast(self, value: Any, source: int = 0) -> Any:
        return self.gather(value)[source]


def agreed(*ranks: tuple[Particles, ReconstructSettings]) -> set[str]:
    """What `check_agreement` says on the ranks."""
    size = len(ranks)
    barrier, told, hosts = threading.Barrier(size), [None] * size, tuple(f"h{rank}" for rank in range(size))

    def check(rank: int) -> str:
        try:
            check_agreement(*ranks[rank], InThreads(rank, size, hosts, barrier=barrier, told=told))
        except InputError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(size) as pool:
        return set(pool.map(check, range(size)))


def test_ranks_that_would_not_do_the_same_are_refused() -> None:
    particles = imagined_particles(120, 32, 5.0)
    fewer, two = (particles.select(np.arange(n)) for n in (117, 2))
    turned = replace(particles, euler_angles_in_degrees=particles.euler_angles_in_degrees + 1e-6)
    one = particles, FEW
    assert agreed(one, one) == {""}
    [said] = agreed(one, one, (fewer, FEW))
    assert said.startswith(f"{particles.source}: rank 0 on h0 and rank 2 on h2 differ: images 120 against 117")
    assert said.endswith("give all ranks the same file")
    [said] = agreed(one, (turned, FEW))
    assert "differ: content " in said
    [said] = agreed(one, (particles, replace(FEW, seed=4)))
    assert said == "rank 0 on h0 and rank 1 on h1 differ: --seed 3 against 4; start all ranks with the same command"
    assert agreed((two, FEW), (two, FEW)) == {""}
    [said] = agreed(*[(two, FEW)] * 3)
    assert said == f"{particles.source}: 2 images for 3 ranks; each needs one; start fewer ranks"
