"""Small arrays for the report of a run, which could otherwise be computed only by reading the images again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.conventions import spatial_frequency_radii
from emsplat.figures.reconstruction import direction_counts
from emsplat.fourier.background import outside_circle, subtract_background
from emsplat.fourier.cropping import fourier_crop
from emsplat.fourier.slices import fourier_volume
from emsplat.imaging.forward import ForwardModel
from emsplat.imaging.noise import shell_means
from emsplat.io.images import ImageSource
from emsplat.optics.ctf import ctf
from emsplat.particles.coverage import measure_coverage
from emsplat.particles.table import Particles
from emsplat.reconstruction.reconstruct import Reconstruction
from emsplat.runs.run_folder import RunFolder
from emsplat.runtime.files import replacing
from emsplat.splat import project
from emsplat.splat.bandlimit import widened
from emsplat.symmetry import symmetry_operators

_PAIRS = 6
_PAIR_EDGE = 96  # largest edge of these images in pixels
_CTFS, _CTF_VALUES = 120, 1_000_000  # images whose CTFs are averaged, and values in all, which large images reach first
_CTFS_AT_ONCE = 10
_VIEWS = 20_000  # images whose views measure how evenly Fourier space is covered
_SPLAT_CUTOFF = 5.0  # the inverse of the widening amplifies what truncation leaves out

Evidence = dict[str, NDArray]


def gather_evidence(r: Reconstruction, truth: NDArray[np.float64] | None = None) -> Evidence:
    """The arrays by name; D is the box, G the number of optics groups, and F = D//2 + 1 shells from 0.

    - ``frequency`` (F,) in 1/Å, ``noise`` (G, F) variance per pixel, ``group_names`` (G,)
    - ``ctf_mean`` (F,) CTF² averaged over the images, ``ctf_typical`` (F,) CTF² of the image with the median defocus
    - ``defocus_counts`` (n,), ``defocus_edges`` (n + 1,) in µm
    - ``directions`` (rows, 2 rows) of `figures.direction_counts`, ``efficiency`` of `particles.coverage`
    - ``loss_1``, ``loss_2`` (steps,) per image, ``checks_1``, ``checks_2`` (n, 2) step and loss of held-out images
    - ``recorded``, ``filtered``, ``predicted`` (n, d, d): images, the same after a Wiener filter, and what the
      Gaussians predict after the same filter; ``pair_ids``, ``pair_defocus`` in µm, and ``pair_correlation`` (n,)
      between the last two
    - ``truth`` (D//2,) the correlation with the truth, if it is known
    """
    table = r.particles
    box_size, pixel_size = table.box_size, table.pixel_size_in_angstroms
    defocus = 0.5e-4 * (table.defocus_u_in_angstroms + table.defocus_v_in_angstroms)
    evidence: Evidence = {
        "frequency": np.arange(box_size // 2 + 1) / (box_size * pixel_size),
        "noise": r.preview.noise / box_size**2,
        "group_names": np.array([group.name for group in table.optics]),
        "directions": direction_counts(table.euler_angles_in_degrees, _rows_of_directions(len(table))),
    }
    by_defocus = np.argsort(defocus, kind="stable")
    rotations = table.select(_spread(by_defocus, _VIEWS)).poses.rotations
    coverage = measure_coverage(rotations, symmetry_operators(r.symmetry), r.settings.seed)
    evidence["efficiency"] = np.array(coverage.efficiency)
    affordable = min(_CTFS, 10 + 2 * _CTF_VALUES // box_size**2)
    evidence["ctf_mean"] = _mean_squared_ctf(table, _spread(by_defocus, affordable))
    evidence["ctf_typical"] = _mean_squared_ctf(table, _spread(by_defocus, 1))
    evidence["defocus_counts"], evidence["defocus_edges"] = np.histogram(defocus, bins=30)
    for number, half in enumerate(r.halves, start=1):
        evidence[f"loss_{number}"] = np.array(half.history.losses)
        evidence[f"checks_{number}"] = np.array(half.history.checks, dtype=np.float64).reshape(-1, 2)
    # In a tilt series, only images with little radiation damage show anything.
    fresh = table.pre_exposure[by_defocus] <= np.quantile(table.pre_exposure, 0.25)
    rows = _spread(by_defocus[fresh], _PAIRS)
    evidence |= _pairs(r, rows) | {"pair_ids": table.ids[rows], "pair_defocus": defocus[rows]}
    if truth is not None:
        evidence["truth"] = truth
    return evidence


def write_evidence(folder: RunFolder, evidence: Evidence) -> None:
    arrays: dict[str, Any] = {name: _smaller(values) for name, values in evidence.items()}
    with replacing(folder.evidence) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _smaller(values: NDArray) -> NDArray:
    return values.astype(np.float32) if values.dtype == np.float64 else values


def _rows_of_directions(n_images: int) -> int:
    """Number of rows of bins, for about 20 images in each bin and no more bins than an eye can tell apart."""
    return int(np.clip(np.sqrt(n_images / 40), 6, 18))


def _spread(rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """At most n of the rows at equal distances; the middle row for n = 1."""
    n = min(n, len(rows))
    return rows[((np.arange(n) + 0.5) * len(rows) / n).astype(np.int64)]


def _mean_squared_ctf(table: Particles, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(D//2+1,) shell means of CTF², averaged over the rows."""
    total = np.zeros(table.box_size // 2 + 1)
    for first in range(0, len(rows), _CTFS_AT_ONCE):
        block = rows[first : first + _CTFS_AT_ONCE]
        total += len(block) * shell_means(ctf(table.select(block)) ** 2, table.box_size)
    return total / len(rows)


def _pairs(r: Reconstruction, rows: NDArray[np.int64]) -> Evidence:
    """Recorded images beside what the fitted model predicts for them, in units of the recorded standard deviation."""
    chosen = r.particles.select(rows)
    box_size = chosen.box_size
    with ImageSource(chosen, r.settings.invert) as images:
        recorded = images.read(np.arange(len(rows)))
    subtract_background(recorded, outside_circle(box_size))
    recorded_spectra, predicted_spectra = np.fft.rfft2(recorded), np.fft.rfft2(_predicted(r, chosen))
    signal = shell_means(np.abs(predicted_spectra) ** 2, box_size)
    noise = r.preview.noise[chosen.optics_group].mean(axis=0)
    radius = spatial_frequency_radii(box_size)
    wiener = np.interp(radius, np.arange(len(signal)), signal / (signal + noise))
    wiener[0, 0] = 0.0  # the mean of an image says nothing about the particle
    edge = min(box_size, _PAIR_EDGE)
    filtered, predicted = (_cropped(s * wiener, edge) for s in (recorded_spectra, predicted_spectra))
    axis = np.arange(edge) - edge // 2
    within = np.hypot(axis[:, None], axis) < 0.45 * edge
    spread = recorded.std(axis=(1, 2), keepdims=True)
    return {
        "recorded": (_cropped(recorded_spectra, edge) / spread).astype(np.float16),
        "filtered": (filtered / spread).astype(np.float16),
        "predicted": (predicted / spread).astype(np.float16),
        "pair_correlation": np.array(
            [np.corrcoef(a[within], b[within])[0, 1] for a, b in zip(filtered, predicted, strict=True)]
        ),
    }


def _predicted(r: Reconstruction, particles: Particles) -> NDArray[np.float32]:
    """(n, D, D) images of the fitted model with the particles' poses, shifts and CTFs."""
    gaussians, forward = r.gaussians, ForwardModel.of(particles)
    if gaussians is None:
        average = fourier_volume(0.5 * (r.halves[0].map + r.halves[1].map))
        return forward.images(forward.from_volume(average)).numpy()
    log_pixel = math.log(particles.pixel_size_in_angstroms)
    projections = project(
        gaussians.centres / particles.pixel_size_in_angstroms,
        widened(gaussians.log_scales - log_pixel),
        gaussians.quaternions,
        gaussians.log_masses - 3 * log_pixel,
        forward.matrices,
        forward.shifts,
        forward.box_size,
        _SPLAT_CUTOFF,
    )
    return forward.images(forward.from_projections(projections)).numpy()


def _cropped(spectra: NDArray[np.complexfloating], edge: int) -> NDArray[np.floating]:
    """(n, edge, edge) images of (n, D, D//2+1) transforms, cropped without a change of grey values."""
    full = spectra.shape[1]
    return np.fft.irfft2(fourier_crop(spectra, edge), s=(edge, edge)) * (edge / full) ** 2
