"""The FSC family and the honest resolution, against known truths, pure noise and RELION."""

from __future__ import annotations

import csv
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from emsplat.fourier import maps
from emsplat.validation.correlation import directional_agreement, fsc, pooling_matrix, resolution_at, variance_of_mean
from emsplat.validation.validate import CSV_COLUMNS, FIRST_SHELL, Validation, validate, write_fsc_csv
from experiment import Experiment, noise
from relion import run_relion

Volume = np.ndarray


def validated(experiment: Experiment) -> tuple[Validation, np.ndarray, Volume]:
    """The verdict, the true correlation of the averaged map, and that map."""
    raw, gaussian = experiment.run()
    average = 0.5 * (gaussian[0] + gaussian[1])
    verdict = validate(*raw, *gaussian, experiment.mask, 1.5, seed=0)
    return verdict, fsc(average, experiment.truth, experiment.mask), average


# --- one pair of maps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box_size", [12, 13])
def test_fsc_agrees_with_the_full_spectrum(box_size: int) -> None:
    rng = np.random.default_rng(1)
    a = noise(rng, box_size)
    b, mask = a + noise(rng, box_size), rng.random((box_size,) * 3, dtype=np.float32)
    fa, fb = np.fft.fftn(a * mask), np.fft.fftn(b * mask)
    k = np.fft.fftfreq(box_size) * box_size
    shells = np.rint(np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)).astype(int).ravel()
    ab, aa, bb = (np.bincount(shells, np.real(x * y.conj()).ravel()) for x, y in ((fa, fb), (fa, fa), (fb, fb)))
    expected = (ab / np.sqrt(aa * bb))[1 : box_size // 2 + 1]
    np.testing.assert_allclose(fsc(a, b, mask), expected, atol=1e-6)
    np.testing.assert_allclose(fsc(a, 3 * a), 1, atol=1e-6)
    np.testing.assert_allclose(fsc(a, -a), -1, atol=1e-6)


def test_fsc_refuses_different_boxes(refuses: Callable[..., AbstractContextManager[None]]) -> None:
    with refuses("(8, 8, 8)", "(9, 9, 9)"):
        fsc(np.zeros((8,) * 3, np.float32), np.zeros((9,) * 3, np.float32))


def test_resolution_is_interpolated_in_frequency() -> None:
    frequency = np.array([0.1, 0.2, 0.3, 0.4])
    curve = np.array([0.4, 0.9, 0.7, 0.3])
    assert resolution_at(curve, frequency, 0.5, first_shell=2) == pytest.approx(1 / 0.35)
    assert resolution_at(curve, frequency, 0.5) == pytest.approx(10.0)
    assert resolution_at(curve, frequency, 0.2) is None


def test_pooling_reproduces_parabolas() -> None:
    shells = np.arange(20.0)
    curve = 3 - 0.5 * shells + 0.02 * shells**2
    np.testing.assert_allclose(pooling_matrix(20) @ curve, curve, atol=1e-10)


@pytest.mark.parametrize(("box_size", "diameter"), [(32, 14), (33, 20)])
def test_variance_through_a_mask_is_the_measured_one(box_size: int, diameter: int) -> None:
    rng = np.random.default_rng(4)
    mask = maps.soft_sphere(box_size, diameter, 3)
    pooling = pooling_matrix(box_size // 2)
    spectra = [maps.half_spectrum(noise(rng, box_size) * mask) for _ in range(60)]
    total = float(np.square(mask).sum(dtype=np.float64))
    per_voxel = maps.shell_size(box_size)[1:] * total
    sums = [maps.shell_correlation(a, b, box_size)[1:] / per_voxel for a, b in pairwise(spectra)]
    for weights in (np.eye(box_size // 2), pooling):
        measured = np.square(np.array(sums) @ weights.T).mean(axis=0)
        ratio = measured / variance_of_mean(mask, weights)
        assert np.mean(ratio) == pytest.approx(1, abs=0.15)
        assert np.all((ratio[1:] > 0.4) & (ratio[1:] < 2.0))


# --- against RELION ---------------------------------------------------------------------------------------------------


def test_curves_agree_with_relion_postprocess(tmp_path: Path) -> None:
    experiment = Experiment(64, 8.0, 0.5, 0.0)
    raw, gaussian = experiment.run()
    verdict = validate(*raw, *gaussian, experiment.mask, 1.5, seed=0)
    for name, volume in (("half1_unfil", raw[0]), ("half2_unfil", raw[1]), ("mask", experiment.mask)):
        with mrcfile.new(tmp_path / f"{name}.mrc", data=volume) as file:
            file.voxel_size = 1.5
    (tmp_path / "post").mkdir()  # where it puts a PDF, or an empty file where ghostscript is missing
    halves_and_mask = ("--i", "half1_unfil.mrc", "--mask", "mask.mrc", "--angpix", 1.5)
    run_relion("relion_postprocess", *halves_and_mask, "--o", "post", folder=tmp_path)
    relion = _relion_curves(tmp_path / "post.star")
    # RELION counts the kx = 0 plane twice, which matters in the innermost shells only.
    for name, column, far in (
        ("raw_half_unmasked", "FourierShellCorrelationUnmaskedMaps", 0.01),
        ("raw_half_masked", "FourierShellCorrelationMaskedMaps", 0.01),
        ("raw_half_corrected", "FourierShellCorrelationCorrected", 0.08),  # other random phases
    ):
        difference = np.abs(getattr(verdict, name) - relion[column][1:33])
        assert difference[5:].max() < far, name


def _relion_curves(path: Path) -> dict[str, np.ndarray]:
    block = path.read_text().split("data_fsc")[1].split("data_")[0].splitlines()
    names = [line.split()[0][4:] for line in block if line.startswith("_rln")]
    rows = [line.split() for line in block if len(line.split()) == len(names) and not line.startswith("_")]
    return {name: np.array(values, dtype=float) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


# --- the honest correlation -------------------------------------------------------------------------------------------


def test_without_a_prior_it_is_the_classical_formula() -> None:
    experiment = Experiment(48, 4.0, 0.8, 0.0)
    raw, _ = experiment.run()
    verdict = validate(*raw, *raw, experiment.mask, 1.5, seed=0)
    f = verdict.raw_half_masked
    np.testing.assert_allclose(verdict.c_map, np.sqrt(2 * f / (1 + f)), atol=0.01)
    certain = verdict.c_map_se < 0.01
    assert certain[3:].sum() > 10
    # Two halves differ a little in power; that is all that differs.
    np.testing.assert_allclose(verdict.c_map[certain], np.sqrt(2 * f / (1 + f))[certain], atol=1e-3)


@pytest.mark.parametrize(
    ("box_size", "falloff", "half_at", "prior_error"),
    [(64, 12.0, 0.4, 0.3), (49, 8.0, 0.5, 0.3), (64, 12.0, 0.6, 0.05), (32, 6.0, 0.4, 0.3)],
)
def test_it_tells_the_truth_where_the_half_maps_do_not(
    box_size: int, falloff: float, half_at: float, prior_error: float
) -> None:
    experiment = Experiment(box_size, falloff, half_at, prior_error, seed=7)
    errors, scaled, within, overstated, resolutions = [], [], [], [], []
    for _ in range(12):
        verdict, truth, _ = validated(experiment)
        assert verdict.resolution_kind == "measured"
        shown = slice(0, verdict.limit_shell)
        error, se = (verdict.c_map - truth)[shown], verdict.c_map_se[shown]
        errors.append(np.abs(error).mean())
        within.append(np.abs(error) <= np.maximum(0.03, 2 * se))
        scaled.append((error / se)[FIRST_SHELL:][se[FIRST_SHELL:] > 0.01])
        predicted = np.sqrt(2 * verdict.gaussian_half / (1 + verdict.gaussian_half))
        overstated.append((predicted - truth)[verdict.limit_shell - 1])
        resolutions.append(verdict.resolution / resolution_at(truth, verdict.frequency, 0.5, FIRST_SHELL))
    # Each shell is a draw: two standard errors hold for all but one in twenty.
    assert np.mean(np.concatenate(within)) > 0.95
    assert np.mean(errors) < 0.015 if box_size < 40 else np.mean(errors) < 0.01
    assert 0.7 < np.sqrt(np.mean(np.square(np.concatenate(scaled)))) < 1.4
    assert np.min(overstated) > 0.2
    assert np.max(np.abs(np.array(resolutions) - 1)) < 0.05


def test_the_gain_brings_the_map_nearer_to_the_truth() -> None:
    experiment = Experiment(64, 12.0, 0.4, 0.3)
    verdict, _, average = validated(experiment)

    def error(volume: Volume) -> float:
        return float(np.linalg.norm((volume - experiment.truth) * experiment.mask))

    assert error(maps.radial_filter(average, np.append(verdict.gain[:1], verdict.gain))) < 0.95 * error(average)
    assert np.all(verdict.gain >= 0)
    assert np.all(verdict.gain[verdict.limit_shell :] == 0)


# --- the verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_kind", ["sphere", "data"])
def test_noise_alone_has_no_resolution(mask_kind: str) -> None:
    rng = np.random.default_rng(9)
    for seed in range(50):
        raw = [noise(rng, 32) for _ in range(2)]
        gaussian = [maps.low_pass(r, 1.0, 4.0) for r in raw]
        if mask_kind == "sphere":
            mask = maps.soft_sphere(32, (10, 16, 22)[seed % 3], 3)
        else:  # where the noise of both halves happens to be high: the mask itself makes them agree
            smooth = maps.low_pass(raw[0] + raw[1], 1.0, 6.0)
            mask = maps.low_pass((smooth > np.quantile(smooth, 0.9)).astype(np.float32), 1.0, 4.0)
        verdict = validate(*raw, *gaussian, mask, 1.0, seed)
        assert (verdict.resolution, verdict.resolution_kind) == (None, "not_measurable")
        assert np.all(verdict.gain == 1)


def test_a_shared_spherical_average_has_no_resolution() -> None:
    """What images with wrong poses leave: the same blob in both halves, however sharp."""
    rng = np.random.default_rng(2)
    shared = maps.soft_sphere(48, 16, 1) * np.cos(maps.distance_from_origin(48))
    raw = [20 * shared + noise(rng, 48) for _ in range(2)]
    verdict = validate(*raw, *raw, maps.soft_sphere(48, 24, 4), 1.0, 0)
    assert verdict.raw_half_masked[FIRST_SHELL] > 0.5
    assert verdict.resolution_kind == "not_measurable"


def test_few_directions_are_not_enough() -> None:
    rng = np.random.default_rng(3)
    signal = maps.half_spectrum(noise(rng, 48))
    k = np.fft.fftfreq(48)
    one_cone = np.abs(k)[:, None, None] > 1.5 * np.hypot(k[None, :, None], np.fft.rfftfreq(48))
    halves = [signal * one_cone + 0.3 * maps.half_spectrum(noise(rng, 48)) for _ in range(2)]
    assert directional_agreement(*halves, 48, (6, 16)) < np.sqrt(12)
    everywhere = [signal + 0.3 * maps.half_spectrum(noise(rng, 48)) for _ in range(2)]
    assert directional_agreement(*everywhere, 48, (6, 16)) > np.sqrt(20)


def test_a_signal_that_does_not_fade_is_vouched_for_up_to_the_edge_of_the_data() -> None:
    experiment = Experiment(48, 2.0, 0.9, 0.0)
    raw, gaussian = experiment.run()
    verdict = validate(*raw, *gaussian, experiment.mask, 1.5, 0)
    assert verdict.resolution_kind == "better_than"
    # The mask, half the box wide, smears the last two shells; what is there stays in the map.
    assert verdict.limit_shell == 22
    assert verdict.resolution == pytest.approx(48 * 1.5 / 22)
    assert np.all(verdict.gain[22:] == verdict.gain[21]) and verdict.gain[21] > 0
    # Raw halves that hold nothing beyond shell 14 cannot vouch for more, whatever leaks through the mask.
    cut = [maps.radial_filter(r, np.ones(15)) for r in raw]
    verdict = validate(*cut, *gaussian, experiment.mask, 1.5, 0)
    assert verdict.resolution_kind == "better_than"
    assert 11 <= verdict.limit_shell <= 14
    assert np.all(verdict.gain[17:] == 0)
    assert verdict.resolution == pytest.approx(48 * 1.5 / verdict.limit_shell)


@pytest.mark.parametrize("box_size", [4, 9, 12])
def test_tiny_boxes_and_empty_maps_run(box_size: int) -> None:
    rng = np.random.default_rng(1)
    full, empty = noise(rng, box_size), np.zeros((box_size,) * 3, np.float32)
    for volumes in ([full] * 4, [empty] * 4, [full, full, empty, empty]):
        verdict = validate(*volumes, np.ones_like(full), 1.0, 0)
        assert len(verdict.c_map) == box_size // 2
        if volumes[2] is empty:
            assert verdict.resolution is None


def test_validate_refuses_different_boxes(refuses: Callable[..., AbstractContextManager[None]]) -> None:
    a, b = np.ones((8,) * 3, np.float32), np.ones((10,) * 3, np.float32)
    with refuses("(8, 8, 8)", "(10, 10, 10)"):
        validate(a, a, a, a, b, 1.0, 0)


def test_same_seed_same_curves_and_the_table_holds_them(tmp_path: Path) -> None:
    experiment = Experiment(32, 6.0, 0.5, 0.1)
    raw, gaussian = experiment.run()
    first, second = (validate(*raw, *gaussian, experiment.mask, 1.5, 5) for _ in range(2))
    np.testing.assert_array_equal(first.raw_half_corrected, second.raw_half_corrected)
    write_fsc_csv(tmp_path / "fsc.csv", first)
    assert [p.name for p in tmp_path.iterdir()] == ["fsc.csv"]
    with (tmp_path / "fsc.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [int(row["shell"]) for row in rows] == list(range(1, 17))
    np.testing.assert_allclose([float(row["c_map"]) for row in rows], first.c_map, atol=1e-6)
