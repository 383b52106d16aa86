"""`emsplat demo`: simulate, reconstruct, and hold the resolution claimed against the true one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from emsplat.io.mrc import read_map
from emsplat.outputs import reconstruction as outputs
from emsplat.outputs.claims import claimed
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.runs.closing import closing_curve, closing_rows
from emsplat.runtime.console import ConsoleReporter
from emsplat.settings import ReconstructSettings, SimulationSettings
from emsplat.simulation import bundled_model, simulate
from emsplat.validation.correlation import fsc, resolution_at
from emsplat.validation.validate import C_AT_RESOLUTION, FIRST_SHELL

# The B-factor lets the signal fade within the band, so that there is a resolution to measure.
IMAGES = SimulationSettings(
    n_images=3000, box_size=80, pixel_size_in_angstroms=2.0, snr=0.03, b_factor_in_square_angstroms=200.0
)


def run_demo(folder: Path, seed: int, overwrite: bool) -> outputs.Summary:
    """Writes the images to ``folder/simulation`` and the run to `folder`; returns the run's summary."""
    settings, images = ReconstructSettings(seed=seed), replace(IMAGES, seed=seed)
    reporter = ConsoleReporter()
    with claimed(folder, overwrite, reporter):
        return _simulate_and_reconstruct(folder, settings, images, overwrite, reporter)


def _simulate_and_reconstruct(
    folder: Path, settings: ReconstructSettings, images: SimulationSettings, overwrite: bool, reporter: ConsoleReporter
) -> outputs.Summary:
    reporter.line(
        f"simulating {images.n_images:,} images of 7PBL, a 227 kDa AAA+ assembly, {images.box_size} × "
        f"{images.box_size} pixels of {images.pixel_size_in_angstroms} Å, SNR {images.snr}"
    )
    with reporter.stage("simulation"), reporter.bar("simulating", "images") as advance:
        star = simulate(bundled_model(), folder / "simulation", images, overwrite, advance)
    result = reconstruct(star, settings, reporter)
    truth = read_map(star.parent / "truth.mrc").values
    mean = 0.5 * (result.half_maps[0] + result.half_maps[1])
    curve = fsc(mean, truth, result.mask)
    true_resolution = resolution_at(curve, result.validation.frequency, C_AT_RESOLUTION, FIRST_SHELL)
    summary = outputs.write_run(
        folder, result, reporter, overwrite=overwrite, truth=curve, true_resolution=true_resolution
    )
    reporter.closing(closing_rows(summary, folder), closing_curve(result.validation))
    return summary
