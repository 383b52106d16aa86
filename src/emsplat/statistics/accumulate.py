"""One accumulation over the particles, which gathers everything that the images say about the map.

The loss ``½ Σ_i ‖W_i (C_i P_i V − y_i)‖²`` is quadratic in V while poses are fixed:
``½⟨V, T∗V⟩ − ⟨b, V⟩ + const`` with the back-projection ``b = Σ P_iᵀ C_i W_i² y_i`` (a volume) and the convolution
kernel ``T = Σ P_iᵀ C_i² W_i² P_i``. Both are sums over images, so any number of parts of the data, with any weights,
are accumulated together: an image is read, transformed and weighted by its CTF once, and added to each of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.fourier.background import subtract_recorded_background
from emsplat.fourier.cropping import fourier_crop
from emsplat.fourier.insertion import SliceGrid, grid_period, grid_shape
from emsplat.fourier.transforms import transforms_of
from emsplat.imaging.noise import inverse_noise
from emsplat.io.images import reading_order
from emsplat.optics.aberrations import antisymmetric_factors, slice_matrices, symmetric_phases
from emsplat.optics.ctf import ctf_along, ctf_parameters, terms_of
from emsplat.particles.batches import Images, Rows
from emsplat.particles.parts import Entries, Kind, Part, PartWeights
from emsplat.particles.table import Particles
from emsplat.runtime.checkpoint import UNKEPT, Checkpoint, State
from emsplat.runtime.stopwatch import Stopwatch
from emsplat.statistics.sufficient import Statistics

BLOCK_BYTES = 48 << 20  # bytes of the images that are read at once, unless the settings say otherwise


@dataclass(frozen=True)
class AccumulationSettings:
    """What the accumulation needs to know besides the particles."""

    box_size: int  # working box D' ≤ D: images are cropped to it in Fourier space
    kernel_extent: int  # edge of T in voxels of the working box; direct inversion needs, and gets, at least the box
    noise: NDArray[np.float64]  # (groups, D//2+1) from `noise_spectra`, of the uncropped images
    symmetry: NDArray[np.float64]  # (m, 3, 3) operators
    grid_bytes: int | None = None  # approximate memory of the grids filled at a time; None: grids of all parts at once
    block_bytes: int = BLOCK_BYTES  # bytes of the images that are read at once
    device_block_bytes: int = 64 << 20  # the most for a graphics card, enough to keep the bus and the card busy
    device_first_bytes: int = 4 << 20  # bytes of a card's first block, which tells how much memory an image takes

    def extent_of(self, kind: Kind) -> int:
        """Edge of b or of T in voxels."""
        return self.box_size if kind == Kind.B else max(self.kernel_extent, self.box_size)

    def bytes_of(self, kind: Kind) -> int:
        """Memory of a grid of b or of T."""
        values = int(np.prod(grid_shape(grid_period(self.extent_of(kind), self.box_size))))
        return values * (8 if kind == Kind.B else 4)


class GridId(NamedTuple):
    """The name of a grid within a table of parts."""

    number: int  # number of the part
    kind: Kind


class FilledGrid(Protocol):
    """A grid that slices were inserted into, on any device."""

    @property
    def values(self) -> Any:
        """The values as an array or a tensor; those of several processes add up."""

    def backprojection(self) -> NDArray[np.float32]: ...


Prepared = tuple[tuple[Entries, NDArray[np.complex64]], tuple[Entries, NDArray[np.float32]]]  # by kind


def accumulate(
    particles: Particles,
    images: Images,
    parts: PartWeights,
    settings: AccumulationSettings,
    progress: Callable[[int], None] = lambda done: None,
    stopwatch: Stopwatch | None = None,
) -> dict[Part, Statistics]:
    """Stream over the images and accumulate the statistics of every part.

    Args:
        parts: the parts of the N particles.
        progress: called after each block with the number of images done.
        stopwatch: told where the time goes.
    Returns:
        The statistics of every part, in the table's order. Memory does not depend on N. The images are read once where
        the grids of all parts fit into `settings.grid_bytes`, else once for each of the groups of parts that do.
    """
    stopwatch, order = stopwatch or Stopwatch(), rows_in_order(particles, parts)
    groups, whole_blocks = groups_of_parts(parts, settings), blocks_of(order, particles.box_size, settings.block_bytes)
    blocks_of_groups = [share_of_blocks(whole_blocks, parts.holds(group)) for group in groups]
    done, total = 0, sum(len(block) for blocks in blocks_of_groups for block in blocks)
    result: dict[Part, Statistics] = {}
    for group, blocks in zip(groups, blocks_of_groups, strict=True):
        grids = {grid: empty_grid(grid.kind, settings) for grid in grids_of(parts, group)}

        def advance(images_done: int, before: int = done) -> None:
            progress(round((before + images_done) / total * len(order)))

        fill_grids(grids, particles, images, blocks, parts, settings, advance, stopwatch)
        done += sum(map(len, blocks))
        with stopwatch.working("finish"):
            for number in np.flatnonzero(group).tolist():  # freed one by one: their transforms need room of their own
                pair = grids.pop(GridId(number, Kind.B), None), grids.pop(GridId(number, Kind.T), None)
                result[parts.parts[number]] = statistics_of(*pair, settings, parts, number)
                del pair
    return result


def rows_in_order(particles: Particles, parts: PartWeights) -> Rows:
    """The rows that belong to any part, as they lie on the disk.

    Raises:
        ValueError: the parts belong to other images than the particles.
    """
    if len(parts) != len(particles):
        raise ValueError(f"the parts are of {len(parts):,} images, the particles are {len(particles):,}")
    order = reading_order(particles)
    return order[parts.holds(np.ones(len(parts.parts), dtype=bool))[order]]


def groups_of_parts(
    parts: PartWeights, settings: AccumulationSettings, owners: Sequence[int] | None = None, ranks: int = 1
) -> list[NDArray[np.bool_]]:
    """(P,) masks of the parts whose grids are filled together; all parts in one group where there is no bound.

    Args:
        owners: (P,) the rank that is given each part, if `ranks` ranks share the grids; None: each rank fills all.
    """
    n = len(parts.parts)
    if settings.grid_bytes is None:
        return [np.ones(n, dtype=bool)]
    size = np.sum([parts.has(kind) * settings.bytes_of(kind) for kind in Kind], axis=0)
    groups: list[NDArray[np.bool_]] = []
    owned = np.zeros(ranks, dtype=np.int64)
    for number in range(n):
        more = np.zeros(ranks, dtype=np.int64)
        more[owners[number] if owners else 0] = size[number]
        # A rank fills its share of all grids, and then holds those that it owns.
        if not groups or max((owned + more).max(), (owned + more).sum() / ranks) > settings.grid_bytes:
            groups.append(np.zeros(n, dtype=bool))
            owned[:] = 0
        groups[-1][number] = True
        owned += more
    return groups


def grids_of(parts: PartWeights, group: NDArray[np.bool_]) -> list[GridId]:
    """The grids of a group of parts that any image is added to."""
    has = {kind: parts.has(kind) & group for kind in Kind}
    return [GridId(number, kind) for number in range(len(parts.parts)) for kind in Kind if has[kind][number]]


def empty_grid(kind: Kind, settings: AccumulationSettings) -> SliceGrid:
    """Empty grid for b or T."""
    dtype = np.complex64 if kind == Kind.B else np.float32
    return SliceGrid.empty(settings.extent_of(kind), settings.box_size, dtype)


def blocks_of(order: Rows, box_size: int, block_bytes: int) -> list[Rows]:
    """The rows that are read at once, block after block."""
    at_once = max(1, block_bytes // (4 * box_size**2))
    return [order[i : i + at_once] for i in range(0, len(order), at_once)]


def share_of_blocks(blocks: Sequence[Rows], wanted: NDArray[np.bool_]) -> list[Rows]:
    """The wanted rows, (N,), of every block of all parts, so that sums are rounded as if all were wanted."""
    kept = (block[wanted[block]] for block in blocks)
    return [block for block in kept if len(block)]


def fill_grids(
    grids: Mapping[GridId, SliceGrid],
    particles: Particles,
    images: Images,
    blocks: Sequence[Rows],
    parts: PartWeights,
    settings: AccumulationSettings,
    progress: Callable[[int], None] = lambda done: None,
    stopwatch: Stopwatch | None = None,
    checkpoint: Checkpoint = UNKEPT,
) -> None:
    """Add images to the grids of their parts; the results of several calls or processes add up.

    How the sums are rounded depends on the order of a part's images and on the blocks they come in, not on the images
    of other parts among them, nor on which of the grids there are, nor on the number of threads.

    Args:
        grids: the grids to fill; other grids of the images' parts are left out, and an image is read only if there is
            a grid of b that it is added to.
        blocks: rows in the order in which they are read.
        checkpoint: is offered the grids after every block; those it loads, of the same images, are filled on.
    """
    stopwatch = stopwatch or Stopwatch()
    matrices = slice_matrices(particles)
    numbers = sorted({number for number, _ in grids})
    values = {
        f"{grid.kind.name.lower()}{numbers.index(grid.number)}": filled.values.view(np.float32)
        for grid, filled in sorted(grids.items(), key=lambda item: item[0])
    }
    saved = checkpoint.load(into=values)
    done = 0
    blocks = list(blocks)
    while saved and done < saved.facts["images"]:  # whole blocks, so that the same blocks follow and give the same sums
        done += len(blocks.pop(0))
    tensors = {name: torch.from_numpy(array) for name, array in values.items()}
    wanted = [np.isin(np.arange(len(parts.parts)), [n for n, k in grids if k == kind]) for kind in Kind]

    def entries_of(block: int) -> tuple[Entries, Entries]:
        of_b, of_t = (parts.entries(blocks[block], kind, wanted[kind]) for kind in Kind)
        return of_b, of_t

    all_prepared = prepared_blocks(particles, images, len(blocks), entries_of, settings, stopwatch)
    for rows in blocks:  # without zip, which would keep a block while the next one is prepared
        prepared = next(all_prepared)
        with stopwatch.working("insertion"):
            for number, kind in sorted(grids):
                entries = prepared[kind][0]
                places, weights = entries.of_part(number)
                if not len(places):
                    continue
                slices = prepared[kind][1]
                chosen = slices[places] if weights is None else _scaled(slices, places, weights)
                del slices
                for operator in settings.symmetry:
                    grids[GridId(number, kind)].insert(chosen, matrices[entries.rows[places]] @ operator)
                del chosen
        del prepared
        done += len(rows)
        checkpoint.offer(partial(State, tensors, {"images": done}))
        progress(done)


def statistics_of(
    b: FilledGrid | None, t: FilledGrid | None, settings: AccumulationSettings, parts: PartWeights, number: int
) -> Statistics:
    """The statistics of a part from its full grids; zeros where no image contributes to b or T."""
    share = np.float32(1 / len(settings.symmetry))
    backprojection, kernel = (
        grid.backprojection() * share if grid else np.zeros((settings.extent_of(kind),) * 3, dtype=np.float32)
        for kind, grid in ((Kind.B, b), (Kind.T, t))
    )
    n_images, sum_of_weights = int(parts.counts()[number]), float(parts.sums_of_weights()[number])
    return Statistics(backprojection, kernel, n_images, sum_of_weights)


def prepared_blocks(
    particles: Particles,
    images: Images,
    n_blocks: int,
    entries: Callable[[int], tuple[Entries, Entries]],
    settings: AccumulationSettings,
    stopwatch: Stopwatch,
) -> Iterator[Prepared]:
    """C W² y, centred, and C² W² of the images, block by block; the next block is read while the caller uses one.

    Args:
        entries: gives the entries of a block, by number, in b and in T; images are read for b alone.
    """
    box_size, working = particles.box_size, settings.box_size
    parameters = ctf_parameters(particles)
    centres, premultiplied = particles.centres_in_pixels, particles.premultiplied
    step = 1 / (box_size * particles.pixel_size_in_angstroms)
    symmetric, symmetric_of = symmetric_phases(particles, working)
    antisymmetric, antisymmetric_of = antisymmetric_factors(particles, working)
    whitening = inverse_noise(settings.noise, working, box_size).astype(np.float32)
    scale = np.float32((working / box_size) ** 3)  # from a slice of the working grid to one of the full grid

    def read(number: int) -> tuple[Entries, Entries, NDArray[np.float32]]:
        of_b, of_t = entries(number)
        return of_b, of_t, images.read(of_b.rows)

    if not n_blocks:
        return
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, 0)
        for number in range(n_blocks):
            with stopwatch.waiting("waiting for images"):
                of_b, of_t, block = ahead.result()
            with stopwatch.working("transforms and weights"):
                spectra = np.empty((0, working, working // 2 + 1), dtype=np.complex64)
                if len(of_b.rows):
                    subtract_recorded_background(block, box_size)
                    spectra = fourier_crop(transforms_of(block, numba.get_num_threads()), working)
                weights = np.empty((len(of_t.rows), *spectra.shape[1:]), dtype=np.float32)
                rows = np.union1d(of_b.rows, of_t.rows)
                group = particles.optics_group[rows]
                _weigh(
                    spectra, weights, _places(rows, of_b.rows), _places(rows, of_t.rows), parameters[rows],
                    centres[rows], whitening, group, premultiplied[rows], symmetric, symmetric_of[rows], antisymmetric,
                    antisymmetric_of[rows], scale, box_size, step,
                )  # fmt: skip
                del block
            if number + 1 < n_blocks:  # it is read while the caller uses this one, and not in memory before
                ahead = reader.submit(read, number + 1)
            yield (of_b, spectra), (of_t, weights)
            del spectra, weights  # before there are those of the next block


def _places(rows: Rows, among: Rows) -> NDArray[np.int64]:
    """(n,) place of each of n sorted rows in a subset of them; −1 for rows that it lacks."""
    places = np.full(len(rows), -1)
    places[np.searchsorted(rows, among)] = np.arange(len(among))
    return places


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
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
        terms, times_ctf = terms_of(parameters[i]), premultiplied[i]
        even, odd = symmetric_of[i], antisymmetric_of[i]
        along_x = np.exp(1j * turn_x * np.arange(columns)).astype(np.complex64)
        c = np.empty(columns, dtype=np.float32)
        for row in range(rows):
            ky = row if 2 * row < rows else row - rows
            along_y = np.complex64(np.exp(1j * turn_y * ky))
            ctf_along(terms, ky * step, step, symmetric[even, row] if even >= 0 else none, c)
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


def _scaled(slices: NDArray, places: NDArray[np.int64], weights: NDArray[np.float32]) -> NDArray:
    """Some of the slices, each times its weight."""
    result = np.empty((len(places), *slices.shape[1:]), dtype=slices.dtype)
    n_floats = slices[0].size * slices.itemsize // 4
    flat, out = (a.view(np.float32).reshape(len(a), n_floats) for a in (slices, result))
    _scale(flat, places, weights, out)
    return result


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _scale(slices, places, weights, result):
    for i in numba.prange(len(places)):
        weight, slice_ = weights[i], slices[places[i]]
        for j in range(slices.shape[1]):
            result[i, j] = slice_[j] * weight
