"""The charts of the page: the curves of a run and their axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.io.mrc import Map
from emsplat.models.gaussians import Gaussians
from emsplat.report.charts import Axis, Band, Chart, Frame, Line, linear_axis, resolution_axis
from emsplat.runs.closing import search_status
from emsplat.runs.run import Run, map_of
from emsplat.settings import MODEL_NAMES
from emsplat.validation.validate import C_AT_RESOLUTION

Section = dict[str, Any] | None

# Column of fsc.csv, style on the page, name, meaning; the curves that do not overstate come first.
CURVES = (
    ("c_map", "honest", "c_map", "the map and the truth, ± 1 standard error: the resolution is read here"),
    ("truth", "truth", "true correlation", "the map and the truth, which is known because this is a simulation"),
    ("c_half", "half", "c_half", "one half map and the truth"),
    (
        "c_gaussians",
        "alone",
        "Gaussians alone",
        "the Gaussians and the truth; c_map is above it by what the inversion is worth",
    ),
    (
        "inversion_share",
        "share",
        "direct inversion",
        "its share of the power of the map; the rest comes from the Gaussians",
    ),
    (
        "gaussian_half",
        "gaussian",
        "FSC, half maps of Gaussians",
        "overstates: both halves share the errors of the prior",
    ),
    ("raw_half_masked", "masked", "FSC, direct inversions, masked", "includes what the mask itself correlates"),
    (
        "raw_half_corrected",
        "corrected",
        "FSC, direct inversions, corrected",
        "less what random phases give in the mask",
    ),
    ("raw_half_unmasked", "unmasked", "FSC, direct inversions, unmasked", "includes the noise of the solvent"),
)
_ONLY_TO_THE_LIMIT = ("c_map", "c_half", "c_gaussians", "inversion_share")
_SMALL = Frame(width=320, height=236, left=54, right=10, top=10, bottom=50)
_MOST_GROUPS = 6  # largest number of optics groups whose noise is drawn; more cannot be told apart


def resolution(run: Run) -> Section:
    """The family of correlation curves, its legend and its values."""
    if run.curves is None:
        return None
    frequency = run.curves["frequency"]
    curves = run.curves | ({"truth": run.evidence["truth"]} if "truth" in run.evidence else {})
    claims = search_status(run.summary) == "converged"
    limit = run.summary["measurable_limit"] if claims else None
    known = frequency <= (1 / limit if limit else 0.0) * 1.0001
    shown = {
        key: np.where(known, curves[key], np.nan) if key in _ONLY_TO_THE_LIMIT else curves[key]
        for key, *_ in CURVES
        if key in curves and (claims or key not in _ONLY_TO_THE_LIMIT)
    }
    lowest = min(float(np.nanmin(curve, initial=0.0)) for curve in shown.values())
    honest, error = (np.where(known, curves[key], np.nan) for key in ("c_map", "c_map_se"))
    found = run.summary["resolution"]
    measured = found is not None and run.summary["resolution_kind"] == "measured"
    chart = Chart(
        name="fsc",
        description=_in_words(run.summary),
        x=linear_axis(0, float(frequency[-1]), "spatial frequency (1/Å)"),
        y=linear_axis(max(-0.5, min(-0.1, lowest)), 1.0, "correlation"),
        bands=[Band(frequency, honest - error, honest + error, "honest")],
        lines=[Line(frequency, shown[key], style) for key, style, *_ in reversed(CURVES) if key in shown],
        level=(C_AT_RESOLUTION, "0.5"),
        marks=[(1 / found, C_AT_RESOLUTION)] if measured and found else [],
        grey_from=(1 / limit if limit else 0.0, "beyond the limit of measurability" if claims else "no estimate"),
        top=resolution_axis(float(frequency[-1])),
        frame=Frame(height=420, top=58),
    )
    at = int(np.argmin(np.abs(frequency - 1 / (found or limit or 4 * run.summary["nyquist"]))))
    rounded = {key: _rounded(curve) for key, curve in shown.items()}
    return {
        "claims": claims,
        "chart": chart.svg(),
        "legend": [_named(row, MODEL_NAMES[run.model]) for row in CURVES if row[0] in shown],
        "start": at,
        "shells": len(frequency),
        "values": {"frequency": [round(float(f), 6) for f in frequency], "low": chart.y.low, "curves": rounded},
        "error": _rounded(error),
    }


def _named(row: tuple[str, str, str, str], fitted: str) -> tuple[str, str, str, str]:
    """A row of `CURVES` that speaks of what was fitted. Args: fitted: in the plural."""
    key, style, name, meaning = row
    return key, style, name.replace("Gaussians", fitted), meaning.replace("Gaussians", fitted)


def _in_words(summary: dict[str, Any]) -> str:
    limit = summary["measurable_limit"]
    if search_status(summary) != "converged":
        return "Correlation curves of the halves against spatial frequency. Nothing is claimed about the map."
    where = f"Measurable to {limit:.2f} Å." if limit else "No shell is measurable."
    verdict = f"c_map falls to 0.5 at {summary['resolution']:.2f} Å. " if summary["resolution"] else ""
    return f"Correlation curves against spatial frequency. {verdict}{where} The table below has all values."


def _rounded(curve: NDArray[np.float64]) -> list[float | None]:
    return [round(float(v), 4) if np.isfinite(v) else None for v in curve]


# --- images -----------------------------------------------------------------------------------------------------------


def noise(run: Run) -> Section:
    """The noise spectrum of every optics group, on a logarithmic axis."""
    e = run.evidence
    if "noise" not in e:
        return None
    spectra, frequency = e["noise"][:_MOST_GROUPS, 1:], e["frequency"][1:]
    names = [str(name) for name in e["group_names"][:_MOST_GROUPS]]
    logs = np.log10(np.maximum(spectra / spectra.mean(), 1e-30))
    low, high = _decades(logs)
    labels = {len(names) - 1 - i: name for i, name in enumerate(names)} if len(names) > 1 else {}
    chart = Chart(
        name="noise",
        description=f"Noise spectrum: its power changes by a factor {10 ** np.ptp(logs[0]):.3g} between low and high "
        "spatial frequency.",
        x=linear_axis(0, float(frequency[-1]), "spatial frequency (1/Å)", 5),
        y=Axis(low, high, "power, mean = 1", _powers_of_ten(low, high)),
        lines=[Line(frequency, log, f"group group-{i}") for i, log in enumerate(logs)],
        frame=_SMALL,
    )
    return {"chart": chart.svg(), "names": names if labels else [], "left_out": len(e["noise"]) - len(spectra)}


def _decades(logs: NDArray[np.float64]) -> tuple[float, float]:
    """The range of the curves with some margin, at least a decade."""
    low, high = float(logs.min()) - 0.1, float(logs.max()) + 0.1
    missing = max(0.0, 1.0 - (high - low))
    return low - missing / 2, high + missing / 2


def _powers_of_ten(low: float, high: float) -> list[tuple[float, str]]:
    steps = (1, 2, 5) if high - low < 2 else (1,)
    values = [m * 10.0**e for e in range(int(np.floor(low)), int(np.ceil(high)) + 1) for m in steps]
    return [(float(np.log10(v)), f"{v:g}") for v in values if low <= np.log10(v) <= high]


def transfer(run: Run) -> Section:
    """How well the CTFs cover the frequencies, and the defocus values behind them."""
    e = run.evidence
    if "ctf_mean" not in e:
        return None
    frequency, mean, typical = e["frequency"], e["ctf_mean"], e["ctf_typical"]
    inner = slice(len(frequency) // 8, None)
    weakest = inner.start + int(np.argmin(mean[inner]))
    top = max(1.0, float(np.max(typical)))
    chart = Chart(
        name="ctf",
        description=f"Mean squared CTF of the images: it is weakest, {mean[weakest]:.2f}, at "
        f"{1 / frequency[weakest]:.3g} Å.",
        x=linear_axis(0, float(frequency[-1]), "spatial frequency (1/Å)", 5),
        y=linear_axis(0, top, "CTF²", 5),
        lines=[Line(frequency, typical, "one"), Line(frequency, mean, "honest")],
        frame=_SMALL,
    )
    label = "defocus (µm, underfocus positive)"
    defoci = _histogram("defocus", label, "images", e["defocus_edges"], e["defocus_counts"], "Defocus of the images")
    return {"chart": chart.svg(), "defocus": defoci.svg()}


def _histogram(name: str, label: str, unit: str, edges: NDArray[np.float64], counts: NDArray, what: str) -> Chart:
    middle = 0.5 * (edges[1:] + edges[:-1])
    fullest = float(middle[int(np.argmax(counts))])
    return Chart(
        name=name,
        description=f"{what}: from {edges[0]:.3g} to {edges[-1]:.3g}, most at {fullest:.3g}.",
        x=linear_axis(float(edges[0]), float(edges[-1]), label, 5),
        y=linear_axis(0, 1.05 * max(float(np.max(counts)), 1.0), unit, 4),
        bars=(edges, counts),
        frame=_SMALL,
    )


# --- Gaussians --------------------------------------------------------------------------------------------------------


def gaussians(run: Run) -> Section:
    """Sizes, anisotropies and masses of the Gaussians of the average model."""
    path = run.folder.gaussians()
    if not path.is_file():
        return None
    model = Gaussians.load(path)
    log_scales = model.log_scales.double().numpy()
    size = np.exp(log_scales.mean(axis=1))
    ratio = np.exp(log_scales.max(axis=1) - log_scales.min(axis=1))
    mass = model.masses().double().numpy()
    relative = mass / mass.mean()
    mask = map_of(run.folder.mask)
    return {
        "count": len(model),
        "size": _of_values("sizes", "size: geometric mean of σ (Å)", size, "Sizes of the Gaussians in Å"),
        "ratio": _of_values("ratios", "longest over shortest σ", ratio, "Anisotropy of the Gaussians"),
        "mass": _of_values("masses", "mass, mean = 1", relative, "Masses of the Gaussians over their mean"),
        "median_size": float(np.median(size)),
        "median_ratio": float(np.median(ratio)),
        "half_the_mass": _share_with_half(mass),
        "within_mask": None if mask is None else _mass_within(model, mass, mask, float(run.summary["pixel_size"])),
    }


def _of_values(name: str, label: str, values: NDArray[np.float64], what: str) -> Any:
    low, high = float(values.min()), float(np.quantile(values, 0.995))
    edges = np.linspace(low, high if high > low else low + 1e-6 + abs(low), 41)
    counts, _ = np.histogram(np.minimum(values, edges[-1]), bins=edges)
    return _histogram(name, label, "Gaussians", edges, counts, what).svg()


def _share_with_half(mass: NDArray[np.float64]) -> float:
    """Share of the Gaussians, counted from the heaviest, that has half of the mass."""
    falling = np.cumsum(np.sort(mass)[::-1])
    return float((np.searchsorted(falling, 0.5 * falling[-1]) + 1) / len(mass))


def _mass_within(model: Gaussians, mass: NDArray[np.float64], mask: Map, pixel_size: float) -> float:
    """Share of the mass whose Gaussians are centred within the mask."""
    box_size = len(mask.values)
    at = np.rint(model.centres.double().numpy() / pixel_size).astype(np.int64) + box_size // 2
    x, y, z = np.clip(at, 0, box_size - 1).T
    return float(mass[mask.values[z, y, x] > 0.5].sum() / mass.sum())


def fit(run: Run) -> Section:
    """The loss of both halves against the step."""
    e = run.evidence
    if "loss_1" not in e:
        return None
    lines, values = [], []
    for number in (1, 2):
        loss, checks = e[f"loss_{number}"], e[f"checks_{number}"]
        lines.append(Line(np.arange(len(loss)), loss, f"half-{number}"))
        values.append(loss)
        if len(checks):
            lines.append(Line(checks[:, 0], checks[:, 1], f"half-{number} kept"))
            values.append(checks[:, 1])
    joined = np.concatenate(values)
    if not np.isfinite(joined).any():
        return None
    # The loss falls far in the first steps; the range follows from the later ones.
    low, high = float(np.nanmin(joined)), float(np.nanquantile(joined, 0.93))
    room = 0.06 * max(high - low, 1e-9)
    steps = max(len(e["loss_1"]), len(e["loss_2"]))
    chart = Chart(
        name="loss",
        description=f"Loss of both halves against the step, {len(e['loss_1'])} and {len(e['loss_2'])} steps.",
        x=linear_axis(0, float(max(steps - 1, 1)), "step", 6),
        y=linear_axis(low - room, high + room, "loss per image", 5),
        lines=[Line(line.x, np.minimum(line.y, high + room), line.style) for line in lines],
        frame=Frame(height=300),
    )
    return {"chart": chart.svg(), "checks": bool(len(e["checks_1"]) or len(e["checks_2"]))}
