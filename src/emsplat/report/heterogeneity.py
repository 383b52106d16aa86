"""The report of a search for heterogeneity, from the files of its folder alone."""

from __future__ import annotations

import base64
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from emsplat.report import sections, volumes
from emsplat.report.charts import Band, Chart, Frame, Line, linear_axis
from emsplat.report.picture import as_data_uri, png_as_data_uri, surface_picture
from emsplat.runs.heterogeneity_run import HeterogeneityRun, open_heterogeneity, resolution_of_state, surely_differs
from emsplat.runs.run import curves_of, map_of
from emsplat.runtime.files import replacing
from emsplat.validation.validate import C_AT_RESOLUTION

_SURFACE_COLOUR = (86, 140, 196)
_SMALL = Frame(width=320, height=200, left=46, right=10, top=10, bottom=46)


def write_heterogeneity_report(folder: Path, output: Path | None = None, name: str | None = None) -> Path:
    """Write the report of a search for heterogeneity, and return its path.

    Args:
        output: the file to write; by default report.html in the folder.
        name: the name of the run on the page; by default the name of the folder.
    Raises:
        InputError: the folder holds no finished search, or one of its files cannot be read.
    """
    run = open_heterogeneity(folder, name)
    output = output or run.folder.report
    page = _page(run)
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def _page(run: HeterogeneityRun) -> str:
    summary, level = run.summary, _level(run)
    environment = Environment(
        loader=PackageLoader("emsplat.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style = files("emsplat.report").joinpath("assets/report.css").read_text(encoding="utf-8")
    return environment.get_template("heterogeneity.html").render(
        name=run.name,
        summary=summary,
        headline=_headline(summary),
        facts=_facts(summary),
        components=_components(run),
        figures={name: _figure(run, name) for name in ("components", "landscape", "states", "differences", "movement")},
        fits=_fits(summary),
        likelihoods=summary.get("log_likelihood_under_the_other_half") or [],
        states=[_state(run, state, level) for state in summary["states"]],
        trajectories=_movies(run),
        leaks=summary.get("leaks") or [],
        cost=sections.cost(run),
        record=sections.record(run),
        next_steps=_next_steps(run),
        style=Markup(style),
    )


def _headline(summary: dict[str, Any]) -> tuple[str, str]:
    """The verdict in a few words, and its basis."""
    count = summary["n_components"]
    if count == 0:
        return "no heterogeneity", str(summary.get("reason", ""))
    return f"{count} component{'s' if count > 1 else ''}", str(summary.get("reason", ""))


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    seconds = sum((summary.get("seconds") or {}).values())
    return [
        ("images", f"{summary['n_images']:,}"),
        ("images without a particle", f"{summary['n_junk']:,}"),
        ("states", str(len(summary["states"]))),
        ("box", f"{summary['box_size']}³ voxels of {summary['pixel_size']:.4g} Å"),
        ("time since the run was resumed" if summary.get("resumed") else "time", sections.duration(seconds)),
        ("peak memory", f"{summary['peak_memory_in_bytes'] / 1e9:.2f} GB"),
    ]


def _components(run: HeterogeneityRun) -> dict[str, Any]:
    """What decided the number of components: rows of variance and significance, and the canonical correlations."""
    seen = list((run.summary.get("components") or {}).values())
    rows = []
    if len(seen) == 2 and seen[0]["variance"]:
        columns = [values for half in seen for values in (half["variance"], half["significance"])]
        rows = [(i, *values, i <= run.n_components) for i, values in enumerate(zip(*columns, strict=True), 1)]
    pose = run.summary.get("pose_errors") or {"degrees": 0.0, "pixels": 0.0}
    return {"rows": rows, "canonical": run.summary.get("canonical_correlations") or [], "pose": pose}


def _figure(run: HeterogeneityRun, name: str) -> str | None:
    path = run.folder.figure(name)
    return png_as_data_uri(path.read_bytes()) if path.is_file() else None


def _fits(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each half and round, with the held-out loss of every variant."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for one in summary.get("decoder") or []:
        row = rows.setdefault((one["round"], one["half"]), {"round": one["round"], "half": one["half"], "variants": {}})
        row["variants"][one["variant"]] = (one["held_out_loss"], one["steps"], one["chosen"])
    return [rows[key] for key in sorted(rows)]


def _level(run: HeterogeneityRun) -> float:
    """One level for the surfaces of all states, so that they can be compared: that of the most populated one."""
    names = run.folder.state(1)
    final, mask = map_of(names.map()), map_of(names.mask)
    if final is None:
        return 0.0
    return volumes.surface_level(final.values, mask.values if mask else np.ones_like(final.values))


def _state(run: HeterogeneityRun, state: dict[str, Any], level: float) -> dict[str, Any]:
    """The card of a state: its surface at a level, its curve and its figures."""
    names = run.folder.state(state["number"])
    final, mask = map_of(names.map()), map_of(names.mask)
    picture = None
    if final is not None:
        within = mask.values if mask else np.ones_like(final.values)
        window = volumes.window_about(within, run.pixel_size_in_angstroms)
        fine = volumes.resampled(final.values[window.cut], (volumes.SURFACE_EDGE,) * 3)
        pixels = surface_picture(fine, level, _SURFACE_COLOUR)
        picture = None if pixels is None else as_data_uri(pixels)
    return state | {
        "picture": picture,
        "chart": _curve(run, state),
        "resolution_text": resolution_of_state(state),
        "sure": surely_differs(state),
        "z_text": ", ".join(f"{z:.2f} ± {s:.2f}" for z, s in zip(state["z"], state["spread"], strict=True)),
    }


def _curve(run: HeterogeneityRun, state: dict[str, Any]) -> Markup | None:
    """c_map of a state up to the limit of measurability, with its standard error."""
    curves = curves_of(run.folder.state(state["number"]).curves)
    if curves is None:
        return None
    frequency, limit = curves["frequency"], state["measurable_limit"]
    end = 1 / limit if limit else 0.0
    known = frequency <= end * 1.0001
    c_map, error = (np.where(known, curves[name], np.nan) for name in ("c_map", "c_map_se"))
    return Chart(
        name=f"state-{state['number']}",
        description=f"c_map of state {state['number']} against spatial frequency: {resolution_of_state(state)}.",
        x=linear_axis(0, float(frequency[-1]), "spatial frequency (1/Å)", 4),
        y=linear_axis(-0.1, 1.0, "c_map", 4),
        bands=[Band(frequency, c_map - error, c_map + error, "honest")],
        lines=[Line(frequency, c_map, "honest")],
        level=(C_AT_RESOLUTION, "0.5"),
        grey_from=(end, "beyond the limit of measurability"),
        frame=_SMALL,
    ).svg()


def _movies(run: HeterogeneityRun) -> list[tuple[str, str]]:
    """The GIF of each trajectory."""
    paths = [(k, run.folder.trajectory(k).movie) for k in range(1, run.n_components + 1)]
    return [
        (f"component {k}", "data:image/gif;base64," + base64.b64encode(path.read_bytes()).decode())
        for k, path in paths
        if path.is_file()
    ]


def _next_steps(run: HeterogeneityRun) -> list[tuple[str, str]]:
    """What people do with such a run, and the command for it."""
    name = shlex.quote(run.name)
    if run.n_components == 0:
        return [("Look at the consensus in the browser", f"emsplat view {name}/consensus")]
    particles = (run.configuration or {}).get("particles") or "particles.star"
    return [
        ("Move through latent space in the browser", f"emsplat view {name}"),
        ("Write the map of a state, or of any point (--at z1,z2)", f"emsplat decode {name} --state 1 -o state1.mrc"),
        ("Play a component in ChimeraX", f"cd {name}/trajectories/component1 && chimerax play.cxc"),
        (
            "Hand the particles of a state back in their own format",
            f"emsplat subset {shlex.quote(particles)} --keep {name}/states/01/ids.csv -o state1.star",
        ),
        ("Write this page again", f"emsplat report {name}"),
    ]
