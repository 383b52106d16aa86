"""Reconstructions with a CTF of 1: of images that have none, white or dark, and of images that have one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest

import emsplat
from emsplat.io import read_map, read_star, write_star
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings
from emsplat.simulation import SimulationSettings, bundled_model, simulate
from emsplat.validation.correlation import fsc

QUICK = ReconstructSettings(n_gaussians=300, n_fits=1)


@pytest.fixture(scope="module")
def in_focus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Projections, with a truth: in focus with a phase plate of 90°, which makes a CTF of 1 to some per cent."""
    settings = SimulationSettings(
        n_images=300, box_size=32, pixel_size_in_angstroms=5.0, snr=0.1, seed=1,
        defocus_range_in_angstroms=(0.0, 0.0), astigmatism_in_angstroms=0.0, phase_shift_in_degrees=90.0,
    )  # fmt: skip
    folder = simulate(bundled_model(), tmp_path_factory.mktemp("focus"), settings, overwrite=True).parent
    star = read_star(folder / "particles.star")
    for table in star.values():
        for column in [name for name in table.columns if name.startswith(("rlnDefocus", "rlnPhase", "rlnCtf"))]:
            del table.columns[column]
    write_star(folder / "none.star", star)
    return folder


def test_a_star_without_a_ctf_gives_the_truth(in_focus: Path) -> None:
    reporter = Reporter()
    result = reconstruct(in_focus / "none.star", QUICK, reporter)
    truth, mask = (read_map(in_focus / f"{name}.mrc").values for name in ("truth", "mask"))
    assert fsc(result.map, truth, mask)[:12].mean() > 0.85
    assert any("CTF is taken as 1" in line for line in reporter.warnings)
    assert not result.particles.has_ctf
    said = reconstruct(in_focus / "particles.star", QUICK)
    assert fsc(result.map, said.map, mask)[:12].min() > 0.98


def test_dark_particles_without_a_ctf_need_invert(in_focus: Path, tmp_path: Path, refuses: Callable) -> None:
    (tmp_path / "none.star").write_bytes((in_focus / "none.star").read_bytes())
    with mrcfile.open(in_focus / "particles.mrcs") as white, mrcfile.new(tmp_path / "particles.mrcs") as dark:
        dark.set_data(-white.data)
        dark.set_image_stack()
        dark.voxel_size = white.voxel_size
    with refuses("dark", "add --invert"):
        reconstruct(tmp_path / "none.star", QUICK)
    white_map = reconstruct(in_focus / "none.star", QUICK).map
    inverted = reconstruct(tmp_path / "none.star", ReconstructSettings(n_gaussians=300, n_fits=1, invert=True)).map
    assert np.linalg.norm(inverted - white_map) < 1e-5 * np.linalg.norm(white_map)


def test_images_that_have_the_ctfs_of_their_table_are_refused_without_them(simulated: Path, refuses: Callable) -> None:
    star = simulated / "particles.star"
    for source in (star, emsplat.read_particles(star)):
        with refuses("--no-ctf", "have the CTFs of the table", "leave out --no-ctf"):
            reconstruct(source, ReconstructSettings(no_ctf=True))
