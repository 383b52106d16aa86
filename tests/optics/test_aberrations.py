"""Aberrations, with RELION as the judge of their signs, units and order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.fourier.maps import soft_sphere
from emsplat.io.images import ImageSource
from emsplat.io.mrc import StackWriter, read_map, write_map
from emsplat.io.relion import read_relion
from emsplat.io.star import read_star, write_star
from emsplat.optics.aberrations import slice_matrices, zernike
from emsplat.optics.ctf import ctf
from emsplat.particles.table import OpticsGroup, Particles
from emsplat.simulation import SimulationSettings, simulate
from emsplat.simulation.acquisition import star_tables
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.validation.correlation import fsc
from phantom import accumulated, imagined_particles, lopsided_map
from relion import run_relion

BOX, PIXEL_SIZE, IMAGES = 48, 3.0, 1500
REACH = int(0.8 * BOX / 2)
SPHERE = soft_sphere(BOX, 38.0, 4.0)

# Some radians at 0.8 of Nyquist's frequency, and lengths changed by up to 10 %: others for each optics group.
TILT = [{"beam_tilt_in_milliradians": (12.0, -9.0)}, {"beam_tilt_in_milliradians": (-20.0, 6.0)}]
ODD = [
    {"odd_zernike": (0.0, 15.0, 1500.0, -300.0, 200.0, 900.0)},
    {"odd_zernike": (-20.0, 0.0, 0.0, 500.0, 0.0, -1600.0, 0.0, 20.0)},
]
EVEN = [
    {"even_zernike": (0.4, 30.0, -40.0, 50.0, 2000.0, -1500.0, 900.0, 0.0, 2500.0)},
    {"even_zernike": (0.0, -60.0, 20.0, 0.0, 0.0, 3000.0)},
]
MAGNIFICATION = [{"magnification": (1.10, 0.03, -0.02, 0.93)}, {"magnification": (0.93, 0.05, 0.06, 1.05)}]
NO_TILT = [a | b | c for a, b, c in zip(ODD, EVEN, MAGNIFICATION, strict=True)]
CASES = {
    "beam tilt": TILT,
    "odd": ODD,
    "even": EVEN,
    "magnification": MAGNIFICATION,
    "all but beam tilt, premultiplied": NO_TILT,
    "all": [a | b for a, b in zip(TILT, NO_TILT, strict=True)],
}


def with_aberrations(particles: Particles, aberrations: list[dict]) -> Particles:
    """Every other image from a second optics group, of another voltage and Cs."""
    first = particles.optics[0]
    second = replace(first, name="other", voltage_in_kilovolts=200.0, spherical_aberration_in_millimetres=1.4)
    optics = tuple(replace(g, **fields) for g, fields in zip((first, second), aberrations, strict=True))
    return replace(particles, optics=optics, optics_group=np.arange(len(particles), dtype=np.int32) % 2)


def without_aberrations(particles: Particles) -> Particles:
    none = {field: getattr(OpticsGroup, field) for case in (TILT, ODD, EVEN, MAGNIFICATION) for field in case[0]}
    return replace(particles, optics=tuple(replace(group, **none) for group in particles.optics))


def raw_map(particles: Particles) -> NDArray[np.float32]:
    settings = AccumulationSettings(BOX, BOX, np.ones((2, BOX // 2 + 1)), np.eye(3)[None])
    with ImageSource(particles) as source:
        [s] = accumulated(particles, source, np.zeros(len(particles), dtype=np.int8), settings)
    return s.raw_map()


def simulated_like(folder: Path, aberrations: list[dict]) -> Path:
    """The star of a simulation like one that carries the aberrations."""
    particles = with_aberrations(imagined_particles(IMAGES, BOX, PIXEL_SIZE), aberrations)
    write_star(folder / "like.star", star_tables(particles))
    write_map(folder / "phantom.mrc", lopsided_map(BOX), PIXEL_SIZE)
    settings = SimulationSettings(
        n_images=IMAGES,
        box_size=BOX,
        pixel_size_in_angstroms=PIXEL_SIZE,
        snr=np.inf,
        like=folder / "like.star",
    )
    return simulate(folder / "phantom.mrc", folder / "run", settings)


def change_optics(star: Path, columns: dict[str, list[str]]) -> None:
    tables = read_star(star)
    optics = replace(tables["optics"], columns={**tables["optics"].columns, **columns})
    write_star(star, {**tables, "optics": optics})


def premultiply(star: Path) -> None:
    """Multiplies the images by their CTF, in place, and says so in the star."""
    particles = read_relion(star)
    with ImageSource(particles) as source:
        images = source.read(np.arange(IMAGES))
    images = np.fft.irfft2(np.fft.rfft2(images) * ctf(particles), s=(BOX, BOX)).astype(np.float32)
    with StackWriter(particles.stacks[0], BOX, PIXEL_SIZE) as writer:
        writer.append(images)
    change_optics(star, {"rlnCtfDataAreCtfPremultiplied": ["1", "1"]})


@pytest.mark.parametrize("case", CASES)
def test_our_raw_map_is_relions(tmp_path: Path, case: str) -> None:
    """Both undo what the simulator did; without the correction the map is another."""
    star, premultiplied = simulated_like(tmp_path, CASES[case]), "premultiplied" in case
    if premultiplied:
        premultiply(star)
    if case == "all":  # with coefficients that RELION puts the beam tilt in place of, and so do we
        change_optics(star, {"rlnOddZernike": read_star(tmp_path / "like.star")["optics"].column("rlnOddZernike")})
    run_relion("relion_reconstruct", "--i", star.name, "--o", "relion.mrc", "--ctf", folder=star.parent)
    relions, truth = (read_map(star.parent / name).values for name in ("relion.mrc", "truth.mrc"))
    particles = read_relion(star)
    assert particles.warnings == ()
    assert all(group.premultiplied == premultiplied for group in particles.optics)
    ours = raw_map(particles)
    assert fsc(ours, relions, SPHERE)[:REACH].min() > 0.99
    assert fsc(relions, truth, SPHERE)[:REACH].min() > 0.99
    assert fsc(raw_map(without_aberrations(particles)), relions, SPHERE)[:REACH].min() < 0.5


def test_the_ctf_is_relions(tmp_path: Path) -> None:
    """`relion_project --ctf` of a delta function: even Zernikes and the magnification matrix; it applies no others."""
    box_size, n = 32, 6
    fields = [a | b for a, b in zip(EVEN, MAGNIFICATION, strict=True)]
    particles = with_aberrations(imagined_particles(n, box_size, PIXEL_SIZE), fields)
    particles = replace(
        particles,
        origin_in_angstroms=np.zeros((n, 2)),
        b_factor_in_square_angstroms=np.full(n, 50.0),
    )
    delta = np.zeros((box_size,) * 3, dtype=np.float32)
    delta[(box_size // 2,) * 3] = 1
    write_map(tmp_path / "delta.mrc", delta, PIXEL_SIZE)
    write_star(tmp_path / "particles.star", star_tables(particles))
    run_relion("relion_project", "--i", "delta.mrc", "--o", "out", "--ang", "particles.star", "--ctf", folder=tmp_path)
    theirs = np.fft.rfft2(np.fft.ifftshift(mrcfile.read(tmp_path / "out.mrcs"), axes=(1, 2)))
    inside = np.hypot(np.fft.fftfreq(box_size, 1 / box_size)[:, None], np.arange(box_size // 2 + 1)) < 13
    np.testing.assert_allclose(theirs[:, inside], ctf(particles)[:, inside], atol=2e-3)  # its wavelength has 5 digits
    plain = ctf(without_aberrations(particles))
    assert (np.abs(plain - theirs)[:, inside].max(axis=1) > 0.5).all()


def test_zernike_polynomials_are_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    r, angle = rng.uniform(0, 1.5, 50), rng.uniform(-np.pi, np.pi, 50)
    x, y = r * np.cos(angle), r * np.sin(angle)
    radial = {
        (0, 0): 1,
        (1, 1): r,
        (2, 0): 2 * r**2 - 1,
        (2, 2): r**2,
        (3, 1): 3 * r**3 - 2 * r,
        (3, 3): r**3,
        (4, 0): 6 * r**4 - 6 * r**2 + 1,
        (4, 2): 4 * r**4 - 3 * r**2,
        (6, 2): 15 * r**6 - 20 * r**4 + 6 * r**2,
    }
    for (n, m), expected in radial.items():
        np.testing.assert_allclose(zernike(n, m, x, y), expected * np.cos(m * angle), atol=1e-12)
        if m:
            np.testing.assert_allclose(zernike(n, -m, x, y), expected * np.sin(m * angle), atol=1e-12)


def test_slices_of_what_is_not_magnified_are_turned_by_rotations() -> None:
    particles = imagined_particles(5, 16)
    np.testing.assert_array_equal(slice_matrices(particles), particles.rotations())
