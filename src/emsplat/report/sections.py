"""The sections of the page as values for its templates. A section is None if the run left too little for it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.report import volumes
from emsplat.report.charts import sphere_map
from emsplat.report.picture import as_data_uri, grey, png_as_data_uri, surface_picture
from emsplat.report.volumes import Window
from emsplat.runs.closing import model_row, search_status, true_resolution_text
from emsplat.runs.run import FinishedJob, Run, map_of
from emsplat.runs.run_folder import HALVES, RunFolder

Section = dict[str, Any] | None

_SURFACE_COLOUR = (86, 140, 196)
_RECORDED_SPREADS = 3.0  # standard deviations of a recorded image from black to grey, and on to white


# --- at a glance ------------------------------------------------------------------------------------------------------


def headline(summary: dict[str, Any]) -> tuple[str, str]:
    """The verdict in a few words for the headline, and its basis."""
    status = search_status(summary)
    if status != "converged":
        return f"ab initio {status}", "no resolution is claimed: the poses may be wrong"
    if summary["resolution_kind"] == "not_measurable":
        return "not measurable", "the halves do not show enough shared signal"
    found = f"{summary['resolution']:.2f} Å"
    if summary["resolution_kind"] == "better_than":
        return f"better than {found}", "the limit of measurability: c_map is above 0.5 up to there"
    return found, "where c_map falls to 0.5, measured"


def facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the facts at the top of the page."""
    s = summary
    limit = f"{s['measurable_limit']:.2f} Å" if s["measurable_limit"] else "no shell"
    rows = [
        ("images", f"{s['n_images']:,} of {s['n_particles']:,} particles"),
        ("box", f"{s['box_size']}³ voxels of {s['pixel_size']:.4g} Å"),
        *([("measurable to", limit)] if search_status(s) == "converged" else []),
        ("Nyquist", f"{s['nyquist']:.2f} Å"),
        model_row(s),
        ("symmetry", s["symmetry"]),
        *([] if s.get("has_ctf", True) else [("CTF", "taken as 1")]),
        ("mask", str(s.get("mask") or "made from the data")),
        ("sharpening", "none" if s["b_factor"] is None else f"B-factor {s['b_factor']:.0f} Å²"),
        ("time", duration(sum(s["seconds"].values()))),
        ("peak memory", f"{s['peak_memory_in_bytes'] / 1e9:.2f} GB"),
    ]
    if "true_resolution" in s:
        rows.insert(0, ("true resolution", true_resolution_text(s["true_resolution"])))
    return rows


def duration(seconds: float) -> str:
    """A time in words."""
    minutes = round(seconds / 60)
    if minutes < 3:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 180 else f"{minutes // 60} h {minutes % 60} min"


# --- the map ----------------------------------------------------------------------------------------------------------


def of_the_map(run: Run) -> tuple[Section, Section]:
    """Slices through map.mrc and the direct inversion, and the surface of map.mrc."""
    final = map_of(run.folder.map())
    if final is None:
        return None, None
    pixel_size = float(run.summary["pixel_size"])
    found = map_of(run.folder.mask)
    mask = found.values if found else np.ones_like(final.values)
    window = volumes.window_about(mask, pixel_size)
    level = volumes.surface_level(final.values, mask)
    fine = volumes.resampled(final.values[window.cut], (volumes.SURFACE_EDGE,) * 3)
    picture = surface_picture(fine, level, _SURFACE_COLOUR)
    surface = {
        "map": volumes.packed(fine, *volumes.span(fine)),
        "level": level,
        "sigma": float(final.values.std()) or 1.0,
        "colour": _colours(run, window, mask, final.values > level),
        "error": _errors(run, window, mask, final.values > level),
        "picture": None if picture is None else as_data_uri(picture),
    }
    return _slices(run, window, final.values), surface


def _slices(run: Run, window: Window, final: NDArray[np.float32]) -> Section:
    """Two volumes at one grey scale. A sharpened map cannot share the scale of the inversion, but its halves can."""
    raw = _mean_of_halves(run.folder.unregularised_map, window)
    if raw is None:
        return None
    sharpened = run.summary["b_factor"] is not None
    mean = _mean_of_halves(run.folder.map, window) if sharpened else None
    shown = window.sample(final) if mean is None else mean
    low, high = volumes.span(shown)
    black, white = (float(q) for q in np.quantile(shown, (0.01, 0.998)))
    return {
        "raw": volumes.packed(raw, low, high),
        "map": volumes.packed(shown, low, high),
        "black": black,
        "white": white if white > black else black + 1,
        "voxel": window.voxel_in_angstroms,
        "first": (window.first - len(final) // 2) * window.pixel_size_in_angstroms,  # Å from the box centre
        "sharpened": mean is not None,
    }


def _mean_of_halves(path_of: Callable[[str], Path], window: Window) -> NDArray[np.float32] | None:
    """The average of two half maps. They are sampled one after the other, since whole maps are large."""
    halves = [window.sample(found.values) for half in HALVES if (found := map_of(path_of(half)))]
    return 0.5 * (halves[0] + halves[1]) if len(halves) == 2 else None


def _colours(run: Run, window: Window, mask: NDArray[np.float32], particle: NDArray[np.bool_]) -> Section:
    """The property that colours the surface: local resolution or, where none is claimed, the halves' agreement.

    Args:
        mask: (D, D, D); particle: the same, where the density is above the surface's first level.
    """
    local = map_of(run.folder.local_resolution) if search_status(run.summary) == "converged" else None
    if local is not None and len(np.unique(local.values[mask > 0.5])) > 1:
        values = volumes.colours_on(window, local.values, mask)
        kind, unit = "local resolution", "Å"
    else:
        paths = [run.folder.unregularised_map(half) for half in HALVES]
        halves = [window.coarse(found.values) for path in paths if (found := map_of(path))]
        if len(halves) < 2:
            return None
        values = volumes.agreement_on(window, halves[0], halves[1], run.summary["resolution"])
        kind, unit = "agreement of the direct inversions", ""
    return _on_surface(values, window, particle) | {"kind": kind, "unit": unit, "reversed": unit == "Å"}


def _errors(run: Run, window: Window, mask: NDArray[np.float32], particle: NDArray[np.bool_]) -> Section:
    """The standard error of the map as a colour; None for a run that has none. Arguments as for `_colours`."""
    found = map_of(run.folder.uncertainty)
    if found is None or not np.any(mask > 0.5):
        return None
    values = volumes.colours_on(window, found.values, mask)
    return _on_surface(values, window, particle) | {"kind": "standard error", "unit": "", "reversed": True}


def _on_surface(values: NDArray[np.float32], window: Window, particle: NDArray[np.bool_]) -> dict[str, Any]:
    """A property on the coarse grid, packed between the values that 96 % of the particle lies within."""
    seen = values[window.nearest(particle)]
    low, high = (float(q) for q in np.quantile(seen if seen.size else values, (0.02, 0.98)))
    return volumes.packed(values, low, high if high > low else low + 1.0)


def uncertainty(run: Run, surface: Section) -> Section:
    """The slices of the standard error, and its median over the particle in units of the surface's sigma."""
    figure = run.folder.figure("uncertainty")
    found = run.summary.get("standard_error")
    if not found or not surface or not figure.is_file():
        return None
    return {"picture": png_as_data_uri(figure.read_bytes()), "median": found["median"] / surface["sigma"]}


# --- the images -------------------------------------------------------------------------------------------------------


def views(run: Run) -> Section:
    """The directions of view on the sphere."""
    counts = run.evidence.get("directions")
    if counts is None:
        return None
    relative = counts / max(counts.mean(), 1e-12)
    efficiency = run.evidence.get("efficiency")
    description = (
        f"Map of the sphere of viewing directions: the fullest of {counts.size} bins holds {relative.max():.1f} times "
        f"the mean, {100 * np.mean(counts == 0):.0f} % of the bins are empty."
    )
    return {
        "map": sphere_map("views-map", description, counts),
        "most": float(relative.max()),
        "empty": float(np.mean(counts == 0)),
        "efficiency": None if efficiency is None else float(efficiency),
    }


def particles(run: Run) -> Section:
    """Recorded images beside predicted ones."""
    e = run.evidence
    if "recorded" not in e:
        return None
    pairs = []
    for i, identity in enumerate(e["pair_ids"]):
        recorded, filtered, predicted = (
            e[kind][i, ::-1].astype("f4") for kind in ("recorded", "filtered", "predicted")
        )
        black, white = np.quantile(filtered, (0.005, 0.995))
        pairs.append(
            {
                "id": str(identity),
                "defocus": float(e["pair_defocus"][i]),
                "correlation": float(e["pair_correlation"][i]),
                "recorded": as_data_uri(grey(recorded, -_RECORDED_SPREADS, _RECORDED_SPREADS)),
                "filtered": as_data_uri(grey(filtered, black, white)),
                "predicted": as_data_uri(grey(predicted, black, white)),
            }
        )
    return {"pairs": pairs}


def refinement(run: Run) -> Section:
    """The histograms of how far refined images have moved."""
    figure = run.folder.figure("refinement")
    found = run.summary.get("refinement")
    if not found or not figure.is_file():
        return None
    return {"picture": png_as_data_uri(figure.read_bytes()), "quantities": ", ".join(found["quantities"])}


def ab_initio(run: Run) -> Section:
    """The verdict of a search for poses from none, its criteria and its picture; None for any other run."""
    found = run.summary.get("ab_initio")
    if not found:
        return None
    figure = run.folder.figure("ab_initio")
    return {
        "status": found["status"],
        "criteria": [
            (name.replace("_", " "), c["value"], c["converged_from"], c["failed_below"], c["status"])
            for name, c in found["criteria"].items()
        ],
        "what_to_try": found.get("what_to_try"),
        "hand": found["hand"],
        "n_without_particle": found.get("n_without_particle", 0),
        "starts": " and ".join(str(n) for n in found["starts_of_halves"]),
        "moved": [f"{100 * share:.1f} %" for share in found["moved_by_searches"]],
        "picture": png_as_data_uri(figure.read_bytes()) if figure.is_file() else None,
    }


# --- the record -------------------------------------------------------------------------------------------------------


def cost(run: FinishedJob) -> Section:
    """Seconds and memory, in the order the stages ran."""
    seconds = run.summary.get("seconds") or {}
    if not seconds:
        return None
    longest, total = max(seconds.values()) or 1.0, sum(seconds.values())
    peaks = run.summary.get("peak_memory_after_in_bytes") or {}
    rows = [
        {
            "stage": stage,
            "seconds": time,
            "of_longest": time / longest,
            "share": time / total if total else 0.0,
            "peak": peaks[stage] / 1e9 if stage in peaks else None,
        }
        for stage, time in seconds.items()
    ]
    return {"rows": rows, "total": total, "has_peaks": bool(peaks)}


def record(run: FinishedJob) -> dict[str, Any]:
    """How the run was made."""
    configuration = run.configuration or {}
    settings, found = (configuration.get(part) or {} for part in ("settings", "found"))
    return {
        "command": configuration.get("command"),
        "directory": configuration.get("directory"),
        "particles": configuration.get("particles"),
        "settings": [("--" + name.replace("_", "-"), _text(value)) for name, value in settings.items()],
        "found": [
            (name.replace("_in_angstroms", " (Å)").replace("_", " "), _text(value)) for name, value in found.items()
        ],
        "versions": list((run.summary.get("versions") or {}).items()),
        "log": run.log,
    }


def _text(value: Any) -> str:
    if value is None or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def next_steps(run: Run) -> list[tuple[str, str]]:
    """What people do with a map, and the command for it."""
    name = shlex.quote(run.name)
    files = RunFolder(Path(name))
    finer = 0.5 * float(run.summary["pixel_size"])
    relion = f"{name}_relion"
    of_gaussians = [
        ("The Gaussians, the surface and an atomic model in the browser", f"emsplat view {name}"),
        (
            "The Gaussians as pseudo-atoms with anisotropic displacements, for ChimeraX",
            f"emsplat export {name} --format cif",
        ),
        (
            "The map on a finer grid: Gaussians have no pixels",
            f"emsplat export {name} --format mrc --pixel-size {finer:.3g}",
        ),
    ]
    return [
        ("Look at the map and its halves in ChimeraX", f"chimerax {files.map()} {name}/map_half[12].mrc"),
        *(of_gaussians if run.model == "gaussians" else []),
        (
            "The direct inversions of the halves and the mask under RELION's names, and RELION's own post-processing",
            f"emsplat export {name} --format relion && relion_postprocess --mask {relion}/mask.mrc "
            f"--i {relion}/run_half1_class001_unfil.mrc --o {relion}/postprocess",
        ),
        (
            "Compare the map with another one of the same box and pixel size",
            f"emsplat fsc {files.map()} OTHER.mrc --mask {files.mask}",
        ),
        *_sharpened(run),
        ("Make this page again", f"emsplat report {name}"),
    ]


def _sharpened(run: Run) -> list[tuple[str, str]]:
    command = (run.configuration or {}).get("command") or ""
    if run.summary.get("b_factor") is not None or not command.startswith("emsplat reconstruct "):
        return []
    return [("The same with a sharpened map", command.replace(" --overwrite", "") + " --sharpen auto --overwrite")]
