"""Other programs on the images of a star: each runs once, in a folder that keeps its output and what it cost.

A run that has ended is found again by its folder, so that a table can be made anew without it. A folder without
`took.json` is that of a run that was broken off, and is begun again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from emsplat.io import read_particles
from programs import Measured, measured

ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "NUMBA", "OPENBLAS")}
ONE_THREAD["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
_OF_POSES = ("Angle", "Origin", "RandomSubset")  # in the names of a star's columns

RELION_SGD = (  # what RELION 3.1's window for initial models writes by itself
    "--sgd --denovo_3dref --sgd_ini_iter 50 --sgd_inbetween_iter 200 --sgd_fin_iter 50 --sgd_write_iter 10 "
    "--sgd_ini_resol 35 --sgd_fin_resol 15 --sgd_ini_subset 100 --sgd_fin_subset 500 --ctf --K 1 --sym C1 "
    "--flatten_solvent --zero_mask --dont_combine_weights_via_disc --pool 3 --pad 1 --skip_gridding --oversampling 1 "
    "--healpix_order 1 --offset_range 6 --offset_step 2 --j 1 --random_seed 1"
)
RELION_ITERATIONS = 300
RECOVAR = "--mask from_halfmaps --accept-cpu --no-downsample --gpu-budget-gb 2"  # half of the memory, if not told


def once(folder: Path, *commands: Sequence[object], limit: int = 0) -> Measured:
    """Run programs one after another in `folder`, unless they have run there, and return what all of them took.

    Args:
        limit: seconds of processor time after which the last program is ended; 0 for as long as it takes.
    """
    record = folder / "took.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "out").mkdir(parents=True)
        ran = [
            measured(command, folder, environ=ONE_THREAD, limit=limit if command is commands[-1] else 0)
            for command in commands
        ]
        costs = {
            "seconds": sum(took.seconds for took in ran),
            "cpu_seconds": sum(took.cpu_seconds for took in ran),
            "peak_bytes": max(took.peak_bytes for took in ran),
        }
        record.write_text(json.dumps(costs))
    return Measured(**json.loads(record.read_text()))


def without_poses(star: Path, output: Path, stack: str) -> Path:
    """Write the table of a simulation without poses and half sets, and with another stack of the same images."""
    blocks = star.read_text().split("data_particles")
    lines = blocks[1].splitlines()
    labels = [line.split()[0] for line in lines if line.startswith("_rln")]
    kept = [i for i, label in enumerate(labels) if not label.startswith(tuple(f"_rln{name}" for name in _OF_POSES))]
    rows = [line.split() for line in lines if len(line.split()) == len(labels)]
    table = [f"{labels[i]} #{number}" for number, i in enumerate(kept, 1)]
    table += [" ".join(row[i] for i in kept).replace("@particles.mrcs", f"@{stack}") for row in rows]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join([blocks[0] + "data_particles", "", "loop_", *table, "", ""]))
    return output


def relion_sgd(star: Path, limit: int) -> tuple[Path, Measured]:
    """`relion_refine --denovo_3dref --sgd` from images without poses; the folder of its iterations."""
    folder, table = star.parent / "relion-sgd", read_particles(star)
    diameter = round(0.9 * table.box_size * table.pixel_size_in_angstroms, -1)
    images = without_poses(star, star.parent / "normalised.star", "normalised.mrcs")
    radius = round(diameter / table.pixel_size_in_angstroms / 2)
    normalise = ["relion_preprocess", "--operate_on", star.parent / "particles.mrcs", "--operate_out", "normalised"]
    refine = ["relion_refine", "--i", "images.star", "--o", "out/run", "--particle_diameter", round(diameter)]
    took = once(
        folder,
        ["cp", images, "images.star"],
        [*normalise, "--norm", "--bg_radius", radius],
        [*refine, *RELION_SGD.split()],
        limit=limit,
    )
    return folder / "out", took


class CryoDRGN:
    """cryoDRGN's programs on the images of a star."""

    def __init__(self, program: Path, star: Path, box_size: int) -> None:
        self._program, self._images = program, star.parent / "particles.mrcs"
        self.folder = star.parent / "cryodrgn"
        self.folder.mkdir(exist_ok=True)
        self._poses, self._ctf = self.folder / "poses.pkl", self.folder / "ctf.pkl"
        for name, path in (("pose", self._poses), ("ctf", self._ctf)):
            if not path.exists():
                measured(
                    [program, f"parse_{name}_star", star, "-D", box_size, "-o", path], self.folder, environ=ONE_THREAD
                )

    def back_project(self, algorithm: str) -> tuple[Path, Measured]:
        """`backproject_voxel` of all images. Args: algorithm: flip or mul."""
        folder = self.folder / f"voxel-{algorithm}"
        took = self._posed(folder, "backproject_voxel", "--no-half-maps", "--ctf-alg", algorithm)
        return folder / "out" / "backproject.mrc", took

    def train_nn(self, width: int, epochs: int) -> tuple[list[Path], Measured]:
        """`train_nn`; the maps after each epoch."""
        folder = self.folder / f"network-{width}-{epochs}"
        took = self._posed(folder, "train_nn", "-n", epochs, "--dim", width, "--no-amp", "--seed", 0)
        return [folder / "out" / f"reconstruct.{epoch}.mrc" for epoch in range(1, epochs + 1)], took

    def train_vae(self, width: int, epochs: int, z: int, limit: int) -> tuple[Path, Measured]:
        """`train_vae`; the folder of its epochs, the first of which is 1. Args: z: number of latents."""
        folder = self.folder / f"vae-{width}-{z}"
        sizes = ["--zdim", z, "--enc-dim", width, "--dec-dim", width]
        training = ["-n", epochs, "--no-amp", "--seed", 0, "--no-analysis"]
        return folder / "out", self._posed(folder, "train_vae", *sizes, *training, limit=limit)

    def decode(self, epoch: Path, points: Path) -> tuple[list[Path], Measured]:
        """`eval_vol`; a map for each row of latents. Args: epoch: weights after it."""
        folder = epoch.parents[1] / f"decoded-{epoch.stem}"
        command = ["eval_vol", epoch, "-c", epoch.with_name("config.yaml"), "--zfile", points, "-o", "out"]
        took = once(folder, [self._program, *command])
        return sorted((folder / "out").glob("*.mrc")), took

    def abinit(self, limit: int, *options: object) -> tuple[Path, Measured]:
        """`abinit` of one map, from images without poses; the folder of its epochs, the first of which is 0."""
        folder = self.folder / "-".join(["abinit", *(str(option).strip("-") for option in options)])
        training = ["--zdim", 0, "--no-amp", "--seed", 0, "--checkpoint", 1, "--no-analysis", *options]
        command = [self._program, "abinit", self._images, "--ctf", self._ctf, "-o", "out", *training]
        return folder / "out", once(folder, command, limit=limit)

    def _posed(self, folder: Path, command: str, *options: object, limit: int = 0) -> Measured:
        given = ["--poses", self._poses, "--ctf", self._ctf, "-o", "out"]
        return once(folder, [self._program, command, self._images, *given, *options], limit=limit)


class Recovar:
    """recovar's programs on the images of a star, without a card."""

    def __init__(self, program: Path, star: Path) -> None:
        self._program, self._star = program, star

    def pipeline(self, z: int, limit: int) -> tuple[Path, Measured]:
        """`pipeline`; the folder of its results. Args: z: number of latents."""
        folder = self._star.parent / f"recovar-{z}"
        options = [*RECOVAR.split(), "--zdim", z]
        took = once(folder, [self._program, "pipeline", self._star, "-o", "out", *options], limit=limit)
        return folder / "out", took

    def decode(self, results: Path, points: Path) -> tuple[list[Path], Measured]:
        """`compute_state`; a map for each row of latents."""
        folder = results.parent / "decoded"
        took = once(folder, [self._program, "compute_state", results, "-o", "out", "--latent-points", points])
        return sorted((folder / "out").glob("*.mrc")), took


def last_epoch(folder: Path, pattern: str) -> tuple[int, Path] | None:
    """The number of the last epoch or iteration that a program has written whole, and its file.

    Args:
        pattern: a file's name with `*` for the number.
    """
    before, after = pattern.split("*")
    numbers = {
        int(path.name.removeprefix(before).removesuffix(after)): path
        for path in folder.glob(pattern)
        if path.name.removeprefix(before).removesuffix(after).isdigit()
    }
    return max(numbers.items()) if numbers else None
