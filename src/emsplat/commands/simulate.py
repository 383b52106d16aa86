"""``emsplat simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from emsplat.commands.arguments import Output
from emsplat.settings import SimulationSettings

_DEFAULT = SimulationSettings()


def simulate(
    models: Annotated[Positional[tuple[Path, ...]], arg(metavar="MODEL [MODEL …]")],
    output: Output,
    n_images: int = _DEFAULT.n_images,
    box_size: int = _DEFAULT.box_size,
    pixel_size: float = _DEFAULT.pixel_size_in_angstroms,
    snr: float = _DEFAULT.snr,
    seed: int = _DEFAULT.seed,
    b_factor: float | None = None,
    solvent: bool = True,
    noise: Literal["white", "coloured"] = _DEFAULT.noise,
    orientations: Literal["uniform", "uneven"] = _DEFAULT.orientations,
    shift: float = _DEFAULT.shift_sigma_in_angstroms,
    defocus: tuple[float, float] = _DEFAULT.defocus_range_in_angstroms,
    astigmatism: float = _DEFAULT.astigmatism_in_angstroms,
    phase_shift: float = _DEFAULT.phase_shift_in_degrees,
    assembly: str | None = None,
    like: Path | None = None,
    populations: tuple[float, ...] | None = None,
    contrast_spread: float = _DEFAULT.contrast_sigma,
    angle_error: float = _DEFAULT.angle_error_in_degrees,
    shift_error: float = _DEFAULT.shift_error_in_angstroms,
    junk: float = _DEFAULT.junk,
    overwrite: bool = False,
) -> None:
    """An atomic model or a map → particle images with poses and CTFs, and the truth they are made from.

    Several models, or a file with several MODELs (a trajectory), are the conformations of one particle. They are used
    in the frame they come in, so superpose them first. The folder then holds labels.csv, which says what each image
    shows, and truths/ with the map of each conformation.

    Args:
        models: PDB or mmCIF, also .gz, or a cubic MRC map.
        output: the folder to write particles.star, particles.mrcs, truth.mrc and mask.mrc to.
        n_images: number of images.
        box_size: pixels.
        pixel_size: Å.
        snr: variance of the noise-free images over that of the noise; inf for no noise.
        seed: of everything that is drawn.
        b_factor: of every atom, Å²; left out: as in the file.
        solvent: with it (the default) the particle lies in ice, which it displaces; without, in vacuum.
        noise: white, or with a spectrum that falls with frequency.
        orientations: uniform, or most of the views about one direction.
        shift: standard deviation in x and in y, Å.
        defocus: lowest and highest, Å, underfocus positive.
        astigmatism: standard deviation of U − V, Å.
        phase_shift: of a phase plate, degrees.
        assembly: name of a biological assembly to build; left out: the coordinates as deposited.
        like: a star file whose poses, shifts and CTFs are used instead of drawn ones.
        populations: one number for each conformation, in their order and in any unit; left out: all alike.
        contrast_spread: standard deviation of each image's contrast about 1; the star does not tell it.
        angle_error: error of the poses in the star, degrees: standard deviation of a turn about each axis.
        shift_error: error of the shifts in the star, Å: standard deviation in x and in y.
        junk: share of the images that show no particle, or two neighbours and none in the middle.
        overwrite: replace a simulation the folder holds.
    """
    from emsplat.runtime.console import ConsoleReporter
    from emsplat.runtime.folders import claiming
    from emsplat.simulation import simulate

    settings = SimulationSettings(
        n_images=n_images,
        box_size=box_size,
        pixel_size_in_angstroms=pixel_size,
        snr=snr,
        seed=seed,
        b_factor_in_square_angstroms=b_factor,
        solvent=solvent,
        noise=noise,
        orientations=orientations,
        shift_sigma_in_angstroms=shift,
        defocus_range_in_angstroms=defocus,
        astigmatism_in_angstroms=astigmatism,
        phase_shift_in_degrees=phase_shift,
        assembly=assembly,
        like=like,
        populations=populations,
        contrast_sigma=contrast_spread,
        angle_error_in_degrees=angle_error,
        shift_error_in_angstroms=shift_error,
        junk=junk,
    )
    reporter = ConsoleReporter()
    with claiming(output) as found:
        for line in found:
            reporter.warn(line)
        with reporter.stage("simulation"), reporter.bar("simulating", "images") as advance:
            star = simulate(models, output, settings, overwrite, advance)
    reporter.line(f"{n_images:,} images of {box_size} × {box_size} pixels: {star}")
