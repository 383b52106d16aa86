"""The time and the memory that it takes to read a large particle file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import emsplat
from common import REPOSITORY, Report, arguments
from emsplat.imaging.noise import noise_spectra
from emsplat.io import ImageSource, StackWriter, write_map
from emsplat.io.copies import copies_by_content
from emsplat.statistics.accumulate import AccumulationSettings, accumulate
from programs import GB, measured

sys.path.append(str(REPOSITORY / "tests"))
from phantom import imagined_particles, numbered_parts

_SECONDS, _GIGABYTES = 10, 1.5
_BOX = 256  # pixels

_TEXT = f"""`read_particles` in a process of its own, from its start to its end: a RELION 3.1 star of 26 columns as a
refinement writes it, the table joined, checked and turned to numbers, and the header of every stack read (files with
holes: the images are not read). The fastest of the runs, and the load of the machine, of 2 cores, before it.
**Required: a million rows in under {_SECONDS} s and under {_GIGABYTES} GB.**"""

_COPIES_TEXT = """When a table is read, a piece of each image is read to find copies under other names; of sets of more
than 50,000 images, of a sample of them. CPU-seconds, the least of three runs, with files that the machine has in
memory."""

_OPTICS = {
    "rlnOpticsGroupName": "opticsGroup1",
    "rlnOpticsGroup": 1,
    "rlnMtfFileName": "mtf.star",
    "rlnMicrographOriginalPixelSize": "0.885",
    "rlnVoltage": "200.0",
    "rlnSphericalAberration": "1.4",
    "rlnAmplitudeContrast": "0.1",
    "rlnImagePixelSize": "1.244",
    "rlnImageSize": _BOX,
    "rlnImageDimensionality": 2,
    "rlnBeamTiltX": "0.025832",
    "rlnBeamTiltY": "-0.21617",
}
_FORMATS = {  # lowest value, highest, and how RELION prints it; None: the image, the micrograph, its number
    "rlnCoordinateX": (0, 4000, "%12.6f"),
    "rlnCoordinateY": (0, 4000, "%12.6f"),
    "rlnClassNumber": (1, 1, "%12d"),
    "rlnAutopickFigureOfMerit": (0, 3, "%12.6f"),
    "rlnAnglePsi": (-180, 180, "%12.6f"),
    "rlnImageName": None,
    "rlnMicrographName": None,
    "rlnOpticsGroup": (1, 1, "%12d"),
    "rlnCtfMaxResolution": (3, 8, "%12.6f"),
    "rlnCtfFigureOfMerit": (0, 1, "%12.6f"),
    "rlnDefocusU": (8000, 20_000, "%12.6f"),
    "rlnDefocusV": (8000, 20_000, "%12.6f"),
    "rlnDefocusAngle": (0, 180, "%12.6f"),
    "rlnCtfBfactor": (0, 0, "%12.6f"),
    "rlnCtfScalefactor": (1, 1, "%12.6f"),
    "rlnPhaseShift": (0, 0, "%12.6f"),
    "rlnGroupNumber": None,
    "rlnAngleRot": (-180, 180, "%12.6f"),
    "rlnAngleTilt": (0, 180, "%12.6f"),
    "rlnOriginXAngst": (-5, 5, "%12.6f"),
    "rlnOriginYAngst": (-5, 5, "%12.6f"),
    "rlnNormCorrection": (0.5, 1.5, "%12.6f"),
    "rlnLogLikeliContribution": (1e5, 3e5, "%12.6e"),
    "rlnMaxValueProbDistribution": (0, 1, "%12.6f"),
    "rlnNrOfSignificantSamples": (1, 10, "%12d"),
    "rlnRandomSubset": (1, 3, "%12d"),
}


def large_star(folder: Path, n: int, n_stacks: int) -> Path:
    """A star of n rows, equally many of each stack, and the stacks; they are made once."""
    star = folder / "particles.star"
    if star.exists():
        return star
    print(f"writing {star}", flush=True)
    (folder / "Extract").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    each = n // n_stacks
    unfinished = folder / "unfinished"
    with unfinished.open("w") as file:
        file.write("\n# version 30001\n\ndata_optics\n\nloop_ \n")
        file.writelines(f"_{name} #{number} \n" for number, name in enumerate(_OPTICS, start=1))
        file.write(" ".join(map(str, _OPTICS.values())) + " \n \n\n# version 30001\n\ndata_particles\n\nloop_ \n")
        file.writelines(f"_{name} #{number} \n" for number, name in enumerate(_FORMATS, start=1))
        for stack in range(n_stacks):
            name = f"20170629_{stack:05d}_frameImage"
            write_stack(folder / "Extract" / f"{name}.mrcs", each)
            file.writelines(_rows(rng, each, name, stack + 1))
        file.write(" \n")
    return unfinished.rename(star)


def _rows(rng: np.random.Generator, n: int, micrograph: str, number: int) -> list[str]:
    """The rows of one stack, as text."""
    own = {
        "rlnImageName": f"%06d@Extract/{micrograph}.mrcs",
        "rlnMicrographName": f"MotionCorr/job002/Movies/{micrograph}.mrc%.0s",
        "rlnGroupNumber": f"{number:12d}%.0s",
    }
    line = " ".join(spec[2] if spec else own[name] for name, spec in _FORMATS.items()) + " \n"
    columns = [rng.uniform(*spec[:2], n) if spec else np.arange(1, n + 1) for spec in _FORMATS.values()]
    return [line % row for row in zip(*columns, strict=True)]


def write_stack(path: Path, n: int) -> None:
    """A stack of n images that takes no room on the disk."""
    write_map(path, np.zeros((1, 1, 1)), 1.244)
    header = bytearray(path.read_bytes()[:1024])
    header[:12] = np.array([_BOX, _BOX, n], "<i4").tobytes()
    header[28:40] = np.array([_BOX, _BOX, 1], "<i4").tobytes()
    header[40:52] = (np.array([_BOX, _BOX, 1], "<f4") * np.float32(1.244)).tobytes()
    path.write_bytes(header)
    os.truncate(path, 1024 + 4 * _BOX**2 * n)


def row(folder: Path, n: int, n_stacks: int, repeats: int) -> dict[str, Any]:
    """The row of n images; n is a multiple of the number of stacks."""
    star = large_star(folder / f"{n}-{n_stacks}", n, n_stacks)
    program = f"from emsplat.io import read_particles; assert len(read_particles({str(star)!r})) == {n}"
    environ = {"PYTHONPATH": str(Path(emsplat.__file__).parents[1])}
    load, runs = os.getloadavg()[0], []
    for _ in range(repeats):
        runs.append(measured([sys.executable, "-c", program], star.parent, environ=environ))
    best = min(runs, key=lambda run: run.seconds)
    return {
        "rows": n,
        "stacks": n_stacks,
        "file, MB": star.stat().st_size / 1e6,
        "seconds": best.seconds,
        "seconds of CPU": best.cpu_seconds,
        "peak, GB": best.peak_bytes / GB,
        "load before": load,
        f"under {_SECONDS} s": best.seconds < _SECONDS,
        f"under {_GIGABYTES} GB": best.peak_bytes < _GIGABYTES * GB,
    }


def cost_of_looking(folder: Path, n: int, box_size: int) -> dict[str, Any]:
    """What the look at the pixels for copies costs, beside the accumulation of the same images of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, each = np.random.default_rng(0), 500
    stacks = [folder / f"{box_size}-{number}.mrcs" for number in range(n // each)]
    for path in stacks:
        with StackWriter(path, box_size, 2.0) as stack:
            stack.append(rng.normal(size=(each, box_size, box_size)).astype(np.float32))
    places = {"stack": (np.arange(n) // each).astype(np.int32), "section": np.arange(n) % each}
    table = replace(imagined_particles(n, box_size), stacks=tuple(stacks), **places)
    place = np.arange(n)
    looking = _cpu_seconds(lambda: copies_by_content(table, place))
    with ImageSource(table) as images:
        few = np.arange(each)
        noise = noise_spectra(images.read(few), table.select(few))
        settings = AccumulationSettings(box_size, box_size, noise, np.eye(3)[None])
        working = _cpu_seconds(lambda: accumulate(table, images, numbered_parts(place % 2), settings))
    for path in stacks:
        path.unlink()
    return {
        "images": n,
        "box": box_size,
        "looking, CPU-s": looking,
        "accumulation, CPU-s": working,
        "share": looking / working,
        "µs an image": 1e6 * looking / n,
    }


def _cpu_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The least processor seconds of several runs."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    args = arguments(__doc__, repeats=(3, "runs of each"))
    sizes = [(10_000, 100)] if args.quick else [(100_000, 1000), (1_000_000, 2000)]
    report = Report("reading", "Reading particle files", args)
    rows: list[dict[str, Any]] = []
    for n, n_stacks in sizes:
        rows.append(row(args.work / "reading", n, n_stacks, args.repeats))
        report.table("A star and its stacks", rows, _TEXT)
    looks = [(1000, 32)] if args.quick else [(10_000, 64), (4000, 128), (1000, 256)]
    costs = [cost_of_looking(args.work / "looking", *size) for size in looks]
    report.table("Looking for copies of images", costs, _COPIES_TEXT)


if __name__ == "__main__":
    main()
