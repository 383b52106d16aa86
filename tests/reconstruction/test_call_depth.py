"""How far the arithmetic is from the job: whoever reads the code follows every one of these calls."""

from __future__ import annotations

import traceback

import pytest

from emsplat.fourier.insertion import SliceGrid
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.settings import ReconstructSettings, SimulationSettings
from emsplat.simulation import bundled_model, simulate

MOST = 5


def test_five_calls_lead_to_an_insertion(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the preview and in the accumulation of the halves."""
    chains: set[tuple[str, ...]] = set()
    insert = SliceGrid.insert

    def noted(self: SliceGrid, *arguments: object) -> None:
        names = [frame.name for frame in traceback.extract_stack()]
        chains.add(tuple([*names[names.index("reconstruct") + 1 : -1], "insert"]))
        insert(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SliceGrid, "insert", noted)
    settings = SimulationSettings(n_images=16, box_size=24, pixel_size_in_angstroms=7.0, snr=1.0)
    star = simulate(bundled_model(), tmp_path, settings, overwrite=True)
    reconstruct(star, ReconstructSettings(n_gaussians=20, n_fits=1, mask_diameter=120.0))
    assert {chain[0] for chain in chains} == {"look_at_sample", "solve"}
    assert max(map(len, chains)) <= MOST, chains
