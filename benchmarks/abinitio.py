"""Ab initio: poses from none on simulations, beside the true ones, and on images in which there is nothing to find.

A run is right if most images lie within 15° of their true pose, after one rotation of all and over both hands, modulo
the particle's own symmetry. No wrong run may be called converged.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from numpy.typing import NDArray

from common import SHARED, Case, Report, arguments, mean_fsc, simulated, truth_and_mask
from emsplat.abinitio import alignment
from emsplat.abinitio.run import AbInitio, ab_initio
from emsplat.errors import InputError
from emsplat.fourier import maps
from emsplat.io import ImageSource, read_particles
from emsplat.particles.table import Particles
from emsplat.runtime.reporting import Reporter
from emsplat.settings import AbInitioSettings, SimulationSettings

_RIGHT_IN_DEGREES = 15.0
_MIRROR = np.diag([1.0, 1.0, -1.0])

_SETS_TEXT = """`error`, `p90`: median and 90th percentile of the angles to the true poses; `near`: share of the images
within 15°; `F`: mean FSC with the truth in the true mask of the final map, aligned over both hands, beside `F true`,
the same job's with the true poses; `ms`: processor time of one core an image, everything included."""
_NULLS_TEXT = (
    """Images that hold no map, or not the one that the table promises. Right answers: `failed`, or refused."""
)


def _simulation(n_images: int, pixel_size: float, snr: float, **more: Any) -> SimulationSettings:
    settings = {"box_size": 64, "b_factor_in_square_angstroms": 80.0} | more
    return SimulationSettings(n_images=n_images, pixel_size_in_angstroms=pixel_size, snr=snr, **settings)


IGG = Case("IgG", "1igy.cif.gz", _simulation(3000, 3.5, 0.05))
SETS = [
    (IGG, "C1"),
    (Case("7PBL, pseudo-C6", "7pbl.pdb.gz", _simulation(3000, 3.5, 0.05)), "C1"),
    (Case("MsbA, C2 not imposed", "8tso.cif.gz", _simulation(4000, 2.8, 0.05)), "C1"),
    (Case("8BK7, D2 not imposed", "8bk7.cif.gz", _simulation(3000, 3.8, 0.03)), "C1"),
    (Case("8BK7, D2 imposed", "8bk7.cif.gz", _simulation(3000, 3.8, 0.03)), "D2"),
    (Case("8BK7, 128²", "8bk7.cif.gz", _simulation(3000, 1.9, 0.03, box_size=128)), "C1"),
]
LADDER = [(replace(IGG, name=f"IgG, SNR {snr:g}", settings=replace(IGG.settings, snr=snr)), "C1")
          for snr in (0.005, 0.01, 0.02, 0.1, 0.3)]  # fmt: skip
HARD = [
    (Case("7PBL, uneven, SNR .02", "7pbl.pdb.gz", _simulation(5000, 3.5, 0.02, orientations="uneven")), "C1"),
    (Case("IgG, off by a tenth", "1igy.cif.gz", _simulation(3000, 3.5, 0.05, shift_sigma_in_angstroms=12.0)), "C1"),
    (Case("8BK7, 5.6 Å pixels", "8bk7.cif.gz", _simulation(3000, 5.6, 0.03, box_size=48)), "C1"),
]
QUICK = Case("7PBL, tiny", "7pbl.pdb.gz", _simulation(240, 7.0, 0.3, box_size=32))


# --- how right the poses are ------------------------------------------------------------------------------------------


def pose_errors(
    found: NDArray[np.float64], true: NDArray[np.float64], symmetry: NDArray[np.float64]
) -> tuple[NDArray[np.float64], bool]:
    """(n,) degrees after one rotation of all, over both hands and modulo the symmetry; and whether it is mirrored."""
    answers = []
    for mirrored in (False, True):
        posed = _MIRROR @ found @ _MIRROR if mirrored else found
        frames = np.swapaxes(true, 1, 2) @ posed
        tried = frames[np.random.default_rng(0).choice(len(true), min(60, len(true)), replace=False)]
        frame = max(tried, key=lambda f: np.mean(_distances(posed, true, f, symmetry)[0] < _RIGHT_IN_DEGREES))
        for _ in range(5):
            errors, mates = _distances(posed, true, frame, symmetry)
            near = errors < max(8.0, float(np.median(errors)))
            sums = np.einsum("nji,njk->ik", (true @ symmetry[mates])[near], posed[near])
            u, _, v = np.linalg.svd(sums)
            frame = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
        answers.append((_distances(posed, true, frame, symmetry)[0], mirrored))
    return min(answers, key=lambda answer: float(np.median(answer[0])))


def _distances(posed, true, frame, symmetry):
    errors = np.array([_angles(posed, true @ operator @ frame) for operator in symmetry])
    return errors.min(axis=0), errors.argmin(axis=0)


def _angles(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.rad2deg(np.arccos(np.clip((np.einsum("nij,nij->n", a, b) - 1) / 2, -1, 1)))


def map_quality(volume: NDArray[np.float32], star: Path) -> float:
    """F of a map of any hand and frame."""
    truth, mask = truth_and_mask(star)
    box = min(len(truth), 48)
    coarse = alignment.align(*(maps.fourier_resize(v, box) for v in (truth, volume)), n_rings=14)
    near = maps.mirrored(volume) if coarse.mirrored else volume
    near = alignment.moved(near, coarse.rotation, coarse.shift * (len(truth) / box))
    fine = alignment.align_near(truth, near, len(truth) // 3)
    return mean_fsc(fine.applied(near), truth, mask)


# --- runs -------------------------------------------------------------------------------------------------------------


def one_run(case: Case, symmetry: str, seed: int, work: Path, with_truth: bool, threads: int) -> dict[str, Any]:
    """A row of the table; poses of the table are there to judge by, and the search does not see them."""
    star = simulated(case, work, seed)
    true = read_particles(star)
    hidden = replace(true, half_set=np.zeros(len(true), dtype=np.int8))
    start = time.process_time()
    found = ab_initio(hidden, AbInitioSettings(symmetry=symmetry, seed=seed, threads=threads), Reporter())
    seconds = time.process_time() - start
    symmetries = alignment.own_rotations(maps.fourier_resize(truth_and_mask(star)[0], 28), 12)
    errors, _ = pose_errors(found.reconstruction.particles.rotations(), true.rotations(), symmetries)
    near = float(np.mean(errors < _RIGHT_IN_DEGREES))
    row: dict[str, Any] = {
        "set": case.name,
        "seed": seed,
        "verdict": found.status,
        "right": near > 0.5,
        "error (°)": float(np.median(errors)),
        "p90 (°)": float(np.percentile(errors, 90)),
        "near": near,
        "resolution (Å)": found.reconstruction.validation.resolution if found.status == "converged" else None,
        "ms": 1e3 * seconds / len(true),
        "doubts": "; ".join(c.name for c in found.verdict.criteria if c.status != "converged") or None,
    }
    if with_truth:
        from common import reconstructed

        given, _ = reconstructed(replace(true, half_set=hidden.half_set), symmetry="C1", seed=seed, threads=threads)
        row |= {"F": map_quality(found.reconstruction.map, star), "F true": map_quality(given.map, star)}
    return row


def with_stack(particles: Particles, images: NDArray[np.float32], folder: Path) -> Particles:
    """The particles with other images."""
    folder.mkdir(parents=True, exist_ok=True)
    mrcfile.write(folder / "images.mrcs", images, overwrite=True)
    return replace(
        particles,
        stacks=(folder / "images.mrcs",),
        stack=np.zeros(len(particles), dtype=np.int32),
        section=np.arange(len(particles)),
    )


def nulls(star: Path, work: Path, n: int) -> dict[str, Particles]:
    """Images in which there is nothing to find, or not what the table says."""
    particles = read_particles(star).select(np.arange(n))
    particles = replace(particles, half_set=np.zeros(n, dtype=np.int8))
    rng = np.random.default_rng(3)
    with ImageSource(particles) as images:
        one, all_of_them = images.read(np.arange(7, 8)), images.read(np.arange(n))
    noise = rng.normal(size=all_of_them.shape).astype(np.float32)
    wrong = rng.uniform(8_000, 20_000, n)
    return {
        "noise alone": with_stack(particles, noise, work / "nulls" / "noise"),
        "one image repeated": with_stack(particles, np.repeat(one, n, axis=0), work / "nulls" / "one"),
        "CTFs of other images": replace(particles, defocus_u_in_angstroms=wrong, defocus_v_in_angstroms=wrong),
        "dark particles": with_stack(particles, -all_of_them, work / "nulls" / "dark"),
    }


def null_row(name: str, particles: Particles, seed: int, threads: int) -> dict[str, Any]:
    """Row of the table: the verdict of the program on images that hold no right answer, and why."""
    try:
        found: AbInitio = ab_initio(particles, AbInitioSettings(seed=seed, starts=1, threads=threads), Reporter())
    except InputError as error:
        return {"images": name, "verdict": "refused", "why": str(error).partition(": ")[2][:90]}
    doubts = [c.name for c in found.verdict.criteria if c.status == "failed"]
    return {"images": name, "verdict": found.status, "why": ", ".join(doubts) or None}


def main() -> None:
    args = arguments(
        __doc__,
        seeds=(5, "runs of each set"),
        part=("sets,ladder,hard,nulls", "which parts, with commas between"),
        only=("", "the sets whose names begin so, with commas between"),
        truth=(1, "1: also reconstruct with the true poses"),
        threads=(2, "of each run"),
    )
    report = Report("abinitio", "Poses from none", args)
    parts = args.part.split(",")
    groups = {"sets": SETS, "ladder": LADDER, "hard": HARD}
    names = tuple(args.only.split(","))
    groups = {
        part: [(case, group) for case, group in sets if case.name.startswith(names)] for part, sets in groups.items()
    }
    if args.quick:
        groups, parts, args.seeds = {"sets": [(QUICK, "C1")]}, ["sets", "nulls"], 1
    for part in (p for p in parts if p in groups):
        rows: list[dict[str, Any]] = []
        for case, symmetry in groups[part]:
            for seed in range(args.seeds):
                rows.append(one_run(case, symmetry, seed, args.work, bool(args.truth), args.threads))
                report.table(part, rows, _SETS_TEXT)
    if "nulls" in parts:
        star = simulated(QUICK if args.quick else IGG, args.work)
        rows = []
        for name, particles in nulls(star, args.work, 240 if args.quick else 2000).items():
            rows.append(null_row(name, particles, 0, args.threads))
            report.table("nulls", rows, _NULLS_TEXT)
        tilts = SHARED / "real" / "ribosome-tilts" / "particles.star"
        if tilts.exists() and not args.quick:
            rows.append(null_row("real tilts of 40 ribosomes", read_particles(tilts), 0, args.threads))
            report.table("nulls", rows, _NULLS_TEXT)


if __name__ == "__main__":
    main()
