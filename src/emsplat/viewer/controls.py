"""The controls in the browser, and what they request from the scene. The keyboard reaches all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emsplat.errors import InputError
from emsplat.runs.closing import resolution_text
from emsplat.viewer import pictures
from emsplat.viewer.atoms import AtomicModel, load_model, load_uploaded
from emsplat.viewer.content import Content
from emsplat.viewer.fields import Plane
from emsplat.viewer.scene import AGREEMENT, ANISOTROPY, ERROR, HALF, LOCAL, MASS, ONE, SIZE, Scene, Wishes

if TYPE_CHECKING:
    import viser

_HALVES = {"average": "average", "half 1": "1", "half 2": "2"}
_SHOWN = {"Gaussians": (True, False), "surface": (False, True), "both": (True, True)}
_AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
_NO_PLANE = "none"
_INSET = "margin:0.3em 1em;font-size:0.9em"
_IN_THE_MAP, _CENTRED = "as in the file", "in the middle"
_FEW_WITHIN = 0.5  # share of the atoms within the box below which a model does not lie over the map


class Controls:
    """Handles of the controls of one scene, and the atomic model that lies over it."""

    def __init__(self, server: viser.ViserServer, content: Content) -> None:
        self._server, self._content = server, content
        self._loaded: Callable[[bool], AtomicModel] | None = None  # called with whether to place it in the middle
        gui = server.gui
        gui.add_markdown(_about(content))
        self._half = gui.add_dropdown("model", tuple(_HALVES), initial_value="average")
        self._shown = gui.add_dropdown("show", tuple(_SHOWN), initial_value="Gaussians")
        measured = [(LOCAL, content.local_resolution), (ERROR, content.standard_error)]
        known = [name for name, found in measured if found]
        colours = (MASS, SIZE, ANISOTROPY, *known, AGREEMENT, HALF, ONE)
        first = LOCAL if content.local_resolution else AGREEMENT
        self._colour = gui.add_dropdown("colour by", colours, initial_value=first)
        self._legend = gui.add_html("")
        self._gaussians(gui)
        self._surface(gui)
        self._cut(gui)
        self._atoms(gui)
        self._pictures(gui)
        self._note = gui.add_html("")
        self._scene = Scene(server, content, self._tell)
        for control in (
            self._half, self._shown, self._colour, self._size, self._opacity, self._hidden, self._level,
            self._surface_opacity, self._axis, self._at, self._other_side,
        ):  # fmt: skip
            control.on_update(lambda _: self._wish())
        self._wish()

    def _gaussians(self, gui: viser.GuiApi) -> None:
        with gui.add_folder("Gaussians"):
            self._size = gui.add_slider("size", 0.2, 2.5, 0.05, 1.0, hint="factor on σ; the mass stays")
            self._opacity = gui.add_slider("opacity", 0.1, 10.0, 0.1, 1.0, hint="factor on the absorption")
            self._hidden = gui.add_slider("hide faint (%)", 0.0, 99.0, 1.0, 0.0, hint="hides those of least mass")

    def _surface(self, gui: viser.GuiApi) -> None:
        content = self._content
        highest = max(float(content.density("average").values.max()) / content.sigma, 1.0)
        level = float(np.clip(round(content.first_level, 2), 0.0, highest))
        with gui.add_folder("Surface"):
            self._level = gui.add_slider(
                "threshold (σ)", 0.0, round(highest, 1), 0.05, level, hint=_level_hint(content)
            )
            self._surface_opacity = gui.add_slider("opacity", 0.1, 1.0, 0.05, 1.0)

    def _cut(self, gui: viser.GuiApi) -> None:
        edge = round(self._content.half_edge)
        with gui.add_folder("Clip plane", expand_by_default=False):
            self._axis = gui.add_dropdown("across", (_NO_PLANE, *_AXES), initial_value=_NO_PLANE)
            self._at = gui.add_slider("at (Å)", -edge, edge, 1, 0, hint="from the middle of the box")
            self._other_side = gui.add_checkbox("other side", False)

    def _atoms(self, gui: viser.GuiApi) -> None:
        with gui.add_folder("Atomic model", expand_by_default=False):
            upload = gui.add_upload_button("Load PDB or mmCIF", icon=None)
            self._placement = gui.add_dropdown(
                "placed", (_IN_THE_MAP, _CENTRED), initial_value=_IN_THE_MAP,
                hint="as in the file: coordinates count from the map's first voxel, as in ChimeraX",
            )  # fmt: skip
            self._all_atoms = gui.add_checkbox("bonds", False)
            remove = gui.add_button("Remove")

        @upload.on_upload
        def _(event: Any) -> None:
            name, content = event.target.value.name, event.target.value.content
            self._load(lambda centred: load_uploaded(name, content, self._content.origin, centred))

        @self._placement.on_update
        def _(event: Any) -> None:
            self._show_model()

        @self._all_atoms.on_update
        def _(event: Any) -> None:
            self._show_model()

        @remove.on_click
        def _(event: Any) -> None:
            self._loaded = None
            self._show_model()

    def _pictures(self, gui: viser.GuiApi) -> None:
        with gui.add_folder("Pictures"):
            still = gui.add_button("Screenshot (PNG)")
            video = gui.add_button("Turntable (GIF)")

        @still.on_click
        def _(event: Any) -> None:
            with self._told(event.client):
                event.client.send_file_download(f"{self._name}.png", pictures.screenshot(event.client))

        @video.on_click
        def _(event: Any) -> None:
            label = video.label
            video.disabled = True
            try:
                with self._told(event.client):
                    film = pictures.turntable(
                        event.client, lambda done, total: _label(video, f"picture {done} of {total}")
                    )
                    event.client.send_file_download(f"{self._name}.gif", film)
            finally:
                video.label, video.disabled = label, False

    @property
    def _name(self) -> str:
        return self._content.run.name

    def wishes(self) -> Wishes:
        """The current state of the controls."""
        gaussians, surface = _SHOWN[self._shown.value]
        return Wishes(
            half=_HALVES[self._half.value],
            gaussians=gaussians,
            surface=surface,
            level=self._level.value,
            surface_opacity=self._surface_opacity.value,
            size=self._size.value,
            opacity=self._opacity.value,
            hidden_share=self._hidden.value / 100,
            colour=self._colour.value,
            plane=self._plane(),
        )

    def _plane(self) -> Plane | None:
        if self._axis.value == _NO_PLANE:
            return None
        sign = -1.0 if self._other_side.value else 1.0
        x, y, z = _AXES[self._axis.value]
        return Plane((sign * x, sign * y, sign * z), sign * self._at.value)

    def _wish(self) -> None:
        self._scene.wish(self.wishes())

    def _tell(self, legend: str) -> None:
        self._legend.content = legend

    # --- the atomic model

    def load(self, path: Path) -> None:
        """Lay the model of a file over the map."""
        self._loaded = lambda centred: load_model(path, self._content.origin, centred)
        self._show_model()

    def _load(self, loaded: Callable[[bool], AtomicModel]) -> None:
        self._loaded = loaded
        self._show_model()

    def _show_model(self) -> None:
        if self._loaded is None:
            self._scene.show_model(None, False)
            self._note.content = ""
            return
        try:
            model = self._loaded(self._placement.value == _CENTRED)
        except InputError as error:
            self._loaded = None
            self._note.content = _alert(str(error))
            return
        self._scene.show_model(model, self._all_atoms.value)
        share = model.share_within(self._content.half_edge)
        lost = f"{100 * (1 - share):.0f} % of its atoms lie outside the box; set placed to {_CENTRED}"
        text = f"{model.name}: {len(model.atoms):,} atoms"
        self._note.content = (
            _alert(f"{text}; {lost}") if share < _FEW_WITHIN else f'<p style="{_INSET}">{escape(text)}</p>'
        )

    @contextmanager
    def _told(self, client: Any) -> Iterator[None]:
        """Report a failure to the browser that asked."""
        try:
            yield
        except (RuntimeError, TimeoutError, OSError) as error:
            self._note.content = _alert(f"no picture: {error}")


def _about(content: Content) -> str:
    """The name of the run, its verdict and its size."""
    lines = [f"**{content.run.name}**, {resolution_text(content.run.summary)}", ""]
    model = content.model("average")
    if len(model) < model.total:
        lines.append(
            f"A random selection of {len(model):,} of {model.total:,} Gaussians is drawn, because a browser cannot "
            "sort more in time."
        )
    else:
        lines.append(
            f"{model.total:,} Gaussians, {content.run.box_size} voxels of {content.run.pixel_size_in_angstroms:.4g} Å"
        )
    return "\n".join(lines)


def _level_hint(content: Content) -> str:
    return f"1 σ is {content.sigma:.3g} in the units of map.mrc"


def _label(button: Any, text: str) -> None:
    button.label = text


def _alert(text: str) -> str:
    return f'<p role="alert" style="{_INSET}"><strong>{escape(text)}</strong></p>'
