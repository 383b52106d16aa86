"""Whether the local resolution is true: a particle with three B-factors, and half maps without signal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial import cKDTree

import emsplat
from cases import QUICK, RUVB
from common import Report, arguments, reconstructed, truth_and_mask
from emsplat.figures.local_resolution import figure_local_resolution
from emsplat.fourier import maps
from emsplat.io import read_particles
from emsplat.reconstruction.reconstruct import Reconstruction
from emsplat.settings import SimulationSettings
from emsplat.simulation import bundled_model
from emsplat.simulation.atoms import read_atoms
from emsplat.validation.correlation import fsc, inverse, resolution_at
from emsplat.validation.local_resolution import WINDOW_REACH, LocalResolution, frequency_bands, local_resolution
from emsplat.validation.validate import C_AT_RESOLUTION, FIRST_SHELL
from honesty import noise_alone

B_OF_CHAINS = {"A": 300.0, "B": 300.0, "C": 150.0, "D": 150.0}  # Å²; two neighbouring subunits each
B_OF_REST = 50.0

_TEXT = """7PBL with B = 300 Å² for the subunits A and B, 150 for C and D, 50 for the rest; a voxel of the run's mask
(½ and more) belongs to the nearest atom. True: where the correlation of the averaged Gaussian map with the truth, in
the same windows and bands, computed voxel by voxel on the full grid, first falls below 0.5, or the last band's.
Error: estimate minus truth, so that positive is modest and negative is a claim too fine. "Core" is a definition of
another kind: one FSC of the map with the truth in a soft mask 9 Å and more inside the region. "Measured" are voxels
where c_map was seen to fall to 0.5, "bounds" those where the limit of measurability came first and the value is
"better than"; error over s.e. is the root mean square over the measured ones."""

_NULL_TEXT = """Images of noise alone have no global limit, so nothing is tested and nothing claimed. "Forced": the same
half maps as if the limit had been Nyquist, the share of voxels that then get a resolution. "Around the particle": the
half maps of the first case with a sphere for a mask, voxels farther from the particle than the corners of the window of
6 Å; the share of them claimed finer than 6 Å."""


def varied_model(work: Path) -> Path:
    """The bundled model with B-factors by chain."""
    path = work / "7pbl-varied.cif"
    structure = gemmi.read_structure(str(bundled_model()))
    for chain in structure[0]:
        for residue in chain:
            for atom in residue:
                atom.b_iso = B_OF_CHAINS.get(chain.name, B_OF_REST)
                atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    structure.make_mmcif_document().write_file(str(path))
    return path


def simulated(model: Path, settings: SimulationSettings, work: Path) -> Path:
    """The star of the simulation, which is made once."""
    folder = work / "simulations" / f"{model.stem}-{settings.box_size}-{settings.n_images}-{settings.snr:g}"
    if not (folder / "particles.star").exists():
        emsplat.simulate(model, folder, settings, overwrite=True)
    return folder / "particles.star"


def regions(model: Path, box_size: int, pixel_size: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(D, D, D) B-factor of the atom nearest to a voxel, and its distance in Å."""
    atoms = read_atoms(model)
    centre = np.array(atoms.calculate_center_of_mass().tolist())
    places = np.array([site.atom.pos.tolist() for site in atoms.all()]) - centre
    b = np.array([site.atom.b_iso for site in atoms.all()])
    axis = (np.arange(box_size) - box_size // 2) * pixel_size
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    distance, nearest = cKDTree(places).query(np.stack([x, y, z], axis=-1))
    return b[nearest], distance


# --- the truth --------------------------------------------------------------------------------------------------------


def true_local_resolution(
    result: Reconstruction, truth: NDArray[np.float32], pixel_size: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(D, D, D) Å where the windowed correlation with the truth falls below 0.5, and where it never does."""
    box_size = len(truth)
    first, second = result.half_maps
    pair = [maps.half_spectrum(0.5 * (first + second)), maps.half_spectrum(truth)]
    raw = [maps.half_spectrum(half.raw) for half in result.halves]
    powers = [maps.shell_correlation(s, s, box_size)[1:] for s in (pair[0], *raw)]
    whitening = (inverse(np.sqrt(powers[0])), inverse((powers[1] * powers[2]) ** 0.25))
    radius = maps.radius(box_size).astype(np.float64)
    pair = [s * np.interp(radius, np.arange(1, box_size // 2 + 1), w) for s, w in zip(pair, whitening, strict=True)]
    distance = np.abs(np.subtract.outer(np.arange(box_size), np.arange(box_size)))
    found, open_ = np.full(truth.shape, np.nan), np.ones(truth.shape, dtype=bool)
    before: tuple[float, NDArray] | None = None
    for band in frequency_bands(result.validation.limit_shell):
        mean, true = (maps.from_half_spectrum(s * np.sqrt(band.weights(radius)), box_size) for s in pair)
        window = np.cos(0.5 * np.pi * np.minimum(distance * band.centre / (WINDOW_REACH * box_size), 1)) ** 2
        x, y, z = (_in_windows(result.mask * a * b, window) for a, b in ((mean, true), (mean, mean), (true, true)))
        c = x * inverse(np.sqrt(np.maximum(y * z, 0)))
        frequency = band.shell / (box_size * pixel_size)
        falls = open_ & (c < C_AT_RESOLUTION)
        if before is None:
            found[falls] = np.inf
        else:
            share = (before[1][falls] - C_AT_RESOLUTION) / (before[1][falls] - c[falls])
            found[falls] = 1 / (before[0] + share * (frequency - before[0]))
        open_ &= ~falls
        found[open_] = 1 / frequency
        before = frequency, c
    return found, open_


def _in_windows(volume: NDArray, window: NDArray) -> NDArray:
    """Weighted sums about every voxel; the weights are products of (D, D) ones along the axes."""
    for _ in range(3):  # each sum puts its axis last: after three they are in order again
        volume = np.tensordot(volume, window, axes=(0, 0))
    return volume


# --- rows -------------------------------------------------------------------------------------------------------------


def judge(
    name: str, settings: SimulationSettings, args: Any
) -> tuple[list[dict[str, Any]], Reconstruction, dict[str, float]]:
    """The rows of the regions, the run, and its seconds by stage."""
    model = varied_model(args.work)
    star = simulated(model, settings, args.work)
    result, seconds = reconstructed(star)
    pixel_size, local = settings.pixel_size_in_angstroms, result.local_resolution
    truth, _ = truth_and_mask(star)
    true, never = true_local_resolution(result, truth, pixel_size)
    average = 0.5 * (result.half_maps[0] + result.half_maps[1])
    b, distance = regions(model, settings.box_size, pixel_size)
    figures = args.results / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    picture = figures / f"local-resolution-snr-{settings.snr:g}.png"
    figure_local_resolution(local, result.map, picture, pixel_size, result.validation.resolution, true)
    rows = []
    for value in sorted({B_OF_REST, *B_OF_CHAINS.values()}):
        core = binary_erosion((b == value) & (result.mask >= 0.5), iterations=max(1, round(9 / pixel_size)))
        curve = fsc(average, truth, gaussian_filter((core & (distance < 3)).astype(np.float32), 2))
        rows.append(
            {
                "case": name,
                "SNR": settings.snr,
                "B, Å²": int(value),
                **_compared(local, true, never, (b == value) & (result.mask >= 0.5), core),
                "core FSC 0.5, Å": resolution_at(curve, result.validation.frequency, C_AT_RESOLUTION, FIRST_SHELL),
            }
        )
    return rows, result, seconds


def _compared(
    local: LocalResolution, true: NDArray, never: NDArray[np.bool_], region: NDArray[np.bool_], core: NDArray[np.bool_]
) -> dict[str, Any]:
    shown = region & np.isfinite(local.resolution)
    error = local.resolution - true
    measured = shown & ~local.better_than
    bound = shown & local.better_than & ~never
    both = measured & ~never
    return {
        "voxels": int(region.sum()),
        "median, Å": float(np.median(local.resolution[shown])),
        "true median, Å": float(np.median(true[region])),
        "in the core, Å": float(np.median(local.resolution[shown & core])) if (shown & core).any() else None,
        "bias, Å": float(error[shown].mean()),
        "rms, Å": float(np.sqrt(np.mean(error[shown] ** 2))),
        "measured": float(measured.sum() / region.sum()),
        "their bias, Å": float(error[both].mean()) if both.any() else None,
        "error over s.e.": _rms(error[both] / local.standard_error[both]) if both.any() else None,
        "bounds' bias, Å": float(error[bound].mean()) if bound.any() else None,
        "claimed > 10 % too fine": float(np.mean(local.resolution[shown] < 0.9 * true[shown])),
        "nothing shown": float(1 - shown.sum() / region.sum()),
    }


def _rms(values: NDArray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def nulls(result: Reconstruction, star: Path, args: Any) -> list[dict[str, Any]]:
    """Noise alone, and the empty surroundings of a particle."""
    table = read_particles(star)
    table = noise_alone(table.select(np.arange(min(len(table), 2000))), args.work, 0)
    noise, _ = reconstructed(table)
    pixel_size, box_size = result.pixel_size_in_angstroms, len(result.map)
    volumes = [half.raw for half in noise.halves] + [half.map for half in noise.halves]
    forced = local_resolution(*volumes, noise.mask, pixel_size, box_size // 2)
    rows = [_null("noise alone", noise.local_resolution), _null("noise alone, forced", forced)]
    sphere = maps.soft_sphere(box_size, 0.8 * box_size, 0.05 * box_size)
    volumes = [half.raw for half in result.halves] + [*result.half_maps]
    around = local_resolution(*volumes, sphere, pixel_size, result.validation.limit_shell)
    _, distance = regions(varied_model(args.work), box_size, pixel_size)
    far = np.where(distance > WINDOW_REACH * 6 * np.sqrt(3), sphere, 0)
    fine = np.where(around.resolution < 6, around.resolution, np.nan)
    return [*rows, _null("around the particle", replace(around, resolution=fine, mask=far))]


def _null(name: str, local: LocalResolution) -> dict[str, Any]:
    summary = local.summary()
    return {
        "half maps": name,
        "voxels": int(np.sum(local.mask >= 0.5)),
        "falsely measured": 1 - summary["share_not_measurable"],
        "the finest 5 % of them, Å": summary["percentile_5"],
    }


def main() -> None:
    args = arguments(__doc__)
    report = Report("local_resolution", "Local resolution: can it be believed?", args)
    settings = [QUICK.settings] if args.quick else [replace(RUVB.settings, snr=snr) for snr in (0.03, 0.008)]
    rows: list[dict[str, Any]] = []
    results, cost = [], []
    for one in settings:
        name = f"{one.n_images:,} images of {one.box_size}²"
        found, result, seconds = judge(name, one, args)
        rows += found
        results.append(result)
        report.table("By region", rows, _TEXT)
        stage = seconds["local resolution"]
        cost.append({"case": name, "SNR": one.snr, "seconds": stage, "whole job, s": sum(seconds.values())})
        report.table("Cost", cost)
    star = simulated(varied_model(args.work), settings[0], args.work)
    report.table("Nulls", nulls(results[0], star, args), _NULL_TEXT)


if __name__ == "__main__":
    main()
