"""What the browsers show of a run. A thread of its own draws it; of several requests, only the last one counts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emsplat.viewer.atoms import AtomicModel
from emsplat.viewer.colours import HALVES, PLAIN, Scale, swatches
from emsplat.viewer.content import KEY_LIGHT, Content, Property
from emsplat.viewer.fields import Plane
from emsplat.viewer.glb import Mesh
from emsplat.viewer.splats import Look, Model
from emsplat.viewer.surface import brightness, isosurface, surroundings

if TYPE_CHECKING:
    import viser

ROOT = "/run"
MASS, SIZE, ANISOTROPY = "mass", "size", "anisotropy"
LOCAL, ERROR, AGREEMENT = "local resolution", "standard error of the map", "agreement of the halves"
HALF, ONE = "half set", "one colour"
_LINE_WIDTH = 0.25  # Å
_LIGHTS = (("key", 2.2, KEY_LIGHT), ("back", 0.7, (4.0, 3.0, -9.0)))


@dataclass(frozen=True)
class Wishes:
    """The state of the controls: what is to be shown."""

    half: str  # "average", "1" or "2"
    gaussians: bool
    surface: bool
    level: float  # level of the surface in standard deviations of the map
    surface_opacity: float
    size: float
    opacity: float
    hidden_share: float
    colour: str
    plane: Plane | None

    @property
    def look(self) -> Look:
        return Look(self.size, self.opacity, self.hidden_share, self.plane)


class Splats:
    """The splats in the browsers, changed in place so that they do not flicker."""

    def __init__(self, server: viser.ViserServer) -> None:
        self._server = server
        self.scale = 1.0  # units of the scene per Å
        self._handle: Any = None

    def show(self, arrays: dict[str, NDArray[np.float32]]) -> None:
        """Show the arrays of `Model.splats`, which may be empty."""
        if len(arrays["centers"]) == 0:
            self.hide()
        elif self._handle is None:
            self._handle = self._server.scene.add_gaussian_splats(f"{ROOT}/gaussians", **arrays, scale=self.scale)
        else:
            self._handle.set_gaussians(**arrays)
            self._handle.visible = True

    def hide(self) -> None:
        if self._handle is not None:
            self._handle.visible = False


class Scene:
    """The scene of one run."""

    def __init__(self, server: viser.ViserServer, content: Content, tell: Callable[[str], None]) -> None:
        """Args: tell: called with the legend, as HTML, whenever the colours change."""
        self._server, self._content, self._tell = server, content, tell
        self._splats = Splats(server)
        self._wanted: Wishes | None = None
        self._drawn: Wishes | None = None
        self._mesh: tuple[object, Mesh | None] = (None, None)  # the last mesh, and what it was made from
        self._news = threading.Condition()
        self._scale = self._splats.scale = aim(server, content.model("average"))
        threading.Thread(target=self._work, name="viewer", daemon=True).start()

    def wish(self, wishes: Wishes) -> None:
        """Show this as soon as possible."""
        with self._news:
            self._wanted = wishes
            self._news.notify_all()

    def show_model(self, model: AtomicModel | None, all_atoms: bool) -> None:
        """Show an atomic model, or none."""
        for name in ("trace", "bonds"):
            self._server.scene.remove_by_name(f"{ROOT}/model/{name}")
        if model is None:
            return
        tubes = model.tubes()
        if tubes:
            mesh, colours = tubes
            self._server.scene.add_glb(f"{ROOT}/model/trace", mesh.glb(colours), scale=self._scale, cast_shadow=False)
        ends, colours = model.bonds()
        if (all_atoms or not tubes) and len(ends):
            name, width = f"{ROOT}/model/bonds", _LINE_WIDTH * self._scale
            self._server.scene.add_line_segments(name, ends, colours, thickness=width, scale=self._scale)

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._drawn != self._wanted)
                wanted = self._wanted
            assert wanted is not None
            try:
                self._draw(wanted)
            except Exception as error:  # a request that fails must not stop the next one
                self._tell(f'<p role="alert">{type(error).__name__}: {error}</p>')
            self._drawn = wanted

    def _draw(self, wishes: Wishes) -> None:
        content, model = self._content, self._content.model(wishes.half)
        if wishes.gaussians:
            colours, legend = colouring(model, wishes.colour, content, wishes.half)
            colours = colours * content.relief.at(model.centres)[:, None]
            self._splats.show(model.splats(wishes.look, colours))
        else:
            legend = _surface_legend(_in_space(content, wishes.colour))
            self._splats.hide()
        if _surface_changes(self._drawn, wishes):
            self._draw_surface(wishes)
        self._tell(legend)

    def _draw_surface(self, wishes: Wishes) -> None:
        name = f"{ROOT}/surface"
        density, level = self._content.density(wishes.half), wishes.level * self._content.sigma
        wanted = (wishes.half, level, wishes.plane)
        if wishes.surface and self._mesh[0] != wanted:
            self._mesh = (wanted, isosurface(density, level, wishes.plane))
        mesh = self._mesh[1] if wishes.surface else None
        if mesh is None:
            self._server.scene.remove_by_name(name)
            return
        found = _in_space(self._content, wishes.colour)
        colours = found.scale.colours(found.field.at(mesh.places)) if found else np.array([PLAIN], dtype=np.float32)
        shaded = colours * brightness(mesh, surroundings(density, level))
        file = mesh.glb(shaded, wishes.surface_opacity)
        self._server.scene.add_glb(name, file, scale=self._scale, cast_shadow=False)


def aim(server: viser.ViserServer, model: Model) -> float:
    """Point the camera at a model from +z with y up, as in the report, and return the units of the scene per Å.

    The radius of the model becomes one unit. Browsers move by units, and with Å the keys would move nothing visible.
    """
    radius = float(np.quantile(np.linalg.norm(model.centres, axis=1), 0.99))
    server.scene.set_up_direction("+y")
    camera = server.initial_camera
    camera.position, camera.look_at, camera.up = (0.0, 0.0, 3.6), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)
    camera.fov, camera.near, camera.far = 0.7, 0.02, 200.0
    _light(server)
    return 1 / max(radius, 1.0)


def _light(server: viser.ViserServer) -> None:
    """Put two lamps in the scene instead of the photograph of a room that the browser would mirror."""
    scene = server.scene
    scene.configure_environment_map(None)
    scene.configure_default_lights(False)
    scene.add_light_ambient("/light/all", intensity=1.1)
    for name, intensity, place in _LIGHTS:
        scene.add_light_point(f"/light/{name}", intensity=intensity, decay=0.0, position=place)


def colouring(
    model: Model, colour: str, content: Content | None = None, half: str = "average"
) -> tuple[NDArray[np.float32], str]:
    """(K, 3) colours of the Gaussians, and their legend. Colours that need a finished run are plain without one."""
    found = _in_space(content, colour) if content else None
    if found:
        return found.scale.colours(found.field.at(model.centres)), found.scale.legend()
    if colour == MASS:
        masses = np.log10(model.masses / np.median(model.masses))
        scale = Scale.over("log₁₀ of the mass, in medians", "", masses)
        return scale.colours(masses), scale.legend()
    if colour == SIZE:
        scale = Scale.over("size (σ)", "Å", model.sizes)
        return scale.colours(model.sizes), scale.legend()
    if colour == ANISOTROPY:
        scale = Scale.over("anisotropy (widest σ / narrowest)", "", model.anisotropies)
        return scale.colours(model.anisotropies), scale.legend()
    if colour == HALF and content:
        colours = np.array(HALVES, dtype=np.float32)
        return colours[content.half_of(half)], swatches({"half 1": HALVES[0], "half 2": HALVES[1]})
    return np.tile(np.array(PLAIN, dtype=np.float32), (len(model), 1)), ""


def _in_space(content: Content, colour: str) -> Property | None:
    """The property behind a colouring that the surface shares with the Gaussians."""
    if colour == LOCAL:
        return content.local_resolution
    if colour == ERROR:
        return content.standard_error
    return content.agreement if colour == AGREEMENT else None


def _surface_legend(found: Property | None) -> str:
    return found.scale.legend() if found else ""


def _surface_changes(before: Wishes | None, now: Wishes) -> bool:
    names = ("half", "surface", "level", "surface_opacity", "colour", "plane")
    if before is None:
        return True
    return any(getattr(before, name) != getattr(now, name) for name in names) and (before.surface or now.surface)
