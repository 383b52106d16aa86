"""Images for jobs on several ranks, and what one process makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from emsplat.reconstruction.reconstruct import Reconstruction, reconstruct
from emsplat.simulation import SimulationSettings, bundled_model, simulate
from ranks import FEW
from small_work import small_work


@pytest.fixture(scope="session")
def images_for_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 120 images of 7PBL, 32 × 32 pixels of 5 Å."""
    settings = SimulationSettings(n_images=120, box_size=32, pixel_size_in_angstroms=5.0, snr=0.2)
    return simulate(bundled_model(), tmp_path_factory.mktemp("for_ranks"), settings, overwrite=True).parent


@pytest.fixture(scope="session")
def made_alone(images_for_ranks: Path) -> Reconstruction:
    """What one process makes of them in the blocks of a `hurried_rank`."""
    return reconstruct(images_for_ranks / "particles.star", FEW, tuning=small_work(accumulated=30, refined=30))
