"""Checks that all ranks run the same program on the same particles, and forwards the warnings of other ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from emsplat.errors import InputError
from emsplat.particles.table import Particles
from emsplat.runtime.ranks.world import World
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings
from emsplat.versions import versions

_SHOWN = 3  # number of differences that a message names


def check_agreement(
    particles: Particles, settings: ReconstructSettings, world: World, content: Mapping[str, str] | None = None
) -> None:
    """Raise the same InputError on every rank if their work would differ or there are more ranks than images.

    Args: content: what tells the content of other files that the ranks have read, by option.
    """
    if world.size == 1:
        return
    same = versions() | {"the program's code": _code()}
    del same["platform"]  # the machines of a cluster may have different platforms
    _refuse_different(same, world, "install one version of everything on all machines")
    asked = {f"--{name.replace('_', '-')}": str(value) for name, value in asdict(settings).items()}
    _refuse_different(asked, world, "start all ranks with the same command")
    _refuse_different(dict(content or {}), world, "give all ranks the same file")
    source = world.broadcast(particles.source)
    table = {"images": f"{len(particles):,}", "content": particles.fingerprint()}
    _refuse_different(table, world, "give all ranks the same file", f"{source}: ")
    if world.size > len(particles):
        raise InputError(f"{source}: {len(particles)} images for {world.size} ranks; each needs one; start fewer ranks")


def forward_warnings(reporter: Reporter, world: World) -> None:
    """Let the first rank repeat the warnings that only other ranks had."""
    for rank, warnings in enumerate(world.gather(reporter.warnings)):
        if world.is_first:
            for text in warnings:
                if text not in reporter.warnings:
                    reporter.warn(f"rank {rank} on {world.hosts[rank]}: {text}")


def _refuse_different(facts: dict[str, str], world: World, remedy: str, about: str = "") -> None:
    first, *others = world.gather(facts)
    for rank, theirs in enumerate(others, 1):
        told = [f"{n} {first.get(n)} against {theirs.get(n)}" for n in first | theirs if first.get(n) != theirs.get(n)]
        if told:
            raise InputError(
                f"{about}rank 0 on {world.hosts[0]} and rank {rank} on {world.hosts[rank]} differ: "
                f"{'; '.join(told[:_SHOWN])}; {remedy}"
            )


def _code() -> str:
    """Eight digits that change with the sources of the package."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]
