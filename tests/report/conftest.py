"""A run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from emsplat.reconstruction import Reconstruction
from emsplat.reporting import Reporter


@pytest.fixture(scope="session")
def run_folder(reconstructed: tuple[Reconstruction, Reporter], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the reconstruction of 600 simulated images, with a truth beside it."""
    from emsplat.outputs import write_run

    result, reporter = reconstructed
    folder = tmp_path_factory.mktemp("reported") / "run"
    write_run(folder, result, reporter, truth=result.validation.c_map, true_resolution=8.0)
    return folder
