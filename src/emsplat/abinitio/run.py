"""The job that finds poses for particle images, and decides whether to believe them.

The code reads from top to bottom: it reads the table, looks at a sample, searches each half by itself, compares them,
refines locally and searches again in turn, reconstructs, and judges.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.abinitio import refinement, volume
from emsplat.abinitio.alignment import align_near
from emsplat.abinitio.full import Found
from emsplat.abinitio.halves import Agreement, Search, Start, compare, on_box, start
from emsplat.abinitio.look import Look, look_at
from emsplat.abinitio.polar import PolarGrid, PolarImages, Spectra, read_polar
from emsplat.abinitio.scales import full_settings, information, scales_of, stochastic_settings
from emsplat.abinitio.stochastic import StageSettings
from emsplat.abinitio.symmetric import onto_axes
from emsplat.abinitio.transfer import own_ctfs_win, without_ctf
from emsplat.abinitio.verdict import REMEDY, Ending, Verdict, judged
from emsplat.conventions import euler_angles
from emsplat.errors import InputError
from emsplat.fourier import maps
from emsplat.io import read_particles
from emsplat.io.images import ImageSource
from emsplat.particles.table import Particles
from emsplat.reconstruction.reconstruct import Reconstruction, reconstruct
from emsplat.runtime.reporting import Reporter
from emsplat.runtime.threads import threads
from emsplat.settings import AbInitioSettings, ReconstructSettings
from emsplat.symmetry import symmetry_operators

_OUTLINE_MARGIN = 1.15  # factor on the outline, because the variance shows a little less than the particle
_UNSEEN_DIAMETER, _LARGEST_DIAMETER = 0.8, 0.95  # shares of the box
_MAX_SHIFT = 0.1  # share of the box
_EDGE = 0.1  # share of the box by which the circle that is kept exceeds the particle's, beyond its shift
_MOST_SEARCHES = 3  # largest number of searches on refined maps
_SETTLED = 0.02  # share of the images that a search moves, below which no other search is worthwhile
_FEWEST_IMAGES = 40  # smallest number in each half set


@dataclass(frozen=True)
class AbInitio:
    """The result of a run."""

    reconstruction: Reconstruction  # reconstruction from the poses that were found
    verdict: Verdict
    agreement: Agreement
    starts: tuple[Start, Start]  # the starts with which the run continued
    n_starts: tuple[int, int]  # number of starts of each half
    moved: tuple[float, ...]  # share of the images that each search on refined maps moved
    certainty: NDArray[np.float32]  # (N,) largest posterior of each image in the first search
    look: Look
    diameter_in_angstroms: float
    settings: AbInitioSettings
    hand: str = "undetermined: projections of a map and of its mirror image are the same; emsplat flip writes the other"
    found: dict[str, Any] = field(default_factory=dict)  # the settings found from the data

    @property
    def status(self) -> str:
        """The status of the verdict: converged, uncertain or failed."""
        return self.verdict.status

    def summary(self) -> dict[str, Any]:
        """The entries of summary.json under ab_initio."""
        modes = self.agreement.modes
        return {
            **self.verdict.summary(),
            "doubts": self.verdict.doubts,
            "what_to_try": None if self.status == "converged" else REMEDY,
            "hand": self.hand,
            "starts_of_halves": list(self.n_starts),
            "log_likelihood_of_halves": [round(s.evidence, 3) for s in self.starts],
            "correlation_of_halves": [round(float(c), 4) for c in self.agreement.correlations],
            "mates": [round(float(share), 3) for share in modes.shares[:12]],
            "imitation": {
                "log_likelihood": round(self.agreement.imitation.evidence, 3),
                "recovered": round(self.agreement.imitation.recovered, 3),
                "median_error_in_degrees": round(self.agreement.imitation.median_error_in_degrees, 2),
            },
            "moved_by_searches": [round(share, 4) for share in self.moved],
            "found": self.found,
        }


def ab_initio(source: Path | str | Particles, settings: AbInitioSettings, reporter: Reporter | None = None) -> AbInitio:
    """Find the poses of particle images without initial poses.

    Args:
        source: a particle file, whose poses are ignored, or the table read from one.
        settings: values that are not given are found from the data.
        reporter: receiver of progress; silent by default.
    Raises:
        InputError: one line on what is wrong with the input and what to do.
    """
    reporter = reporter or Reporter()
    with threads(settings.threads):
        with reporter.stage("read"):
            table = _table(source, settings, reporter)
        with ImageSource(table, settings.invert) as images:
            with reporter.stage("preview"):
                look = look_at(table, images, settings.seed)
                diameter = _diameter(look, table, settings, reporter)
            job = _Job(table, images, look, diameter, settings, reporter)
            with reporter.stage("polar images"):
                halves, spectra = job.read(job.scales.fine_rings)
            search, nats = job.search(halves, spectra)
            with reporter.stage("search"):
                starts, agreement, verdict, counts = _independent_starts(job, halves, search)
            table, certainty = _posed(job, starts, agreement)
        reconstruction, moved = _refined(job, table, verdict)
        with reporter.stage("search"):
            own_ctfs = _own_ctfs(job, reconstruction)
        ending = Ending(
            moved=moved[-1] if moved else None,
            measurable=reconstruction.validation.limit_shell / job.scales.coarse_rings,
            own_ctfs=own_ctfs,
            looks_dark=reconstruction.preview.surely_dark,
        )
        verdict = judged(starts, agreement, ending)
    reporter.line(f"ab initio: {verdict.text()}")
    if verdict.status != "converged":
        reporter.warn(f"ab initio {verdict.status}: no resolution is claimed; {REMEDY}")
    return AbInitio(
        reconstruction, verdict, agreement, starts, counts, moved, certainty, look, diameter, settings,
        found={
            "diameter_in_angstroms": round(diameter, 1),
            "rings": [job.scales.coarse_rings, job.scales.fine_rings],
            "step_in_degrees": [round(job.scales.coarse_step, 2), round(job.scales.coarse_step / 2, 2)],
            "nats_an_image": round(nats, 2),
            "batch": search.stochastic.batch,
            "iterations": search.stochastic.iterations,
            "rounds_of_halves": [len(s.second.evidence) for s in starts],
            "contrast_in_standard_errors": round(look.contrast, 1),
        },
    )  # fmt: skip


def _table(source: Path | str | Particles, settings: AbInitioSettings, reporter: Reporter) -> Particles:
    """The particles with half sets and without their poses."""
    if isinstance(source, Particles):
        table = source
    else:
        table = read_particles(
            source,
            datadir=settings.datadir,
            strip_prefix=settings.strip_prefix,
            pixel_size_in_angstroms=settings.pixel_size,
            ctf=settings.ctf,
            passthrough=settings.passthrough,
            need_poses=False,
            need_ctf=not settings.no_ctf,
        )
    for warning in table.warnings:
        reporter.warn(warning)
    if settings.no_ctf:
        table = without_ctf(table)
    n = len(table)
    if len(np.unique(table.half_set[table.half_set > 0])) == 1:
        reporter.warn("the half sets put all images into one half, so they are not used")
        table = replace(table, half_set=np.zeros(n, dtype=np.int8))
    table = replace(
        table, euler_angles_in_degrees=np.zeros((n, 3)), origin_in_angstroms=np.zeros((n, 2)), warnings=()
    ).with_half_sets(settings.seed)
    sizes = [int(np.count_nonzero(table.half_set == half)) for half in (1, 2)]
    if min(sizes) < _FEWEST_IMAGES:
        raise InputError(
            f"{table.source}: {sizes[0]} and {sizes[1]} images in the half sets; a search without poses needs at least "
            f"{_FEWEST_IMAGES} in each: give more images"
        )
    reporter.line(
        f"{n:,} images, box {table.box_size}, {table.pixel_size_in_angstroms:.4g} Å/px; poses in the table are ignored"
    )
    return table


def _diameter(look: Look, table: Particles, settings: AbInitioSettings, reporter: Reporter) -> float:
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
            f"no particle stands out of the noise; its diameter is taken as {_UNSEEN_DIAMETER:.0%} of the box"
        )
        return _UNSEEN_DIAMETER * box
    found = min(_OUTLINE_MARGIN * look.diameter * table.pixel_size_in_angstroms, _LARGEST_DIAMETER * box)
    reporter.line(
        f"the particle has a diameter of {found:.0f} Å about the middle of its image, from the variance of the images"
    )
    return found


Halves = tuple[PolarImages, PolarImages]


class _Job:
    """The data and settings that all stages of one run share."""

    def __init__(
        self,
        table: Particles,
        images: ImageSource,
        look: Look,
        diameter_in_angstroms: float,
        settings: AbInitioSettings,
        reporter: Reporter,
    ) -> None:
        self.table, self.images, self.look = table, images, look
        self.settings, self.reporter = settings, reporter
        self.diameter_in_angstroms = diameter_in_angstroms
        self.symmetry = symmetry_operators(settings.symmetry)
        box = table.box_size * table.pixel_size_in_angstroms
        self.diameter = diameter_in_angstroms / box
        max_ring = np.inf if settings.max_resolution is None else box / settings.max_resolution
        self.max_ring = min(max_ring, table.box_size / 2 - 2)
        self.scales = scales_of(self.diameter, len(self.symmetry), table.box_size, self.max_ring)
        max_shift = _MAX_SHIFT * box if settings.max_shift is None else settings.max_shift
        self.max_shift = max_shift / table.pixel_size_in_angstroms
        # The circle that is kept of each image holds the particle, wherever it lies.
        self.circle = (self.diameter + _EDGE) * table.box_size + 2 * min(self.max_shift, 0.1 * table.box_size)
        self.rows = tuple(np.flatnonzero(table.half_set == half) for half in (1, 2))

    def read(self, n_rings: int) -> tuple[Halves, Spectra]:
        """The images of both halves on the polar grid, and the mean of their spectra."""
        grid = PolarGrid.of(n_rings, self.diameter)
        found = []
        for number, rows in enumerate(self.rows, start=1):
            with self.reporter.bar(f"transforming half {number}", "images") as advance:
                found.append(read_polar(self.table, self.images, rows, self.look.noise, grid, self.circle, advance))
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
            shift_sigma=max(0.5 * self.max_shift, 0.5),
        )

    def search(self, halves: Halves, spectra: Spectra) -> tuple[Search, float]:
        """Settings of the search, and the information of an image in nats."""
        coarse, order = self.scales.coarse_rings, len(self.symmetry)
        polar = halves[0]
        nats = information(polar.grid.radii[:coarse], polar.power[:, :coarse], spectra.signal[:coarse])
        n_images = min(len(rows) for rows in self.rows)
        search = Search(
            coarse=self.stage(spectra, coarse),
            fine=self.stage(spectra, polar.grid.n_rings),
            stochastic=stochastic_settings(self.scales, order, nats, n_images, self.table.box_size),
            full=full_settings(self.scales, order, self.table.box_size),
        )
        pixel = self.table.box_size * self.table.pixel_size_in_angstroms
        self.reporter.line(
            f"search: to {pixel / coarse:.3g} Å in steps of {self.scales.coarse_step:.3g}°, then to "
            f"{pixel / polar.grid.n_rings:.3g} Å in steps of {self.scales.coarse_step / 2:.3g}°; an image holds "
            f"{nats:.1f} nats, so that {search.stochastic.iterations} batches of {search.stochastic.batch} are used"
        )
        return search, nats


def _independent_starts(
    job: _Job, halves: Halves, search: Search
) -> tuple[tuple[Start, Start], Agreement, Verdict, tuple[int, int]]:
    """The best starts of both halves, their agreement, the verdict on it, and the numbers of starts."""
    best: list[Start] = []
    seed = job.settings.seed
    for attempt in range(job.settings.starts):
        for number in (0, 1):
            with job.reporter.bar(f"half {number + 1}, start {attempt + 1}", "batches") as advance:
                found = start(halves[number], search, np.random.default_rng((seed, attempt, number)), advance)
            job.reporter.line(f"half {number + 1}, start {attempt + 1}: {_in_words(found)}")
            if len(best) == number:
                best.append(found)
            elif found.evidence > best[number].evidence:
                best[number] = found
        first, second = best
        agreement = compare(halves, (first, second), search, np.random.default_rng((seed, attempt, 2)))
        verdict = judged((first, second), agreement, None)
        modes = agreement.modes
        job.reporter.line(
            f"halves agree on {modes.total:.0%} of the poses"
            + (f", on {modes.number} mates of a symmetry" if modes.number > 1 else "")
            + f"; correlation {agreement.correlations.mean():.2f}; {verdict.status} so far"
        )
        hopeless = max(first.evidence, second.evidence) < 0.3
        if verdict.status == "converged" or hopeless:
            break
    return (first, second), agreement, verdict, (attempt + 1, attempt + 1)


def _own_ctfs(job: _Job, found: Reconstruction) -> float:
    """The value of `own_ctfs_win` for images of the first half in the map of the second; 1 if there are no CTFs.

    The refined map and all of its measurable shells are used: on the rings of a search, CTFs may all be alike, so that
    poses are right although the CTFs are not.
    """
    finest = min(int(found.validation.limit_shell), int(job.max_ring))
    if job.settings.no_ctf or finest < 2:
        return 1.0
    halves, spectra = job.read(finest)
    grid, rows = halves[0].grid, job.rows[0]
    map_ = on_box(_weighted_map(found, 1), volume.map_box(grid))
    table = found.particles
    rotations = table.rotations()[rows]
    centres = (-table.origin_in_angstroms / table.pixel_size_in_angstroms)[rows]
    rng = np.random.default_rng((job.settings.seed, 200))
    return own_ctfs_win(
        job.table, job.images, rows, job.look.noise, grid, job.circle, map_, rotations, centres, spectra.signal, rng
    )


def _weighted_map(found: Reconstruction, half: int) -> NDArray[np.float32]:
    """(D, D, D) map of a half, 0 or 1, with each shell weighted by its gain and by what the halves share."""
    v = found.validation
    gain = np.nan_to_num(v.gain * 0.5 * (1 + v.gaussian_half))
    return maps.radial_filter(found.halves[half].map, np.concatenate([gain[:1], gain]))


def _in_words(found: Start) -> str:
    """The result of a start in words, for the log."""
    first, second = found.first, found.second
    faults = len(first.steps_back) + len(second.steps_back)
    return (
        f"log-likelihood {first.evidence[0]:.2f} → {first.evidence[-1]:.2f} → {found.evidence:.2f} an image in "
        f"{len(second.evidence)} rounds, top posterior {second.top[-1]:.2f}, map power {second.power[-1]:.2f} of the "
        "images'" + f", stepped back {faults} times" * bool(faults)
    )


def _posed(job: _Job, starts: tuple[Start, Start], agreement: Agreement) -> tuple[Particles, NDArray[np.float32]]:
    """The particles with the poses of their own half's search, in the first half's frame, and their certainty."""
    n, box_size = len(job.table), job.table.box_size
    rotations, centres, certainty = np.empty((n, 3, 3)), np.empty((n, 2)), np.empty(n, np.float32)
    alignment = onto_axes(agreement.alignment, job.symmetry)
    scale = box_size / len(starts[0].map)
    for number, rows in enumerate(job.rows):
        found: Found = starts[number].found
        posed = found.rotations, found.centres
        rotations[rows], centres[rows] = posed if number == 0 else alignment.poses(*posed, scale)
        certainty[rows] = found.top
    return with_poses(job.table, rotations, centres), certainty


def with_poses(table: Particles, rotations: NDArray[np.float64], centres: NDArray[np.float64]) -> Particles:
    """The particles in these poses; centres: (N, 2) x, y in pixels from the image's middle."""
    return replace(
        table,
        euler_angles_in_degrees=euler_angles(rotations),
        origin_in_angstroms=-centres * table.pixel_size_in_angstroms,
    )


def _refined(job: _Job, table: Particles, verdict: Verdict) -> tuple[Reconstruction, tuple[float, ...]]:
    """Refine locally and search globally in turn until hardly any image jumps, then reconstruct."""
    moved: list[float] = []
    if verdict.status != "failed":
        for number in range(_MOST_SEARCHES):
            # One fit of each half suffices for the search; the final reconstruction averages several.
            on_the_way = replace(_reconstruct_settings(job, refine=True), n_fits=1)
            found = reconstruct(table, on_the_way, job.reporter, contrast_is_known=True)
            table = _brought_together(found.particles, found, job)
            limit = found.validation.limit_shell
            if limit == 0:
                break
            with job.reporter.stage("search again"):
                table, share = _searched_again(job, table, found, number)
            moved.append(share)
            job.reporter.line(f"search on the refined maps: {share:.1%} of the images moved to another pose")
            if share < _SETTLED:
                break
    settings = _reconstruct_settings(job, refine=verdict.status != "failed")
    return reconstruct(table, settings, job.reporter, contrast_is_known=True), tuple(moved)


def _reconstruct_settings(job: _Job, refine: bool) -> ReconstructSettings:
    s = job.settings
    # The search's last step is half as wide as this, so local refinement need not go farther.
    reach = job.scales.coarse_step
    rim = float(np.deg2rad(reach)) * job.diameter_in_angstroms / 2
    return ReconstructSettings(
        invert=s.invert,
        symmetry=s.symmetry,
        mask_diameter=job.diameter_in_angstroms,
        max_resolution=s.max_resolution,
        refine="poses,shifts" if refine else None,
        refine_range=(min(reach, 20.0), rim) if refine else None,
        seed=s.seed,
        threads=s.threads,
        device=s.device,
    )


def _searched_again(job: _Job, table: Particles, found: Reconstruction, number: int) -> tuple[Particles, float]:
    """The particles after a global search on the map of their half, and the share of the images that it moved."""
    box_size = table.box_size
    finest = min(int(found.validation.limit_shell), round(1.5 * job.scales.fine_rings), int(job.max_ring))
    halves, spectra = job.read(finest)
    settings = full_settings(job.scales, len(job.symmetry), box_size)
    stage = job.stage(spectra, finest)
    rotations = table.rotations()
    centres = -table.origin_in_angstroms / table.pixel_size_in_angstroms
    n_moved = 0
    for half, rows in enumerate(job.rows):
        map_ = on_box(_weighted_map(found, half), volume.map_box(halves[half].grid))
        rng = np.random.default_rng((job.settings.seed, 100 + number, half))
        jumped, there = refinement.search_again(
            halves[half], map_, rotations[rows], centres[rows], stage, settings, rng
        )
        rotations[rows[jumped]], centres[rows[jumped]] = there.rotations[jumped], there.centres[jumped]
        n_moved += int(jumped.sum())
    return with_poses(table, rotations, centres), n_moved / len(table)


def _brought_together(table: Particles, found: Reconstruction, job: _Job) -> Particles:
    """The particles, with the second half moved as a whole so that its map lies on that of the first.

    Each half is refined against its own map alone, and nothing else keeps the two from drifting apart.
    """
    limit = found.validation.limit_shell
    if limit == 0:
        return table
    box_size = min(table.box_size, 2 * (min(limit, 24) + 2))
    first, second = (on_box(half.raw, box_size) for half in found.halves)
    sphere = volume.sphere(box_size, job.diameter)
    alignment = onto_axes(align_near(first * sphere, second * sphere, min(limit, 24)), job.symmetry)
    rows = job.rows[1]
    rotations, centres = table.rotations(), -table.origin_in_angstroms / table.pixel_size_in_angstroms
    rotations[rows], centres[rows] = alignment.poses(rotations[rows], centres[rows], table.box_size / box_size)
    return with_poses(table, rotations, centres)
