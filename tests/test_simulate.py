from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest

from emsplat.conventions import rotation_matrices
from emsplat.errors import InputError
from emsplat.io.mrc import read_map, write_map
from emsplat.io.star import Table, read_star, write_star
from emsplat.simulation import SimulationSettings, bundled_model, molecular_map, simulate
from emsplat.simulation.acquisition import acquire, star_tables
from emsplat.simulation.atoms import (
    VOLTS_PER_SCATTERING_DENSITY,
    ice_scattering_density,
    potential_of_atoms,
    read_atoms,
)
from emsplat.simulation.run import coloured_spectrum, noise_images, signal_images
from emsplat.simulation.slices import central_slices, fourier_volume, transform_at
from emsplat.simulation.truth import resampled
from relion import run_relion

SMALL = SimulationSettings(n_images=24, box_size=48, pixel_size_in_angstroms=3.0, snr=0.1, seed=3)
TINY = replace(SMALL, box_size=32, pixel_size_in_angstroms=4.0, b_factor_in_square_angstroms=60.0)  # for `one_chain`
OUTPUTS = ("particles.star", "particles.mrcs", "truth.mrc", "mask.mrc")


def direct_transform(volume: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(n,) F(k) = Σ V(r) exp(−2πi k·r/D) in float64; k: (n, 3) x, y, z in 1/D."""
    size = volume.shape[0]
    place = np.arange(size) - size // 2
    z, y, x = np.exp(-2j * np.pi / size * k.T[::-1, :, None] * place)
    return np.einsum("kx,ky,kz,zyx->k", x, y, z, volume.astype(np.float64), optimize=True)


def half_plane(box_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """kx, ky (D, D//2+1), and what lies below Nyquist's radius."""
    kx, ky = np.meshgrid(np.arange(box_size // 2 + 1), np.fft.fftfreq(box_size, 1 / box_size))
    return kx, ky, np.hypot(kx, ky) < box_size / 2


def atoms_model(n: int, b_factor: float) -> gemmi.Model:
    """A small lopsided cloud of carbons, oxygens and a sulphur."""
    rng = np.random.default_rng(1)
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1))
    chain = structure[0].add_chain("A")
    residue = chain.add_residue(gemmi.Residue())
    residue.name = "LIG"
    for i in range(n):
        atom = gemmi.Atom()
        atom.name, atom.element = f"C{i}", gemmi.Element(["C", "O", "S"][i % 3 if i < 3 else i % 2])
        atom.pos = gemmi.Position(*(rng.normal(0, 4, 3) * (1, 0.6, 1.3)))
        atom.b_iso = b_factor
        residue.add_atom(atom)
    return structure[0].clone()


@pytest.fixture(scope="module")
def one_chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tenth of 7PBL, for what any model can show."""
    structure = gemmi.read_structure(str(bundled_model()))
    for name in [chain.name for chain in structure[0]][1:]:
        structure[0].remove_chain(name)
    path = tmp_path_factory.mktemp("model") / "one.pdb.gz"
    path.write_bytes(gzip.compress(structure.make_pdb_string().encode()))
    return path


# The slices


@pytest.mark.parametrize("box_size", [20, 21])
def test_slices_against_the_direct_sum(box_size: int) -> None:
    rng = np.random.default_rng(0)
    volume = rng.standard_normal((box_size,) * 3).astype(np.float32)  # noise up to the edges: the hardest case
    rotations = rotation_matrices(rng.uniform(-180, 180, (5, 3)))
    origins = rng.normal(0, 2, (5, 2))
    slices = central_slices(fourier_volume(volume), rotations, origins)
    kx, ky, inside = half_plane(box_size)
    for got, a, (x, y) in zip(slices, rotations, origins, strict=True):
        assert not got[~inside].any()
        k = kx[inside][:, None] * a[0] + ky[inside][:, None] * a[1]
        centre = kx[inside] * (box_size // 2 - x) + ky[inside] * (box_size // 2 - y)
        expected = direct_transform(volume, k) * np.exp(-2j * np.pi / box_size * centre)
        assert np.linalg.norm(got[inside] - expected) < 1e-5 * np.linalg.norm(expected)


def test_the_transform_at_any_point() -> None:
    volume = np.random.default_rng(0).standard_normal((16, 16, 16)).astype(np.float32)
    points = np.random.default_rng(1).uniform(-8, 8, (200, 3))
    expected = direct_transform(volume, points)
    got = transform_at(fourier_volume(volume), points)
    assert np.linalg.norm(got - expected) < 2e-5 * np.linalg.norm(expected)
    assert transform_at(fourier_volume(volume), points[:0]).shape == (0,)


# The truth


@pytest.mark.parametrize("box_size", [32, 33])
@pytest.mark.parametrize(("b_factor", "tolerance"), [(20.0, 0.08), (400.0, 1e-3)])
def test_images_of_atoms_against_their_analytic_transform(box_size: int, b_factor: float, tolerance: float) -> None:
    """Hand, axes, scale, centre and shift, with nothing of the program's own on the other side.

    What is left is the ringing of the sharp band, cut at the box's faces: less with less signal at Nyquist.
    """
    pixel_size = 1.8
    model = atoms_model(12, b_factor)
    truth = potential_of_atoms(model, box_size, pixel_size, b_factor, solvent=False)
    settings = replace(SMALL, n_images=4, box_size=box_size, pixel_size_in_angstroms=pixel_size, snr=np.inf)
    particles = acquire(settings, Path("p.star"), Path("p.mrcs"))
    origins = particles.origin_in_angstroms / pixel_size
    got = central_slices(fourier_volume(truth), particles.rotations(), origins)

    kx, ky, inside = half_plane(box_size)
    kx, ky = kx[inside], ky[inside]
    s = np.hypot(kx, ky) / (box_size * pixel_size)
    centre_of_mass = np.array(model.calculate_center_of_mass().tolist())
    for image, a, origin in zip(got, particles.rotations(), origins, strict=True):
        expected = np.zeros(len(kx), dtype=complex)
        for site in model.all():
            table = site.atom.element.c4322
            factor = sum(p * np.exp(-q * s**2 / 4) for p, q in zip(table.a, table.b, strict=True))
            x, y, _ = a @ (np.array(site.atom.pos.tolist()) - centre_of_mass) / pixel_size
            at = kx * (x + box_size // 2 - origin[0]) + ky * (y + box_size // 2 - origin[1])
            expected += factor * np.exp(-b_factor * s**2 / 4 - 2j * np.pi / box_size * at)
        expected *= VOLTS_PER_SCATTERING_DENSITY / pixel_size**3
        assert np.linalg.norm(image[inside] - expected) < tolerance * np.linalg.norm(expected)


def test_the_truth_is_band_limited_and_centred() -> None:
    for box_size in (48, 49):
        truth = molecular_map(bundled_model(), replace(SMALL, box_size=box_size, solvent=False))
        spectrum = np.fft.fftshift(np.abs(np.fft.fftn(truth)))
        k = np.fft.fftshift(np.fft.fftfreq(box_size, 1 / box_size))
        radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)
        assert spectrum[2 * radius >= box_size].max() < 1e-6 * spectrum.max()
        place = np.arange(box_size) - box_size // 2
        for axis in range(3):
            others = tuple(i for i in range(3) if i != axis)
            assert abs((truth.sum(axis=others) * place).sum() / truth.sum()) < 0.1


def test_ice_has_the_known_mean_inner_potential() -> None:
    assert ice_scattering_density() * VOLTS_PER_SCATTERING_DENSITY == pytest.approx(4.53, abs=0.02)  # Vulović 2013


def test_solvent_lowers_the_contrast_of_a_protein_but_keeps_it_positive() -> None:
    model = read_atoms(bundled_model())
    vacuum = potential_of_atoms(model, 48, 3.0, solvent=False)
    in_ice = potential_of_atoms(model, 48, 3.0)
    mass = sum(site.atom.element.weight * site.atom.occ for site in model.all())
    displaced = (vacuum - in_ice).sum() * 27 / (ice_scattering_density() * VOLTS_PER_SCATTERING_DENSITY)
    assert 1.1 < displaced / mass < 1.5  # Å³ per Da; protein has 1.2
    assert 0.2 < in_ice.sum() / vacuum.sum() < 0.6


def test_missing_hydrogens_scatter_all_the_same() -> None:
    model = read_atoms(bundled_model())
    bare = model.clone()
    bare.remove_hydrogens()
    whole, restored = (potential_of_atoms(m, 40, 4.0, 40.0, solvent=False).sum() for m in (model, bare))
    heavy_only = sum(s.atom.element.c4322.calculate_sf(0.0) * s.atom.occ for s in bare.all())
    heavy_only *= VOLTS_PER_SCATTERING_DENSITY / 4.0**3
    assert abs(restored / whole - 1) < 0.01
    assert heavy_only / whole < 0.9


def test_an_unknown_element_counts_as_carbon() -> None:
    known, unknown = atoms_model(2, 30.0), atoms_model(2, 30.0)
    for site in known.all():
        site.atom.element = gemmi.Element("C")
    for site in unknown.all():
        site.atom.element = gemmi.Element("X")
    maps = [potential_of_atoms(m, 24, 2.0, solvent=False).sum() for m in (known, unknown)]
    assert maps[0] == pytest.approx(maps[1], rel=1e-4)


def test_b_factor_replaces_the_files(one_chain: Path) -> None:
    sharp, blurred = (molecular_map(one_chain, replace(TINY, b_factor_in_square_angstroms=b)) for b in (0, 200))
    assert sharp.sum() == pytest.approx(blurred.sum(), rel=1e-3)
    assert sharp.max() > 1.2 * blurred.max()


# Maps as models


def test_a_map_resampled_to_its_own_grid_is_itself(one_chain: Path, tmp_path: Path) -> None:
    truth = molecular_map(one_chain, TINY)
    write_map(tmp_path / "map.mrc", truth, 4.0)
    again = molecular_map(tmp_path / "map.mrc", TINY)
    assert np.linalg.norm(again - truth) < 1e-4 * np.linalg.norm(truth)


@pytest.mark.parametrize("box_size", [32, 33, 44])
def test_a_map_on_another_grid_is_the_map_of_the_atoms_there(one_chain: Path, box_size: int) -> None:
    settings = replace(TINY, solvent=False)  # the surface of the ice knows its grid
    fine = molecular_map(one_chain, replace(settings, box_size=48, pixel_size_in_angstroms=2.5))
    expected = molecular_map(one_chain, replace(settings, box_size=box_size, pixel_size_in_angstroms=4.0))
    got = resampled(fine, 2.5, box_size, 4.0)
    assert np.linalg.norm(got - expected) < 0.01 * np.linalg.norm(expected)


# The images


def correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    a, b = (x - x.mean(axis=(1, 2), keepdims=True) for x in (one, other))
    return (a * b).sum(axis=(1, 2)) / np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))


def test_images_are_relion_projects(tmp_path: Path) -> None:
    settings = replace(
        SMALL, n_images=12, box_size=64, pixel_size_in_angstroms=2.5, snr=np.inf, astigmatism_in_angstroms=2000.0
    )
    settings = replace(settings, shift_sigma_in_angstroms=8.0, phase_shift_in_degrees=30.0)
    simulate(bundled_model(), tmp_path, settings)

    def relion_images(truth: str) -> np.ndarray:
        run_relion("relion_project", "--i", truth, "--o", "out", "--ang", "particles.star", "--ctf", folder=tmp_path)
        return mrcfile.read(tmp_path / "out.mrcs")

    ours = mrcfile.read(tmp_path / "particles.mrcs")
    theirs = relion_images("truth.mrc")
    assert correlations(ours, theirs).min() > 0.999
    assert np.linalg.norm(ours - theirs) < 0.04 * np.linalg.norm(theirs)  # RELION interpolates linearly
    truth = read_map(tmp_path / "truth.mrc").values
    mirrored = np.roll(truth[:, :, ::-1], 1, axis=2)  # about voxel D//2
    write_map(tmp_path / "mirrored.mrc", mirrored, 2.5)
    assert correlations(ours, relion_images("mirrored.mrc")).max() < 0.99


@pytest.mark.parametrize("box_size", [31, 32])
@pytest.mark.parametrize("noise", ["white", "coloured"])
def test_snr_is_as_asked(one_chain: Path, tmp_path: Path, box_size: int, noise: str) -> None:
    settings = replace(TINY, n_images=100, box_size=box_size, snr=0.2, noise=noise)
    simulate(one_chain, tmp_path / "noisy", settings)
    simulate(one_chain, tmp_path / "clean", replace(settings, snr=np.inf))
    noisy, clean = (mrcfile.read(tmp_path / name / "particles.mrcs") for name in ("noisy", "clean"))
    assert clean.var(axis=(1, 2)).mean() / (noisy - clean).var() == pytest.approx(0.2, rel=0.03)


def test_coloured_noise_has_its_spectrum() -> None:
    rng = np.random.default_rng(0)
    images = noise_images(rng, 400, 33, 3.0, "coloured")
    power = (np.abs(np.fft.fft2(images)) ** 2).mean(axis=0) / 33**2
    expected = coloured_spectrum(33, 3.0)
    assert expected.mean() == pytest.approx(1, rel=1e-5)
    assert expected[0, 0] > 2 * expected[16, 16]
    assert (power / expected).mean() == pytest.approx(1, rel=0.01)
    assert (power / expected).std() < 0.1


def test_the_same_seed_gives_the_same_files(one_chain: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        simulate(one_chain, tmp_path / name, replace(TINY, seed=seed))
    for file in OUTPUTS:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / "particles.mrcs").read_bytes() != (tmp_path / "c" / "particles.mrcs").read_bytes()


def test_what_is_written_says_what_was_done(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    star = simulate(bundled_model(), tmp_path / "run", SMALL, progress=lambda n, total: done.append((n, total)))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted(OUTPUTS)
    assert done[-1] == (24, 24)
    table = read_star(star)["particles"]
    assert table.columns["rlnImageName"][:2] == ["000001@particles.mrcs", "000002@particles.mrcs"]
    assert sorted(table.columns["rlnRandomSubset"]) == ["1"] * 12 + ["2"] * 12
    # the star's rounded numbers, read back, give the images again
    particles = replace(
        acquire(SMALL, star, star.with_name("particles.mrcs")),
        euler_angles_in_degrees=np.stack([table.floats(f"rlnAngle{a}") for a in ("Rot", "Tilt", "Psi")], axis=-1),
        origin_in_angstroms=np.stack([table.floats(f"rlnOrigin{a}Angst") for a in "XY"], axis=-1),
        defocus_u_in_angstroms=table.floats("rlnDefocusU"),
    )
    truth = read_map(tmp_path / "run" / "truth.mrc")
    assert truth.pixel_size_in_angstroms == pytest.approx(3.0)
    clean = signal_images(fourier_volume(truth.values), particles)
    noisy = mrcfile.read(tmp_path / "run" / "particles.mrcs")
    assert correlations(clean.reshape(1, -1, 48), noisy.reshape(1, -1, 48))[0] == pytest.approx(0.1**0.5, abs=0.05)


def test_the_mask_holds_the_atoms_and_not_the_box(tmp_path: Path) -> None:
    simulate(bundled_model(), tmp_path, replace(SMALL, n_images=1))
    mask = read_map(tmp_path / "mask.mrc").values
    model = read_atoms(bundled_model())
    centre = np.array(model.calculate_center_of_mass().tolist())
    place = np.array([site.atom.pos.tolist() for site in model.all()]) - centre
    x, y, z = (np.round(place / 3.0).astype(int) + 24).T
    assert mask.min() == 0
    assert mask.max() == 1
    assert (mask[z, y, x] > 0.9).mean() > 0.98
    assert (mask > 0.5).mean() < 0.25
    assert ((mask > 0.01) & (mask < 0.99)).any()


def test_uneven_views_gather_about_one_direction() -> None:
    def mean_view(kind: str) -> float:
        particles = acquire(replace(SMALL, n_images=4000, orientations=kind), Path("p.star"), Path("p.mrcs"))
        return float(np.linalg.norm(particles.rotations()[:, 2].mean(axis=0)))

    assert mean_view("uniform") < 0.05
    assert mean_view("uneven") > 0.6


def test_an_assembly_by_name(shared_data: Path) -> None:
    one = read_atoms(shared_data / "models" / "7a4m.cif.gz")
    all_of_it = read_atoms(shared_data / "models" / "7a4m.cif.gz", "1")
    assert all_of_it.count_atom_sites() == 24 * one.count_atom_sites()


# Poses from a star


@pytest.mark.parametrize("n_images", [50, 4501, 4600])
def test_poses_shifts_and_optics_like_a_star(shared_data: Path, n_images: int) -> None:
    like = shared_data / "metadata" / "empiar-10204-betagal-run_data.star"
    particles = acquire(replace(SMALL, like=like, n_images=n_images), Path("p.star"), Path("p.mrcs"))
    table = read_star(like)["particles"]
    assert len(particles) == n_images
    assert particles.optics[0].voltage_in_kilovolts == 200
    assert particles.optics[0].pixel_size_in_angstroms == 3.0
    row_of = {u: i for i, u in enumerate(zip(table.floats("rlnAnglePsi"), table.floats("rlnDefocusU"), strict=True))}
    psi = particles.euler_angles_in_degrees[:, 2]
    rows = np.array([row_of[u] for u in zip(psi, particles.defocus_u_in_angstroms, strict=True)])
    for i, axis in enumerate("XY"):
        np.testing.assert_array_equal(particles.origin_in_angstroms[:, i], table.floats(f"rlnOrigin{axis}Angst")[rows])
    np.testing.assert_array_equal(particles.defocus_v_in_angstroms, table.floats("rlnDefocusV")[rows])
    assert len(np.unique(rows)) == min(n_images, 4501)
    assert abs(int((particles.half_set == 1).sum()) - n_images / 2) <= 0.5


def test_like_a_relion_3_0_star_with_origins_in_pixels(shared_data: Path) -> None:
    like = shared_data / "metadata" / "sample_particles_relion30.star"
    particles = acquire(replace(SMALL, like=like, n_images=5), Path("p.star"), Path("p.mrcs"))
    (table,) = read_star(like).values()
    pixel_size = 1e4 * table.floats("rlnDetectorPixelSize")[0] / table.floats("rlnMagnification")[0]
    assert set(np.round(particles.origin_in_angstroms[:, 0], 6)) <= set(
        np.round(table.floats("rlnOriginX") * pixel_size, 6)
    )
    assert particles.optics[0].spherical_aberration_in_millimetres == 2.7


def test_like_several_optics_groups_goes_round_through_the_star(shared_data: Path, tmp_path: Path) -> None:
    like = shared_data / "metadata" / "relion31.6opticsgroups.star"
    settings = replace(SMALL, like=like, n_images=30)
    first = acquire(settings, Path("p.star"), Path("p.mrcs"))
    write_star(tmp_path / "again.star", star_tables(first))
    again = acquire(replace(settings, like=tmp_path / "again.star"), Path("p.star"), Path("p.mrcs"))
    np.testing.assert_array_equal(again.optics_group, first.optics_group)
    np.testing.assert_allclose(again.euler_angles_in_degrees, first.euler_angles_in_degrees, atol=1e-6)
    assert again.optics == first.optics
    table = read_star(like)["optics"]
    assert len(first.optics) == len(table) == 6
    for i, axis in enumerate("XY"):
        tilts = [group.beam_tilt_in_milliradians[i] for group in first.optics]
        np.testing.assert_array_equal(tilts, table.floats(f"rlnBeamTilt{axis}"))
    assert [group.magnification[1] for group in first.optics] == table.floats("rlnMagMat01").tolist()
    assert all(len(group.odd_zernike) == 6 and len(group.even_zernike) == 9 for group in first.optics)


def test_like_a_star_with_aberrations_in_its_rows(tmp_path: Path) -> None:
    tables = star_tables(acquire(replace(SMALL, n_images=6), Path("p.star"), Path("p.mrcs")))
    tilts = ["0.1", "-0.2", "0.1", "0.3", "-0.2", "0.1"]
    constants = {"rlnVoltage": ["300"] * 6, "rlnSphericalAberration": ["2.7"] * 6, "rlnAmplitudeContrast": ["0.1"] * 6}
    rows = {**tables["particles"].columns, **constants, "rlnBeamTiltX": tilts}
    write_star(tmp_path / "like.star", {"images": Table(rows)})
    particles = acquire(replace(SMALL, n_images=12, like=tmp_path / "like.star"), Path("p.star"), Path("p.mrcs"))
    assert len(particles.optics) == 3
    found = [particles.optics[group].beam_tilt_in_milliradians[0] for group in particles.optics_group]
    assert found == [float(tilt) for tilt in tilts * 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rlnAngleRot", "nan"),
        ("rlnOriginXAngst", "inf"),
        ("rlnDefocusU", "nan"),
        ("rlnVoltage", "0"),
        ("rlnVoltage", "nan"),
        ("rlnAmplitudeContrast", "2"),
    ],
)
def test_like_a_star_with_a_senseless_value(name: str, value: str, tmp_path: Path, refuses: Callable) -> None:
    tables = star_tables(acquire(SMALL, Path("p.star"), Path("p.mrcs")))
    table = next(table for table in tables.values() if name in table)
    table.column(name)[0] = value
    write_star(tmp_path / "bad.star", tables)
    with refuses("bad.star", name):
        acquire(replace(SMALL, like=tmp_path / "bad.star"), Path("p.star"), Path("p.mrcs"))


# What is refused


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"n_images": 0}, "n_images is 0"),
        ({"snr": 0.0}, "snr is 0"),
        ({"snr": -1.0}, "snr is -1"),
        ({"snr": float("nan")}, "snr is nan"),
        ({"box_size": 15}, "box_size is 15"),
        ({"pixel_size_in_angstroms": 0.0}, "pixel_size is 0"),
        ({"noise": "pink"}, "noise is pink"),
        ({"orientations": "sideways"}, "orientations is sideways"),
        ({"defocus_range_in_angstroms": (2.0, 1.0)}, "defocus_range"),
        ({"amplitude_contrast": 1.5}, "amplitude_contrast is 1.5"),
        ({"pixel_size_in_angstroms": float("nan")}, "pixel_size is nan"),
        ({"shift_sigma_in_angstroms": float("inf")}, "shift_sigma is inf"),
        ({"astigmatism_in_angstroms": float("inf")}, "astigmatism is inf"),
        ({"phase_shift_in_degrees": float("nan")}, "phase_shift is nan"),
        ({"defocus_range_in_angstroms": (0.0, float("inf"))}, "defocus_range"),
    ],
)
def test_bad_settings(refuses: Callable, change: dict, culprit: str) -> None:
    with refuses(culprit):
        replace(SMALL, **change)


def test_bad_models_leave_nothing_behind(tmp_path: Path, refuses: Callable) -> None:
    output = tmp_path / "out"
    nonsense, empty, truncated = tmp_path / "nonsense.pdb", tmp_path / "empty.cif", tmp_path / "model.pdb.gz"
    nonsense.write_text("not a model\n")
    empty.write_text("data_x\n")
    truncated.write_bytes(bundled_model().read_bytes()[:300_000])
    for model in (tmp_path / "missing.pdb", nonsense, empty, truncated):
        with refuses(str(model)):
            simulate(model, output, SMALL)
    write_map(tmp_path / "flat.mrc", np.zeros((16, 16, 12)), 3.0)
    with refuses("flat.mrc", "not a cube"):
        simulate(tmp_path / "flat.mrc", output, SMALL)
    with refuses("assembly '9'", "it has 1"):
        simulate(bundled_model(), output, replace(SMALL, assembly="9"))
    assert not output.exists()


def test_a_model_too_large_names_the_box_that_would_do(refuses: Callable) -> None:
    with refuses("64 Å", "box of 32 pixels", "at least 46 pixels"):
        molecular_map(bundled_model(), replace(SMALL, box_size=32))
    molecular_map(bundled_model(), replace(SMALL, box_size=46))


def test_a_folder_that_holds_a_simulation_is_kept(one_chain: Path, tmp_path: Path, refuses: Callable) -> None:
    simulate(one_chain, tmp_path, replace(TINY, n_images=1))
    before = (tmp_path / "particles.star").read_bytes()
    with refuses(str(tmp_path), "overwrit"):
        simulate(one_chain, tmp_path, TINY)
    assert (tmp_path / "particles.star").read_bytes() == before
    simulate(one_chain, tmp_path, TINY, overwrite=True)
    assert len(mrcfile.read(tmp_path / "particles.mrcs")) == 24


def test_paths_may_be_text_and_a_map_of_1_angstrom_is_one(tmp_path: Path, refuses: Callable) -> None:
    volume = np.random.default_rng(0).standard_normal((16, 16, 16), dtype=np.float32)
    write_map(tmp_path / "map.mrc", volume, 1.0)
    settings = replace(SMALL, n_images=1, box_size=16, pixel_size_in_angstroms=1.0)
    simulate(str(tmp_path / "map.mrc"), str(tmp_path / "out"), settings)
    expected = resampled(volume, 1.0, 16, 1.0)
    np.testing.assert_array_equal(read_map(tmp_path / "out" / "truth.mrc").values, expected)
    write_map(tmp_path / "map.mrc", volume, 0.0)
    with refuses("map.mrc", "no pixel size"):
        molecular_map(tmp_path / "map.mrc", settings)


def test_an_interrupt_leaves_no_half_written_file(one_chain: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(one_chain, tmp_path, TINY, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_stars_without_poses_are_refused(tmp_path: Path, shared_data: Path, refuses: Callable) -> None:
    with refuses("nowhere.star"):
        acquire(replace(SMALL, like=tmp_path / "nowhere.star"), Path("p.star"), Path("p.mrcs"))
    postprocess = shared_data / "metadata" / "empiar-10204-betagal-postprocess.star"
    with refuses(str(postprocess), "rlnAngleRot"):
        acquire(replace(SMALL, like=postprocess), Path("p.star"), Path("p.mrcs"))
    with pytest.raises(InputError, match="rln"):
        like = shared_data / "metadata" / "sample_incomplete_ctf_params.star"
        acquire(replace(SMALL, like=like), Path("p.star"), Path("p.mrcs"))
