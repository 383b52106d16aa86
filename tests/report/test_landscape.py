"""The landscape page: all of its data come back from it, and it draws and selects in a browser."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chromium import CHROMIUM, FLAGS, pixels
from emsplat.heterogeneity.decoder import Decoder
from emsplat.models.gaussians import Gaussians
from emsplat.report.landscape import Decoded, write_landscape

N = 500
STATES = [
    {"number": 1, "population": 1.0, "z": [0.0, 0.0], "resolution_text": "8.00 Å", "difference_significance": 7.0}
]
LEAKS = [{"what": "defocus", "r_squared": 0.01, "worrying": False, "meaning": "the CTF of some images is wrong"}]


def decoded() -> Decoded:
    """A ball that stays, and one that moves by 10 Å along x with z1."""
    model = Gaussians(
        torch.tensor([[0.0, 0, 0], [0, 12, 0]]), torch.full((2, 3), np.log(4.0)), torch.tensor([[1.0, 0, 0, 0]] * 2),
        torch.zeros(2),
    )  # fmt: skip
    moves = torch.zeros(2, 2, 3)
    moves[1, 0, 0] = 10
    return Decoded(
        Decoder(model, torch.zeros(2, 2), moves), 3e-4, 64.0, [("component 1", np.array([[-1.0, 0], [1, 0]]))]
    )


def page(path: Path) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    z, ids = rng.normal(size=(N, 2)), [f"{i:06d}@</script>.mrcs" for i in range(N)]
    columns = {"state": rng.integers(1, 3, N), "half": rng.integers(1, 3, N), "log-likelihood": rng.normal(size=N)}
    write_landscape(path, "run", ids, z, columns, STATES, LEAKS, decoded())
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
    assert "8.00 Å" in text and "src=" not in text
    table = np.frombuffer(base64.b64decode(data["decoder"]["table"]), dtype="<f4").reshape(2, 10 + 4 * 2)
    np.testing.assert_allclose(table[:, :3], decoded().decoder.gaussians.centres)
    np.testing.assert_allclose(table[:, 3:9], [[16, 0, 0, 16, 0, 16]] * 2, rtol=1e-5)


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
            # A click decodes the image's point: the surface and the command that writes it follow.
            shown.mouse.click(*at(0.5, 0.5))
            shown.wait_for_function("document.getElementById('surface-figure').dataset.z !== '0.000,0.000'")
            decoded_at = [float(v) for v in shown.locator("#surface-figure").get_attribute("data-z").split(",")]
            assert np.abs(z - decoded_at).sum(axis=1).min() < 1e-3
            assert f"--at={decoded_at[0]:.3g}"[:9] in shown.inner_text("#point")
            assert int(shown.locator("#surface-figure").get_attribute("data-triangles")) > 100
            before = pixels(shown, "#surface-figure canvas")
            shown.locator("#path-at").fill("1")
            shown.wait_for_function("document.getElementById('surface-figure').dataset.z === '1.000,0.000'")
            assert np.abs(pixels(shown, "#surface-figure canvas") - before).max() > 0.1
            shown.select_option("#colour", "density")
            shown.select_option("#axis-y", "log-likelihood")
            assert not errors
        finally:
            browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to run the script with")
def test_the_page_decodes_what_the_decoder_does(browser: Any, tmp_path: Path) -> None:
    """The density of `decoder.js` is that of the Gaussians, widened by what its coarse grid cannot show."""
    page(tmp_path / "l.html")
    shown = browser.new_page()
    shown.goto((tmp_path / "l.html").as_uri())
    stored = "JSON.parse(document.getElementById('landscape-data').textContent).decoder"
    density = shown.evaluate(f"Array.from(openDecoder({stored}).density([0.7, -2]))")
    edge, n = (shown.evaluate(f"{stored}.{name}") for name in ("edge", "n"))
    shown.close()
    step = edge / n
    found = np.array(density).reshape(n, n, n)
    at = (np.arange(n) - n / 2 + 0.5) * step
    z, y, x = np.meshgrid(at, at, at, indexing="ij")
    variance = 16 + (0.6 * step) ** 2
    expected = sum(
        np.exp(-0.5 * ((x - cx) ** 2 + (y - cy) ** 2 + z**2) / variance) / (2 * np.pi * variance) ** 1.5
        for cx, cy in ((0.0, 0.0), (7.0, 12.0))
    )
    apart = np.abs(found - expected) / expected.max()
    assert apart.max() < 0.025  # at three standard deviations, where both Gaussians are cut off at 1.1 % of their peaks
    assert found.sum() == pytest.approx((1 - 0.029) * expected.sum(), rel=2e-3)  # the mass beyond is 2.9 %
