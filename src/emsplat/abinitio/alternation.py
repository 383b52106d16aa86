"""Local refinement and global search in turn, on the refined maps of each half by itself, and what follows from them.

Local refinement never leaves a wrong basin, and a global search is coarse. They alternate until hardly any image jumps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from emsplat.abinitio import refinement, volume
from emsplat.abinitio.alignment import align_near
from emsplat.abinitio.halves import on_box
from emsplat.abinitio.job import Job, with_poses
from emsplat.abinitio.scales import full_settings
from emsplat.abinitio.symmetric import onto_axes
from emsplat.abinitio.transfer import own_ctfs_win
from emsplat.abinitio.verdict import Verdict
from emsplat.fourier import maps
from emsplat.particles.table import Particles
from emsplat.reconstruction.reconstruct import Reconstruction, reconstruct
from emsplat.reconstruction.tuning import Tuning
from emsplat.runtime.packing import packed, unpacked
from emsplat.settings import ReconstructSettings

_MOST_SEARCHES = 3  # largest number of searches on refined maps
_SETTLED = 0.02  # share of the images that a search moves, below which no other search is worthwhile


@dataclass
class _Alternation:
    """The poses after some refinements and searches, as they are kept to be resumed."""

    euler_angles_in_degrees: NDArray[np.float64]  # (N, 3)
    origin_in_angstroms: NDArray[np.float64]  # (N, 2)
    moved: list[float]  # share of the images that each search has moved
    is_over: bool


def refined(job: Job, table: Particles, verdict: Verdict) -> tuple[Reconstruction, tuple[float, ...]]:
    """Refine locally and search globally in turn until hardly any image jumps, then reconstruct."""
    checkpoint = job.context.checkpoints.named("poses", job.context.world)
    state = checkpoint.load()
    if state is None:
        kept = _Alternation(
            table.euler_angles_in_degrees, table.origin_in_angstroms, [], is_over=verdict.is_beyond_refinement
        )
    else:
        kept = unpacked(state, _Alternation)
        table = _in_poses_of(kept, table)
        for number in range(1, len(kept.moved) + 1):
            job.context.checkpoints.remove_nested(_refinement(number))
    while not kept.is_over:
        number = len(kept.moved) + 1
        table, share = _refined_and_searched(job, table, number)
        moved = [*kept.moved, *([] if share is None else [share])]
        is_over = share is None or share < _SETTLED or number == _MOST_SEARCHES
        kept = _Alternation(table.euler_angles_in_degrees, table.origin_in_angstroms, moved, is_over)
        if checkpoint.offer(partial(packed, kept)):
            job.context.checkpoints.remove_nested(_refinement(number))
    settings = reconstruct_settings(job, refine=not verdict.is_beyond_refinement)
    # Where hardly any image jumped, the others were refined already: their log-likelihood rises by less than 0.1.
    settled = bool(kept.moved) and kept.moved[-1] < _SETTLED
    tuning = Tuning(refinement_rounds=1) if settled else None
    return _reconstructed(job, table, settings, "last", tuning), tuple(kept.moved)


def _refinement(number: int) -> str:
    return f"refinement{number}"


def _in_poses_of(kept: _Alternation, table: Particles) -> Particles:
    return replace(
        table,
        euler_angles_in_degrees=kept.euler_angles_in_degrees,
        origin_in_angstroms=kept.origin_in_angstroms,
    )


def _reconstructed(
    job: Job, table: Particles, settings: ReconstructSettings, name: str, tuning: Tuning | None = None
) -> Reconstruction:
    """A reconstruction as a stage of the search, with states of its own under this name.

    With --no-ctf, it is given the CTFs of the file as well, and refuses the images if they surely have them.
    """
    if job.said is not None:
        table = replace(
            job.said,
            euler_angles_in_degrees=table.euler_angles_in_degrees,
            origin_in_angstroms=table.origin_in_angstroms,
            half_set=table.half_set,
            added_noise=table.added_noise,
        )
        settings = replace(settings, no_ctf=True)
    checkpoints, world = job.context.checkpoints.nested(name), job.context.world
    return reconstruct(table, settings, job.reporter, checkpoints, world, is_part=True, tuning=tuning)


def _refined_and_searched(job: Job, table: Particles, number: int) -> tuple[Particles, float | None]:
    """The particles after a local refinement and a global search, and the share of the images that the search moved.

    The share is None if nothing is measurable, so that there was no search.
    """
    # One fit of each half suffices for the search; the final reconstruction averages several.
    on_the_way = replace(reconstruct_settings(job, refine=True), n_fits=1)
    found = _reconstructed(job, table, on_the_way, _refinement(number))
    table = _brought_together(found.particles, found, job)
    if found.validation.limit_shell == 0:
        return table, None
    with job.reporter.stage("search again"):
        table, share = _searched_again(job, table, found, number - 1)
    job.reporter.line(f"search on the refined maps: {100 * share:.1f} % of the images moved to another pose")
    return table, share


def reconstruct_settings(job: Job, refine: bool) -> ReconstructSettings:
    """The settings of a reconstruction from poses that were found, with or without local refinement."""
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
        cache=s.cache,
        cache_size=s.cache_size,
        seed=s.seed,
        threads=s.threads,
        device=s.device,
    )


def _searched_again(job: Job, table: Particles, found: Reconstruction, number: int) -> tuple[Particles, float]:
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
        map_ = on_box(weighted_map(found, half), volume.map_box(halves[half].grid))
        rng = np.random.default_rng((job.settings.seed, 100 + number, half))
        what = halves[half], map_, rotations[rows], centres[rows], stage, settings, rng
        with job.reporter.bar(f"searching half {half + 1} again", "images") as advance:
            jumped, there = refinement.search_again(*what, advance)
        rotations[rows[jumped]], centres[rows[jumped]] = there.rotations[jumped], there.centres[jumped]
        n_moved += int(jumped.sum())
    return with_poses(table, rotations, centres), n_moved / len(table)


def _brought_together(table: Particles, found: Reconstruction, job: Job) -> Particles:
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


def own_ctfs(job: Job, found: Reconstruction) -> float:
    """The value of `own_ctfs_win` for images of the first half in the map of the second; 1 if there are no CTFs.

    The refined map and all of its measurable shells are used: on the rings of a search, CTFs may all be alike, so that
    poses are right although the CTFs are not.
    """
    finest = min(int(found.validation.limit_shell), int(job.max_ring))
    if not job.table.has_ctf or finest < 2:
        return 1.0
    halves, spectra = job.read(finest)
    grid, rows = halves[0].grid, job.rows[0]
    map_ = on_box(weighted_map(found, 1), volume.map_box(grid))
    table = found.particles
    rotations = table.rotations()[rows]
    centres = (-table.origin_in_angstroms / table.pixel_size_in_angstroms)[rows]
    rng = np.random.default_rng((job.settings.seed, 200))
    return own_ctfs_win(
        job.table, job.images, rows, job.look.noise, grid, job.circle, map_, rotations, centres, spectra.signal, rng
    )


def weighted_map(found: Reconstruction, half: int) -> NDArray[np.float32]:
    """(D, D, D) map of a half, 0 or 1, with each shell weighted by its gain and by what the halves share."""
    v = found.validation
    gain = np.nan_to_num(v.gain * 0.5 * (1 + v.gaussian_half))
    return maps.radial_filter(found.halves[half].map, np.concatenate([gain[:1], gain]))
