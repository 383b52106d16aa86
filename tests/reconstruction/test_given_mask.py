"""A reconstruction within a mask that the user gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emsplat.fourier import maps
from emsplat.io import read_map, read_particles, write_map
from emsplat.io.mrc import StackWriter
from emsplat.outputs.reconstruction import configuration, summarise
from emsplat.reconstruction.given_mask import read_given_mask
from emsplat.reconstruction.identity import digests, identity
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.runs.closing import closing_rows
from emsplat.runtime.reporting import Reporter
from emsplat.settings import HeterogeneitySettings, ReconstructSettings
from emsplat.validation.correlation import fsc
from phantom import imagined_particles

QUICK = ReconstructSettings(n_fits=1, seed=3)
PIXEL = 3.4  # Å, of `simulated`


@pytest.fixture
def masks(simulated: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Masks of the simulated particle: the true one, one without an edge, and the true one in finer voxels."""
    truth, mask = (read_map(simulated / f"{name}.mrc").values for name in ("truth", "mask"))
    dense = maps.low_pass(truth, PIXEL, 12.0)
    kinds = {
        "true": (mask, PIXEL),
        "hard": ((dense > 0.4 * dense.max()).astype(np.float32), PIXEL),
        "fine": (np.clip(maps.fourier_resize(mask, 64), 0, 1), PIXEL * 48 / 64),
    }

    def write(kind: str) -> Path:
        values, pixel_size = kinds[kind]
        write_map(tmp_path / f"{kind}.mrc", values, pixel_size)
        return tmp_path / f"{kind}.mrc"

    return write


def test_the_map_is_judged_within_it(simulated: Path, masks: Callable[[str], Path]) -> None:
    truth, mask = (read_map(simulated / f"{name}.mrc").values for name in ("truth", "mask"))
    reporter, path = Reporter(), masks("fine")
    result = reconstruct(simulated / "particles.star", replace(QUICK, mask=path), reporter)
    assert np.abs(result.mask - mask).max() < 0.2  # in the voxels of the images
    true = fsc(result.map, truth, result.mask)
    shown = np.arange(24) < result.validation.limit_shell
    assert np.abs(result.validation.c_map - true)[shown].mean() < 0.03
    assert np.all(result.standard_error[result.mask == 0] == 0)
    assert not result.local_resolution.filled()[result.mask == 0].any()
    summary = summarise(result, reporter)
    assert summary["mask"] == str(path)
    assert ("mask", str(path)) in closing_rows(summary, Path("run"))
    assert configuration(result)["digests"] == digests(result.settings)
    assert sum(str(path) in line for line in reporter.log) == 2  # how it was placed, and what it holds


def test_noise_within_a_tight_mask_is_not_measurable(
    simulated: Path, masks: Callable[[str], Path], tmp_path: Path
) -> None:
    with StackWriter(tmp_path / "particles.mrcs", 48, PIXEL) as stack:
        stack.append(np.random.default_rng(5).standard_normal((600, 48, 48), dtype=np.float32))
    (tmp_path / "particles.star").write_bytes((simulated / "particles.star").read_bytes())
    settings = replace(QUICK, mask=masks("hard"), n_gaussians=300)
    validation = reconstruct(tmp_path / "particles.star", settings).validation
    assert (validation.resolution_kind, validation.resolution) == ("not_measurable", None)


def test_the_model_reaches_as_far_as_the_mask(simulated: Path, tmp_path: Path) -> None:
    write_map(tmp_path / "wide.mrc", maps.soft_sphere(48, 44, 2), PIXEL)
    reporter = Reporter()
    settings = replace(QUICK, mask=tmp_path / "wide.mrc", n_gaussians=300, mask_diameter=80.0)
    result = reconstruct(read_particles(simulated / "particles.star").select(np.arange(100)), settings, reporter)
    assert any("the mask reaches further" in line for line in reporter.log)
    assert result.n_images == 100


@pytest.mark.parametrize(
    ("values", "origin", "culprit"),
    [
        (np.zeros((48,) * 3), 0, "a mask is 1 where the particle is"),
        (np.full((48,) * 3, 255), 0, "between 0 and 1"),
        (maps.soft_sphere(48, 30, 3), 500, "outside the box"),
        (0.5 * maps.soft_sphere(48, 30, 3), 0, "no voxel above ½"),
    ],
)
def test_what_is_no_mask_is_refused_before_any_work(
    values: np.ndarray, origin: float, culprit: str, simulated: Path, tmp_path: Path, refuses: Callable
) -> None:
    write_map(tmp_path / "mask.mrc", values.astype(np.float32), PIXEL, np.full(3, origin))
    reporter = Reporter()
    with refuses("mask.mrc", culprit):
        reconstruct(simulated / "particles.star", replace(QUICK, mask=tmp_path / "mask.mrc"), reporter)
    assert not any("contrast" in line for line in reporter.log)
    with refuses("absent.mrc"):
        reconstruct(simulated / "particles.star", replace(QUICK, mask=tmp_path / "absent.mrc"))


def test_a_run_is_resumed_within_the_same_mask_only(tmp_path: Path) -> None:
    particles, path = imagined_particles(4, 24, pixel_size=2.0), tmp_path / "mask.mrc"
    settings, found = ReconstructSettings(mask=path), []
    for diameter in (12, 14):
        write_map(path, maps.soft_sphere(24, diameter, 2), 2.0)
        mask = read_given_mask(path, particles, Reporter())
        found.append((identity(particles, settings, mask), digests(settings)))
        write_map(tmp_path / "other.mrc", maps.soft_sphere(24, diameter, 2), 2.0)
        same = read_given_mask(tmp_path / "other.mrc", particles, Reporter())
        assert identity(particles, ReconstructSettings(mask=tmp_path / "other.mrc"), same) == found[-1][0]
    assert found[0][0] != found[1][0] and found[0][1] != found[1][1]
    assert identity(particles, ReconstructSettings())["mask"] is None


def test_the_mask_of_heterogeneity_is_not_that_of_its_consensus() -> None:
    assert HeterogeneitySettings(mask=Path("domain.mrc")).for_consensus().mask is None
