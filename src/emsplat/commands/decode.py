"""``emsplat decode``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


def decode(
    run: Annotated[Positional[Path], arg(metavar="DIR")],
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="PATH")] = None,
    at: str | None = None,
    state: int | None = None,
    particles: Path | None = None,
    path: tuple[str, str] | None = None,
    number: Annotated[int, arg(aliases=["-n"])] = 20,
    format: Literal["mrc", "gaussians", "ply", "cif"] = "mrc",
    pixel_size: float | None = None,
    box_size: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write maps or models at chosen points of the latent space of a finished search for heterogeneity.

    Args:
        run: Folder that emsplat heterogeneity wrote.
        output: File, or for several points the folder, to write. If left out, it is named after DIR, in the working
            directory.
        at: One point: its latents with commas between, such as 0.5,-1.2. Write --at=-1,2 if the first is negative.
        state: One point: the mean latent of the state with this number.
        particles: One point for each particle that a file names: one id a line, or a CSV file with a column id; ids as
            in latents.csv. The maps are numbered in the file's order.
        path: Points on a straight line between two ends, each the number of a state or latents with commas between.
        number: Number of points of a path.
        format: mrc: the density on a grid with any pixel size and box. gaussians: the Gaussians (safetensors). ply: the
            Gaussians for viewers of 3D Gaussian splats, only to look at. cif: the Gaussians as pseudo-atoms (mmCIF),
            with their displacements per unit of each latent where the decoder moves them.
        pixel_size: Pixel size of an mrc in Å. If left out, that of the run's images.
        box_size: Box size of an mrc in voxels. If left out, the box is as large as that of the run's images.
        overwrite: Replace what exists.

    Examples:
        # Write the map of a point with two components:
        emsplat decode states --at=-1.5,0.3 -o point.mrc
        # Write twenty maps on the way from state 1 to state 3:
        emsplat decode states --path 1 3 -n 20 -o movie
        # Write one map for each of some particles, in the file's order:
        emsplat decode states --particles ids.csv -o maps
    """
    from emsplat.runtime.console import ConsoleReporter

    reporter = ConsoleReporter()
    with reporter.loading():
        import emsplat.export.decode as decoding
        from emsplat.errors import InputError
    given = {"--at": at, "--state": state, "--particles": particles, "--path": path}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise InputError(
            f"{' and '.join(chosen) or 'no point'}: give exactly one of --at, --state, --particles and --path"
        )
    if number < 2:
        raise InputError(f"--number {number}: a path has at least 2 points")
    with reporter.stage("reading"):
        read = decoding.open_decoding(run)
        if at is not None:
            points, what = read.point(at)[None], "point"
        elif state is not None:
            points, what = read.state(str(state))[None], f"state{state}"
        elif particles is not None:
            points, what = decoding.latents_of(read, particles), "particles"
        else:
            assert path is not None
            points, what = decoding.between(read.end(path[0]), read.end(path[1]), number), "path"
    several = chosen[0] in ("--particles", "--path")
    output = output or decoding.default_output(run, format, what, several)
    with reporter.stage("decoding"), reporter.bar("decoding", "points") as advance:
        decoding.decode(read, points, format, output, several, box_size, pixel_size, overwrite, advance)
    reporter.line(f"{len(points):,} {'points' if len(points) > 1 else 'point'}: {output}")
