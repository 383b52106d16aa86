"""The tutorial runs from its first cell to its last, on less data."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from notebooks import read_notebook, run_cells

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
TWO_CHAINS = "for chain in list(whole[0])[2:]:\n    whole[0].remove_chain(chain.name)\n"
LESS = {
    "part = whole.clone()": TWO_CHAINS + "part = whole.clone()",
    "n_images, box_size, pixel_size = 1000, 40, 4.8": "n_images, box_size, pixel_size = 240, 24, 6.5",
    "snr = 0.1": "snr = 0.5",
    "populations=(60, 40)": "populations=(60, 40), solvent=False",
    "starts = 3": "starts = 1",
    "AbInitioSettings(": "AbInitioSettings(max_resolution=32.0, threads=1, ",
    "ReconstructSettings(": "ReconstructSettings(n_gaussians=100, threads=1, ",
    "HeterogeneitySettings(": "HeterogeneitySettings(components=1, n_gaussians=100, threads=1, ",
}


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    notebook = read_notebook(TUTORIAL)
    names = run_cells(notebook, LESS)
    assert len(names["particles"]) == 240
    assert names["found"].status in ("converged", "uncertain", "failed")
    assert names["result"].map.shape == (24, 24, 24)
    assert len(names["heterogeneity"].states) in (0, 2)  # so few images may show nothing
    for file in ("run/report.html", "found/particles.star", "states/latents.csv"):
        assert (tmp_path / "tutorial" / file).is_file()
    pictures = [output for cell in notebook["cells"] for output in cell.get("outputs", []) if "data" in output]
    assert len(pictures) >= 5


def test_the_stored_notebook_was_run_to_its_end() -> None:
    """Every cell has run, in order, and what it printed and drew is stored."""
    cells = [cell for cell in read_notebook(TUTORIAL)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("data" in output for cell in cells for output in cell["outputs"]) == 7
