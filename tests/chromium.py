"""A real browser, headless and without a graphics card, and what it shows."""

from __future__ import annotations

import os
import shutil
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.image import imread
from numpy.typing import NDArray

CHROMIUM = os.environ.get("EMSPLAT_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars"]


def pixels(page: Any, selector: str) -> NDArray[np.float64]:
    """(rows, columns, 3) what is seen of an element, once two frames have passed."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return imread(BytesIO(page.locator(selector).screenshot()))[..., :3].astype(float)
