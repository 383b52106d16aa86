"""Particles: the table of images with their poses, optics and half sets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.conventions import rotation_matrices
from emsplat.errors import InputError
from emsplat.particles.poses import Poses


@dataclass(frozen=True)
class OpticsGroup:
    """What all images of one optics group share."""

    name: str
    pixel_size_in_angstroms: float
    box_size: int
    voltage_in_kilovolts: float
    spherical_aberration_in_millimetres: float
    amplitude_contrast: float
    premultiplied: bool = False  # images already hold CTF × image
    phase_flipped: bool = False  # phases are flipped where the CTF is negative; reading flips them back
    beam_tilt_in_milliradians: tuple[float, float] = (0.0, 0.0)  # x, y
    odd_zernike: tuple[float, ...] = ()  # RELION's coefficients of the antisymmetric phase, beyond the beam tilt
    even_zernike: tuple[float, ...] = ()  # RELION's coefficients of the symmetric phase, beyond defocus and Cs
    magnification: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 1.0)  # RELION's rlnMagMat00, 01, 10, 11


@dataclass(frozen=True)
class Particles:
    """The table of particles, with one row for each image. Rows carry a stable id and are never joined by position.

    Shapes: N rows; angles in degrees, lengths in Å, dose in e/Å².
    """

    source: Path
    optics: tuple[OpticsGroup, ...]
    stacks: tuple[Path, ...]
    ids: NDArray[np.str_]  # (N,) "index@stack" as the file says, or cryoSPARC's uid
    stack: NDArray[np.int32]  # (N,) index into stacks
    section: NDArray[np.int64]  # (N,) image number within its stack, from 0
    optics_group: NDArray[np.int32]  # (N,) index into optics
    euler_angles_in_degrees: NDArray[np.float64]  # (N, 3) rot, tilt, psi
    origin_in_angstroms: NDArray[np.float64]  # (N, 2) x, y: the shift that centres the image
    defocus_u_in_angstroms: NDArray[np.float64]  # (N,)
    defocus_v_in_angstroms: NDArray[np.float64]  # (N,)
    defocus_angle_in_degrees: NDArray[np.float64]  # (N,)
    phase_shift_in_degrees: NDArray[np.float64]  # (N,)
    b_factor_in_square_angstroms: NDArray[np.float64]  # (N,) envelope exp(−B s²/4)
    ctf_scale: NDArray[np.float64]  # (N,)
    pre_exposure: NDArray[np.float64]  # (N,) e/Å², 0 where it does not vary within a particle
    particle: NDArray[np.int64]  # (N,) rows of one particle (its tilts) share a number
    half_set: NDArray[np.int8]  # (N,) 1 or 2; 0 where the file gives none
    warnings: tuple[str, ...] = ()  # what the reader could not honour, one line each
    # (N,) rows that the file names as the tilts of one particle share a number; None: the file names no tilts
    tilted_particle: NDArray[np.int64] | None = None
    dark: NDArray[np.bool_] | None = None  # (N,) images that the file marks as dark, negated when read; None: none
    modelled_to_in_angstroms: float | None = (
        None  # finer detail holds aberrations that are not modelled; None: no detail does
    )
    added_noise: float = 0.0  # standard deviation of the white noise that reading adds to images without any
    symmetry_axes: str = "RELION"  # the program whose axes the names of point groups refer to
    n_left_out: int = 0  # rows of the file that the user left out

    def __len__(self) -> int:
        return len(self.section)

    @property
    def box_size(self) -> int:
        return self.optics[0].box_size

    @property
    def pixel_size_in_angstroms(self) -> float:
        return self.optics[0].pixel_size_in_angstroms

    @property
    def poses(self) -> Poses:
        """(N,) rotations and shifts, with which all computation works."""
        return Poses.from_relion(self.euler_angles_in_degrees, self.origin_in_angstroms)

    def with_poses(self, poses: Poses) -> Particles:
        """The same images with other poses."""
        angles, origins = poses.to_relion()
        return replace(self, euler_angles_in_degrees=angles, origin_in_angstroms=origins)

    def with_defocus_changed(self, changes_in_angstroms: NDArray[np.float64]) -> Particles:
        """The same images with (N,) changes added to both defoci of each."""
        return replace(
            self,
            defocus_u_in_angstroms=self.defocus_u_in_angstroms + changes_in_angstroms,
            defocus_v_in_angstroms=self.defocus_v_in_angstroms + changes_in_angstroms,
        )

    @property
    def has_ctf(self) -> bool:
        """Whether any image has a CTF other than 1 (or than its scale)."""
        of_images = (
            self.defocus_u_in_angstroms,
            self.defocus_v_in_angstroms,
            self.phase_shift_in_degrees,
            self.b_factor_in_square_angstroms,
        )
        return any(values.any() for values in of_images) or any(g != _without_transfer(g) for g in self.optics)

    def without_ctf(self) -> Particles:
        """The same images with a CTF of 1 and no aberrations; scales and doses stay."""
        zero = np.zeros(len(self))
        return replace(
            self,
            optics=tuple(_without_transfer(group) for group in self.optics),
            defocus_u_in_angstroms=zero,
            defocus_v_in_angstroms=zero,
            defocus_angle_in_degrees=zero,
            phase_shift_in_degrees=zero,
            b_factor_in_square_angstroms=zero,
            modelled_to_in_angstroms=None,
        )

    @property
    def centres_in_pixels(self) -> NDArray[np.float64]:
        """(N, 2) x, y of the particles' centres in their images, counted from pixel 0."""
        return self.box_size // 2 - self.origin_in_angstroms / self.pixel_size_in_angstroms

    def left_out_text(self) -> str:
        """How many rows of the file the user left out, to stand after the number of images; empty if none."""
        return f" ({self.n_left_out:,} others are left out)" if self.n_left_out else ""

    @property
    def premultiplied(self) -> NDArray[np.bool_]:
        """(N,) whether each image holds CTF × image."""
        return np.array([group.premultiplied for group in self.optics])[self.optics_group]

    @property
    def phase_flipped(self) -> NDArray[np.bool_]:
        """(N,) whether the phases of each image are flipped in the file."""
        return np.array([group.phase_flipped for group in self.optics])[self.optics_group]

    def rotations(self) -> NDArray[np.float64]:
        """(N, 3, 3) RELION matrices."""
        return rotation_matrices(self.euler_angles_in_degrees)

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with everything in the table except the places of its files."""
        digest = hashlib.sha256(repr(self.optics).encode())
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, np.ndarray):
                digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()[:16]

    def select(self, rows: NDArray) -> Particles:
        """The particles of these rows (indices or a mask), in that order."""
        n = len(self)
        per_row = {
            f.name: value[rows]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), np.ndarray) and len(value) == n
        }
        return replace(self, **per_row)

    def with_half_sets(self, seed: int) -> Particles:
        """The table with half sets as the file gives them, or else drawn by particle from the seed."""
        if np.all(self.half_set > 0):
            return self
        if np.any(self.half_set > 0):
            raise InputError(
                f"{self.source}: rlnRandomSubset is set for some images and not for others; "
                "it must be 1 or 2 for all, or absent: remove the column to have half sets drawn"
            )
        return replace(self, half_set=(1 + split_by_particle(self.particle, seed)).astype(np.int8))


def _without_transfer(group: OpticsGroup) -> OpticsGroup:
    """The optics group with a CTF of 1 at a defocus of 0, which amplitude contrast alone makes."""
    return replace(
        group,
        spherical_aberration_in_millimetres=0.0,
        amplitude_contrast=1.0,
        beam_tilt_in_milliradians=(0.0, 0.0),
        odd_zernike=(),
        even_zernike=(),
    )


def split_by_particle(particle: NDArray[np.int64], seed: int) -> NDArray[np.int8]:
    """(N,) 0 or 1, the same within a particle; the two sets' numbers of particles differ by at most one."""
    names, inverse = np.unique(particle, return_inverse=True)
    side = np.arange(len(names)) % 2
    np.random.default_rng(seed).shuffle(side)
    return side[inverse].astype(np.int8)
