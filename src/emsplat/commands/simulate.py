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
    """Simulate particle images with poses and CTFs from atomic models or maps, and write the truth beside them.

    Several models, or a file with several MODELs (a trajectory), are the conformations of one particle. They are used
    in the frame they come in, so superpose them first. The folder then holds labels.csv, which says what each image
    shows, and truths/ with the map of each conformation.

    Args:
        models: PDB or mmCIF files, also compressed with gzip, or cubic MRC maps, also compressed.
        output: Folder that particles.star, particles.mrcs, truth.mrc and mask.mrc are written to.
        n_images: Number of images.
        box_size: Box size in pixels.
        pixel_size: Pixel size in Å.
        snr: Variance of the noise-free images divided by the variance of the noise; inf for no noise.
        seed: Seed of all random numbers.
        b_factor: B-factor of every atom in Å². If left out, the B-factors of the file.
        solvent: By default the particle lies in ice, which it displaces. With this option it lies in vacuum.
        noise: White noise, or noise with a spectrum that falls with frequency.
        orientations: Uniform viewing directions, or most of them about one direction.
        shift: Standard deviation of the shifts in x and in y, in Å.
        defocus: Lowest and highest defocus in Å; underfocus is positive.
        astigmatism: Standard deviation of U − V in Å.
        phase_shift: Phase shift of a phase plate in degrees.
        assembly: Name of a biological assembly to build. If left out, the coordinates as deposited.
        like: Star file whose poses, shifts and CTFs are used instead of random ones.
        populations: Share of each conformation, one number for each in their order and in any unit. If left out, all
            are equally frequent.
        contrast_spread: Standard deviation of the contrast of the images about 1. The star does not reveal it.
        angle_error: Error of the poses in the star: standard deviation, in degrees, of a turn about each axis.
        shift_error: Error of the shifts in the star: standard deviation in x and in y, in Å.
        junk: Share of the images that show no particle, or two neighbours and none in the middle.
        overwrite: Replace a simulation that the folder holds.

    Examples:
        # Simulate 2,000 noisy images of a PDB entry:
        emsplat simulate 7pbl.cif -o simulation --n-images 2000 --box-size 96 --pixel-size 2.0 --snr 0.05
        # Take poses and CTFs from a real data set:
        emsplat simulate 8bk7.cif.gz -o simulation --like particles.star
        # Mix two conformations, a third of the images showing the second one:
        emsplat simulate open.pdb closed.pdb -o simulation --populations 2 1
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
