"""A page that shows the latents of all images, with a lasso for images and the decoded density of any point."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from emsplat.heterogeneity.decoder import Decoder
from emsplat.runtime.files import replacing

_MOST_GAUSSIANS = 40_000  # more would take a browser longer than a moment to put on its grid
_GRID = 72  # voxels of the browser's grid
_OUTSIDE = 0.002  # share of the mass that may lie outside the grid
_SCRIPTS = ("ramp.js", "isosurface.js", "space.js", "decoder.js", "landscape.js")


@dataclass(frozen=True)
class Decoded:
    """What the page needs of the decoder."""

    decoder: Decoder
    level: float  # density at which the surface is drawn
    half_edge: float  # Å: distance from the box centre to the faces of the box
    paths: Sequence[tuple[str, NDArray[np.float64]]]  # names and (n, K) points of trajectories


def write_landscape(
    path: Path,
    name: str,
    ids: Sequence[str],
    latents: NDArray[np.float64],
    columns: Mapping[str, NDArray[np.floating]],
    states: Sequence[Mapping[str, Any]],
    leaks: Sequence[Mapping[str, Any]],
    decoded: Decoded | None = None,
) -> None:
    """Write the page, which needs nothing else.

    Args:
        latents: (N, K); columns: (N,) each, by which points can be coloured beside the latents.
        states, leaks: as in the summary, states with a `resolution_text`.
        decoded: None for a page without densities.
    """
    every = {f"z{i + 1}": column for i, column in enumerate(latents.T)} | dict(columns)
    values = np.concatenate([np.asarray(column, dtype="<f4") for column in every.values()])
    stored = None if decoded is None else _stored(decoded, latents)
    data = {
        "name": name,
        "count": len(ids),
        "latents": latents.shape[1],
        "columns": list(every),
        "ids": "\n".join(ids),
        "values": _base64(values),
        "decoder": stored,
        "paths": [{"name": title, "points": z.tolist()} for title, z in (decoded.paths if decoded else ())],
        "start": states[0]["z"] if decoded and states else None,
        "startName": f"state {states[0]['number']}" if states else "",
    }
    # Nothing in a script element may look like its end.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    environment = Environment(
        loader=PackageLoader("emsplat.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("landscape.html").render(
        name=name, count=f"{len(ids):,}", latents=latents.shape[1], states=states, leaks=leaks, decoder=stored,
        total=len(decoded.decoder.gaussians) if decoded else 0, voxel=stored["edge"] / _GRID if stored else 0.0,
        data=Markup(text), style=Markup(_asset("assets/report.css")),
        library=Markup(_asset("vendor/three.min.js")) if stored else "",
        script=Markup("\n".join(_asset(f"assets/{file}") for file in _SCRIPTS)),
    )  # fmt: skip
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _stored(decoded: Decoded, latents: NDArray[np.float64]) -> dict[str, Any]:
    """The decoder's table for `decoder.js`, and the grid that holds the density of all images."""
    model = decoded.decoder
    heaviest = torch.sort(torch.argsort(model.gaussians.log_masses, descending=True)[:_MOST_GAUSSIANS]).values
    base = model.gaussians.rows(heaviest)
    sigma = base.covariances().numpy()
    upper = np.triu_indices(3)
    rows = np.concatenate(
        [
            base.centres.numpy(),
            sigma[:, upper[0], upper[1]],
            base.log_masses.numpy()[:, None],
            model.mass_slopes[heaviest].numpy(),
            model.displacements[heaviest].numpy().reshape(len(heaviest), -1),
        ],
        axis=1,
    )
    extent = _half_extent(decoded, latents)
    return {
        "table": _base64(rows.astype("<f4")),
        "count": len(rows),
        "latents": model.n_latents,
        "edge": 2 * extent,
        "n": _GRID,
        "level": decoded.level,
    }


def _half_extent(decoded: Decoded, latents: NDArray[np.float64]) -> float:
    """Half the edge in Å of a cube about the box centre that holds nearly all density at all latents."""
    farthest = 0.0
    for z in (latents.mean(axis=0), *np.quantile(latents, (0.05, 0.95), axis=0)):
        gaussians = decoded.decoder.at(z)
        reach = gaussians.centres.abs().amax(dim=1) + 2 * gaussians.log_scales.exp().amax(dim=1)
        order = torch.argsort(reach)
        share = torch.cumsum(gaussians.log_masses.exp()[order].double(), 0)
        last = int(torch.searchsorted(share, (1 - _OUTSIDE) * share[-1]))
        farthest = max(farthest, float(reach[order[min(last, len(order) - 1)]]))
    return min(decoded.half_edge, 1.05 * farthest)


def _base64(values: NDArray[np.floating]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def _asset(name: str) -> str:
    return files("emsplat.report").joinpath(name).read_text(encoding="utf-8")
