"""From cryo-EM particle images to a 3D map made of Gaussians, with a resolution that can be trusted.

Importing is light and does nothing: what the names below stand for is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from emsplat.runtime.threads import relax_openmp
from emsplat.versions import __version__

if TYPE_CHECKING:
    from emsplat.abinitio.run import AbInitio as AbInitio
    from emsplat.abinitio.run import ab_initio as ab_initio
    from emsplat.errors import InputError as InputError
    from emsplat.heterogeneity.run import find_heterogeneity as find_heterogeneity
    from emsplat.io import read_map as read_map
    from emsplat.io import read_particles as read_particles
    from emsplat.io import write_map as write_map
    from emsplat.models.gaussians import Gaussians as Gaussians
    from emsplat.outputs.abinitio import write_ab_initio as write_ab_initio
    from emsplat.outputs.heterogeneity import write_heterogeneity as write_heterogeneity
    from emsplat.outputs.reconstruction import write_run as write_run
    from emsplat.particles.table import Particles as Particles
    from emsplat.reconstruction.reconstruct import Reconstruction as Reconstruction
    from emsplat.reconstruction.reconstruct import reconstruct as reconstruct
    from emsplat.runtime.reporting import Reporter as Reporter
    from emsplat.settings import AbInitioSettings as AbInitioSettings
    from emsplat.settings import HeterogeneitySettings as HeterogeneitySettings
    from emsplat.settings import ReconstructSettings as ReconstructSettings
    from emsplat.settings import SimulationSettings as SimulationSettings
    from emsplat.simulation import simulate as simulate
    from emsplat.validation.validate import Validation as Validation

_HOMES = {
    "AbInitio": "abinitio.run",
    "AbInitioSettings": "settings",
    "Gaussians": "models.gaussians",
    "HeterogeneitySettings": "settings",
    "InputError": "errors",
    "Particles": "particles.table",
    "ReconstructSettings": "settings",
    "Reconstruction": "reconstruction.reconstruct",
    "Reporter": "runtime.reporting",
    "SimulationSettings": "settings",
    "Validation": "validation.validate",
    "ab_initio": "abinitio.run",
    "find_heterogeneity": "heterogeneity.run",
    "read_map": "io",
    "read_particles": "io",
    "reconstruct": "reconstruction.reconstruct",
    "simulate": "simulation",
    "write_ab_initio": "outputs.abinitio",
    "write_heterogeneity": "outputs.heterogeneity",
    "write_map": "io",
    "write_run": "outputs.reconstruction",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    relax_openmp()
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
