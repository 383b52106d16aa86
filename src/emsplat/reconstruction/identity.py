"""Which runs may resume from each other's checkpoints."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emsplat.particles.table import Particles
from emsplat.reconstruction.given_mask import GivenMask
from emsplat.runtime.files import open_regular
from emsplat.settings import InputSettings, ReconstructSettings
from emsplat.versions import __version__

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Settings that only change where files lie, how fast the work goes, or what is made of the finished maps.
NO_MATTER = {*(field.name for field in fields(InputSettings)), "threads", "device", "sharpen", "cache", "cache_size"}


def identity(particles: Particles, settings: ReconstructSettings, mask: GivenMask | None = None) -> dict[str, Any]:
    """Everything that must be the same for a reconstruction to be resumed: program, particles, settings and mask."""
    asked = {name: value for name, value in asdict(settings).items() if name not in NO_MATTER}
    asked["mask"] = None if mask is None else mask.digest
    return {"emsplat": __version__, "particles": particles.fingerprint()} | asked


def digests(settings: DataclassInstance) -> dict[str, str]:
    """Sixteen hexadecimal digits of the content of each file, besides the particles, that the result depends on."""
    paths = {name: getattr(settings, name, None) for name in ("mask", "keep", "drop", "poses", "ctf")}
    paths |= {f"passthrough {n}": path for n, path in enumerate(getattr(settings, "passthrough", ()), 1)}
    return {name: _digest(path) for name, path in paths.items() if path is not None}


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
