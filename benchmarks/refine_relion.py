"""Local refinement beside RELION's, with the same images, half sets and wrong poses: errors against the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cases import QUICK, RUVB_SMALL, resized
from common import Report, arguments, mean_fsc, reconstructed, simulated, truth_and_mask
from emsplat.io import read_particles
from emsplat.io.write_refined import write_refined
from emsplat.particles.table import Particles
from programs import measured
from refine import errors, perturbed

_ENVIRON = {  # one thread a process; MPI runs as root, too
    "OMP_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
_SEARCH = (
    "--auto_refine --split_random_halves --ctf --ctf_corrected_ref --flatten_solvent --zero_mask --norm --scale "
    "--sigma_ang 3 --healpix_order 4 --auto_local_healpix_order 4 --oversampling 1 --offset_range 4 --offset_step 2 "
    "--low_resol_join_halves 40 --sym C1 --pad 2 --pool 10 --j 1 --random_seed 1 --dont_combine_weights_via_disc"
)

_TEXT = """Angles off by 3°, shifts by 1.5 pixels (root mean square). `angle`, `shift`: median errors against the truth,
less what all images of a half share. F: mean FSC with the truth, within the true mask, of our map made with these
poses. **Required: ours smaller in both errors.** RELION's two half sets are refined apart ("gold standard") from its
own inversion with the wrong poses, filtered to {ini_high} Å; its options:

    relion_refine_mpi {search}

"RELION, best iteration" is the one with the least median angle: what nobody can choose without the truth. Seconds are
those of the whole job, on three processes for RELION (of which two work)."""


def relion(star: Path, work: Path, diameter_in_angstroms: float, ini_high: int) -> float:
    """Let RELION refine, which leaves the tables of all iterations in `work`; return the seconds.

    Args:
        star: particles with wrong poses, in the folder of their stack.
    """
    folder, normal = star.parent, star.with_name("normalised.star")
    pixels = round(0.45 * read_particles(star).box_size)
    command = ["relion_preprocess", "--operate_on", "particles.mrcs", "--operate_out", "normalised", "--norm"]
    measured([*command, "--bg_radius", pixels], folder)
    normal.write_text(star.read_text().replace("@particles.mrcs", "@normalised.mrcs"))
    measured(["relion_reconstruct", "--i", normal.name, "--o", "reference.mrc", "--ctf"], folder)
    work.mkdir(exist_ok=True)
    for old in work.glob("run_*"):
        old.unlink()
    refine = ["mpirun", "--oversubscribe", "-n", 3, "relion_refine_mpi", "--i", normal.name, "--ref", "reference.mrc"]
    refine += ["--o", work / "run", "--ini_high", ini_high, "--particle_diameter", round(diameter_in_angstroms)]
    return measured([*refine, *_SEARCH.split()], folder, environ=_ENVIRON).seconds


def in_order(path: Path, like: Particles) -> Particles:
    """The table of the same images in the order of another one."""
    found = read_particles(path, datadir=like.source.parent)
    row_of = {name.split("@")[0]: row for row, name in enumerate(found.ids.tolist())}
    found = found.select(np.array([row_of[name.split("@")[0]] for name in like.ids.tolist()]))
    assert np.array_equal(found.half_set, like.half_set)
    return found


def main() -> None:
    args = arguments(
        __doc__, images=(1000, "number"), seed=(0, "of what is wrong"), ini_high=(20, "Å, see the page"),
        found=(0, "1: judge the iterations that RELION has left in WORK, ended or not"),
    )  # fmt: skip
    report = Report("refine_relion", "Local refinement beside RELION's", args)
    case = QUICK if args.quick else resized(RUVB_SMALL, 64, args.images)
    case = replace(case, settings=replace(case.settings, snr=0.05))
    star = simulated(case, args.work)
    true = read_particles(star)
    wrong = perturbed(true, args.seed)
    truth, mask = truth_and_mask(star)
    rows: list[dict[str, Any]] = []

    def row(name: str, particles: Particles, result: Any = None, seconds: float | None = None) -> None:
        result = result or reconstructed(replace(particles, source=true.source, stacks=true.stacks))[0]
        average = 0.5 * (result.half_maps[0] + result.half_maps[1])
        rows.append({"poses": name, **errors(particles, true), "F": mean_fsc(average, truth, mask), "s": seconds})
        report.table(f"{case.name}, {len(true):,} images", rows, _TEXT.format(search=_SEARCH, ini_high=args.ini_high))

    row("true", true)
    row("wrong", wrong)
    result, seconds = reconstructed(wrong, refine="poses,shifts")
    row("emsplat --refine poses,shifts", result.particles, result, sum(seconds.values()))
    folder = args.work / f"relion_refine_{args.seed}"
    seconds = None
    if not args.found:
        write_refined(wrong, np.ones(len(true)), ("poses", "shifts"), args.work).rename(star.with_name("wrong.star"))
        radius = np.linalg.norm(np.argwhere(mask > 0.5) - len(mask) // 2, axis=1).max()
        diameter = 2 * float(radius) * true.pixel_size_in_angstroms
        seconds = relion(star.with_name("wrong.star"), folder, diameter, args.ini_high)
    tables = sorted(folder.glob("run_it*_data.star"))[1:] + sorted(folder.glob("run_data.star"))
    found = [in_order(table, true) for table in tables]
    ended = "converged" if tables[-1].name == "run_data.star" else "not converged"
    row(f"relion_refine, {len(found)} iterations, {ended}", found[-1], seconds=seconds)
    row("relion_refine, best iteration", min(found, key=lambda p: errors(p, true)["angle (°)"]))


if __name__ == "__main__":
    main()
