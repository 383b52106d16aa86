"""What can be asked of a check. Light to import: the command line shows it as help."""

from __future__ import annotations

from dataclasses import dataclass

from emsplat.errors import InputError
from emsplat.settings import InputSettings
from emsplat.symmetry import symmetry_operators


@dataclass(frozen=True)
class CheckSettings(InputSettings):
    """What can be asked of a check."""

    invert: bool = False  # the particles are dark
    symmetry: str = "C1"  # point group: RELION's names and axes
    n_images: int = 3000  # of the sample that is looked at closely, spread over the file
    every_image: bool = False  # look for NaN, blank and odd images in the whole file, not only in the sample
    seed: int = 0  # of everything that is drawn
    threads: int | None = None  # default: as many as the machine has

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, value, least in (("--n-images", self.n_images, 1), ("--threads", self.threads, 1)):
            if value is not None and value < least:
                raise InputError(f"{option} {value}: it must be {least} or more; leave it out for the automatic choice")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: it must be 0 or more")
        symmetry_operators(self.symmetry)
