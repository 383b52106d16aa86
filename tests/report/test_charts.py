"""Charts: every point where it belongs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from emsplat.report.charts import Band, Chart, Frame, Line, linear_axis, resolution_axis, sphere_map

SVG = Frame(width=100, height=80, left=20, right=10, top=10, bottom=20)


def points(path: str) -> np.ndarray:
    return np.array([[float(v) for v in pair.split()] for pair in re.split("[MLZ]", path) if pair])


def chart(**parts: object) -> ET.Element:
    x, y = linear_axis(0, 0.5, "1/Å"), linear_axis(-1, 1, "correlation <b>")
    return ET.fromstring(Chart("name", "what & where", x, y, frame=SVG, **parts).svg())  # type: ignore[arg-type]


def paths(svg: ET.Element, style: str) -> list[str]:
    return [e.attrib["d"] for e in svg.iter("path") if style in e.attrib["class"].split()]


def test_curves_lie_between_the_axes() -> None:
    svg = chart(lines=[Line([0.0, 0.25, 0.5], [1.0, 0.0, -1.0], "honest")])
    assert np.allclose(points(*paths(svg, "honest")), [[20, 10], [55, 35], [90, 60]])
    assert svg.attrib["data-plot"] == "20 10 90 60"


def test_nan_leaves_a_gap() -> None:
    svg = chart(lines=[Line([0.0, 0.1, 0.2, 0.3], [0.0, np.nan, 0.0, 0.1], "honest")])
    assert [part.count("L") for part in paths(svg, "honest")[0].split("M")[1:]] == [0, 1]


def test_a_band_closes_about_what_is_known() -> None:
    svg = chart(bands=[Band([0.0, 0.25, 0.5], [-0.5, -0.5, np.nan], [0.5, 0.5, 0.5], "honest")])
    assert np.allclose(points(*paths(svg, "band")), [[20, 22.5], [55, 22.5], [55, 47.5], [20, 47.5]])


def test_bars_have_the_heights_of_the_counts() -> None:
    svg = chart(bars=([0.0, 0.25, 0.5], [1.0, 0.0]))
    first, second = (e.attrib for e in svg.iter("rect"))
    assert (float(first["height"]), float(second["height"])) == (50, 25)


def test_text_is_escaped_and_said() -> None:
    svg = chart(level=(0.5, "0.5"), marks=[(0.25, 0.5)], grey_from=(0.4, "beyond"), top=resolution_axis(0.5))
    words = [e.text for e in svg.iter("text")]
    assert "correlation <b>" in words
    title = next(e for e in svg.iter("title"))
    assert title.text == "what & where"
    assert svg.attrib["aria-labelledby"] == title.attrib["id"]


@pytest.mark.parametrize(("low", "high"), [(0, 0.25), (-0.1, 1), (0, 37), (-110.3, -88.2), (0.55, 2.4), (0, 1e-4)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    values = [value for value, _ in linear_axis(low, high, "").ticks]
    assert 3 <= len(values) <= 8
    assert low - 1e-9 <= min(values) and max(values) <= high + 1e-9
    steps = np.diff(values)
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:.3e}"[0] in "125"


@pytest.mark.parametrize("last", [0.01, 0.04, 0.25, 1.2])
def test_resolutions_leave_each_other_room(last: float) -> None:
    places = np.array([place for place, _ in resolution_axis(last).ticks])
    assert len(places) >= 3
    assert np.min(np.abs(np.diff(places))) >= 0.07 * last
    for place, label in resolution_axis(last).ticks:
        assert place == pytest.approx(1 / float(label))


def test_bins_of_the_sphere_have_equal_areas_and_fill_the_ellipse() -> None:
    rows = 10
    counts = np.arange(rows * 2 * rows, dtype=float).reshape(rows, -1)
    svg = ET.fromstring(sphere_map("views", "views", counts))
    cells = list(svg.iter("path"))

    def area(outline: np.ndarray) -> float:
        x, y = outline.T
        return 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))

    areas = np.array([area(points(cell.attrib["d"])) for cell in cells])
    ellipse = next(e.attrib for e in svg.iter("ellipse"))
    whole = np.pi * float(ellipse["rx"]) * float(ellipse["ry"])
    assert areas.sum() == pytest.approx(whole, rel=0.01)
    assert np.max(np.abs(areas / areas.mean() - 1)) < 0.06
    opacity = np.array([float(cell.attrib["fill-opacity"]) for cell in cells])
    assert np.allclose(opacity, counts.ravel() / counts.max(), atol=1e-3)
    last = points(cells[-1].attrib["d"]).mean(axis=0)  # height and longitude both at their largest: upper right
    assert last[0] > 320 and last[1] < 170
