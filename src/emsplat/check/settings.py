"""The options of a check. The command line shows the comments on the fields as help."""

from __future__ import annotations

from dataclasses import dataclass

from emsplat.errors import InputError
from emsplat.settings import InputSettings
from emsplat.symmetry import symmetry_operators


@dataclass(frozen=True)
class CheckSettings(InputSettings):
    """The options of a check."""

    invert: bool = False  # Set this if the particles are dark.
    symmetry: str = "C1"  # Point group, with the names and axes of RELION.
    n_images: int = 3000  # Number of images, spread over the file, that are looked at closely.
    every_image: bool = False  # Look for NaN, blank and odd images in the whole file, not only in the sample.
    seed: int = 0  # Seed of all random numbers.
    threads: int | None = None  # Number of threads. If left out, as many as the machine has.

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, value, least in (("--n-images", self.n_images, 1), ("--threads", self.threads, 1)):
            if value is not None and value < least:
                raise InputError(f"{option} {value}: it must be {least} or more; leave it out for the automatic choice")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: it must be 0 or more")
        symmetry_operators(self.symmetry)
