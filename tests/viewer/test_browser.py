"""The viewer in a real browser: it connects, answers hands, outlives a reload, asks nothing of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from chromium import pixels
from emsplat.simulation import bundled_model
from emsplat.viewer.controls import Controls
from emsplat.viewer.pictures import screenshot, turntable

pytest.importorskip("viser")
SCENE = "canvas[data-engine]"
CHANGED = 0.004  # of the mean brightness: far above what two pictures of the same scene differ by


@pytest.fixture(scope="module")
def viewed(run_folder: Path) -> Iterator[tuple[Any, Controls]]:
    from emsplat.viewer.view import open_view

    server, controls = open_view(run_folder, lambda line: None, port=0)
    yield server, controls
    server.stop()


@pytest.fixture(scope="module")
def page(browser: Any, viewed: tuple[Any, Controls]) -> Iterator[Any]:
    """Closed again without an error, and without a request to anywhere else."""
    server, _ = viewed
    page = browser.new_page(viewport={"width": 760, "height": 560})
    errors: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    address = f"localhost:{server.get_port()}"
    page.goto(f"http://{address}")
    page.get_by_role("combobox", name="colour by").wait_for(timeout=60_000)
    page.wait_for_timeout(1000)
    yield page
    page.close()
    assert errors == []
    assert any(url.startswith("ws:") for url in asked)
    assert [url for url in asked if address not in url and not url.startswith(("data:", "blob:"))] == []


def below(page: Any) -> NDArray[np.float64]:
    """What the scene shows, but for its upper edge, where the browser's notes come and go."""
    return pixels(page, SCENE)[150:]


def seen(page: Any) -> NDArray[np.float64]:
    """What the scene shows once it rests."""
    before = below(page)
    for _ in range(40):
        page.wait_for_timeout(150)
        now = below(page)
        if np.abs(now - before).mean() < 1e-4:
            return now
        before = now
    raise AssertionError("the scene never rests")


def until_changed(
    page: Any, before: NDArray[np.float64], so_that: Callable[[NDArray[np.float64]], bool] = lambda picture: True
) -> NDArray[np.float64]:
    """What the scene shows once it rests, is another picture, and as it should be: those in between are not."""
    for _ in range(1500):  # on a busy machine; it ends as soon as the picture is as it should be
        page.wait_for_timeout(100)
        now = below(page)
        if np.abs(now - before).mean() > CHANGED and so_that(now) and so_that(rested := seen(page)):
            return rested
    raise AssertionError("nothing changes, or not as it should")


def covered(picture: NDArray[np.float64]) -> float:
    return float(np.mean(np.abs(picture - picture[-3, 3]).sum(axis=2) > 0.05))


def strength(picture: NDArray[np.float64]) -> float:
    """How much is drawn over the ground."""
    return float(np.abs(picture - picture[-3, 3]).mean())


def choose(page: Any, name: str, option: str) -> None:
    page.get_by_role("combobox", name=name).click()
    page.get_by_role("option", name=option, exact=True).click()


def press(page: Any, slider: int, key: str) -> None:
    page.get_by_role("slider").nth(slider).focus()
    page.keyboard.press(key)


def test_every_control_changes_the_picture(page: Any) -> None:
    first = until_changed(page, 0 * seen(page), lambda picture: 0.1 < covered(picture) < 0.8)
    light = strength(first)
    small = _after(page, first, lambda: press(page, 0, "Home"), lambda p: strength(p) < light)  # size
    again = _after(page, small, lambda: _keys(page, 0, "ArrowRight", 16), lambda p: strength(p) > strength(small))
    clear = _after(page, again, lambda: press(page, 1, "Home"), lambda p: strength(p) < strength(again))  # opacity
    few = _after(
        page, clear, lambda: (press(page, 1, "End"), press(page, 2, "End")), lambda p: covered(p) < 0.7 * covered(first)
    )  # only the heaviest
    all_of_them = _after(page, few, lambda: press(page, 2, "Home"), lambda p: covered(p) > 1.3 * covered(few))
    by_size = _after(page, all_of_them, lambda: choose(page, "colour by", "size"))
    half = _after(page, by_size, lambda: choose(page, "model", "half 1"))
    surface = _after(page, half, lambda: choose(page, "show", "surface"), lambda p: 0.1 < covered(p) < covered(half))
    high = _after(page, surface, lambda: _keys(page, 3, "ArrowRight", 20), lambda p: covered(p) < covered(surface))
    page.get_by_text("Clip plane").click()
    _after(page, high, lambda: choose(page, "across", "y"), lambda p: 0.01 < covered(p) < covered(high))


def _after(
    page: Any,
    before: NDArray[np.float64],
    hand: Callable[[], Any],
    so_that: Callable[[NDArray[np.float64]], bool] = lambda picture: True,
) -> NDArray[np.float64]:
    hand()
    return until_changed(page, before, so_that)


def _keys(page: Any, slider: int, key: str, times: int) -> None:
    press(page, slider, key)
    for _ in range(times - 1):
        page.keyboard.press(key)


def test_controls_have_names_and_are_reached_with_the_keyboard(page: Any) -> None:
    page.evaluate("() => document.activeElement.blur()")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "() => { const e = document.activeElement;"
                " return (e.labels?.[0]?.textContent || e.getAttribute('role') || e.textContent).trim(); }"
            )
        )
    assert {"model", "show", "colour by", "slider", "Screenshot (PNG)", "Turntable (GIF)"} <= reached


def test_a_reload_brings_it_back(page: Any) -> None:
    choose(page, "show", "Gaussians")
    page.reload()
    page.get_by_role("combobox", name="colour by").wait_for(timeout=60_000)
    until_changed(page, 0 * below(page), lambda picture: covered(picture) > 0.05)
    assert page.get_by_role("combobox", name="show").input_value() == "Gaussians"


def test_a_model_is_laid_on_top(page: Any, viewed: tuple[Any, Controls]) -> None:
    before = seen(page)
    page.get_by_text("Atomic model").click()
    page.wait_for_timeout(300)
    choose(page, "placed", "in the middle")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load PDB or mmCIF").click()
    chooser.value.set_files(bundled_model())
    until_changed(page, before)
    page.get_by_text("15,879 atoms").wait_for(timeout=10_000)
    choose(page, "placed", "as in the file")
    page.get_by_text("outside the box").wait_for(timeout=10_000)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load PDB or mmCIF").click()
    chooser.value.set_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no atoms"})
    page.get_by_text("not the name of an atomic model").wait_for(timeout=10_000)


def test_pictures(page: Any, viewed: tuple[Any, Controls]) -> None:
    server, _ = viewed
    page.get_by_role("button", name="Screenshot (PNG)").click()
    link = page.locator("a[download]")
    link.wait_for(timeout=30_000)
    with page.expect_download() as download:
        link.click()
    shown = np.asarray(Image.open(download.value.path()))
    assert download.value.suggested_filename == "run.png"
    assert shown.shape[2] == 3 and shown.std() > 10
    # Of the page that is open; pixels are asked for from another thread than the one that Playwright waits in.
    from concurrent.futures import ThreadPoolExecutor

    [client] = server.get_clients().values()
    with ThreadPoolExecutor() as pool:
        film = pool.submit(turntable, client, lambda done, total: None, 3)
        still = pool.submit(screenshot, client)
        while not (film.done() and still.done()):
            page.wait_for_timeout(100)
    turned = Image.open(BytesIO(film.result()))
    assert (turned.format, turned.n_frames) == ("GIF", 3)
    frames = []
    for number in range(3):
        turned.seek(number)
        frames.append(np.asarray(turned.convert("RGB"), dtype=float))
    assert min(np.abs(a - b).mean() for a, b in pairwise(frames)) > 1
    assert still.result().startswith(b"\x89PNG")
