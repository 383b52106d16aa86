"""``emsplat heterogeneity`` and ``emsplat decode`` from end to end: two states told apart, one state left as one."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from PIL import Image

from emsplat.cli import main
from emsplat.heterogeneity.decoder import Decoder
from emsplat.io import read_map, read_particles
from emsplat.models.gaussians import Gaussians
from emsplat.simulation import simulate
from emsplat.validation.correlation import fsc
from heterogeneous import SETTINGS, two_conformations


@pytest.fixture(scope="module")
def two_states(one_chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_conformations(one_chain, tmp_path_factory.mktemp("two_states"))


@pytest.fixture(scope="module")
def run(two_states: Path) -> Path:
    folder = two_states.parent.parent / "run"
    assert main(["heterogeneity", str(two_states), "-o", str(folder), "--threads", "1", "--states", "2"]) == 0
    return folder


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def true_states(star: Path) -> dict[str, int]:
    return {row["image"]: int(row["state"]) for row in table_of(star.with_name("labels.csv"))}


def assert_alike(one: np.ndarray, other: np.ndarray) -> None:
    """Maps that differ by what a box's faces cut off."""
    assert np.linalg.norm(one - other) < 0.02 * np.linalg.norm(other)


def test_two_states_are_told_apart(two_states: Path, run: Path) -> None:
    summary = summary_of(run)
    assert summary["n_components"] == 1
    truth = true_states(two_states)
    found = table_of(run / "latents.csv")
    assert {row["id"] for row in found} == set(truth)
    z, state = np.array([float(row["z1"]) for row in found]), np.array([truth[row["id"]] for row in found])
    middle = 0.5 * (z[state == 1].mean() + z[state == 2].mean())
    right = ((z > middle) == (state == 1)).mean()
    assert max(right, 1 - right) > 0.9
    # Both halves have the same frame.
    half = np.array([row["half"] for row in found])
    signs = [np.sign(z[(half == h) & (state == 1)].mean() - z[(half == h) & (state == 2)].mean()) for h in "12"]
    assert signs[0] == signs[1]


def test_maps_of_states_are_those_of_their_images(two_states: Path, run: Path) -> None:
    truth = true_states(two_states)
    truths = [read_map(two_states.with_name("truths") / f"00{i}.mrc").values for i in (1, 2)]
    found = table_of(run / "latents.csv")
    for state in summary_of(run)["states"]:
        folder = run / "states" / f"{state['number']:02d}"
        labels = [truth[row["id"]] for row in found if row["state"] == str(state["number"])]
        share = np.mean(np.array(labels) == 2)
        assert share < 0.15 or share > 0.85
        halves = [read_map(folder / f"map_half{half}.mrc").values for half in (1, 2)]
        mask = read_map(folder / "mask.mrc").values
        own = fsc(0.5 * (halves[0] + halves[1]), truths[int(share > 0.5)], mask)[5:12]
        other = fsc(0.5 * (halves[0] + halves[1]), truths[int(share < 0.5)], mask)[5:12]
        assert own.mean() > 0.9 and own.mean() > other.mean()
        claimed = [float(row["c_map"]) for row in table_of(folder / "fsc.csv")][5:12]
        assert np.nanmean(claimed) == pytest.approx(own.mean(), abs=0.06)
        assert state["difference_significance"] > 5


def test_latents_do_not_encode_how_images_were_taken(run: Path) -> None:
    leaks = summary_of(run)["leaks"]
    assert {leak["what"] for leak in leaks} >= {"viewing direction", "defocus", "contrast", "shift"}
    assert not [leak for leak in leaks if leak["worrying"]]


def test_the_folder_is_complete(run: Path) -> None:
    expected = {
        "latents.csv", "decoder.safetensors", "decoder_half1.safetensors", "decoder_half2.safetensors", "summary.json",
        "config.json", "run.log", "states", "consensus", "figures", "trajectories",
        "junk.csv", "landscape.html", "report.html",
    }  # fmt: skip
    assert {path.name for path in run.iterdir()} == expected
    assert {path.name for path in (run / "figures").iterdir()} >= {
        "components.png", "landscape.png", "states.png", "differences.png",
    }  # fmt: skip
    assert (run / "consensus" / "map.mrc").is_file()


def test_the_report_says_what_was_found(run: Path, tmp_path: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    summary = summary_of(run)
    for state in summary["states"]:
        assert f"State {state['number']}" in text and f"{100 * state['population']:.1f} % of the images" in text
    for word in ("1 component", "Canonical correlations", "held-out loss", "differs from the consensus", "defocus"):
        assert word in text
    assert {"landscape.html", "consensus/report.html"} <= set(re.findall('href="([^"#]+)"', page))
    pictures = re.findall('src="(.{20})', page)
    assert len(pictures) >= 4 + len(summary["states"]) and all(p.startswith("data:image/") for p in pictures)
    assert main(["report", str(run), "-o", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_the_particles_of_a_state_go_back_into_a_star(two_states: Path, run: Path, tmp_path: Path) -> None:
    kept = {row["id"] for row in table_of(run / "latents.csv") if row["state"] == "1"}
    ids, star = run / "states" / "01" / "ids.csv", tmp_path / "state1.star"
    assert main(["subset", str(two_states), "--keep", str(ids), "-o", str(star)]) == 0
    assert set(read_particles(star, datadir=two_states.parent).ids) == kept


def test_a_trajectory_leads_through_the_states(run: Path) -> None:
    folder = run / "trajectories" / "component1"
    points = table_of(folder / "points.csv")
    z = [float(point["z1"]) for point in points]
    assert z == sorted(z) and len(z) == 10
    assert sum(int(point["images"]) for point in points) <= SETTINGS.n_images
    decoder = Decoder.load(run / "decoder.safetensors")
    for point in (points[0], points[-1]):
        expected = decoder.at([float(point["z1"])]).voxelise(32, 4.0)
        assert_alike(read_map(folder / point["file"]).values, expected)
    with Image.open(folder / "movie.gif") as gif:
        assert gif.n_frames == 18
    script = (folder / "play.cxc").read_text()
    assert all(point["file"] in script for point in points)


@pytest.mark.parametrize("seed", [11])
def test_one_state_is_left_as_one_and_replaces_a_run_of_two(
    one_chain: Path, run: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    star = simulate(one_chain, tmp_path / "images", replace(SETTINGS, contrast_sigma=0.2, seed=seed))
    shutil.copytree(run, tmp_path / "run")
    assert main(["heterogeneity", str(star), "-o", str(tmp_path / "run"), "--threads", "1", "--overwrite"]) == 0
    summary = summary_of(tmp_path / "run")
    assert summary["n_components"] == 0
    assert summary["states"] == []
    assert "none found" in capsys.readouterr().out
    assert len(table_of(tmp_path / "run" / "latents.csv")) == SETTINGS.n_images
    assert "no heterogeneity" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    left = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*") if path.is_file()}
    figures = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert left == {
        "config.json", "consensus", "figures", "junk.csv", "latents.csv", "report.html", "run.log", "summary.json"
    }  # fmt: skip
    assert figures == {"components"}
    assert main(["decode", str(tmp_path / "run"), "--state", "1"]) == 2


def test_too_few_images_say_nothing(one_chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    star = simulate(one_chain, tmp_path / "images", replace(SETTINGS, n_images=60))
    assert main(["heterogeneity", str(star), "-o", str(tmp_path / "run"), "--threads", "1"]) == 0
    assert summary_of(tmp_path / "run")["n_components"] == 0
    assert "too few" in capsys.readouterr().out


def test_decoding_a_point_is_the_decoders_map(run: Path, tmp_path: Path) -> None:
    z = summary_of(run)["states"][0]["z"][0]
    assert main(["decode", str(run), "--state", "1", "-o", str(tmp_path / "a.mrc")]) == 0
    assert main(["decode", str(run), f"--at={z}", "-o", str(tmp_path / "b.mrc")]) == 0
    a, b = (read_map(tmp_path / name).values for name in ("a.mrc", "b.mrc"))
    np.testing.assert_allclose(a, b, atol=1e-4 * abs(a).max())
    expected = Decoder.load(run / "decoder.safetensors").at([z]).voxelise(len(a), 4.0)
    assert_alike(a, expected)


def test_particles_are_decoded_in_the_files_order(run: Path, tmp_path: Path) -> None:
    rows = table_of(run / "latents.csv")
    chosen = [rows[700], rows[3]]
    (tmp_path / "ids.csv").write_text("id\n" + "\n".join(row["id"] for row in chosen) + "\n")
    out = tmp_path / "maps"
    assert main(["decode", str(run), "--particles", str(tmp_path / "ids.csv"), "-o", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"001.mrc", "002.mrc", "points.csv"}
    decoder = Decoder.load(run / "decoder.safetensors")
    for name, row in zip(("001.mrc", "002.mrc"), chosen, strict=True):
        expected = decoder.at([float(row["z1"])]).voxelise(32, 4.0)
        assert_alike(read_map(out / name).values, expected)


def test_a_path_leads_from_end_to_end_in_every_format(run: Path, tmp_path: Path) -> None:
    for format, ending in (("gaussians", "safetensors"), ("ply", "ply"), ("cif", "cif")):
        out = tmp_path / format
        arguments = ["decode", str(run), "--path", "1", "2", "-n", "3", "--format", format, "-o", str(out)]
        assert main(arguments) == 0
        assert len(list(out.glob(f"*.{ending}"))) == 3
    z = [state["z"] for state in summary_of(run)["states"]]
    middle = Gaussians.load(tmp_path / "gaussians" / "002.safetensors")
    expected = Decoder.load(run / "decoder.safetensors").at(0.5 * (np.array(z[0]) + z[1]))
    np.testing.assert_allclose(middle.log_masses, expected.log_masses, atol=1e-5)
    block = gemmi.cif.read(str(tmp_path / "cif" / "001.cif")).sole_block()
    assert len(block.find_loop("_atom_site.id")) == len(middle)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "exactly one of"),
        (["--state", "7"], "states 1 to 2"),
        (["--at", "1,2"], "1 finite numbers are needed"),
        (["--at", "x"], "must be numbers"),
        (["--state", "1", "--pixel-size", "2", "--format", "ply"], "no grid to choose"),
        (["--path", "1", "2", "-n", "1"], "at least 2 points"),
        (["--particles", "missing.csv"], "cannot be read"),
    ],
)
def test_what_decode_cannot_do_is_said_in_a_line(
    run: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["decode", str(run), *arguments, "-o", str(run.parent / "never")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (run.parent / "never").exists()


def test_bad_options_are_refused_before_any_work(two_states: Path, tmp_path: Path) -> None:
    for option in (["--components", "0"], ["--states", "0"], ["--mask", str(tmp_path / "missing.mrc")]):
        assert main(["heterogeneity", str(two_states), "-o", str(tmp_path / "run"), *option]) == 2
    assert not (tmp_path / "run").exists()
