"""The data and settings that all stages of a search share: the table, a first look, the images on polar grids."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.abinitio.halves import Search
from emsplat.abinitio.look import Look
from emsplat.abinitio.polar import PolarGrid, PolarImages, Spectra, read_polar
from emsplat.abinitio.scales import LEAST_RINGS, Scales, full_settings, information, scales_of, stochastic_settings
from emsplat.abinitio.stochastic import StageSettings
from emsplat.conventions import euler_angles
from emsplat.errors import InputError
from emsplat.fourier.background import outside_circle
from emsplat.io import as_asked, read_as_said
from emsplat.io.cache import CachedImages
from emsplat.io.images import ImageSource
from emsplat.io.lists import with_choice
from emsplat.particles.batches import Images
from emsplat.particles.table import Particles
from emsplat.reconstruction.identity import NO_MATTER
from emsplat.reconstruction.working_grid import working_box
from emsplat.runtime.context import Context
from emsplat.runtime.reporting import Reporter
from emsplat.settings import AbInitioSettings, ReconstructSettings
from emsplat.symmetry import symmetry_operators
from emsplat.versions import __version__

_OUTLINE_MARGIN = 1.15  # factor on the outline, because the variance shows a little less than the particle
_UNSEEN_DIAMETER, _LARGEST_DIAMETER = 0.8, 0.95  # shares of the box
_MAX_SHIFT, _USUAL_SHIFT = 0.2, 0.1  # shares of the box: the largest shift of a particle, and that of nearly all
_EDGE = 0.1  # share of the box by which the circle that is kept exceeds the particle's, beyond its shift
FEWEST_IMAGES = 40  # smallest number in each half set, of all images or of a class
_MOST_NATS = 200.0  # largest information of an image that counts in full
_SAMPLE = 100  # number of images that show whether there is any noise
_BLANK = 1e-6  # share of an image's range that counts as nothing
_ADDED_VARIANCE = 0.1  # of the images, as noise for images that have none

Halves = tuple[PolarImages, PolarImages]


@dataclass(frozen=True)
class _Some:
    """Some of the images of a reader."""

    images: Images
    rows: NDArray[np.int64]

    @property
    def box_size(self) -> int:
        return self.images.box_size

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.images.read(self.rows[rows])

    def read_into(self, rows: NDArray[np.int64], images: NDArray[np.float32]) -> None:
        self.images.read_into(self.rows[rows], images)


class Job:
    """The data and settings that all stages of one run share."""

    def __init__(
        self,
        table: Particles,
        images: Images,
        look: Look,
        diameter_in_angstroms: float,
        settings: AbInitioSettings,
        context: Context,
        said: Particles | None = None,
    ) -> None:
        """Args: said: the table with the CTFs that the file gives, although --no-ctf takes them as 1."""
        self.table, self.images, self.look, self.said = table, images, look, said
        self.settings, self.context, self.reporter = settings, context, context.reporter
        self.diameter_in_angstroms = diameter_in_angstroms
        self.symmetry = symmetry_operators(settings.symmetry)
        box = table.box_size * table.pixel_size_in_angstroms
        self.diameter = diameter_in_angstroms / box
        max_ring = np.inf if settings.max_resolution is None else box / settings.max_resolution
        self.max_ring = min(max_ring, table.box_size / 2 - 2)
        if max_ring < LEAST_RINGS:
            raise InputError(
                f"{table.source}: --max-resolution {settings.max_resolution:g} leaves {int(max_ring)} rings of the "
                f"images' transforms, and a search needs {LEAST_RINGS}: give {box / LEAST_RINGS:.3g} Å or less"
            )
        if self.max_ring < LEAST_RINGS:
            fewest = 2 * LEAST_RINGS + 4
            raise InputError(f"{table.source}: the images have {table.box_size} pixels a side; a search needs {fewest}")
        self.scales = scales_of(self.diameter, len(self.symmetry), table.box_size, self.max_ring)
        max_shift = _MAX_SHIFT * box if settings.max_shift is None else settings.max_shift
        self.max_shift = max_shift / table.pixel_size_in_angstroms
        self.usual_shift = min(self.max_shift, _USUAL_SHIFT * table.box_size)
        # The circle that is kept of each image holds the particle; of one that lies very far off, most of it.
        self.circle = (self.diameter + _EDGE) * table.box_size + 2 * self.usual_shift
        self.weight = 1.0  # factor on all log-likelihoods
        self.rows = tuple(np.flatnonzero(table.half_set == half) for half in (1, 2))

    def part(self, rows: NDArray[np.int64], name: str) -> Job:
        """The job for some of the particles, as one class of them. Args: name: the name of its checkpoints.

        Raises:
            InputError: a state to resume from belongs to other particles.
        """
        table, checkpoints = self.table.select(rows), self.context.checkpoints
        asked = checkpoints.identity | {"particles": table.fingerprint()}
        context = replace(self.context, checkpoints=checkpoints.nested(name).belonging_to(asked))
        settings = replace(self.settings, classes=None)
        said = None if self.said is None else self.said.select(rows)
        return Job(table, _Some(self.images, rows), self.look, self.diameter_in_angstroms, settings, context, said)

    def read(self, n_rings: int) -> tuple[Halves, Spectra]:
        """The images of both halves on the polar grid, and the mean of their spectra.

        Poses on a grid miss the true one, which costs a share of the information. Where that is far beyond the noise,
        posteriors would be spikes on whatever the map happens to be, so the noise counts as stronger than it is.
        """
        halves, spectra = self._read(n_rings)
        nats = self._information(halves, spectra)
        if self.weight == 1 and nats > _MOST_NATS:
            self.weight = _MOST_NATS / nats
            self.reporter.line(
                f"an image holds {nats:.0f} nats, more than a grid of poses can tell; they count {self.weight:.2g} fold"
            )
            halves, spectra = self._read(n_rings)
        return halves, spectra

    def _information(self, halves: Halves, spectra: Spectra) -> float:
        """The information of an image in nats on the rings of the first stage."""
        polar, rings = halves[0], min(self.scales.coarse_rings, halves[0].grid.n_rings)
        return information(polar.grid.radii[:rings], polar.power[:, :rings], spectra.signal[:rings])

    def _read(self, n_rings: int) -> tuple[Halves, Spectra]:
        grid = PolarGrid.of(n_rings, self.diameter)
        found = []
        for number, rows in enumerate(self.rows, start=1):
            with self.reporter.bar(f"transforming half {number}", "images") as advance:
                what = self.table, self.images, rows, self.look.noise, grid, self.circle
                found.append(read_polar(*what, advance, self.settings.cache, self.weight, self.context.world))
        (first, of_first), (second, of_second) = found
        return (first, second), of_first.mean(of_second)

    def stage(self, spectra: Spectra, n_rings: int) -> StageSettings:
        """Settings of a stage that uses these rings."""
        return StageSettings(
            box_size=self.table.box_size,
            diameter=self.diameter,
            signal=spectra.signal[:n_rings],
            symmetry=self.symmetry,
            max_shift=self.max_shift,
            shift_sigma=max(0.5 * self.usual_shift, 0.5),
            world=self.context.world,
            device=self.context.device,
            n_classes=self.settings.classes,
        )

    def search_settings(self, halves: Halves, spectra: Spectra) -> Search:
        """Settings of the search."""
        order = len(self.symmetry)
        settings = self._settings_with(self.scales, order, halves, spectra)
        if order == 1:
            return settings
        scales = scales_of(self.diameter, 1, self.table.box_size, self.max_ring)
        free = self._settings_with(scales, 1, halves, spectra)
        none = np.eye(3)[None]
        coarse, fine = (replace(stage, symmetry=none) for stage in (free.coarse, free.fine))
        return replace(settings, free=replace(free, coarse=coarse, fine=fine))

    def _settings_with(self, scales: Scales, order: int, halves: Halves, spectra: Spectra) -> Search:
        """Settings of a search on grids that belong to a point group of this order."""
        n_images, nats = min(len(rows) for rows in self.rows), self._information(halves, spectra)
        return Search(
            coarse=self.stage(spectra, scales.coarse_rings),
            fine=self.stage(spectra, halves[0].grid.n_rings),
            stochastic=stochastic_settings(scales, order, nats, n_images, self.table.box_size),
            full=full_settings(scales, order, self.table.box_size),
        )

    def search(self, halves: Halves, spectra: Spectra) -> tuple[Search, float]:
        """Settings of the search, and the information of an image in nats, which the log gets to know."""
        search, nats = self.search_settings(halves, spectra), self._information(halves, spectra)
        pixel = self.table.box_size * self.table.pixel_size_in_angstroms
        self.reporter.line(
            f"search: to {pixel / self.scales.coarse_rings:.3g} Å in steps of {self.scales.coarse_step:.3g}°, then to "
            f"{pixel / halves[0].grid.n_rings:.3g} Å in steps of {self.scales.coarse_step / 2:.3g}°; an image holds "
            f"{nats:.1f} nats, so that {search.stochastic.iterations} batches of {search.stochastic.batch} are used"
        )
        return search, nats


def identity(table: Particles, settings: AbInitioSettings) -> dict[str, Any]:
    """Everything that must be the same for a search to be resumed: program, particles and settings."""
    asked = {name: value for name, value in asdict(settings).items() if name not in NO_MATTER}
    return {"emsplat": __version__, "job": "abinitio", "particles": table.fingerprint()} | asked


def cached(
    source: ImageSource, table: Particles, settings: AbInitioSettings, reporter: Reporter, stack: ExitStack
) -> Images:
    """The images, by way of the cache if there is to be one; the stack closes it."""
    if settings.cache is None:
        return source
    box_size = working_box(table, ReconstructSettings(max_resolution=settings.max_resolution))
    return stack.enter_context(CachedImages(source, box_size, settings.cache, settings.cache_size, reporter))


def said_of(source: Path | str | Particles, settings: AbInitioSettings) -> Particles:
    """The particles with the CTFs that the file gives, even with --no-ctf."""
    if isinstance(source, Particles):
        return with_choice(source, settings.keep, settings.drop)
    return read_as_said(source, settings, need_poses=False)


def table_of(said: Particles, settings: AbInitioSettings, reporter: Reporter) -> Particles:
    """The particles of `said_of` as they are searched: with half sets, without poses, and with the CTFs asked for."""
    table = as_asked(said, settings)
    for warning in table.warnings:
        reporter.warn(warning)
    n = len(table)
    if len(np.unique(table.half_set[table.half_set > 0])) == 1:
        reporter.warn("the half sets put all images into one half, so they are not used")
        table = replace(table, half_set=np.zeros(n, dtype=np.int8))
    table = replace(
        table, euler_angles_in_degrees=np.zeros((n, 3)), origin_in_angstroms=np.zeros((n, 2)), warnings=()
    ).with_half_sets(settings.seed)
    sizes = [int(np.count_nonzero(table.half_set == half)) for half in (1, 2)]
    if min(sizes) < FEWEST_IMAGES:
        raise InputError(
            f"{table.source}: {sizes[0]} and {sizes[1]} images in the half sets; a search without poses needs at least "
            f"{FEWEST_IMAGES} in each: give more images"
        )
    reporter.line(
        f"{n:,} images{table.left_out_text()}, box {table.box_size}, {table.pixel_size_in_angstroms:.4g} Å/px; "
        "poses in the table are ignored"
    )
    return _with_noise(table, settings, reporter)


def _with_noise(table: Particles, settings: AbInitioSettings, reporter: Reporter) -> Particles:
    """The table, with noise to be added to its images if they are projections without any.

    Projections without noise are nowhere negative, and nothing outside the particle. Noisy images that were masked are
    negative in places; their noise cannot be measured, and they are refused later.
    """
    chosen = np.linspace(0, len(table) - 1, min(_SAMPLE, len(table))).astype(int)
    with ImageSource(table, settings.invert) as images:
        some = images.read(chosen)
    nothing = _BLANK * float(some.max())
    outside = some[:, outside_circle(table.box_size) > 0.5]
    if some.min() < -nothing or np.mean(np.abs(outside) <= nothing) < 0.9:
        return table
    sigma = float(np.sqrt(_ADDED_VARIANCE * some.var()))
    reporter.warn(
        f"the images hold no noise, which every statistic needs: white noise of {100 * _ADDED_VARIANCE:.0f} % of their "
        "variance is added to them whenever they are read"
    )
    return replace(table, added_noise=sigma)


def diameter_of(look: Look, table: Particles, settings: AbInitioSettings, reporter: Reporter) -> float:
    """The diameter in Å. Particles that are surely dark are refused; an uncertain sign of the contrast is reported."""
    reporter.line(f"contrast from {look.n_sampled:,} images: {look.contrast:+.1f} standard errors (white is positive)")
    if look.surely_dark:
        raise InputError(
            f"{table.source}: the particles are dark ({look.contrast:+.0f} standard errors at low frequency); they "
            f"must be white: {'leave out' if settings.invert else 'add'} --invert"
        )
    if not look.surely_white:
        reporter.warn("the images do not show whether particles are white; if they are dark, use --invert")
    box = table.box_size * table.pixel_size_in_angstroms
    if settings.mask_diameter is not None:
        return min(settings.mask_diameter, _LARGEST_DIAMETER * box)
    if look.diameter is None:
        reporter.warn(
            f"no particle stands out of the noise; its diameter is taken as {100 * _UNSEEN_DIAMETER:.0f} % of the box"
        )
        return _UNSEEN_DIAMETER * box
    found = min(_OUTLINE_MARGIN * look.diameter * table.pixel_size_in_angstroms, _LARGEST_DIAMETER * box)
    reporter.line(
        f"the particle has a diameter of {found:.0f} Å about the middle of its image, from the variance of the images"
    )
    return found


def with_poses(table: Particles, rotations: NDArray[np.float64], centres: NDArray[np.float64]) -> Particles:
    """The particles in these poses; centres: (N, 2) x, y in pixels from the image's middle."""
    return replace(
        table,
        euler_angles_in_degrees=euler_angles(rotations),
        origin_in_angstroms=-centres * table.pixel_size_in_angstroms,
    )
