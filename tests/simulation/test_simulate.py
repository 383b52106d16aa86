"""Simulated images and their star: noise, views, poses like another star's, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from emsplat.errors import InputError
from emsplat.fourier.slices import fourier_volume
from emsplat.io.mrc import read_map, write_map
from emsplat.io.star import Table, read_star, write_star
from emsplat.simulation import bundled_model, molecular_map, simulate
from emsplat.simulation.acquisition import acquire, star_tables
from emsplat.simulation.atoms import (
    read_atoms,
)
from emsplat.simulation.run import coloured_spectrum, noise_images, signal_images
from emsplat.simulation.truth import resampled
from relion import run_relion
from simulations import SMALL, TINY

OUTPUTS = ("particles.star", "particles.mrcs", "truth.mrc", "mask.mrc")


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
