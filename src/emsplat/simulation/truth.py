"""The true map of a simulation, from atoms or from a map, and the mask around it."""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from emsplat.errors import InputError
from emsplat.fourier.slices import fourier_volume, transform_at
from emsplat.io.compressed import without_ending
from emsplat.io.mrc import StackReader, read_map
from emsplat.settings import SimulationSettings
from emsplat.simulation.atoms import potential_of_atoms, read_atoms

_MAP_SUFFIXES = (".mrc", ".map", ".ccp4", ".mrcs", ".rec")


def bundled_model() -> Path:
    """The atomic model that ships with the program: PDB entry 7PBL, 227 kDa (CC0)."""
    return Path(__file__).parent.parent / "data" / "7pbl.pdb.gz"


def is_map(model: Path) -> bool:
    """Whether a model is a map and no atoms, by its name, which may end in that of a compressed file."""
    return without_ending(model).suffix.lower() in _MAP_SUFFIXES


def molecular_map(model: str | Path, settings: SimulationSettings) -> NDArray[np.float32]:
    """(D, D, D) [z, y, x] true map, without frequencies at or beyond Nyquist's radius.

    An atomic model (the first of several MODELs) becomes its electrostatic potential in volts, minus that of the ice
    that it displaces, with its centre of mass at voxel D//2. A map keeps its units, and its voxel D0//2 becomes voxel
    D//2.

    Raises:
        InputError: the file is no model, or the model does not fit in the box (the line says which box would hold it).
    """
    model = Path(model)
    if not model.is_file():
        raise InputError(f"{model}: no such file; give a PDB or mmCIF model, or an MRC map")
    box_size, pixel_size = settings.box_size, settings.pixel_size_in_angstroms
    if is_map(model):
        return map_of_file(model, settings)
    return potential_of_atoms(
        read_atoms(model, settings.assembly),
        box_size,
        pixel_size,
        settings.b_factor_in_square_angstroms,
        settings.solvent,
    )


def map_of_file(path: Path, settings: SimulationSettings) -> NDArray[np.float32]:
    """(D, D, D) an MRC map on the simulation's grid."""
    return resampled(
        read_map(path).values, _pixel_size_of_header(path), settings.box_size, settings.pixel_size_in_angstroms
    )


def _pixel_size_of_header(model: Path) -> float:
    """Pixel size in Å. Unlike in a stack, a value of 1 is trusted, because a model has no star that says otherwise."""
    with StackReader(model, unpack=True) as reader:
        size = reader._header.voxel_in_angstroms[0]
    if not size > 0:
        raise InputError(f"{model}: the header gives no pixel size; set it in the map")
    return size


def resampled(
    volume: NDArray[np.float32], old_pixel_size: float, box_size: int, pixel_size: float
) -> NDArray[np.float32]:
    """(D, D, D) the same density on another grid, by its Fourier transform; pixel sizes in any one unit.

    Density outside the new box is cut off; frequencies at or beyond either grid's Nyquist radius are dropped.
    """
    old_size = volume.shape[0]
    place = (np.arange(old_size) - old_size // 2) * old_pixel_size
    inside = np.abs(place) <= 0.5 * box_size * pixel_size
    cropped = volume * (inside[:, None, None] & inside[None, :, None] & inside)
    k = np.fft.fftfreq(box_size, 1 / box_size)
    kz, ky, kx = np.meshgrid(k, k, np.arange(box_size // 2 + 1), indexing="ij")
    radius = np.sqrt(kx**2 + ky**2 + kz**2)
    to_old = old_size * old_pixel_size / (box_size * pixel_size)  # from units of 1/(new edge) to 1/(old edge)
    band = (2 * radius < box_size) & (2 * radius * to_old < old_size)
    points = np.stack([kx[band], ky[band], kz[band]], axis=-1)
    spectrum = np.zeros(band.shape, dtype=np.complex64)
    centre = np.exp(-2j * np.pi * (box_size // 2) / box_size * points.sum(axis=-1))
    spectrum[band] = transform_at(fourier_volume(cropped), points * to_old) * centre
    spectrum *= (old_pixel_size / pixel_size) ** 3
    return scipy.fft.irfftn(spectrum, s=(box_size, box_size, box_size), workers=numba.get_num_threads()).astype(
        np.float32
    )


def soft_mask(
    volume: NDArray[np.float32],
    pixel_size_in_angstroms: float,
    low_pass_in_angstroms: float = 12.0,
    threshold: float = 0.15,
    extend_in_angstroms: float = 4.0,
    edge_in_angstroms: float = 6.0,
) -> NDArray[np.float32]:
    """(D, D, D) from 0 to 1 around a noise-free density.

    The low-passed density (Gaussian, 1/e at the given resolution) is cut at a fraction of its maximum, extended, and
    given a raised-cosine edge.
    """
    box_size = volume.shape[0]
    k = np.fft.fftfreq(box_size, pixel_size_in_angstroms)
    kx = np.fft.rfftfreq(box_size, pixel_size_in_angstroms)
    squared = (k**2)[:, None, None] + (k**2)[None, :, None] + kx**2
    workers = numba.get_num_threads()
    spectrum = scipy.fft.rfftn(volume, workers=workers)
    spectrum *= np.exp(-(low_pass_in_angstroms**2) * squared).astype(np.float32)
    smooth = scipy.fft.irfftn(spectrum, s=volume.shape, workers=workers)
    inside = smooth > threshold * smooth.max()
    distance = distance_transform_edt(~inside, sampling=pixel_size_in_angstroms)
    edge = np.clip((distance - extend_in_angstroms) / edge_in_angstroms, 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * edge)).astype(np.float32)
