"""The landscape page: all of its data come back from it, and it draws and selects in a browser."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest

from chromium import CHROMIUM, FLAGS, pixels
from emsplat.report.landscape import write_landscape

N = 500
STATES = [{"number": 1, "population": 1.0, "resolution_text": "8.00 Å", "difference_significance": 7.0}]
LEAKS = [{"what": "defocus", "r_squared": 0.01, "worrying": False, "meaning": "the CTF of some images is wrong"}]


def page(path: Path) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    z, ids = rng.normal(size=(N, 2)), [f"{i:06d}@</script>.mrcs" for i in range(N)]
    columns = {"state": rng.integers(1, 3, N), "half": rng.integers(1, 3, N), "log-likelihood": rng.normal(size=N)}
    write_landscape(path, "run", ids, z, columns, STATES, LEAKS)
    return z, ids


def test_the_data_of_all_images_are_on_the_page(tmp_path: Path) -> None:
    z, ids = page(tmp_path / "l.html")
    text = (tmp_path / "l.html").read_text()
    (found,) = re.findall(r'id="landscape-data">(.*?)</script>', text)
    data = json.loads(found)
    values = np.frombuffer(base64.b64decode(data["values"]), dtype="<f4").reshape(len(data["columns"]), N)
    np.testing.assert_allclose(values[:2].T, z, rtol=1e-6)
    assert data["columns"] == ["z1", "z2", "state", "half", "log-likelihood"]
    assert data["ids"].split("\n") == ids
    assert "8.00 Å" in text and "http" not in text.replace("http://www.w3.org", "")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look at the page with")
def test_a_lasso_selects_images_whose_ids_are_saved(tmp_path: Path) -> None:
    z, ids = page(tmp_path / "l.html")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            shown = browser.new_page(viewport={"width": 1000, "height": 1300})
            errors: list[str] = []
            shown.on("pageerror", lambda error: errors.append(str(error)))
            shown.goto((tmp_path / "l.html").as_uri())
            picture = pixels(shown, ".plot")
            assert picture.std() > 0.02  # points are drawn
            box = shown.locator("#landscape-lasso").bounding_box()
            assert box

            def at(x: float, y: float) -> tuple[float, float]:
                return box["x"] + x * box["width"], box["y"] + y * box["height"]

            # Around the right half: the images whose first latent is above the middle of the range.
            shown.mouse.move(*at(0.5, 0.001))
            shown.mouse.down()
            for corner in ((0.999, 0.001), (0.999, 0.999), (0.5, 0.999), (0.5, 0.01)):
                shown.mouse.move(*at(*corner), steps=4)
            shown.mouse.up()
            with shown.expect_download() as download:
                shown.locator("#save").click()
            download.value.save_as(tmp_path / "ids.csv")
            header, *saved = (tmp_path / "ids.csv").read_text().splitlines()
            middle = 0.5 * (z[:, 0].min() + z[:, 0].max())  # the axis runs over all but a thousandth of the values
            surely, perhaps = (
                {name for name, value in zip(ids, z[:, 0], strict=True) if value > middle + apart}
                for apart in (0.1, -0.1)
            )
            assert header == "id"
            assert len(surely - set(saved)) <= 0.02 * N  # but for those at the very rim
            assert set(saved) <= perhaps and len(set(saved)) == len(saved)
            shown.select_option("#colour", "density")
            shown.select_option("#axis-y", "log-likelihood")
            assert not errors
        finally:
            browser.close()
