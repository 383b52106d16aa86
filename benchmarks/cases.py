"""The simulations that the benchmarks share."""

from __future__ import annotations

from dataclasses import replace

from common import SHARED, Case
from emsplat.settings import SimulationSettings

_LIKE = SHARED / "metadata" / "empiar-10204-betagal-run_data.star"
_ROOM = SimulationSettings(n_images=4000, box_size=128, pixel_size_in_angstroms=1.5)
_SMALL = SimulationSettings(n_images=2000, snr=0.05)


def _grid(settings: SimulationSettings, box_size: int, pixel_size: float, **changes: object) -> SimulationSettings:
    return replace(settings, box_size=box_size, pixel_size_in_angstroms=pixel_size, **changes)


RUVB = Case("7PBL, 128²", "7pbl.pdb.gz", replace(_ROOM, snr=0.03))
BETAGAL = Case("8BK7, poses and CTF of EMPIAR-10204", "8bk7.cif.gz", replace(_ROOM, snr=0.05, like=_LIKE))
UNEVEN = Case(
    "7PBL, uneven views, coloured noise", "7pbl.pdb.gz",
    replace(_ROOM, snr=0.02, orientations="uneven", noise="coloured"),
)  # fmt: skip
FERRITIN = Case("7A4M assembly, 96²", "7a4m.cif.gz", _grid(_SMALL, 96, 1.6, assembly="1", snr=0.03))
MSBA = Case("8TSO, 100²", "8tso.cif.gz", _grid(_SMALL, 100, 1.7))
ANTIBODY = Case("1IGY, 111²", "1igy.cif.gz", _grid(_SMALL, 111, 1.7))
RUVB_SMALL = Case("7PBL, 64²", "7pbl.pdb.gz", _grid(_SMALL, 64, 2.7, n_images=1000, snr=0.01))
MANY = Case("7PBL, 128², 10,000 images", "7pbl.pdb.gz", replace(_ROOM, n_images=10_000, snr=0.03))

# Sets that no choice was made with; their bounds are in quality.py.
KEPT = (
    Case("8BK7, 68² at 3.4 Å", "8bk7.cif.gz", _grid(_SMALL, 68, 3.4, n_images=3500, snr=0.04)),
    Case("7A4M assembly, 70² at 2.9 Å", "7a4m.cif.gz", _grid(_SMALL, 70, 2.9, n_images=2500, snr=0.02, assembly="1")),
    Case("1IGY, 90² at 2.1 Å", "1igy.cif.gz", _grid(_SMALL, 90, 2.1, n_images=2500, snr=0.07)),
    Case("8TSQ, 128² at 1.3 Å", "8tsq.cif.gz", replace(_ROOM, pixel_size_in_angstroms=1.3, n_images=3000, snr=0.04)),
)
KEPT_RATIOS = (0.78, 0.78, 0.70, 0.60)  # of the error left by RELION, or by the direct inversion, that may be left

# Where the number of Gaussians was never measured: very many images, and very noisy and very clean ones.
COUNT_CORNERS = (
    Case("7PBL, 64²", "7pbl.pdb.gz", _grid(_SMALL, 64, 2.7, n_images=50_000, snr=0.05)),
    Case("7PBL, 64²", "7pbl.pdb.gz", _grid(_SMALL, 64, 2.7, n_images=3000, snr=0.2)),
    Case("7PBL, 64²", "7pbl.pdb.gz", _grid(_SMALL, 64, 2.7, n_images=3000, snr=0.005)),
    Case("8BK7, 60² at 3.6 Å", "8bk7.cif.gz", _grid(_SMALL, 60, 3.6, n_images=3000, snr=0.2)),
    Case("8BK7, 60² at 3.6 Å", "8bk7.cif.gz", _grid(_SMALL, 60, 3.6, n_images=3000, snr=0.005)),
)

_TINY = SimulationSettings(n_images=200, box_size=40, pixel_size_in_angstroms=5.0, snr=0.05)
QUICK = Case("7PBL, 40²", "7pbl.pdb.gz", _TINY)
QUICK_ODD = Case("1IGY, 41²", "1igy.cif.gz", replace(_TINY, box_size=41))
QUICK_UNEVEN = Case("7PBL, 40², uneven", "7pbl.pdb.gz", replace(_TINY, orientations="uneven", noise="coloured"))


def resized(case: Case, box_size: int, n_images: int) -> Case:
    """The same particle and edge in Å with another number of pixels and images."""
    edge = case.settings.box_size * case.settings.pixel_size_in_angstroms
    settings = _grid(case.settings, box_size, edge / box_size, n_images=n_images)
    return Case(f"{case.model.split('.')[0].upper()}, {box_size}²", case.model, settings)
