"""Maps and models at chosen points of latent space, from the decoder that a search for heterogeneity left."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.export.cif import write_cif
from emsplat.export.mrc import write_density
from emsplat.export.ply import write_ply
from emsplat.heterogeneity.decoder import Decoder
from emsplat.runs.heterogeneity_folder import HeterogeneityFolder
from emsplat.runs.heterogeneity_run import HeterogeneityRun, open_heterogeneity
from emsplat.runtime.folders import claiming, filling
from emsplat.settings import SMALLEST_BOX

FORMATS = ("mrc", "gaussians", "ply", "cif")
_ENDINGS = {"mrc": ".mrc", "gaussians": ".safetensors", "ply": ".ply", "cif": ".cif"}


@dataclass(frozen=True)
class Decoding:
    """The decoder of a finished search for heterogeneity."""

    run: HeterogeneityRun
    decoder: Decoder

    @property
    def folder(self) -> HeterogeneityFolder:
        return self.run.folder

    @property
    def box_size(self) -> int:
        """Voxels of the run's maps."""
        return self.run.box_size

    @property
    def pixel_size(self) -> float:
        """Å of a voxel of the run's maps."""
        return self.run.pixel_size_in_angstroms

    @property
    def states(self) -> NDArray[np.float64]:
        """(S, K) mean latents."""
        return self.run.states

    def state(self, text: str) -> NDArray[np.float64]:
        """(K,) of a state's number, from 1."""
        if not text.isdigit() or not 1 <= int(text) <= len(self.states):
            raise InputError(
                f"state {text}: {self.folder.path} has the states 1 to {len(self.states)}; give one of them"
            )
        return self.states[int(text) - 1]

    def point(self, text: str) -> NDArray[np.float64]:
        """(K,) of numbers with commas between."""
        try:
            values = np.array([float(part) for part in text.split(",")])
        except ValueError:
            raise InputError(f"point {text!r}: it must be numbers with commas between, such as 0.5,-1.2") from None
        if len(values) != self.decoder.n_latents or not np.isfinite(values).all():
            raise InputError(
                f"point {text!r}: {self.decoder.n_latents} finite numbers are needed, one for each component"
            )
        return values

    def end(self, text: str) -> NDArray[np.float64]:
        """(K,) of a state's number or of a point. With one component, a whole number without point is a state."""
        return self.state(text) if text.isdigit() else self.point(text)


def open_decoding(folder: Path) -> Decoding:
    """Read a folder that emsplat heterogeneity wrote; InputError if it is something else."""
    run = open_heterogeneity(folder)
    if run.n_components == 0:
        raise InputError(
            f"{folder}: no heterogeneity was found, so there is nothing to decode; see {run.folder.consensus}"
        )
    return Decoding(run, Decoder.load(run.folder.decoder()))


def latents_of(decoding: Decoding, path: Path) -> NDArray[np.float64]:
    """(n, K) latents of the particles that a file names, in its order.

    Args: path: a CSV file with a column `id`, or one id a line, as in latents.csv.
    """
    with decoding.folder.latents.open(newline="", encoding="utf-8") as file:
        names = [f"z{i + 1}" for i in range(decoding.decoder.n_latents)]
        known = {row["id"]: [float(row[name]) for name in names] for row in csv.DictReader(file)}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of particles ({error})") from None
    lines = [line.strip() for line in lines if line.strip()]
    has_header = bool(lines) and "id" in lines[0].split(",")
    wanted = [row["id"] for row in csv.DictReader(lines)] if has_header else lines
    missing = [name for name in wanted if name not in known]
    if missing:
        raise InputError(
            f"{path}: {missing[0]!r} is not in {decoding.folder.latents}; give ids as they stand there "
            f"({len(missing)} of {len(wanted)} are unknown)"
        )
    if not wanted:
        raise InputError(f"{path}: names no particles; give one id a line, as in {decoding.folder.latents}")
    return np.array([known[name] for name in wanted])


def between(first: NDArray[np.float64], last: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """(n, K) points at equal distances on the line from the first to the last."""
    return first + np.linspace(0, 1, n)[:, None] * (last - first)


def write_point(
    path: Path, decoding: Decoding, z: NDArray[np.float64], format: str, box_size: int, pixel_size: float
) -> None:
    """The map or the model at one point. Args: box_size, pixel_size: of an mrc; voxels and Å."""
    gaussians = decoding.decoder.at(z)
    centre = decoding.box_size // 2 * decoding.pixel_size
    if format == "mrc":
        shift = centre - box_size // 2 * pixel_size
        write_density(path, gaussians, box_size, pixel_size, decoding.pixel_size, shift)
    elif format == "gaussians":
        gaussians.save(
            path, box_size=str(decoding.box_size), pixel_size_in_angstroms=f"{decoding.pixel_size:.6g}", symmetry="C1"
        )
    elif format == "ply":
        write_ply(path, gaussians)
    else:
        moves = decoding.decoder.displacements.numpy() if decoding.decoder.moves else None
        write_cif(path, gaussians, centre, moves)


def grid_of(decoding: Decoding, box_size: int | None, pixel_size: float | None) -> tuple[int, float]:
    """Voxels and Å of the grid that is asked for; by default the run's, or a box that is as large."""
    if pixel_size is not None and not 0.01 <= pixel_size <= 1000:
        raise InputError(f"--pixel-size {pixel_size}: it must be between 0.01 and 1000 Å; leave it out for the run's")
    size = pixel_size or decoding.pixel_size
    if box_size is None:
        edge = decoding.box_size * decoding.pixel_size
        same = size == decoding.pixel_size
        box_size = decoding.box_size if same else max(SMALLEST_BOX, 2 * math.ceil(0.5 * edge / size))
    if box_size < SMALLEST_BOX:
        raise InputError(f"--box-size {box_size}: it must be at least {SMALLEST_BOX} voxels")
    return box_size, size


def decode(
    decoding: Decoding,
    points: NDArray[np.float64],
    format: str,
    output: Path,
    several: bool,
    box_size: int | None = None,
    pixel_size: float | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write every point.

    Args:
        points: (n, K).
        several: whether the output is a folder with one numbered file a point, rather than one file.
    """
    if format != "mrc" and (pixel_size is not None or box_size is not None):
        raise InputError(f"--pixel-size and --box-size: a {format} has no grid to choose; they act with --format mrc")
    box_size, pixel_size = grid_of(decoding, box_size, pixel_size)
    if output.exists() and not overwrite:
        raise InputError(f"{output}: exists already; choose another name with -o, or replace it with --overwrite")
    if not several:
        write_point(output, decoding, points[0], format, box_size, pixel_size)
        progress(1, 1)
        return
    digits = max(3, len(str(len(points))))
    names = [f"{i:0{digits}d}{_ENDINGS[format]}" for i in range(1, len(points) + 1)]
    with claiming(output), filling(output, last=names[-1]) as folder:
        for i, (name, z) in enumerate(zip(names, points, strict=True), 1):
            write_point(folder / name, decoding, z, format, box_size, pixel_size)
            progress(i, len(points))
        rows = [f"{name},{','.join(f'{x:.6g}' for x in z)}" for name, z in zip(names, points, strict=True)]
        header = "file," + ",".join(f"z{i + 1}" for i in range(points.shape[1]))
        (folder / "points.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def default_output(folder: Path, format: str, what: str, several: bool) -> Path:
    """In the working directory, named after the run and what is decoded."""
    return Path(f"{folder.resolve().name}_{what}{'' if several else _ENDINGS[format]}")
