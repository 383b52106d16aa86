"""The viewer of a search for heterogeneity: which Gaussians it draws at a point, and its controls in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from chromium import pixels
from emsplat.cli import main
from emsplat.errors import InputError
from emsplat.heterogeneity.decoder import average
from emsplat.runs.heterogeneity_folder import holds_heterogeneity
from emsplat.runs.heterogeneity_run import open_heterogeneity

pytest.importorskip("viser")
from emsplat.viewer.latent import LatentContent, LatentControls
from searched import J, N, decoder, searched

SCENE = "canvas[data-engine]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched(tmp_path_factory.mktemp("searched") / "states")


def test_the_model_at_a_point_is_the_decoders(folder: Path) -> None:
    content = LatentContent.of(open_heterogeneity(folder), 1000)
    z = np.array([1.0, 2.0])
    model = content.decoders["1"].at(z)
    np.testing.assert_allclose(model.centres, decoder().at(z).centres.numpy(), atol=1e-5)
    moved = model.centres - decoder().gaussians.centres.numpy()
    assert np.abs(moved[: J // 3, 0] - 20).max() < 1e-4 and np.abs(moved[J // 3 :]).max() < 1e-4
    np.testing.assert_allclose(model.masses[J // 3 : 2 * J // 3], np.exp(-6), rtol=1e-5)


def test_a_selection_keeps_slopes_with_their_gaussians(folder: Path) -> None:
    thinned = LatentContent.of(open_heterogeneity(folder), 25).decoders["average"]
    assert (len(thinned.rows), thinned.total) == (25, 2 * J)
    whole = average(decoder(), decoder())
    z = np.array([1.0, -1.0])
    np.testing.assert_allclose(thinned.at(z).centres, whole.at(z).centres.numpy()[thinned.rows], atol=1e-5)


def test_images_near_a_point_are_counted_and_trajectories_are_interpolated(folder: Path) -> None:
    content = LatentContent.of(open_heterogeneity(folder), 1000)
    assert len(content.latents) == N - 10  # without junk
    assert content.images_near(np.zeros(2)) == (np.linalg.norm(content.latents, axis=1) < 0.5).sum() > 20
    assert content.images_near(np.array([9.0, 9.0])) == 0
    np.testing.assert_allclose(content.along(1, 0.75), [0, 1.0])
    low, high = content.ranges()
    assert (low < -1.5).all() and (high > 1.5).all()


def test_what_cannot_be_shown_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert holds_heterogeneity(folder) and not holds_heterogeneity(tmp_path)
    assert main(["view", str(folder), "--model", "model.pdb"]) == 2
    assert "consensus" in capsys.readouterr().err
    assert main(["export", str(folder), "--format", "mrc", "-o", str(tmp_path / "map.mrc")]) == 2
    assert "emsplat decode" in capsys.readouterr().err
    none = tmp_path / "none"
    none.mkdir()
    (none / "summary.json").write_text(json.dumps({"n_components": 0, "box_size": 32, "pixel_size": 2, "states": []}))
    with pytest.raises(InputError, match="no heterogeneity"):
        LatentContent.of(open_heterogeneity(none), 10)


@pytest.fixture(scope="module")
def viewed(folder: Path) -> Iterator[tuple[Any, LatentControls]]:
    from emsplat.viewer.view import open_latent_view

    server, controls = open_latent_view(folder, lambda line: None, port=0)
    yield server, controls
    server.stop()


def shown_when(page: Any, is_there: Callable[[NDArray[np.float64]], bool]) -> NDArray[np.float64]:
    """What the scene shows below the browser's notes, as soon as it is there and at rest."""
    last = pixels(page, SCENE)[150:]
    for _ in range(100):
        page.wait_for_timeout(200)
        now = pixels(page, SCENE)[150:]
        if is_there(now) and np.abs(now - last).mean() < 1e-4:
            return now
        last = now
    raise AssertionError("the scene never shows what it should")


def test_sliders_move_the_gaussians_and_a_turntable_follows_a_trajectory(
    browser: Any, viewed: tuple[Any, LatentControls], monkeypatch: pytest.MonkeyPatch
) -> None:
    from emsplat.viewer import pictures

    server, controls = viewed
    page = browser.new_page(viewport={"width": 760, "height": 560})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"http://localhost:{server.get_port()}")
    page.get_by_role("combobox", name="colour by").wait_for(timeout=60_000)
    before = shown_when(page, lambda picture: picture.std() > 0.02)
    controls.move_to(np.array([1.5, 0.0]))
    shown_when(page, lambda picture: np.abs(picture - before).mean() > 0.004)
    assert "images within 0.5" in page.content()
    (client,) = server.get_clients().values()
    monkeypatch.setattr(pictures.turntable, "__defaults__", (4, *pictures.turntable.__defaults__[1:]))
    with Image.open(BytesIO(controls.film(client, lambda done, total: None))) as film:
        assert film.n_frames == 4
    page.close()
    assert errors == []
