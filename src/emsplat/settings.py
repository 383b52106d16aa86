"""The options of a reconstruction and of a simulation. The command line shows the comments on the fields as help.

This module is light to import, so that help comes at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from emsplat.errors import InputError
from emsplat.symmetry import symmetry_operators

SMALLEST_BOX = 16
FieldKind = Literal["neural-field", "hash-grid"]
ModelKind = Literal["gaussians", "neural-field", "hash-grid"]
MODEL_NAMES: dict[ModelKind, str] = {  # in sentences
    "gaussians": "Gaussians",
    "neural-field": "neural fields",
    "hash-grid": "hash grids",
}
REFINABLE = ("poses", "shifts", "contrast", "defocus")
LARGEST_RANGE_IN_DEGREES = 30  # a local search finds nothing beyond


@dataclass(frozen=True)
class FileSettings:
    """What a particle file does not say itself, and which of its images are used."""

    datadir: Path | None = None  # Folder that image names are relative to, if it is not the folder of the file.
    strip_prefix: str | None = None  # Leading part of the image names that is not part of their path any more.
    pixel_size: float | None = None  # Pixel size in Å. It overrides the file and the stacks.
    ctf: Path | None = None  # ctf.pkl of cryoDRGN for the images of PARTICLES.
    no_ctf: bool = False  # Take the CTF as 1, because the images have none or it is not known.
    passthrough: tuple[Path, ...] = ()  # Passthrough tables of cryoSPARC, joined on uid.
    # Images to use, and no others: a text or CSV file of ids, or a pickle of row numbers, such as cryoDRGN's ind.pkl.
    keep: Path | None = None
    drop: Path | None = None  # Images to leave out, listed in the same way. emsplat check writes such a list.

    def __post_init__(self) -> None:
        _require_option("--pixel-size", self.pixel_size, 1e-3, "a positive number of Å")
        if self.keep is not None and self.drop is not None:
            raise InputError("--keep and --drop: both were given; give only one of them")


@dataclass(frozen=True)
class InputSettings(FileSettings):
    """What a particle file with poses does not say itself, and which of its images are used."""

    poses: Path | None = None  # poses.pkl of cryoDRGN for the images of PARTICLES.

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.poses is None) != (self.ctf is None) and not (self.ctf is None and self.no_ctf):
            raise InputError(
                "--poses and --ctf are the two pickles of cryoDRGN: give both or neither of them; images without a CTF "
                "need --no-ctf in place of --ctf"
            )


@dataclass(frozen=True)
class ReconstructSettings(InputSettings):
    """The options of a reconstruction. What is None is found from the data, and the log says what was found."""

    invert: bool = False  # Set this if the particles are dark.
    # Number of Gaussians of each fit. If left out, it follows from the particle's size, SNR and number of images.
    n_gaussians: int | None = None
    # Number of fits of each half, from different starts, that are averaged. If left out, 2, or 1 with --solver images
    # and for neural fields.
    n_fits: int | None = None
    isotropic: bool = False  # Use round Gaussians only.
    symmetry: str = "C1"  # Point group, with the names and axes of RELION.
    mask_diameter: float | None = None  # Diameter, in Å, of a sphere about the box centre that holds the particle.
    # MRC map with values from 0 to 1, within which the map is combined and judged. If left out, it is made from the
    # data.
    mask: Path | None = None
    max_resolution: float | None = None  # Finest resolution, in Å, to look at. A coarse limit saves time and memory.
    # B-factor in Å² for sharpening (negative values sharpen), or auto to estimate it. If left out, no sharpening.
    sharpen: float | Literal["auto"] | None = None
    refine: str | None = None  # What to refine for each image, separated by commas: poses,shifts,contrast,defocus.
    # Largest change of a pose in degrees and of a shift in Å. If left out, 10°, and the shift of the rim that it makes.
    refine_range: tuple[float, float] | None = None
    cache: Path | None = None  # Folder on a local disk for small copies of the images, if the file system is slow.
    cache_size: float | None = None  # Largest size of the whole cache in GB. If left out, the free space of its disk.
    # Fit to the statistics of all images, or to the images themselves, as splatting does elsewhere, much more slowly.
    solver: Literal["statistics", "images"] = "statistics"
    # What is fitted. The neural field and the hash grid with a small network are there for comparison with Gaussians.
    model: ModelKind = "gaussians"
    seed: int = 0  # Seed of all random numbers.
    threads: int | None = None  # Number of threads. If left out, as many as the machine has.
    # Processor (cpu) or graphics card (cuda) to work on. auto takes a graphics card if one can be used.
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def refined(self) -> tuple[str, ...]:
        """The quantities of each image that are refined."""
        return () if self.refine is None else tuple(name.strip() for name in self.refine.split(","))

    def for_search(self) -> AbInitioSettings:
        """The same options of a search for poses.

        Raises:
            InputError: an option is given that the search does not have.
        """
        known = {f.name for f in fields(AbInitioSettings)}
        for f in fields(self):
            if f.name not in known and getattr(self, f.name) != f.default:
                option = f"--{f.name.replace('_', '-')}"
                raise InputError(f"{option}: emsplat abinitio has no such option; leave it out")
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name in known}
        return AbInitioSettings(**given)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_refinement(self.refine, self.refined, self.refine_range)
        rules = (
            ("--n-gaussians", self.n_gaussians, 1, "a positive number"),
            ("--n-fits", self.n_fits, 1, "a positive number"),
            ("--mask-diameter", self.mask_diameter, 1e-3, "a positive number of Å"),
            ("--max-resolution", self.max_resolution, 1e-3, "a positive number of Å"),
            ("--cache-size", self.cache_size, 1e-6, "a positive number of GB"),
            ("--threads", self.threads, 1, "a positive number"),
            ("--seed", self.seed, 0, "0 or more"),
        )
        for option, value, least, rule in rules:
            _require_option(option, value, least, rule)
        _check_cache(self.cache, self.cache_size)
        if isinstance(self.sharpen, float | int) and not math.isfinite(self.sharpen):
            raise InputError(
                f"--sharpen {self.sharpen}: it must be a B-factor in Å² or auto; give one, or leave it out"
            )
        symmetry_operators(self.symmetry)
        self._check_model()

    def _check_model(self) -> None:
        """InputError if something is asked for that only Gaussians have."""
        asked = {
            "--n-gaussians": self.n_gaussians is not None,
            "--isotropic": self.isotropic,
            "--solver images": self.solver == "images",
        }
        if self.model != "gaussians" and any(asked.values()):
            option = next(name for name, given in asked.items() if given)
            raise InputError(f"--model {self.model}: {option} is for Gaussians only; leave out the one or the other")


@dataclass(frozen=True)
class HeterogeneitySettings(InputSettings):
    """The options of a search for heterogeneity. What is None is found from the data, and the log says so."""

    components: int | Literal["auto"] = "auto"  # Number of latents of each particle. auto: as many as both halves see.
    states: int | Literal["auto"] = "auto"  # Number of maps of states. auto: from the number of images.
    # MRC map with values from 0 to 1. Variability is sought within it. It is resampled where its box or pixel size
    # differ. If left out, within the sphere of the particle.
    mask: Path | None = None
    invert: bool = False  # Set this if the particles are dark.
    # Number of Gaussians of each fit. If left out, it follows from the particle's size, SNR and number of images.
    n_gaussians: int | None = None
    mask_diameter: float | None = None  # Diameter, in Å, of a sphere about the box centre that holds the particle.
    max_resolution: float | None = None  # Finest resolution, in Å, to look at. A coarse limit saves time and memory.
    # What to refine for each image beforehand, separated by commas: poses,shifts,contrast,defocus.
    refine: str | None = None
    # Largest change of a pose in degrees and of a shift in Å. If left out, 10°, and the shift of the rim that it makes.
    refine_range: tuple[float, float] | None = None
    seed: int = 0  # Seed of all random numbers.
    threads: int | None = None  # Number of threads. If left out, as many as the machine has.
    # Processor (cpu) or graphics card (cuda) for the consensus and for the bins' statistics. The rest runs on the CPU.
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def n_components(self) -> int | None:
        """How many were asked for."""
        return None if self.components == "auto" else int(self.components)

    @property
    def n_states(self) -> int | None:
        """How many were asked for."""
        return None if self.states == "auto" else int(self.states)

    def for_consensus(self) -> ReconstructSettings:
        """The settings of the reconstruction that comes first; the mask is that of the variability."""
        names = {f.name for f in fields(ReconstructSettings)} & {f.name for f in fields(self)} - {"mask"}
        return ReconstructSettings(**{name: getattr(self, name) for name in names})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.for_consensus()
        _require_option("--components", self.n_components, 1, "a positive number, or auto")
        _require_option("--states", self.n_states, 1, "a positive number, or auto")


@dataclass(frozen=True)
class AbInitioSettings(FileSettings):
    """The options of a search for poses from none. What is None is found from the data, and the log says so."""

    invert: bool = False  # Set this if the particles are dark.
    symmetry: str = "C1"  # Point group to impose, with the names and axes of RELION.
    mask_diameter: float | None = None  # Diameter, in Å, of a circle about the image's middle that holds the particle.
    # Largest distance, in Å, of a particle from the middle of its image. If left out, a fifth of the box.
    max_shift: float | None = None
    max_resolution: float | None = None  # Finest resolution, in Å, to look at.
    # Largest number of searches of each half set from other random poses. More than one only if they disagree.
    starts: int = 3
    # Number of maps to find at once, beside a class of images that show no particle. If left out, one map of all.
    classes: int | None = None
    cache: Path | None = None  # Folder on a local disk for small copies of the images, if the file system is slow.
    cache_size: float | None = None  # Largest size of the whole cache in GB. If left out, the free space of its disk.
    seed: int = 0  # Seed of all random numbers.
    threads: int | None = None  # Number of threads. If left out, as many as the machine has.
    # Processor (cpu) or graphics card (cuda) to work on. auto takes a graphics card if one can be used.
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = (
            ("--mask-diameter", self.mask_diameter, 1e-3, "a positive number of Å"),
            ("--max-shift", self.max_shift, 0, "0 or more Å"),
            ("--max-resolution", self.max_resolution, 1e-3, "a positive number of Å"),
            ("--starts", self.starts, 1, "a positive number"),
            ("--classes", self.classes, 1, "a positive number"),
            ("--cache-size", self.cache_size, 1e-6, "a positive number of GB"),
            ("--threads", self.threads, 1, "a positive number"),
            ("--seed", self.seed, 0, "0 or more"),
        )
        for option, value, least, rule in rules:
            _require_option(option, value, least, rule)
        _check_cache(self.cache, self.cache_size)
        symmetry_operators(self.symmetry)


def _check_cache(folder: Path | None, most_gigabytes: float | None) -> None:
    if most_gigabytes is not None and folder is None:
        raise InputError("--cache-size says how large --cache may grow; give --cache too, or leave both out")


def _check_refinement(asked: str | None, quantities: tuple[str, ...], limits: tuple[float, float] | None) -> None:
    if len(set(quantities)) < len(quantities) or not set(quantities) <= set(REFINABLE):
        raise InputError(
            f"--refine {asked}: it must be one or more of {','.join(REFINABLE)}, each once, separated by commas"
        )
    if limits is None:
        return
    if asked is None:
        raise InputError("--refine-range says how far --refine may go; give --refine too, or leave both out")
    degrees, angstroms = limits
    if not (0 < degrees <= LARGEST_RANGE_IN_DEGREES and 0 < angstroms < math.inf):
        raise InputError(
            f"--refine-range {degrees:g} {angstroms:g}: it must be an angle between 0° and {LARGEST_RANGE_IN_DEGREES}° "
            "and a positive number of Å, because the refinement is local; leave it out for 10°, or search the poses "
            "with another program"
        )


def _require_option(option: str, value: float | None, least: float, rule: str) -> None:
    if value is not None and not least <= value < math.inf:
        raise InputError(f"{option} {value}: it must be {rule}; leave it out for the automatic choice")


@dataclass(frozen=True)
class SimulationSettings:
    """The options of a simulated data set. InputError if a value makes no sense.

    The SNR is the variance of the noise-free images (with CTF, over the whole box, averaged over the images) divided by
    the variance of the noise; `inf` gives noise-free images.
    """

    n_images: int = 1000
    box_size: int = 128
    pixel_size_in_angstroms: float = 1.5
    snr: float = 0.05
    seed: int = 0
    b_factor_in_square_angstroms: float | None = None  # of every atom; None: as in the file, clipped to 10–300
    solvent: bool = True  # the particle lies in ice, which it displaces; otherwise in vacuum
    noise: Literal["white", "coloured"] = "white"
    orientations: Literal["uniform", "uneven"] = "uniform"
    shift_sigma_in_angstroms: float = 3.0
    defocus_range_in_angstroms: tuple[float, float] = (8_000.0, 20_000.0)  # underfocus positive, uniform between
    astigmatism_in_angstroms: float = 200.0  # standard deviation of U − V, at random angles
    voltage_in_kilovolts: float = 300.0
    spherical_aberration_in_millimetres: float = 2.7
    amplitude_contrast: float = 0.1
    phase_shift_in_degrees: float = 0.0
    assembly: str | None = None  # name of a biological assembly; None: the coordinates as deposited
    like: Path | None = None  # a star whose poses, shifts, CTF and optics are used instead of drawn ones
    populations: tuple[float, ...] | None = None  # of the conformations, in any unit; None: all alike
    contrast_sigma: float = 0.0  # standard deviation of each image's scale, about 1
    angle_error_in_degrees: float = 0.0  # of the poses in the star: standard deviation of a turn about each axis
    shift_error_in_angstroms: float = 0.0  # of the shifts in the star: standard deviation in x and in y
    junk: float = 0.0  # share of the images that show no particle, or two others off-centre

    @property
    def has_pose_errors(self) -> bool:
        """Whether the star's poses differ from the true ones."""
        return self.angle_error_in_degrees > 0 or self.shift_error_in_angstroms > 0

    def __post_init__(self) -> None:
        _require(self.n_images >= 1, "n_images", self.n_images, "at least 1")
        _require(self.box_size >= SMALLEST_BOX, "box_size", self.box_size, f"at least {SMALLEST_BOX} pixels")
        _require(0 < self.pixel_size_in_angstroms < 1e3, "pixel_size", self.pixel_size_in_angstroms, "positive, in Å")
        _require(self.snr > 0, "snr", self.snr, "positive (inf for no noise)")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        b = self.b_factor_in_square_angstroms
        _require(b is None or 0 <= b < 1e4, "b_factor", b, "0 or more, in Å²")
        _require(self.noise in ("white", "coloured"), "noise", self.noise, "white or coloured")
        _require(self.orientations in ("uniform", "uneven"), "orientations", self.orientations, "uniform or uneven")
        shift, astigmatism = self.shift_sigma_in_angstroms, self.astigmatism_in_angstroms
        _require(0 <= shift < math.inf, "shift_sigma", shift, "0 or more, in Å")
        low, high = self.defocus_range_in_angstroms
        _require(-math.inf < low <= high < math.inf, "defocus_range", (low, high), "given as lowest, highest, in Å")
        _require(0 <= astigmatism < math.inf, "astigmatism", astigmatism, "0 or more, in Å")
        _require(0 < self.voltage_in_kilovolts < math.inf, "voltage", self.voltage_in_kilovolts, "positive, in kV")
        cs = self.spherical_aberration_in_millimetres
        _require(math.isfinite(cs), "spherical_aberration", cs, "a number of mm")
        _require(math.isfinite(self.phase_shift_in_degrees), "phase_shift", self.phase_shift_in_degrees, "in degrees")
        _require(0 <= self.amplitude_contrast <= 1, "amplitude_contrast", self.amplitude_contrast, "between 0 and 1")
        p = self.populations
        _require(
            p is None or all(0 < x < math.inf for x in p), "populations", p, "positive numbers, one a conformation"
        )
        contrast, junk = self.contrast_sigma, self.junk
        _require(0 <= contrast <= 0.5, "contrast_sigma", contrast, "between 0 and 0.5")
        angle, shift = self.angle_error_in_degrees, self.shift_error_in_angstroms
        _require(0 <= angle <= 180, "angle_error", angle, "between 0 and 180 degrees")
        _require(0 <= shift < math.inf, "shift_error", shift, "0 or more, in Å")
        _require(0 <= junk < 1, "junk", junk, "a share of the images, from 0 to below 1")


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise InputError(f"simulate: {name} is {value}; it must be {rule}")
