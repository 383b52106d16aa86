"""From cryo-EM particle images to a 3D map made of Gaussians, with a resolution that can be believed.

Importing is light and does nothing: what the names below stand for is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from emsplat.threads import relax_openmp

if TYPE_CHECKING:
    from emsplat.errors import InputError as InputError
    from emsplat.gaussians import Gaussians as Gaussians
    from emsplat.io import read_map as read_map
    from emsplat.io import read_particles as read_particles
    from emsplat.io import write_map as write_map
    from emsplat.outputs import write_run as write_run
    from emsplat.particles import Particles as Particles
    from emsplat.reconstruction import Reconstruction as Reconstruction
    from emsplat.reconstruction import reconstruct as reconstruct
    from emsplat.reporting import Reporter as Reporter
    from emsplat.settings import ReconstructSettings as ReconstructSettings
    from emsplat.settings import SimulationSettings as SimulationSettings
    from emsplat.simulation import simulate as simulate
    from emsplat.validation import Validation as Validation

__version__ = "0.1.0"

_HOMES = {
    "Gaussians": "gaussians",
    "InputError": "errors",
    "Particles": "particles",
    "ReconstructSettings": "settings",
    "Reconstruction": "reconstruction",
    "Reporter": "reporting",
    "SimulationSettings": "settings",
    "Validation": "validation",
    "read_map": "io",
    "read_particles": "io",
    "reconstruct": "reconstruction",
    "simulate": "simulation",
    "write_map": "io",
    "write_run": "outputs",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    relax_openmp()
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
