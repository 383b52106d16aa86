"""The HTML file: sections, style and scripts in one page."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from emsplat.errors import InputError
from emsplat.report import plots, sections
from emsplat.runs.classes_folder import ClassesFolder
from emsplat.runs.run import Run
from emsplat.runs.run_folder import RunFolder
from emsplat.runtime.files import replacing
from emsplat.settings import MODEL_NAMES

_SCRIPTS = ("unpack.js", "curves.js", "slices.js", "ramp.js", "isosurface.js", "space.js", "surface.js")
_ASSETS = files("emsplat.report")

_TEMPLATES = Environment(
    loader=PackageLoader("emsplat.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip
for _name in _TEMPLATES.list_templates():  # compiled here, because a job imports this while it has a core to spare
    _TEMPLATES.get_template(_name)


def write_report(folder: Path, output: Path | None = None, name: str | None = None) -> Path:
    """Write the report of the run in a folder, from the files of the run alone, and return its path.

    Args:
        output: the file to write; by default report.html in the folder.
        name: the name of the run on the page; by default the name of the folder.
    Raises:
        InputError: the folder holds no finished run, or one of its files cannot be read.
    """
    run = Run(RunFolder(folder), name or folder.resolve().name)
    output = output or run.folder.report
    page = report_html(run)
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def write_reports_of_classes(folder: Path, output: Path | None = None) -> list[Path]:
    """Write the report of every class of a search for several classes, and return their paths.

    Raises:
        InputError: an output file is given, as if there were only one report; no class is there; or as for
            `write_report`.
    """
    classes = ClassesFolder(folder)
    if output is not None:
        raise InputError(
            f"{folder}: holds a search for several classes, whose reports cannot all be {output}; leave out --output, "
            f"or give the folder of one class, {classes.of_class(1).path}"
        )
    written = [write_report(of_class.path) for of_class in classes.finished()]
    if not written:
        raise InputError(f"{classes.of_class(1).summary}: missing, so that no class can be reported on; search again")
    return written


def report_html(run: Run) -> str:
    """The complete page."""
    summary = run.summary
    slices, surface = sections.of_the_map(run)
    resolution = plots.resolution(run)
    context: dict[str, Any] = {
        "name": run.name,
        "summary": summary,
        "headline": sections.headline(summary),
        "facts": sections.facts(summary),
        "resolution": resolution,
        "slices": slices,
        "surface": surface,
        "uncertainty": sections.uncertainty(run, surface),
        "local": summary.get("local_resolution"),
        "refinement": sections.refinement(run),
        "ab_initio": sections.ab_initio(run),
        "views": sections.views(run),
        "particles": sections.particles(run),
        "noise": plots.noise(run),
        "transfer": plots.transfer(run),
        "fitted": MODEL_NAMES[run.model],
        "gaussians": plots.gaussians(run) if run.model == "gaussians" else None,
        "fit": plots.fit(run),
        "cost": sections.cost(run),
        "record": sections.record(run),
        "next_steps": sections.next_steps(run),
    }
    for_scripts = {
        "curves": resolution and resolution["values"],
        "slices": slices,
        "surface": surface and {key: value for key, value in surface.items() if key != "picture"},
    }
    return _TEMPLATES.get_template("report.html").render(
        **context,
        style=Markup(_asset("assets/report.css")),
        library=Markup(_asset("vendor/three.min.js")) if surface else "",
        script=Markup("\n".join(_asset(f"assets/{file}") for file in _SCRIPTS)),
        data=_as_json(for_scripts),
    )


def _asset(name: str) -> str:
    return _ASSETS.joinpath(name).read_text(encoding="utf-8")


def _as_json(values: dict[str, Any]) -> Markup:
    """JSON for a script element. It contains nothing that could end the element."""
    return Markup(json.dumps(values, separators=(",", ":")).replace("<", "\\u003c"))
