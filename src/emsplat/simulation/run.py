"""From a model and settings to a folder with images: the loop over blocks of particles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.fourier.slices import FourierVolume, central_slices, fourier_volume
from emsplat.imaging.aberrations import antisymmetric_factors, slice_matrices
from emsplat.imaging.ctf import ctf
from emsplat.io.mrc import StackWriter, write_map
from emsplat.io.star import write_star
from emsplat.particles.table import Particles
from emsplat.runtime.folders import check_folder, filling
from emsplat.settings import SimulationSettings
from emsplat.simulation.acquisition import acquire, star_tables
from emsplat.simulation.truth import molecular_map, soft_mask

_STAR, _STACK = "particles.star", "particles.mrcs"
_PIXELS_IN_A_BLOCK = 1 << 22  # 16 MB of float32: memory does not grow with the number of images
_IMAGES_FOR_SNR = 512  # enough to know the mean signal variance to better than 1 %


def simulate(
    model: str | Path,
    output: str | Path,
    settings: SimulationSettings | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Simulates particle images of an atomic model or a map.

    Writes ``particles.star`` (RELION 3.1), ``particles.mrcs``, ``truth.mrc`` (what the images are projections of: sums
    over its voxels) and ``mask.mrc`` into `output`. The same settings give the same files.

    Args:
        model: PDB or mmCIF, also ``.gz``, or a cubic MRC map.
        progress: called with (images done, images in all) after each block.
    Returns:
        The path of the star.
    Raises:
        InputError: unusable model or settings, or an output folder that holds a simulation already.
    """
    settings, output = settings or SimulationSettings(), Path(output)
    check_folder(output, (_STAR, _STACK), overwrite, "simulation")
    truth = molecular_map(model, settings)
    pixel_size = settings.pixel_size_in_angstroms
    with filling(output, last=_STAR) as folder:  # a star means that all the rest is there
        particles = acquire(settings, folder / _STAR, folder / _STACK)
        _write_images(folder / _STACK, truth, particles, settings, progress or (lambda done, total: None))
        write_map(folder / "truth.mrc", truth, pixel_size)
        write_map(folder / "mask.mrc", soft_mask(truth, pixel_size), pixel_size)
        write_star(folder / _STAR, star_tables(particles))
    return output / _STAR


def signal_images(volume: FourierVolume, particles: Particles) -> NDArray[np.float32]:
    """(n, D, D) noise-free images of these particles: projection, shift, CTF, aberrations.

    Holds frequencies below Nyquist's radius only, as does the truth.
    """
    box_size, pixel_size = particles.box_size, particles.pixel_size_in_angstroms
    spectra = central_slices(volume, slice_matrices(particles), particles.origin_in_angstroms / pixel_size)
    spectra *= ctf(particles)
    factors, factor_of = antisymmetric_factors(particles, box_size)
    for image in np.flatnonzero(factor_of >= 0):
        spectra[image] *= factors[factor_of[image]]
    return scipy.fft.irfft2(spectra, s=(box_size, box_size), workers=numba.get_num_threads())


def noise_images(
    rng: np.random.Generator, n: int, box_size: int, pixel_size_in_angstroms: float, kind: str
) -> NDArray[np.float32]:
    """(n, D, D) Gaussian noise of unit variance, white or with a smooth radial spectrum that falls with frequency."""
    noise = rng.standard_normal((n, box_size, box_size), dtype=np.float32)
    if kind == "white":
        return noise
    workers = numba.get_num_threads()
    spectra = scipy.fft.rfft2(noise, workers=workers)
    spectra *= np.sqrt(coloured_spectrum(box_size, pixel_size_in_angstroms))[:, : box_size // 2 + 1]
    return scipy.fft.irfft2(spectra, s=(box_size, box_size), workers=workers)


def coloured_spectrum(box_size: int, pixel_size_in_angstroms: float) -> NDArray[np.float32]:
    """(D, D) noise power by frequency in fft order, its mean 1: a Lorentzian of 1/(20 Å) above a white floor."""
    s = np.fft.fftfreq(box_size, pixel_size_in_angstroms)
    power = 0.4 + 1 / (1 + 20.0**2 * (s[:, None] ** 2 + s**2))
    return (power / power.mean()).astype(np.float32)


def _write_images(
    stack: Path,
    truth: NDArray[np.float32],
    particles: Particles,
    settings: SimulationSettings,
    progress: Callable[[int, int], None],
) -> None:
    n, box_size, pixel_size = len(particles), settings.box_size, settings.pixel_size_in_angstroms
    volume = fourier_volume(truth)
    sigma = np.float32(_noise_sigma(volume, particles, settings.snr))
    rng = np.random.default_rng([settings.seed, 1])
    with StackWriter(stack, box_size, pixel_size) as writer:
        for rows in _blocks(n, box_size):
            images = signal_images(volume, particles.select(rows))
            if sigma > 0:
                images += sigma * noise_images(rng, len(rows), box_size, pixel_size, settings.noise)
            writer.append(images)
            progress(int(rows[-1]) + 1, n)


def _noise_sigma(volume: FourierVolume, particles: Particles, snr: float) -> float:
    """Standard deviation of the noise: from the signal variance of up to 512 images spread over the set."""
    if np.isinf(snr):
        return 0.0
    n = len(particles)
    rows = np.unique(np.linspace(0, n - 1, min(n, _IMAGES_FOR_SNR)).astype(int))
    sums = [
        signal_images(volume, particles.select(rows[block])).var(axis=(1, 2)).sum()
        for block in _blocks(len(rows), particles.box_size)
    ]
    return float(np.sqrt(sum(sums) / len(rows) / snr))


def _blocks(n: int, box_size: int) -> list[NDArray[np.int64]]:
    size = max(1, _PIXELS_IN_A_BLOCK // box_size**2)
    return [np.arange(start, min(n, start + size)) for start in range(0, n, size)]
