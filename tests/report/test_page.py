"""The page as a file: whole, self-contained, honest about what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pages import Page

from emsplat.cli import main
from emsplat.report.page import write_report

MISSING = "This run has nothing to show here"
SECTIONS = {
    "resolution": "fsc.csv",
    "slices": "raw_half1.mrc",
    "surface": "map.mrc",
    "views": "report_data.npz",
    "gaussians": "gaussians.safetensors",
}


@pytest.fixture(scope="module")
def text(run_folder: Path) -> str:
    return (run_folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


@pytest.fixture
def copy(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "copy"))


def test_it_says_the_verdict_first(page: Page, run_folder: Path) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    beginning = " ".join(page.words.split())[:900]
    assert "emsplat reconstruction" in beginning
    assert f"{summary['resolution']:.2f} Å" in beginning
    assert "c_map" in beginning
    assert "600 of 600 particles" in beginning
    assert MISSING not in page.words


def test_it_asks_nothing_of_the_network(page: Page, text: str) -> None:
    assert len(text.encode()) < 4e6
    policy = next(meta for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    for _, attributes in page.elements:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_every_control_has_a_label_and_every_picture_its_words(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes.get("for") for attributes in page.named("label")}
    controls = page.named("input")
    assert len(controls) >= 7
    for control in controls:
        # A radio button stands inside its label.
        assert control["type"] == "radio" or control["id"] in labelled
    assert all(picture["alt"] for picture in page.named("img"))
    assert all(canvas["aria-label"] for canvas in page.named("canvas"))
    for svg in page.named("svg"):
        assert svg.get("aria-hidden") == "true" or svg["aria-labelledby"] in ids


def test_every_figure_says_how_to_read_it(text: str) -> None:
    for section in text.split("<section id=")[1:]:
        if not section.startswith(('"next"', '"record"')):
            assert "<b>How to read it.</b>" in section
            assert "<b>Suspicious.</b>" in section


@pytest.mark.parametrize(("section", "file"), SECTIONS.items())
def test_what_an_older_run_lacks_is_said(section: str, file: str, copy: Path) -> None:
    (copy / file).unlink()
    text = write_report(copy).read_text()
    Page(text)
    parts = {part[1:].split('"')[0]: part for part in text.split("<section id=")[1:]}
    assert MISSING in parts[section]
    assert MISSING not in parts["cost"]


def test_a_run_of_nothing_but_its_summary(copy: Path) -> None:
    for path in copy.iterdir():
        if path.name != "summary.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    summary = json.loads((copy / "summary.json").read_text())
    later = ("finished", "peak_memory_after_in_bytes", "local_resolution", "refinement", "warnings")
    (copy / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if k not in later}))
    assert Page(write_report(copy).read_text()).words.count(MISSING) == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resolution": None, "resolution_kind": "not_measurable", "measurable_limit": None}, "not measurable"),
        ({"resolution_kind": "better_than"}, "better than"),
        ({"poses_shared": True}, "Upper bound:"),
        ({"warnings": ["mind <b>this</b> & that"]}, "mind <b>this</b> & that"),
        ({"b_factor": -80.0}, "B-factor -80 Å²"),
        ({"b_factor": -80.0}, "map.mrc is sharpened"),
    ],
)
def test_every_verdict_has_its_words(changes: dict, said: str, copy: Path) -> None:
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps(summary | changes))
    assert said in Page(write_report(copy).read_text()).words


def test_names_cannot_end_a_script_or_begin_one(copy: Path) -> None:
    bad = "</script><script>alert(1)</script>"
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps(summary | {"warnings": [bad]}))
    before = len(Page((copy / "report.html").read_text()).named("script"))
    page = Page(write_report(copy, name=bad).read_text())
    assert len(page.named("script")) == before
    assert bad in page.words


@pytest.mark.parametrize("file", ["summary.json", "config.json", "fsc.csv", "report_data.npz", "gaussians.safetensors"])
def test_a_broken_file_is_named(file: str, copy: Path, refuses) -> None:
    before = (copy / "report.html").read_bytes()
    (copy / file).write_bytes((copy / file).read_bytes()[:40])
    with refuses(str(copy / file)):
        write_report(copy)
    assert (copy / "report.html").read_bytes() == before


def test_the_command(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (copy / "report.html").unlink()
    assert main(["report", str(copy)]) == 0
    assert capsys.readouterr().out.strip() == str(copy / "report.html")
    assert main(["report", str(copy), "-o", str(tmp_path / "other.html")]) == 0
    assert "<title>copy: " in (tmp_path / "other.html").read_text()
    assert main(["report", str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err
    assert main(["report", str(copy), "-o", str(tmp_path / "no" / "folder.html")]) == 2
    (copy / "summary.json").write_text('{"resolution_kind": "measured"}')
    assert main(["report", str(copy)]) == 2
