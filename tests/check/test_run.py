"""`emsplat check` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from emsplat.check.run import check, closing_line
from emsplat.check.settings import CheckSettings
from emsplat.check.write import check_output, write_check
from emsplat.cli import main
from emsplat.io import read_particles
from emsplat.optics.ctf import ctf
from emsplat.runtime.reporting import Reporter


def test_a_good_set(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "check"
    assert main(["check", str(tiny / "particles.star"), "-o", str(folder), "--threads", "2"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"nothing wrong found; picture: {folder / 'check.png'}"
    assert "500 of 500 particles" in out
    assert sorted(path.name for path in folder.iterdir()) == ["check.json", "check.png", "odd.csv"]
    assert (folder / "odd.csv").read_text() == "id,reason\n"
    pixels = imread(folder / "check.png")[..., :3]
    assert min(pixels.shape[:2]) > 1000 and pixels.std() > 0.1
    found = json.loads((folder / "check.json").read_text(encoding="utf-8"))
    assert {finding["verdict"] for finding in found["findings"]} == {"fine"}
    assert found["facts"]["n_images"] == found["map"]["n_images"] == 500
    assert found["map"]["poses"]["significance"] > 10
    assert found["ctf"]["best_scale_of_pixel_size"] == pytest.approx(1, abs=0.03)
    assert len(found["map"]["half_fsc"]) == len(found["map"]["frequency"]) == 16

    assert main(["check", str(tiny / "particles.star"), "-o", str(folder)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_problems_are_advice_and_no_failure(
    spoilt: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def paint(images: NDArray[np.float32]) -> None:
        np.negative(images, out=images)

    star = spoilt(paint=paint)
    assert main(["check", str(star), "-o", str(tmp_path / "a"), "--n-images", "250"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("warning: contrast: particles are dark") and lines[-2].endswith("→ use --invert")
    assert lines[-1].startswith("1 problem found")
    assert main(["check", str(star), "-o", str(tmp_path / "a"), "--invert", "--overwrite", "--n-images", "250"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("nothing wrong found")


def test_odd_images_are_listed_for_other_commands(
    spoilt: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def paint(images: NDArray[np.float32]) -> None:
        images[4, 3, 3] = np.nan
        images[7] = 2.0
        images[20] += 30 * (images[20] - images[20].mean())
        images[30] += 500

    star, folder = spoilt(paint=paint), tmp_path / "a"
    assert main(["check", str(star), "-o", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"4 images to leave out: {folder / 'odd.csv'}")
    rows = [line.split(",", 1) for line in (folder / "odd.csv").read_text().splitlines()[1:]]
    assert [name for name, _ in rows] == [f"{number:06d}@particles.mrcs" for number in (5, 8, 21, 31)]
    assert ["cannot be used" in reason for _, reason in rows] == [True, True, False, False]
    found = check(star, CheckSettings(drop=folder / "odd.csv", every_image=True))
    assert len(found.particles) == 496 and found.statistics.usable.all() and not len(found.odd.rows)
    assert not found.problems


def test_ctfs_that_are_ignored_and_those_that_are_not_there(tiny: Path, spoilt: Callable[..., Path]) -> None:
    """The images have the CTFs of their table; --no-ctf is found wrong, and nothing where the table has none."""
    (problem,) = check(tiny / "particles.star", CheckSettings(no_ctf=True)).problems
    assert problem.topic == "CTF" and "the CTFs of the table" in problem.text and "--no-ctf" in problem.advice

    def change(optics: dict[str, list[str]], particles: dict[str, list[str]]) -> None:
        for column in [name for name in particles if name.startswith(("rlnDefocus", "rlnPhaseShift", "rlnCtf"))]:
            del particles[column]

    found = check(spoilt(change=change))
    notes = [finding.text for finding in found.findings if finding.verdict == "note"]
    assert any("taken as 1" in text for text in notes) and not found.facts.has_ctf
    assert not any("phases" in reading.alternative.name for reading in found.inversion.readings)


def test_ctfs_that_are_ignored_are_found_in_images_with_flipped_phases(tiny: Path, spoilt: Callable[..., Path]) -> None:
    negative = ctf(read_particles(tiny / "particles.star")) < 0

    def paint(images: NDArray[np.float32]) -> None:
        spectra = np.where(negative, -1, 1) * np.fft.rfft2(images)
        images[:] = np.fft.irfft2(spectra, s=images.shape[1:])

    def change(optics: dict[str, list[str]], particles: dict[str, list[str]]) -> None:
        optics["rlnCtfDataArePhaseFlipped"] = ["1"]

    star = spoilt(change=change, paint=paint)
    flipped, plain = (
        check(path, CheckSettings(no_ctf=True)).inversion.ctfs for path in (star, tiny / "particles.star")
    )
    assert flipped.with_ctf == pytest.approx(plain.with_ctf, rel=0.02)


def test_order_against_order(spoilt: Callable[..., Path]) -> None:
    """Images sorted otherwise than the table."""
    order = np.random.default_rng(0).permutation(500)

    def paint(images: NDArray[np.float32]) -> None:
        images[:] = images[order]

    found = check(spoilt(paint=paint))
    assert [finding.topic for finding in found.problems] == ["poses"]
    assert closing_line(found).startswith("1 problem found")


def test_every_image_is_looked_at_if_asked(spoilt: Callable[..., Path]) -> None:
    def paint(images: NDArray[np.float32]) -> None:
        images[:7, 0, 0] = np.inf

    found = check(spoilt(paint=paint), CheckSettings(n_images=60, every_image=True))
    assert len(found.sample.statistics.rows) == 60
    assert len(found.statistics.rows) == 500
    assert len(found.statistics.unusable) == 7


def test_what_the_reader_says_is_passed_on(spoilt: Callable[..., Path]) -> None:
    """A row whose image another row has already."""

    def change(optics: dict[str, list[str]], particles: dict[str, list[str]]) -> None:
        particles["rlnImageName"][3] = particles["rlnImageName"][4]

    found = check(spoilt(change), CheckSettings(n_images=20))
    assert any(f.verdict == "note" and f.topic == "file" and "1 rows repeat" in f.text for f in found.findings)


def test_a_handful_of_images(tiny: Path, tmp_path: Path) -> None:
    """No map, but a picture and the facts."""
    found = check(tiny / "particles.star", CheckSettings(n_images=5))
    assert found.inversion is None
    assert found.problems == []
    write_check(tmp_path / "five", found, Reporter())
    assert json.loads((tmp_path / "five" / "check.json").read_text(encoding="utf-8"))["map"] is None


def test_unreadable_input(
    spoilt: Callable[..., Path], tmp_path: Path, refuses: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tmp_path / "none.star")]) == 2
    assert "none.star" in capsys.readouterr().err
    with refuses("none of 500 images", "NaN"):
        check(spoilt(paint=lambda images: images.fill(np.nan)))
    with refuses("--n-images 0"):
        CheckSettings(n_images=0)
    with refuses("Q7"):
        CheckSettings(symmetry="Q7")
    (tmp_path / "file").write_text("")
    with refuses("file"):
        check_output(tmp_path / "file", overwrite=True)


def test_the_same_seed_gives_the_same_numbers(tiny: Path) -> None:
    first, second = (check(tiny / "particles.star", CheckSettings(n_images=200, seed=4)) for _ in range(2))
    assert [finding.line() for finding in first.findings] == [finding.line() for finding in second.findings]


def test_real_single_particles_are_too_few(shared_data: Path) -> None:
    """17 images of one micrograph: nothing is claimed of them but what the table says."""
    found = check(shared_data / "real/spa-17/sample_relion_data.star")
    assert found.problems == []
    assert {f.topic for f in found.findings if f.verdict == "note"} >= {"poses", "CTF", "views"}
