"""The accumulation on a graphics card: `accumulate.fill_grids`, overlapped with the transfer of images.

While the card works on a block of images, the next is read into pinned memory and the one after that is on the bus. On
the card a block is transformed and weighted by torch and inserted by `insertion_gpu`, once for each part that an image
belongs to. All that takes memory comes before a block's first insertion, so that a block which does not fit can be
halved and begun again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emsplat.errors import InputError
from emsplat.fourier.background import outside_circle, plane_fit
from emsplat.fourier.insertion import frames_of
from emsplat.fourier.insertion_gpu import DeviceGrid, DeviceGrids, Views
from emsplat.imaging.noise import inverse_noise
from emsplat.io.images import check_images, refuse_images
from emsplat.optics.aberrations import antisymmetric_factors, slice_matrices, symmetric_phases
from emsplat.optics.ctf import critical_dose, ctf_terms
from emsplat.particles.batches import Images
from emsplat.particles.parts import Kind, PartWeights
from emsplat.particles.table import Particles
from emsplat.runtime import devices
from emsplat.runtime.stopwatch import Stopwatch
from emsplat.statistics.accumulate import AccumulationSettings, GridId

_FREE_SHARE = 0.6  # share of the free memory for a block, because the block before it may still hold its own
_UNDER_WAY = 2  # blocks that the card has been asked to do and has not finished
_BYTES_A_PIXEL = 80  # approximate memory of an image on the card, for a first estimate only
# Columns of the CTF's coefficients on the card.
_PHASE, _SQUARED = slice(0, 3), slice(3, 6)
_QUARTIC, _CONSTANT, _SCALE, _DECAY, _DOSE, _DOSE_SCALE = range(6, 12)


def bytes_needed(n_parts: int, box_size: int, settings: AccumulationSettings) -> int:
    """Device memory for the statistics of this number of parts of images of this box, and for the smallest blocks."""
    working = settings.box_size
    grids = DeviceGrids.bytes_needed(n_parts, settings.extent_of(Kind.B), working, torch.complex64)
    grids += DeviceGrids.bytes_needed(n_parts, settings.extent_of(Kind.T), working, torch.float32)
    return grids + _BYTES_A_PIXEL * max(box_size**2, settings.device_first_bytes // 4)


def filled_on_device(
    grids: Sequence[GridId],
    particles: Particles,
    images: Images,
    order: NDArray[np.int64],
    parts: PartWeights,
    settings: AccumulationSettings,
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
    say: Callable[[str], None] = lambda text: None,
    stopwatch: Stopwatch | None = None,
) -> dict[GridId, DeviceGrid]:
    """The filled grids of some parts: `accumulate.empty_grid` and `accumulate.fill_grids` on a device.

    Args:
        grids: the grids that are wanted; other grids of the images' parts are left out.
        order: (M,) rows in the order in which they are read.
        device: a graphics card; torch's "cpu", with Triton's interpreter, in the tests.
        say: told of the size of the blocks, and of memory that did not suffice.
        stopwatch: the stopwatch of this device, which is told where the time goes.
    """
    stopwatch = stopwatch or Stopwatch(device)
    of_kind = {kind: [number for number, k in grids if k == kind] for kind in Kind}
    dtypes = {Kind.B: torch.complex64, Kind.T: torch.float32}
    filled = {
        kind: DeviceGrids.empty(len(numbers), settings.extent_of(kind), settings.box_size, dtypes[kind], device)
        for kind, numbers in of_kind.items()
    }
    weighting = Weighting.of(particles, images.box_size, settings, device)
    blocks = _Blocks(particles, images, order, parts, of_kind, settings, device)
    _fill(filled, particles, weighting, blocks, progress, say, stopwatch)
    del weighting
    devices.release_reserve(device)
    return {GridId(n, kind): filled[kind].of(place) for kind in Kind for place, n in enumerate(of_kind[kind])}


def _fill(
    grids: dict[Kind, DeviceGrids],
    particles: Particles,
    weighting: Weighting,
    blocks: _Blocks,
    progress: Callable[[int], None],
    say: Callable[[str], None],
    stopwatch: Stopwatch,
) -> None:
    """Add the images to the grids; no block is left on the device."""
    done = 0
    under_way: deque[Callable[[], None]] = deque()
    for block in blocks.stream(stopwatch):
        for prepared in _prepared(block, weighting, blocks, say, stopwatch):
            with stopwatch.working("insertion"):
                for views in prepared.views:
                    for kind, slices in ((Kind.B, prepared.spectra), (Kind.T, prepared.weights)):
                        to = prepared.additions[kind]
                        grids[kind].insert(slices, views, to.sets, to.images, to.weights)
            under_way.append(_checked_later(particles, prepared, blocks.courier, blocks.device))
            if len(under_way) > _UNDER_WAY:
                with stopwatch.waiting("waiting for the card"):
                    under_way.popleft()()
            done += len(prepared.rows)
            progress(done)
    while under_way:
        under_way.popleft()()


@dataclass(frozen=True)
class Additions:
    """The m additions of a block's images to grids of one kind, in the order of the images."""

    places: NDArray[np.int64]  # (m,) image of each addition, on the host
    sets: Tensor  # (m,) int32 grid of each addition
    images: Tensor | None  # (m,) int32 image of each addition; None: m = n, and every image comes once
    weights: Tensor | None  # (m,) float32; None: 1

    def part(self, first: int, last: int) -> Additions:
        """The additions of some of the images, which are renumbered from 0."""
        here = slice(*np.searchsorted(self.places, [first, last]))
        images = None if self.images is None else self.images[here] - first
        weights = None if self.weights is None else self.weights[here]
        return Additions(self.places[here] - first, self.sets[here], images, weights)


@dataclass(frozen=True)
class Block:
    """The images of a block and what is known about each, on the device."""

    rows: NDArray[np.int64]  # (n,) on the host
    images: Tensor  # (n, B, B) float32, as read
    coefficients: Tensor  # (n, 12) float64 from `_coefficients`
    centres: Tensor  # (n, 2) float64 x, y in pixels
    kinds: Tensor  # (n, 3) int64: optics group, symmetric phase, antisymmetric factor; −1 for none
    frames: Tensor  # (m, n, 3, 2) float32, for each of the m symmetry operators
    ends: Tensor  # (n, 2r+1, 2) float32
    additions: dict[Kind, Additions]

    def part(self, first: int, last: int) -> Block:
        """A block of some of the images, without a copy."""
        here = slice(first, last)
        return Block(
            self.rows[here], self.images[here], self.coefficients[here], self.centres[here], self.kinds[here],
            self.frames[:, here], self.ends[here],
            {kind: additions.part(first, last) for kind, additions in self.additions.items()},
        )  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A block ready to be inserted."""

    rows: NDArray[np.int64]
    spectra: Tensor  # (n, D′, D′//2+1) complex64 C W² y, centred
    weights: Tensor  # (n, D′, D′//2+1) float32 C² W²
    facts: Tensor  # (n, 3) float32: lowest and highest pixel, and a sum over the spectrum
    additions: dict[Kind, Additions]
    views: list[Views]  # one for each symmetry operator


class _Blocks:
    """Reads block after block ahead of its use and sends it to the device. Only one stream may run at a time."""

    def __init__(
        self,
        particles: Particles,
        images: Images,
        order: NDArray[np.int64],
        parts: PartWeights,
        numbers: Mapping[Kind, Sequence[int]],
        settings: AccumulationSettings,
        device: torch.device,
    ) -> None:
        """Args: numbers: numbers of the parts whose grids of each kind are filled, in the order of these grids."""
        self.device, self.courier = device, devices.Courier(device)
        self.image_bytes = 4 * images.box_size**2
        self.at_once = max(1, settings.device_first_bytes // self.image_bytes)
        self.is_measured = False
        self._most = max(1, settings.device_block_bytes // self.image_bytes)
        self._images, self._order, self._parts = images, order, parts
        self._set_of = {kind: np.full(len(parts.parts), -1, dtype=np.int32) for kind in Kind}
        for kind, found in numbers.items():
            self._set_of[kind][list(found)] = np.arange(len(found))
        everywhere = [parts.holds(sets >= 0)[order].all() for sets in self._set_of.values()]
        self._once = parts.weights is None and all(everywhere)  # every image is added once to a grid of each kind
        self._box_size, self._working = images.box_size, settings.box_size
        self._coefficients = _coefficients(particles)
        self._centres = particles.centres_in_pixels
        self._matrices, self._symmetry = slice_matrices(particles), settings.symmetry
        phases = (f(particles, settings.box_size)[1] for f in (symmetric_phases, antisymmetric_factors))
        self._kinds = np.stack([particles.optics_group, *phases], axis=1).astype(np.int64)

    def stream(self, stopwatch: Stopwatch) -> Iterator[Block]:
        """All blocks. How many images the next one holds is asked for as late as possible."""
        position = 0

        def next_rows() -> NDArray[np.int64]:
            nonlocal position
            rows = self._order[position : position + self.at_once]
            position += len(rows)
            return rows

        with ThreadPoolExecutor(1) as reader:
            ahead: Future | None = reader.submit(self._read, next_rows()) if len(self._order) else None
            while ahead is not None:
                with stopwatch.waiting("waiting for images"):
                    rows, tensors, places = ahead.result()
                following = next_rows()
                ahead = reader.submit(self._read, following) if len(following) else None
                found = devices.attempt(partial(self.courier.send, *tensors), self.device)
                if found is None:  # memory that earlier blocks took may be free by now
                    devices.release_reserve(self.device)
                sent = found[0] if found else self.courier.send(*tensors)
                pixels, coefficients, centres, kinds, frames, ends, *columns = sent
                additions = self._additions(places, columns)
                yield Block(rows, pixels, coefficients, centres, kinds, frames, ends, additions)

    def _read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Tensor], dict[Kind, NDArray[np.int64]]]:
        """Rows; images in memory the device can fetch from, and the tensors of `Block` that follow; and who is added.

        The last are the places of `Additions` by kind, whose other columns are the last of the tensors.
        """
        images = devices.memory_to_send((len(rows), self._box_size, self._box_size), self.device)
        self._images.read_into(rows, images.numpy())
        matrices = self._matrices[rows]
        _, ends = Views.arrays(matrices, self._working)  # a rotation of the volume leaves them as they are
        frames = np.stack([frames_of(matrices @ operator) for operator in self._symmetry])
        columns: list[NDArray] = [self._coefficients[rows], self._centres[rows], self._kinds[rows], frames, ends]
        places = {}
        for kind in Kind:
            entries = self._parts.entries(rows, kind, self._set_of[kind] >= 0)
            # The entries belong to some of the block's rows.
            places[kind] = np.flatnonzero(np.isin(rows, entries.rows))[entries.places]
            columns.append(self._set_of[kind][entries.numbers])
            if not self._once:
                weights = np.ones(len(entries.numbers)) if entries.weights is None else entries.weights
                columns += [places[kind].astype(np.int32), weights.astype(np.float32)]
        return rows, [images, *(torch.from_numpy(np.ascontiguousarray(column)) for column in columns)], places

    def _additions(self, places: dict[Kind, NDArray[np.int64]], columns: Sequence[Tensor]) -> dict[Kind, Additions]:
        """The additions that `_read` has found, on the device."""
        if self._once:
            return {kind: Additions(places[kind], columns[kind], None, None) for kind in Kind}
        return {kind: Additions(places[kind], *columns[3 * kind : 3 * kind + 3]) for kind in Kind}

    def measure(self, bytes_taken: int | None, n_images: int, say: Callable[[str], None]) -> None:
        """Settle how many images a block holds, from what the first block took."""
        if self.is_measured:
            return
        self.is_measured = True
        most = self._most
        free = devices.free_bytes(self.device)
        if bytes_taken is None or free is None:
            self.at_once = most
            return
        each = bytes_taken / n_images + self.image_bytes
        self.at_once = int(min(most, max(1, _FREE_SHARE * free // each)))
        say(
            f"blocks of {self.at_once:,} images: each takes {each / 1e6:.2f} MB on the card, "
            f"which has {free / 1e9:.1f} GB free beside the grids"
        )

    def halved(self, n_images: int, say: Callable[[str], None]) -> int:
        """Settle for half as many images as these, which did not fit."""
        if n_images == 1:
            raise InputError(
                f"{devices.name_of(self.device)} is out of memory with a single image of {self._box_size} pixels; "
                "free some of it, set a coarser --max-resolution, or use --device cpu"
            )
        self.at_once, self.is_measured = min(self.at_once, (n_images + 1) // 2), True
        say(f"out of memory on the card with {n_images:,} images at once; continuing with {self.at_once:,}")
        return self.at_once


def _prepared(
    block: Block, weighting: Weighting, blocks: _Blocks, say: Callable[[str], None], stopwatch: Stopwatch
) -> Iterator[Prepared]:
    """The block, ready to be inserted, in as many parts as the memory requires."""
    first, size = 0, len(block.rows)
    while first < len(block.rows):
        part = block.part(first, min(first + size, len(block.rows)))
        if not blocks.is_measured and devices.free_bytes(blocks.device) is not None:
            # Memory that libraries take on first use does not belong to an image.
            devices.attempt(partial(weighting.prepare, block.part(0, 1)), blocks.device)
        with stopwatch.working("transforms and weights"):
            found = devices.attempt(partial(weighting.prepare, part), blocks.device)
        if found is None:
            devices.release_reserve(blocks.device)
            size = blocks.halved(len(part.rows), say)
            continue
        prepared, taken = found
        blocks.measure(taken, len(part.rows), say)
        yield prepared
        first += len(part.rows)


def _checked_later(
    particles: Particles, prepared: Prepared, courier: devices.Courier, device: torch.device
) -> Callable[[], None]:
    """A function that waits until the device has done with a block, and raises InputError for a bad image in it."""
    rows, arrive = prepared.rows, courier.fetch(prepared.facts)

    def check() -> None:
        lowest, highest, total = arrive().T
        check_images(particles, rows, lowest, highest)
        if not np.isfinite(total).all():
            what = f"its transform, weighted by CTF and noise, is not finite on {devices.name_of(device)}"
            refuse_images(particles, rows[~np.isfinite(total)], what)

    return check


@dataclass(frozen=True)
class Weighting:
    """Tables on the device that turn images into what is inserted. P = D′ (D′//2+1) samples of a half plane."""

    box_size: int  # D
    working: int  # D′
    plane_fit: Tensor  # (B², 3) matrix from pixels to the terms of the background's plane
    plane: Tensor  # (3, B²) matrix from these terms to pixels
    monomials: Tensor  # (3, P) float64 kx², kx ky, ky²
    inverse_noise: Tensor  # (groups, P) W², 0 beyond Nyquist and at DC
    times_ctf: Tensor  # (groups,) whether images are premultiplied
    symmetric: Tensor | None  # (a + 1, P) phases, the last one 0; None: no group has any
    antisymmetric: Tensor | None  # (a + 1, D′, D′//2+1) conjugate factors, the last one 1
    has_dose: bool
    to_map: float  # factor from a slice of the working grid to one of the full grid

    @staticmethod
    def of(particles: Particles, image_size: int, settings: AccumulationSettings, device: torch.device) -> Weighting:
        """The tables for these particles, with images of B × B pixels, D′ ≤ B ≤ D."""
        box_size, working = particles.box_size, settings.box_size
        ky, kx = np.meshgrid(np.fft.fftfreq(working, 1 / working), np.arange(working // 2 + 1), indexing="ij")
        window = outside_circle(image_size)
        axis, inverse = plane_fit(window)
        y, x = np.meshgrid(axis, axis, indexing="ij")
        plane = np.stack([np.ones_like(x), x, y]).reshape(3, -1)
        symmetric, antisymmetric = (f(particles, working)[0] for f in (symmetric_phases, antisymmetric_factors))

        def table(array: NDArray, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype)

        none = np.zeros((1, working, working // 2 + 1))
        return Weighting(
            box_size,
            working,
            # A cache subtracted the plane before it cropped the images.
            table((plane * window.ravel()).T @ inverse * (image_size == box_size), torch.float32),
            table(plane, torch.float32),
            table(np.stack([kx * kx, kx * ky, ky * ky]).reshape(3, -1), torch.float64),
            table(inverse_noise(settings.noise, working, box_size).reshape(len(settings.noise), -1), torch.float32),
            table(np.array([group.premultiplied for group in particles.optics]), torch.bool),
            table(np.concatenate([symmetric, none]).reshape(len(symmetric) + 1, -1), torch.float64)
            if len(symmetric)
            else None,
            table(np.concatenate([antisymmetric.conj(), none + 1]), torch.complex64) if len(antisymmetric) else None,
            bool(np.any(particles.pre_exposure > 0)),
            float((box_size / working) ** 3),
        )

    def prepare(self, block: Block) -> Prepared:
        """Transforms of the images, centred and weighted, and their weights; see `accumulate._weigh`."""
        n, half = len(block.rows), self.working // 2 + 1
        flat = block.images.view(n, -1)
        lowest, highest = flat.amin(dim=1), flat.amax(dim=1)
        centred = block.images - (flat @ self.plane_fit @ self.plane).view_as(block.images)
        spectra = self._cropped(torch.fft.rfft2(centred)).contiguous()  # cuFFT's layout is torch's own affair
        del centred
        groups, odd = block.kinds[:, 0], block.kinds[:, 2]
        contrast = self._contrast(block)
        weights = self.inverse_noise[groups] * self.to_map
        factors = torch.where(self.times_ctf[groups, None], weights, weights * contrast)
        weights.mul_(contrast.square_()).mul_(self.to_map)
        spectra.mul_(factors.view(n, self.working, half))
        del contrast, factors
        # The spectrum of a particle centred at p carries exp(−2πi k·p/D); undo it.
        turns = 2 * torch.pi / self.box_size * block.centres
        kx = torch.arange(half, device=turns.device)
        ky = torch.fft.fftfreq(self.working, 1 / self.working, device=turns.device, dtype=torch.float64)
        spectra.mul_(_phase_factors(turns[:, :1] * kx)[:, None, :])
        spectra.mul_(_phase_factors(turns[:, 1:] * ky)[:, :, None])
        if self.antisymmetric is not None:
            spectra.mul_(self.antisymmetric[odd])
        total = torch.view_as_real(spectra).sum(dim=(1, 2, 3))
        facts = torch.stack([lowest, highest, total], dim=1)
        views = [Views(frames.contiguous(), block.ends) for frames in block.frames]
        return Prepared(block.rows, spectra, weights.view(n, self.working, half), facts, block.additions, views)

    def _cropped(self, spectra: Tensor) -> Tensor:
        """(n, B, B//2+1) half planes cropped to (n, D′, D′//2+1), as by `cropping.fourier_crop`."""
        full, working = spectra.shape[1], self.working
        if working == full:
            return spectra
        upper, lower = (working + 1) // 2, working // 2
        columns = spectra[:, :, : working // 2 + 1]
        return torch.cat([columns[:, :upper], columns[:, full - lower :]], dim=1)

    def _contrast(self, block: Block) -> Tensor:
        """(n, P) float32 CTFs, as `ctf.ctf_at` has them; phases of hundreds of radians need float64."""
        c = block.coefficients
        quartic, constant, scale, decay = (c[:, i : i + 1] for i in (_QUARTIC, _CONSTANT, _SCALE, _DECAY))
        squared = c[:, _SQUARED] @ self.monomials
        phase = (c[:, _PHASE] @ self.monomials).addcmul_(squared * squared, quartic).add_(constant)
        if self.symmetric is not None:
            phase += self.symmetric[block.kinds[:, 1]]
        contrast = phase.remainder_(2 * torch.pi).float().sin_()
        del phase
        envelope = (squared * decay).float()
        if self.has_dose:
            dose, dose_scale = c[:, _DOSE, None], c[:, _DOSE_SCALE, None]
            critical = critical_dose(squared.clamp_min(1e-12))
            envelope -= (dose / (dose_scale * critical)).float()
        return contrast.mul_(envelope.exp_()).mul_(scale.float())


def _phase_factors(angles: Tensor) -> Tensor:
    """exp(i angle), complex64, of float64 angles."""
    angles = angles.remainder(2 * torch.pi).float()
    return torch.polar(torch.ones_like(angles), angles)


def _coefficients(particles: Particles) -> NDArray[np.float64]:
    """(N, 12) `optics.ctf.ctf_terms` with the frequency in steps of the grid and the magnification multiplied out.

    ``phase = c[_PHASE] · (kx², kx ky, ky²) + quartic s⁴ + constant`` with ``s² = c[_SQUARED] · (kx², kx ky, ky²)``.
    """
    t = ctf_terms(particles)
    step = 1 / (particles.box_size * particles.pixel_size_in_angstroms)
    # sx = xx kx + xy ky, sy = yx kx + yy ky
    xx, xy = t.magnification_xx * step, t.magnification_xy * step
    yx, yy = t.magnification_yx * step, t.magnification_yy * step
    columns = np.empty((12, len(particles)))
    columns[_PHASE] = (
        t.xx * xx * xx + t.xy * xx * yx + t.yy * yx * yx,
        2 * t.xx * xx * xy + t.xy * (xx * yy + xy * yx) + 2 * t.yy * yx * yy,
        t.xx * xy * xy + t.xy * xy * yy + t.yy * yy * yy,
    )
    columns[_SQUARED] = xx * xx + yx * yx, 2 * (xx * xy + yx * yy), xy * xy + yy * yy
    columns[_QUARTIC], columns[_CONSTANT] = t.quartic, t.constant
    columns[_SCALE], columns[_DECAY] = t.scale, t.decay
    columns[_DOSE], columns[_DOSE_SCALE] = np.maximum(t.dose, 0), t.dose_scale
    return np.ascontiguousarray(columns.T)
