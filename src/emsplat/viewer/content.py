"""A finished run as the viewer shows it. Each file of the run folder is read when it is first needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.io.mrc import read_map
from emsplat.models.gaussians import Gaussians
from emsplat.report import volumes
from emsplat.report.volumes import Window, window_about
from emsplat.runs.closing import search_status
from emsplat.runs.run import Run, map_of, open_run, required
from emsplat.runs.run_folder import AVERAGE, HALVES
from emsplat.viewer.colours import Scale
from emsplat.viewer.fields import Field
from emsplat.viewer.splats import Model, thinned
from emsplat.viewer.surface import relief

MOST_SPLATS = 200_000  # largest number of splats, since a browser sorts them again for every view
_SURFACE_EDGES = (112, 176)  # smallest and largest edge in voxels of the map whose surface is shown
KEY_LIGHT = (-4.0, 5.0, 9.0)  # place of the lamp, above the left shoulder of the viewer, as in drawings


@dataclass(frozen=True)
class Property:
    """A property that varies in space and colours Gaussians and surface."""

    field: Field
    scale: Scale


@dataclass(frozen=True)
class Content:
    """The content of a run folder; `half` is "average", "1" or "2"."""

    run: Run
    most_splats: int

    @staticmethod
    def of(folder: Path, most_splats: int = MOST_SPLATS) -> Content:
        """The content of a folder; InputError if it holds no finished run, or if one of its files cannot be read."""
        content = Content(open_run(folder), most_splats)
        for half in (AVERAGE, *HALVES):
            content.model(half)
        content.density(AVERAGE)
        return content

    @property
    def half_edge(self) -> float:
        """Distance in Å from the box centre to its faces."""
        return 0.5 * self.run.box_size * self.run.pixel_size_in_angstroms

    @property
    def origin(self) -> float:
        """Coordinate in Å of the map's first voxel on every axis."""
        return -(self.run.box_size // 2) * self.run.pixel_size_in_angstroms

    @cache  # noqa: B019 (one run, as long as the program)
    def model(self, half: str) -> Model:
        return thinned(Gaussians.load(self.run.gaussians(half)), self.most_splats)

    def half_of(self, half: str) -> NDArray[np.intp]:
        """(K,) 0 or 1 for each Gaussian of the model: the half that it belongs to."""
        rows = self.model(half).rows
        if half != AVERAGE:
            return np.full(len(rows), int(half) - 1)
        return (rows >= self.model("1").total).astype(np.intp)  # the average is the union, half 1 first

    @cache  # noqa: B019
    def density(self, half: str) -> Field:
        """The map around the particle, on a grid that suits a surface."""
        window = self.surface_window
        values = window.sample(_map(self.run.folder.map(half)))
        return Field(values, self._start(window), window.voxel_in_angstroms)

    @cached_property
    def _mask(self) -> NDArray[np.float32]:
        return _map(self.run.folder.mask)

    @cached_property
    def surface_window(self) -> Window:
        found = window_about(self._mask, self.run.pixel_size_in_angstroms)
        return Window(found.first, found.edge, int(np.clip(found.edge, *_SURFACE_EDGES)), found.pixel_size_in_angstroms)

    @cached_property
    def sigma(self) -> float:
        """Standard deviation of the map, the unit of levels."""
        return float(_map(self.run.folder.map()).std()) or 1.0

    @cached_property
    def first_level(self) -> float:
        """The first level of the surface, in units of sigma."""
        return volumes.surface_level(_map(self.run.folder.map()), self._mask) / self.sigma

    @cached_property
    def relief(self) -> Field:
        """The factors that shade the Gaussians."""
        return relief(self.density(AVERAGE), np.array(KEY_LIGHT))

    @cached_property
    def local_resolution(self) -> Property | None:
        """The local resolution in Å; None if the run has or claims none, or if it is the same everywhere."""
        claims = search_status(self.run.summary) == "converged"
        local = map_of(self.run.folder.local_resolution) if claims else None
        if local is None or len(np.unique(local.values[self._mask > 0.5])) < 2:
            return None
        values = volumes.colours_on(self.surface_window, local.values, self._mask)
        return self._property("local resolution", "Å", values, reversed=True)

    @cached_property
    def standard_error(self) -> Property | None:
        """The standard error of the map in units of sigma; None if the run has or claims none."""
        claims = search_status(self.run.summary) == "converged"
        found = map_of(self.run.folder.uncertainty) if claims else None
        if found is None or not np.any(self._mask > 0.5):
            return None
        values = volumes.colours_on(self.surface_window, found.values, self._mask)
        return self._property("standard error of the map", "σ", values / self.sigma, reversed=True)

    @cached_property
    def agreement(self) -> Property:
        """The local correlation of the direct inversions of both halves."""
        paths = [self.run.folder.unregularised_map(half) for half in HALVES]
        first, second = (self.surface_window.coarse(_map(path)) for path in paths)
        values = volumes.agreement_on(self.surface_window, first, second, self.run.summary["resolution"])
        return self._property("agreement of the halves", "", values)

    def _property(self, name: str, unit: str, values: NDArray[np.float32], reversed: bool = False) -> Property:
        window = self.surface_window
        field = Field(values, self._start(window), self.run.pixel_size_in_angstroms * window.edge / window.coarse_n)
        shown = field.at(self.model(AVERAGE).centres)
        return Property(field, Scale.over(name, unit, shown, reversed))

    def _start(self, window: Window) -> float:
        return (window.first - self.run.box_size // 2) * self.run.pixel_size_in_angstroms


def _map(path: Path) -> NDArray[np.float32]:
    return read_map(required(path)).values
