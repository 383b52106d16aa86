"""Which runs may resume from each other's checkpoints."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from emsplat.particles.table import Particles
from emsplat.settings import InputSettings, ReconstructSettings
from emsplat.versions import __version__

# Settings that only change where files lie, how fast the work goes, or what is made of the finished maps.
NO_MATTER = {*(field.name for field in fields(InputSettings)), "threads", "device", "sharpen", "cache", "cache_size"}


def identity(particles: Particles, settings: ReconstructSettings) -> dict[str, Any]:
    """Everything that must be the same for a reconstruction to be resumed: program, particles and settings."""
    asked = {name: value for name, value in asdict(settings).items() if name not in NO_MATTER}
    return {"emsplat": __version__, "particles": particles.fingerprint()} | asked
