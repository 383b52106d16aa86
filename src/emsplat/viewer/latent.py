"""A search for heterogeneity in the browser: sliders for the latents move its Gaussians, and trajectories play."""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.heterogeneity.decoder import Decoder
from emsplat.runs.heterogeneity_run import HeterogeneityRun, resolution_of_state
from emsplat.runs.run_folder import AVERAGE, HALVES
from emsplat.viewer import pictures
from emsplat.viewer.colours import Scale
from emsplat.viewer.scene import ANISOTROPY, MASS, ONE, SIZE, Splats, aim, colouring
from emsplat.viewer.splats import Look, Model

if TYPE_CHECKING:
    import viser

_NEAR = 0.5  # latents have about unit variance; images this near to a point are counted
_FEW = 10
_PLAY_SECONDS = 4.0  # one way
_PICTURES_A_SECOND = 15
_MODELS = {"average": AVERAGE, "half 1": HALVES[0], "half 2": HALVES[1]}


@dataclass(frozen=True)
class Thinned:
    """A decoder with no more Gaussians than a browser sorts in time."""

    decoder: Decoder
    rows: NDArray[np.intp]
    total: int

    @staticmethod
    def of(decoder: Decoder, most: int) -> Thinned:
        """The decoder, or a random selection of its Gaussians."""
        total = len(decoder.gaussians)
        rows = np.arange(total)
        if total > most:
            rows = np.sort(np.random.default_rng(0).choice(total, most, replace=False))
            chosen = torch.from_numpy(rows)
            slopes, moves = decoder.mass_slopes[chosen], decoder.displacements[chosen]
            decoder = Decoder(decoder.gaussians.rows(chosen), slopes, moves)
        return Thinned(decoder, rows, total)

    def at(self, z: NDArray[np.float64]) -> Model:
        """The Gaussians at a point."""
        return Model(self.decoder.at(z), self.rows, self.total)


@dataclass(frozen=True)
class LatentContent:
    """What the viewer shows of a search; the latents tell how many images lie near a point."""

    run: HeterogeneityRun
    decoders: dict[str, Thinned]  # by half
    latents: NDArray[np.float64]  # (N, K)
    trajectories: tuple[NDArray[np.float64], ...]  # (n, K) of each component

    @staticmethod
    def of(run: HeterogeneityRun, most_splats: int) -> LatentContent:
        """The content of a folder; InputError if nothing varies, or if one of its files cannot be read."""
        if run.n_components == 0:
            raise InputError(f"{run.folder.path}: no heterogeneity was found; look at {run.folder.consensus} instead")
        decoders = {
            half: Thinned.of(Decoder.load(run.folder.decoder(half)), most_splats) for half in (AVERAGE, *HALVES)
        }
        paths = tuple(run.trajectory(k) for k in range(1, run.n_components + 1))
        return LatentContent(run, decoders, _latents(run), paths)

    def ranges(self) -> NDArray[np.float64]:
        """(2, K) ends of the sliders: where nearly all images lie."""
        low, high = np.quantile(self.latents, (0.005, 0.995), axis=0)
        return np.stack([np.floor(10 * low) / 10, np.ceil(10 * high) / 10])

    def images_near(self, z: NDArray[np.float64]) -> int:
        """Number of images near a point."""
        return int((((self.latents - z) ** 2).sum(axis=1) < _NEAR**2).sum())

    def along(self, component: int, share: float) -> NDArray[np.float64]:
        """(K,) the point at this share of the trajectory along a component, from 0."""
        points = self.trajectories[component]
        at = share * (len(points) - 1)
        return np.array([np.interp(at, np.arange(len(points)), column) for column in points.T])


def _latents(run: HeterogeneityRun) -> NDArray[np.float64]:
    """(N, K) latents of the images that show a particle."""
    names = [f"z{i + 1}" for i in range(run.n_components)]
    try:
        with run.folder.latents.open(newline="", encoding="utf-8") as file:
            rows = [[float(row[n]) for n in names] for row in csv.DictReader(file) if float(row["junk"]) < 0.5]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run.folder.latents}: cannot be read ({error}); make the run again") from None
    return np.array(rows).reshape(-1, run.n_components)


@dataclass(frozen=True)
class LatentWishes:
    """The state of the controls."""

    z: tuple[float, ...]
    half: str
    colour: str
    look: Look


class LatentControls:
    """The controls in the browser. A thread of its own draws what they ask for, as soon as it can."""

    def __init__(self, server: viser.ViserServer, content: LatentContent) -> None:
        self._server, self._content = server, content
        self._splats = Splats(server)
        self._splats.scale = aim(server, content.decoders[AVERAGE].at(content.latents.mean(axis=0)))
        self._wanted: LatentWishes | None = None
        self._drawn: LatentWishes | None = None
        self._news = threading.Condition()
        self._quiet = False  # whether controls are being moved by the program, which draws once in the end
        self._playing = threading.Event()
        self._drawing = threading.Lock()  # a film draws its frames itself
        gui = server.gui
        gui.add_markdown(_about(content))
        self._point(gui)
        self._trajectory(gui)
        self._appearance(gui)
        self._note = gui.add_html("")
        threading.Thread(target=self._work, name="viewer", daemon=True).start()
        self._wish()

    # --- the controls

    def _point(self, gui: viser.GuiApi) -> None:
        content = self._content
        names = ["mean of all images", *(f"state {i + 1}" for i in range(len(content.run.states)))]
        places = [content.latents.mean(axis=0), *content.run.states]
        with gui.add_folder("Point in latent space"):
            self._model = gui.add_dropdown("decoder", tuple(_MODELS), initial_value="average")
            self._place = gui.add_dropdown("go to", tuple(names), initial_value=names[-1 if len(names) == 1 else 1])
            start = places[names.index(self._place.value)]
            low, high = content.ranges()
            self._sliders = [
                gui.add_slider(
                    f"z{k + 1}", float(low[k]), float(high[k]), 0.01, float(np.clip(start[k], low[k], high[k]))
                )
                for k in range(content.run.n_components)
            ]
            self._nearby = gui.add_html("")
        for slider in self._sliders:
            slider.on_update(lambda _: self._wish())
        self._model.on_update(lambda _: self._wish())
        self._place.on_update(lambda _: self.move_to(places[names.index(self._place.value)]))

    def _trajectory(self, gui: viser.GuiApi) -> None:
        names = tuple(f"component {k + 1}" for k in range(self._content.run.n_components))
        with gui.add_folder("Trajectory"):
            self._path = gui.add_dropdown("along", names, initial_value=names[0])
            self._share = gui.add_slider("place", 0.0, 1.0, 0.001, 0.5)
            self._play = gui.add_button("Play")
            film = gui.add_button("Turntable along it (GIF)")
        self._share.on_update(lambda _: None if self._quiet else self._go_along(self._share.value))
        self._path.on_update(lambda _: self._go_along(self._share.value))

        @self._play.on_click
        def _(event: Any) -> None:
            if self._playing.is_set():
                self._stop_playing()
                return
            playing = self._playing = threading.Event()
            playing.set()
            self._play.label = "Stop"
            threading.Thread(target=self._play_on, args=(playing,), name="playing", daemon=True).start()

        @film.on_click
        def _(event: Any) -> None:
            label = film.label
            film.disabled = True
            self._stop_playing()
            try:
                picture = self.film(event.client, lambda done, total: setattr(film, "label", f"{done} of {total}"))
                event.client.send_file_download(f"{self._content.run.name}.gif", picture)
            except RuntimeError as error:
                self._note.content = f'<p role="alert">{escape(str(error))}</p>'
            finally:
                film.label, film.disabled = label, False

    def _appearance(self, gui: viser.GuiApi) -> None:
        k = self._content.run.n_components
        moving = any(thinned.decoder.moves for thinned in self._content.decoders.values())
        of_latents = [f"mass change with z{i + 1}" for i in range(k)]
        of_latents += [f"movement with z{i + 1}" for i in range(k)] if moving else []
        with gui.add_folder("Gaussians"):
            self._colour = gui.add_dropdown(
                "colour by", (*of_latents, MASS, SIZE, ANISOTROPY, ONE), initial_value=of_latents[0]
            )
            self._legend = gui.add_html("")
            self._size = gui.add_slider("size", 0.2, 2.5, 0.05, 1.0, hint="factor on σ; the mass stays")
            self._opacity = gui.add_slider("opacity", 0.1, 10.0, 0.1, 1.0, hint="factor on the absorption")
        for control in (self._colour, self._size, self._opacity):
            control.on_update(lambda _: self._wish())

    # --- moving

    def move_to(self, z: NDArray[np.float64]) -> None:
        """Set the sliders to a point and show it."""
        low, high = self._content.ranges()
        self._quiet = True
        for slider, value in zip(self._sliders, np.clip(z, low, high), strict=True):
            slider.value = float(value)
        self._quiet = False
        self._wish()

    def _go_along(self, share: float) -> None:
        self.move_to(self._content.along(int(self._path.value.split()[-1]) - 1, share))

    def _stop_playing(self) -> None:
        self._playing.clear()
        self._play.label = "Play"

    def _play_on(self, playing: threading.Event) -> None:
        """Go along the trajectory there and back, until the event is cleared."""
        share, direction = float(self._share.value), 1.0
        while playing.is_set():
            share += direction / (_PLAY_SECONDS * _PICTURES_A_SECOND)
            if not 0 < share < 1:
                share, direction = float(np.clip(share, 0, 1)), -direction
            self._quiet = True
            self._share.value = share
            self._quiet = False
            self._go_along(share)
            time.sleep(1 / _PICTURES_A_SECOND)

    def film(self, client: viser.ClientHandle, progress: Callable[[int, int], None]) -> bytes:
        """A GIF of one turn about the upright axis, while the point goes along the chosen trajectory and back."""
        component = int(self._path.value.split()[-1]) - 1
        before = self.wishes()

        def at_frame(number: int, total: int) -> None:
            share = 0.5 - 0.5 * np.cos(2 * np.pi * number / total)
            z = self._content.along(component, float(share))
            self._draw(replace(before, z=tuple(z.tolist())))

        with self._drawing:
            try:
                return pictures.turntable(client, progress, each=at_frame)
            finally:
                self._draw(before)

    # --- drawing

    def wishes(self) -> LatentWishes:
        """The current state of the controls."""
        z = tuple(float(slider.value) for slider in self._sliders)
        look = Look(self._size.value, self._opacity.value)
        return LatentWishes(z, _MODELS[self._model.value], self._colour.value, look)

    def _wish(self) -> None:
        if self._quiet:
            return
        with self._news:
            self._wanted = self.wishes()
            self._news.notify_all()

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._drawn != self._wanted)
                wanted = self._wanted
            assert wanted is not None
            try:
                with self._drawing:
                    self._draw(wanted)
                self._tell(wanted)
            except Exception as error:  # a request that fails must not stop the next one
                self._note.content = f'<p role="alert">{type(error).__name__}: {escape(str(error))}</p>'
            self._drawn = wanted

    def _draw(self, wishes: LatentWishes) -> None:
        thinned = self._content.decoders[wishes.half]
        model = thinned.at(np.array(wishes.z))
        colours, legend = _colours(thinned, model, wishes.colour)
        self._splats.show(model.splats(wishes.look, colours))
        if self._legend.content != legend:
            self._legend.content = legend

    def _tell(self, wishes: LatentWishes) -> None:
        count = self._content.images_near(np.array(wishes.z))
        doubt = "" if count >= _FEW else "; <b>the decoder extrapolates here</b>"
        images = "image" if count == 1 else "images"
        self._nearby.content = f"<p>{count:,} {images} within {_NEAR} of this point{doubt}</p>"


def _colours(thinned: Thinned, model: Model, colour: str) -> tuple[NDArray[np.float32], str]:
    """(J, 3) colours of the Gaussians, and their legend."""
    what, _, latent = colour.rpartition(" with z")
    if not latent.isdigit():
        return colouring(model, colour)
    k = int(latent) - 1
    if what == "movement":
        values = thinned.decoder.displacements[:, k].norm(dim=1).numpy()
        scale = Scale.over(f"movement with z{k + 1}", "Å", values)
    else:
        values = thinned.decoder.mass_slopes[:, k].numpy()
        scale = Scale.over(f"change of the log mass with z{k + 1}", "", values)
    return scale.colours(values), scale.legend()


def _about(content: LatentContent) -> str:
    """What the run is, as Markdown."""
    run = content.run
    shown, total = len(content.decoders[AVERAGE].rows), content.decoders[AVERAGE].total
    drawn = f"{total:,} Gaussians" if shown == total else f"{shown:,} of {total:,} Gaussians, chosen at random"
    lines = [f"**{run.name}**: {run.n_components} components, {len(content.latents):,} images, {drawn}", ""]
    for state in run.summary["states"]:
        lines.append(f"- state {state['number']}: {100 * state['population']:.0f} %, {resolution_of_state(state)}")
    return "\n".join(lines)
