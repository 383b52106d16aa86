"""From models and settings to a folder with images: the loop over conformations and blocks of particles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.fourier.slices import FourierVolume, fourier_volume
from emsplat.imaging.forward import ForwardModel
from emsplat.io.mrc import StackWriter, write_map
from emsplat.io.star import write_star
from emsplat.particles.table import Particles
from emsplat.runtime.folders import check_folder, filling
from emsplat.settings import SimulationSettings
from emsplat.simulation.acquisition import acquire, star_tables, with_pose_errors
from emsplat.simulation.conformations import Conformations, read_conformations
from emsplat.simulation.labels import EMPTY, NEIGHBOURS, Labels, draw_labels, neighbours, write_labels
from emsplat.simulation.truth import soft_mask

_STAR, _STACK = "particles.star", "particles.mrcs"
LABELS, TRUTHS = "labels.csv", "truths"
_PIXELS_IN_A_BLOCK = 1 << 22  # 16 MB of float32, so that memory does not grow with the number of images
_IMAGES_FOR_SNR = 512  # images that give the mean signal variance to better than 1 %


def simulate(
    model: str | Path | Sequence[str | Path],
    output: str | Path,
    settings: SimulationSettings | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Simulate particle images of an atomic model or a map, or of a particle with several conformations.

    The function writes ``particles.star`` (RELION 3.1), ``particles.mrcs``, ``truth.mrc`` (the images are projections
    of it: sums over its voxels) and ``mask.mrc`` into `output`. If images differ by more than poses and CTFs,
    ``labels.csv`` says what each one shows. If there are several conformations, ``truths/001.mrc`` and so on hold their
    maps, ``truth.mrc`` is their average over the images, and ``mask.mrc`` covers all of them. The same settings give
    the same files.

    Args:
        model: a PDB or mmCIF file, also compressed, or a cubic MRC map; or several. Each MODEL of a file is a
            conformation.
        progress: called with the numbers of images done and in total after each block.
    Returns:
        The path of the star.
    Raises:
        InputError: the model or the settings cannot be used, or the output folder already holds a simulation.
    """
    settings, output = settings or SimulationSettings(), Path(output)
    check_folder(output, (_STAR, _STACK), overwrite, "simulation")
    models = [model] if isinstance(model, str | Path) else list(model)
    conformations = read_conformations([Path(m) for m in models], settings)
    truth = conformations.map(0, settings)  # refuses a model that does not fit, before anything is written
    pixel_size = settings.pixel_size_in_angstroms
    with filling(output, last=_STAR) as folder:  # if there is a star, all other files exist
        particles = acquire(settings, folder / _STAR, folder / _STACK)
        labels = draw_labels(conformations, settings)
        envelope = truth
        if len(conformations) > 1:
            truth, envelope = _write_truths(folder / TRUTHS, conformations, labels, settings)
        _write_images(
            folder / _STACK, conformations, labels, particles, settings, progress or (lambda done, total: None)
        )
        write_map(folder / "truth.mrc", truth, pixel_size)
        write_map(folder / "mask.mrc", soft_mask(envelope, pixel_size), pixel_size)
        if labels.say_something or settings.has_pose_errors:
            write_labels(folder / LABELS, labels, conformations, particles)
        write_star(folder / _STAR, star_tables(with_pose_errors(particles, settings)))
    return output / _STAR


def _write_truths(
    folder: Path, conformations: Conformations, labels: Labels, settings: SimulationSettings
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Write the map of every conformation; returns their average over the images and their maximum, (D, D, D)."""
    folder.mkdir()
    shares = np.bincount(labels.state, minlength=len(conformations)) / len(labels.state)
    mean = np.zeros((settings.box_size,) * 3, dtype=np.float32)
    largest = np.full_like(mean, -np.inf)
    for state, share in enumerate(shares):
        truth = conformations.map(state, settings)
        write_map(folder / f"{state + 1:03d}.mrc", truth, settings.pixel_size_in_angstroms)
        mean += np.float32(share) * truth
        np.maximum(largest, truth, out=largest)
    return mean, largest


def signal_images(volume: FourierVolume, particles: Particles) -> NDArray[np.float32]:
    """(n, D, D) noise-free images of these particles: projection, shift, CTF, aberrations.

    Holds frequencies below Nyquist's radius only, as does the truth.
    """
    forward = ForwardModel.of(particles)
    spectra = forward.seen(forward.from_volume(volume)).numpy()
    return scipy.fft.irfft2(spectra, s=(particles.box_size,) * 2, workers=numba.get_num_threads())


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
    conformations: Conformations,
    labels: Labels,
    particles: Particles,
    settings: SimulationSettings,
    progress: Callable[[int, int], None],
) -> None:
    n, box_size, pixel_size = len(particles), settings.box_size, settings.pixel_size_in_angstroms
    sigma = np.float32(_noise_sigma(conformations, labels, particles, settings))
    rng = np.random.default_rng([settings.seed, 1])
    with StackWriter(stack, box_size, pixel_size) as writer:
        for volume, of_state in _volumes(conformations, labels.state, settings):
            for block in _blocks(len(of_state), box_size):
                rows = of_state[block]
                images = labelled_images(volume, particles, labels, rows, settings.seed)
                if sigma > 0:
                    images += sigma * noise_images(rng, len(rows), box_size, pixel_size, settings.noise)
                writer.append(images)
                progress(int(rows[-1]) + 1, n)


def labelled_images(
    volume: FourierVolume, particles: Particles, labels: Labels, rows: NDArray[np.int64], seed: int
) -> NDArray[np.float32]:
    """(n, D, D) noise-free images of these rows, junk among them, each times its contrast.

    Args:
        volume: of the conformation that these rows show.
    """
    images = signal_images(volume, particles.select(rows))
    images *= labels.contrast[rows, None, None].astype(np.float32)
    junk = labels.junk[rows]
    images[junk == EMPTY] = 0
    if (crowded := np.flatnonzero(junk == NEIGHBOURS)).size:
        images[crowded] = sum(
            signal_images(volume, neighbours(particles, rows[crowded], seed, which)) for which in range(2)
        )
    return images


def _volumes(
    conformations: Conformations, state: NDArray[np.int32], settings: SimulationSettings
) -> Iterator[tuple[FourierVolume, NDArray[np.int64]]]:
    """The transform of every conformation that occurs, one in memory at a time, and the rows that show it."""
    for number in np.unique(state).tolist():
        yield fourier_volume(conformations.map(number, settings)), np.flatnonzero(state == number)


def _noise_sigma(
    conformations: Conformations, labels: Labels, particles: Particles, settings: SimulationSettings
) -> float:
    """Standard deviation of the noise: from the signal variance of up to 512 images spread over the set.

    Contrast and junk do not count: they leave the noise as it is.
    """
    if np.isinf(settings.snr):
        return 0.0
    n = len(particles)
    rows = np.unique(np.linspace(0, n - 1, min(n, _IMAGES_FOR_SNR)).astype(int))
    sums = [
        signal_images(volume, particles.select(rows[of_state[block]])).var(axis=(1, 2)).sum()
        for volume, of_state in _volumes(conformations, labels.state[rows], settings)
        for block in _blocks(len(of_state), particles.box_size)
    ]
    return float(np.sqrt(sum(sums) / len(rows) / settings.snr))


def _blocks(n: int, box_size: int) -> list[NDArray[np.int64]]:
    size = max(1, _PIXELS_IN_A_BLOCK // box_size**2)
    return [np.arange(start, min(n, start + size)) for start in range(0, n, size)]
