"""A page that shows the latents of all images: free axes and colours, and a lasso whose images can be saved."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from emsplat.runtime.files import replacing


def write_landscape(
    path: Path,
    name: str,
    ids: Sequence[str],
    latents: NDArray[np.float64],
    columns: Mapping[str, NDArray[np.floating]],
    states: Sequence[Mapping[str, Any]],
    leaks: Sequence[Mapping[str, Any]],
) -> None:
    """Write the page, which needs nothing else.

    Args:
        latents: (N, K); columns: (N,) each, what points can be coloured by beside the latents.
        states, leaks: as the summary has them, states with a `resolution_text`.
    """
    every = {f"z{i + 1}": column for i, column in enumerate(latents.T)} | dict(columns)
    values = np.concatenate([np.asarray(column, dtype="<f4") for column in every.values()])
    data = {
        "name": name,
        "count": len(ids),
        "latents": latents.shape[1],
        "columns": list(every),
        "ids": "\n".join(ids),
        "values": base64.b64encode(values.tobytes()).decode("ascii"),
    }
    # Nothing in a script element may look like its end.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    script = files("emsplat.report").joinpath("assets", "landscape.js").read_text(encoding="utf-8")
    environment = Environment(loader=PackageLoader("emsplat.report"), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("landscape.html").render(
        name=name, count=f"{len(ids):,}", latents=latents.shape[1], states=states, leaks=leaks,
        data=Markup(text), script=Markup(script),
    )  # fmt: skip
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
