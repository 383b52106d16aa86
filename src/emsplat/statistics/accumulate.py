"""One pass over the particles → everything the images say about the map.

The loss ``½ Σ_i ‖W_i (C_i P_i V − y_i)‖²`` is quadratic in V while poses are fixed:
``½⟨V, T∗V⟩ − ⟨b, V⟩ + const`` with ``b = Σ P_iᵀ C_i W_i² y_i`` (a volume) and the convolution kernel
``T = Σ P_iᵀ C_i² W_i² P_i``. Statistics add up: any split of the images costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numba
import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.fourier.cropping import fourier_crop
from emsplat.fourier.insertion import SliceGrid
from emsplat.fourier.transforms import transforms_of
from emsplat.imaging.aberrations import antisymmetric_factors, slice_matrices, symmetric_phases
from emsplat.imaging.ctf import as_tuple, ctf_along, ctf_parameters
from emsplat.imaging.noise import inverse_noise, outside_circle, subtract_background
from emsplat.io.images import reading_order
from emsplat.particles.batches import Images, Rows
from emsplat.particles.table import Particles
from emsplat.runtime.checkpoint import UNKEPT, Checkpoint, State
from emsplat.runtime.stopwatch import Stopwatch

_BLOCK_BYTES = 48 << 20
_RAW_REGULARISATION = 0.1  # share of the shell's mean weight added to every weight of the raw inversion


@dataclass(frozen=True)
class Statistics:
    """Sufficient statistics of a set of images about a map on a D³ grid."""

    adjoint: NDArray[np.float32]  # (D, D, D) b, r from −(D//2)
    kernel: NDArray[np.float32]  # (n, n, n) T, r from −(n//2)
    n_images: int

    @property
    def box_size(self) -> int:
        return self.adjoint.shape[0]

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.adjoint + other.adjoint, self.kernel + other.kernel, self.n_images + other.n_images)

    def raw_map(self) -> NDArray[np.float32]:
        """Direct inversion ``b̂ / (max(T̂, 0) + 0.1 × shell mean of T̂)``, (D, D, D); touched by no prior.

        Each shell is divided by what this leaves of a signal, ``mean of T̂ / (T̂ + 0.1 × shell mean)``: the inversion
        has the scale of the truth, on average over a shell.
        """
        d = self.box_size
        transfer = self.transfer(d)
        shell = np.minimum(maps.shell_index(d), d // 2)  # corners take the last shell's mean; they are cut off
        size = maps.shell_size(d)
        mean = np.maximum(maps.shell_sum(transfer, d) / size, 0)
        transfer = np.maximum(transfer, 0)
        weight = transfer + _RAW_REGULARISATION * mean.astype(np.float32)[shell]
        inside = (maps.radius(d) < d / 2) & (weight > 0)
        inverse = np.divide(inside, weight, out=np.zeros_like(weight), where=inside)
        kept, within = (maps.shell_sum(values, d) for values in (transfer * inverse, inside.astype(np.float32)))
        scale = np.divide(within, kept, out=np.zeros_like(kept), where=kept > 0)
        spectrum = maps.half_spectrum(self.adjoint)
        spectrum *= inverse * scale.astype(np.float32)[shell]
        return maps.from_half_spectrum(spectrum, d)

    def transfer(self, period: int) -> NDArray[np.float32]:
        """(n, n, n//2+1) real transform of T wrapped on a grid of this period, at most the kernel's own extent."""
        full = self.kernel.shape[0]
        middle = slice(full // 2 - period // 2, full // 2 - period // 2 + period)
        wrapped = scipy.fft.ifftshift(self.kernel[middle, middle, middle])
        return np.ascontiguousarray(scipy.fft.rfftn(wrapped).real)


@dataclass(frozen=True)
class PassSettings:
    """What the pass needs to know beside the particles."""

    box_size: int  # working box D' ≤ D: images are cropped to it in Fourier space
    reach: int  # n: voxels (of the working box) of T's edge, at least those of the box, which the raw inversion needs
    noise: NDArray[np.float64]  # (groups, D//2+1) from `noise_spectra`, of the uncropped images
    symmetry: NDArray[np.float64]  # (m, 3, 3) operators


class FilledGrid(Protocol):
    """What slices were inserted into, wherever that was."""

    @property
    def values(self) -> Any:
        """An array or a tensor; those of several processes add up."""

    def adjoint(self) -> NDArray[np.float32]: ...


FilledGrids = tuple[FilledGrid, FilledGrid]  # those of b and of T
Grids = tuple[SliceGrid | None, SliceGrid | None]  # of b and of T; None: somebody else fills it
Prepared = tuple[tuple[Rows, NDArray[np.complex64]], tuple[Rows, NDArray[np.float32]]]


def gather_statistics(
    particles: Particles,
    images: Images,
    subset: NDArray[np.int8],
    settings: PassSettings,
    progress: Callable[[int], None] = lambda done: None,
    stopwatch: Stopwatch | None = None,
) -> list[Statistics]:
    """Stream over the images once and fill the statistics of every subset.

    Args:
        subset: (N,) number of the subset each image belongs to, from 0; negative: left out.
        progress: called after each block with the number of images done.
        stopwatch: told where the time goes.
    Returns:
        one Statistics a subset. Memory does not depend on N.
    """
    order, stopwatch = reading_order(particles), stopwatch or Stopwatch()
    grids = [(empty_grid(0, settings), empty_grid(1, settings)) for _ in range(int(subset.max()) + 1)]
    blocks = blocks_of(order[subset[order] >= 0], particles.box_size)
    fill_grids(grids, particles, images, blocks, subset, settings, progress, stopwatch)
    result: list[Statistics] = []
    with stopwatch.working("finish"):
        while grids:  # freed one by one: their transforms need room of their own
            result.append(statistics_of(grids.pop(0), settings, int(np.sum(subset == len(result)))))
    return result


def empty_grid(kind: int, settings: PassSettings) -> SliceGrid:
    """That of b (kind 0) or of T (kind 1), for `fill_grids`."""
    if kind == 0:
        return SliceGrid.empty(settings.box_size, settings.box_size, np.complex64)
    return SliceGrid.empty(kernel_extent(settings), settings.box_size, np.float32)


def blocks_of(order: NDArray[np.int64], box_size: int) -> list[NDArray[np.int64]]:
    """The rows that are read at once, block after block."""
    at_once = max(1, _BLOCK_BYTES // (4 * box_size**2))
    return [order[i : i + at_once] for i in range(0, len(order), at_once)]


def fill_grids(
    grids: Sequence[Grids],
    particles: Particles,
    images: Images,
    blocks: Sequence[NDArray[np.int64]],
    subset: NDArray[np.int8],
    settings: PassSettings,
    progress: Callable[[int], None] = lambda done: None,
    stopwatch: Stopwatch | None = None,
    checkpoint: Checkpoint = UNKEPT,
) -> None:
    """Add images to the grids of their subsets; what several calls, or several processes, have filled adds up.

    How the sums are rounded depends on the order of a subset's images and on the blocks they come in, not on the
    images of other subsets among them, nor on which of the grids there are, nor on the number of threads.

    Args:
        blocks: rows, as they are to be read; of a subset without a grid of b the images are not.
        subset: (N,) whose grids each row's image goes into.
        checkpoint: is offered the grids after every block; those it loads, of the same images, are filled on.
    """
    stopwatch = stopwatch or Stopwatch()
    matrices = slice_matrices(particles)
    values = {
        f"{what}{n}": g.values.view(np.float32)
        for n, pair in enumerate(grids)
        for what, g in zip("bt", pair, strict=True)
        if g
    }
    saved = checkpoint.load(into=values)
    done = 0
    blocks = list(blocks)
    while saved and done < saved.facts["images"]:  # whole blocks: the same ones follow, and so the same sums
        done += len(blocks.pop(0))
    tensors = {name: torch.from_numpy(array) for name, array in values.items()}
    has_b, has_t = (np.array([pair[kind] is not None for pair in grids]) for kind in (0, 1))
    parts = [(rows[has_b[subset[rows]]], rows[has_t[subset[rows]]]) for rows in blocks]
    for rows, prepared in zip(blocks, _prepared_blocks(particles, images, parts, settings, stopwatch), strict=True):
        with stopwatch.working("insertion"):
            for number, pair in enumerate(grids):
                for grid, (of_kind, slices) in zip(pair, prepared, strict=True):
                    chosen = subset[of_kind] == number
                    if grid is None or not chosen.any():
                        continue
                    for operator in settings.symmetry:
                        grid.insert(slices[chosen], matrices[of_kind[chosen]] @ operator)
        done += len(rows)
        checkpoint.offer(partial(State, tensors, {"images": done}))
        progress(done)


def statistics_of(grids: FilledGrids, settings: PassSettings, n_images: int) -> Statistics:
    """What full grids say."""
    b, t = grids
    share = np.float32(1 / len(settings.symmetry))
    return Statistics(b.adjoint() * share, t.adjoint() * share, n_images)


def kernel_extent(settings: PassSettings) -> int:
    """Edge of T: what models need, and at least what the raw inversion does."""
    return max(settings.reach, settings.box_size)


def saved_statistics(seen: Statistics, unseen: Statistics | None) -> State:
    """Those of a half, for a checkpoint."""
    parts = {"seen": seen} | ({"unseen": unseen} if unseen else {})
    arrays = {f"{name}.{what}": getattr(s, what) for name, s in parts.items() for what in ("adjoint", "kernel")}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return State(tensors, {name: s.n_images for name, s in parts.items()})


def restored_statistics(state: State) -> tuple[Statistics, Statistics | None]:
    """What `saved_statistics` was given."""
    parts = {
        name: Statistics(state.tensors[f"{name}.adjoint"].numpy(), state.tensors[f"{name}.kernel"].numpy(), n_images)
        for name, n_images in state.facts.items()
    }
    return parts["seen"], parts.get("unseen")


def _prepared_blocks(
    particles: Particles, images: Images, blocks: Sequence[tuple[Rows, Rows]], settings: PassSettings,
    stopwatch: Stopwatch,
) -> Iterator[Prepared]:  # fmt: skip
    """Rows and C W² y centred, rows and C² W², of block after block; the next block is read while one is worked on.

    Args: blocks: the rows of either kind, both in the order of the block.
    """
    box_size, working = particles.box_size, settings.box_size
    parameters = ctf_parameters(particles)
    centres = box_size // 2 - particles.origin_in_angstroms / particles.pixel_size_in_angstroms
    premultiplied = np.array([g.premultiplied for g in particles.optics])
    step = 1 / (box_size * particles.pixel_size_in_angstroms)
    symmetric, symmetric_of = symmetric_phases(particles, working)
    antisymmetric, antisymmetric_of = antisymmetric_factors(particles, working)
    whitening = inverse_noise(settings.noise, working, box_size).astype(np.float32)
    scale = np.float32((working / box_size) ** 3)  # a slice of the working grid's map, in its own units
    if not blocks:
        return
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(images.read, blocks[0][0])
        for number, (of_b, of_t) in enumerate(blocks):
            with stopwatch.waiting("waiting for images"):
                block = ahead.result()
            if number + 1 < len(blocks):
                ahead = reader.submit(images.read, blocks[number + 1][0])
            with stopwatch.working("transforms and weights"):
                spectra = np.empty((0, working, working // 2 + 1), dtype=np.complex64)
                if len(of_b):
                    subtract_background(
                        block, outside_circle(block.shape[-1])
                    )  # smaller than the box where they are cached
                    spectra = fourier_crop(transforms_of(block, numba.get_num_threads()), working)
                weights = np.empty((len(of_t), *spectra.shape[1:]), dtype=np.float32)
                rows = np.union1d(of_b, of_t)
                group = particles.optics_group[rows]
                _weigh(
                    spectra, weights, _places(rows, of_b), _places(rows, of_t), parameters[rows], centres[rows],
                    whitening, group, premultiplied[group], symmetric, symmetric_of[rows], antisymmetric,
                    antisymmetric_of[rows], scale, box_size, step,
                )  # fmt: skip
            yield (of_b, spectra), (of_t, weights)


def _places(rows: Rows, among: Rows) -> NDArray[np.int64]:
    """(n,) where each of n sorted rows is among others, which are of them; −1 for nowhere."""
    places = np.full(len(rows), -1)
    places[np.searchsorted(rows, among)] = np.arange(len(among))
    return places


@numba.njit(parallel=True, cache=True, error_model="numpy", fastmath={"contract"})
def _weigh(
    spectra, weights, spectrum_of, weight_of, parameters, centres, whitening, group, premultiplied,
    symmetric, symmetric_of, antisymmetric, antisymmetric_of, scale, box_size, step,
):  # fmt: skip
    """Turn transforms into C W² y, centred and rid of antisymmetric phases, in place, and fill C² W².

    whitening: (groups, D′, D′//2+1) from `inverse_noise`. Phases and factors as `aberrations` gives them for a group,
    and which of them, of the spectra and of the weights is each image's, −1 for none.
    """
    rows, columns = weights.shape[1:]
    to_map = np.float32(1.0 / scale)
    none = np.zeros(columns, dtype=np.float32)
    for i in numba.prange(len(parameters)):
        # The spectrum of a particle centred at p carries exp(−2πi k·p/D); undo it.
        turn_x = 2 * np.pi * centres[i, 0] / box_size
        turn_y = 2 * np.pi * centres[i, 1] / box_size
        p, times_ctf = as_tuple(parameters[i]), premultiplied[i]
        even, odd = symmetric_of[i], antisymmetric_of[i]
        along_x = np.exp(1j * turn_x * np.arange(columns)).astype(np.complex64)
        c = np.empty(columns, dtype=np.float32)
        for row in range(rows):
            ky = row if 2 * row < rows else row - rows
            along_y = np.complex64(np.exp(1j * turn_y * ky))
            ctf_along(p, ky * step, step, symmetric[even, row] if even >= 0 else none, c)
            w2 = whitening[group[i], row]
            if weight_of[i] >= 0:
                weight = weights[weight_of[i], row]
                for kx in range(columns):
                    weight[kx] = c[kx] * c[kx] * w2[kx] * (to_map * to_map)
            if spectrum_of[i] < 0:
                continue
            spectrum = spectra[spectrum_of[i], row]
            for kx in range(columns):
                factor = (np.float32(1) if times_ctf else c[kx]) * w2[kx] * to_map
                spectrum[kx] *= factor * along_y * along_x[kx]
            if odd >= 0:
                for kx in range(columns):
                    spectrum[kx] *= np.conj(antisymmetric[odd, row, kx])
