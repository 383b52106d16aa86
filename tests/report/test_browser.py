"""The page in a real browser: it opens without a complaint, asks nothing of the network, and answers hands."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chromium import CHROMIUM, pixels

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def opened(browser: Any, file: Path, size: dict[str, int] = DESKTOP, **options: Any) -> tuple[Any, list[str]]:
    """The page, and a list that what it says or asks for goes to."""
    page = browser.new_page(viewport=size, **options)
    heard: list[str] = []
    page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(file.as_uri())
    return page, heard


def ready(page: Any) -> None:
    for figure in ("slices", "surface"):
        page.wait_for_selector(f"#{figure}-figure[data-ready]", state="attached", timeout=60_000)


@pytest.fixture(scope="module")
def report(run_folder: Path) -> Path:
    return run_folder / "report.html"


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """Closed again without a word having been said."""
    page, heard = opened(browser, report)
    ready(page)
    yield page
    page.close()
    assert heard == [report.as_uri()]  # nothing but the file itself


def set_slider(page: Any, identity: str, share: float) -> None:
    """Moves a slider to this share of its range, as a hand would."""
    page.eval_on_selector(
        f"#{identity}",
        "(slider, share) => { slider.value = Number(slider.min) + share * (slider.max - slider.min);"
        " slider.dispatchEvent(new Event('input')); }",
        share,
    )


def test_slices_follow_their_slider(page: Any, run_folder: Path) -> None:
    panel = 'canvas[data-volume="{}"][data-axis="{}"]'
    before = {(v, a): pixels(page, panel.format(v, a)) for v in ("raw", "map") for a in ("z", "y")}
    set_slider(page, "slice-z", 0.35)
    for (volume, axis), old in before.items():
        changed = np.abs(pixels(page, panel.format(volume, axis)) - old).mean()
        assert (changed > 0.01) if axis == "z" else changed == 0
    said = page.text_content("#slice-z-where")
    assert said.startswith("z = −") and said.endswith("Å")
    assert page.get_attribute("#slice-z", "aria-valuetext") == said
    page.focus("#slice-z")
    page.keyboard.press("ArrowRight")
    assert page.text_content("#slice-z-where") != said


def test_slices_show_the_map_upright(page: Any, run_folder: Path) -> None:
    import mrcfile

    volume = mrcfile.read(run_folder / "map.mrc")
    n = int(page.get_attribute('canvas[data-volume="map"][data-axis="z"]', "width"))
    first = len(volume) // 2 - n // 2
    cut = slice(first, first + n)
    cube = volume[cut, cut, cut]
    expected = {"z": cube[n // 2][::-1], "y": cube[:, n // 2][::-1], "x": cube[:, :, n // 2][::-1]}
    for axis, plane in expected.items():
        shown = page.eval_on_selector(
            f'canvas[data-volume="map"][data-axis="{axis}"]',
            "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 == 0)",
        )
        assert np.corrcoef(np.array(shown), plane.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("hand", ["key", "drag", "zoom", "level", "colour"])
def test_the_surface_answers(hand: str, page: Any) -> None:
    space = "canvas.space"
    before = pixels(page, space)
    background = before[5, 5]
    covered = np.mean(np.abs(before - background).sum(axis=2) > 0.05)
    assert 0.05 < covered < 0.8  # a particle is there, and room about it
    box = page.locator(space).bounding_box()
    if hand == "key":
        page.focus(space)
        page.keyboard.press("ArrowLeft")
    elif hand == "drag":
        page.mouse.move(box["x"] + 200, box["y"] + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 300, box["y"] + 240, steps=3)
        page.mouse.up()
    elif hand == "zoom":
        page.focus(space)
        page.keyboard.press("+")
    elif hand == "level":
        set_slider(page, "surface-level", 0.75)
    else:
        page.check("input[name=surface-colour][value=plain]")
    after = pixels(page, space)
    assert np.mean(np.abs(after - before).sum(axis=2) > 0.05) > 0.02
    now_covered = np.mean(np.abs(after - background).sum(axis=2) > 0.05)
    if hand == "level":
        assert now_covered < 0.8 * covered  # a higher level is a smaller surface
    if hand == "zoom":
        assert now_covered > 1.1 * covered
    if hand == "colour":
        assert now_covered == pytest.approx(covered, abs=0.01)
        assert not page.is_visible("#surface-figure .ramp")
    page.click("#surface-reset")
    if hand in ("key", "drag", "zoom"):
        # The button has the focus now, so the canvas is without its outline.
        assert np.abs(pixels(page, space) - before).mean() < 1e-3


def test_the_curves_can_be_read(page: Any, run_folder: Path) -> None:
    with (run_folder / "fsc.csv").open() as file:
        rows = list(csv.DictReader(file))
    page.locator("#fsc").scroll_into_view_if_needed()
    box = page.locator("#fsc").bounding_box()
    left, _, right, _ = (float(v) for v in page.get_attribute("#fsc", "data-plot").split())
    for shell in (3, 9):
        share = (left + (right - left) * shell / len(rows)) / 640
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        for name in ("c_map", "gaussian_half", "raw_half_masked"):
            assert float(page.text_content(f"#fsc-{name}")) == pytest.approx(float(rows[shell - 1][name]), abs=6e-4)
        assert page.text_content("#fsc-where").endswith(f"shell {shell}")
    page.focus("#fsc-shell")
    page.keyboard.press("ArrowRight")
    assert page.text_content("#fsc-where").endswith("shell 10")


def test_every_control_is_reached_with_the_keyboard(page: Any) -> None:
    reached = set()
    page.evaluate("() => document.body.focus()")
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.className"))
    assert {"fsc-shell", "slice-x", "slice-y", "slice-z", "space", "surface-level", "surface-reset"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_every_screen_by_day_and_night(scheme: str, size: dict[str, int], browser: Any, report: Path) -> None:
    page, heard = opened(browser, report, size, color_scheme=scheme)
    ready(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") == size["width"]
    paper, ink = page.evaluate(
        "() => ['backgroundColor', 'color'].map(p => getComputedStyle(document.body)[p].match(/[\\d.]+/g).map(Number))"
    )
    assert (np.mean(paper) < 60 and np.mean(ink) > 200) if scheme == "dark" else np.mean(paper) > 240
    words = page.evaluate(WEAKEST_CONTRAST)
    assert words["ratio"] >= 4.5, words  # WCAG 2.2, AA
    assert heard == [report.as_uri()]
    page.close()


# Of all texts on the page: the contrast of ink and paper, by the formula of WCAG.
WEAKEST_CONTRAST = """() => {
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const paperOf = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  let weakest = { ratio: 99 };
  const texts = "p, dt, dd, h1, h2, h3, th, td, a, label, figcaption, small, svg text";
  for (const element of document.querySelectorAll(texts)) {
    if (!element.textContent.trim()) continue;
    const style = getComputedStyle(element);
    const ink = numbers(element instanceof SVGElement ? style.fill : style.color).slice(0, 3);
    const [a, b] = [light(ink), light(paperOf(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < weakest.ratio) weakest = { ratio, text: element.textContent.trim().slice(0, 40) };
  }
  return weakest;
}"""


def test_it_prints(page: Any) -> None:
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert 4 <= printed.count(b"/Type /Page\n") <= 10
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.is_visible("#slice-z")
    page.emulate_media(media="screen", color_scheme="light")


def test_without_webgl_the_rest_is_there(playwright: Any, report: Path) -> None:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-3d-apis"])
    page, heard = opened(browser, report)
    page.wait_for_selector("#surface-figure .excuse:not([hidden])")
    assert "no WebGL" in page.text_content("#surface-figure .excuse")
    page.wait_for_selector("#slices-figure[data-ready]", state="attached")
    assert not [said for said in heard if said.startswith("error: ")]
    browser.close()


def test_the_page_of_a_bare_run_is_silent_too(browser: Any, run_folder: Path, tmp_path: Path) -> None:
    from emsplat.report.page import write_report

    shutil.copy(run_folder / "summary.json", tmp_path)
    page, heard = opened(browser, write_report(tmp_path))
    page.wait_for_timeout(300)
    assert heard == [(tmp_path / "report.html").as_uri()]
    page.close()
