"""A fit in progress in the browser: from time to time, a thread of its own sends a copy of its Gaussians.

The fit only copies some tensors, and seldom. The pause between two pictures grows with the cost of a picture, so that
watching takes at most a fixed share of the machine, however many Gaussians there are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emsplat.models.parameters import Parameters
from emsplat.runtime.reporting import Reporter
from emsplat.viewer.scene import ANISOTROPY, MASS, ONE, SIZE, Splats, aim, colouring
from emsplat.viewer.server import addresses, start
from emsplat.viewer.splats import Look, Model, thinned

if TYPE_CHECKING:
    import viser

_MOST_SPLATS = 20_000  # largest number of splats that are sent
_SHARE = 0.01  # share of one core for turning snapshots into splats; packing and sending cost about as much again
_SHORTEST_PAUSE = 0.5  # seconds
_BETWEEN_LOOKS = 2.0  # seconds between updates of the stage while no Gaussians arrive
_BUSY = 10.0  # seconds since the last step of a half that is still being fitted
_EITHER, _FIRST, _SECOND = "the one being fitted", "half 1", "half 2"


@dataclass(frozen=True)
class _Snapshot:
    half: int
    parameters: Parameters
    pixel_size: float


class LiveView:
    """A `Reporter.watcher` that shows the fit in browsers."""

    def __init__(self, server: viser.ViserServer, warn: Callable[[str], None], stage: Callable[[], str]) -> None:
        """Args: warn: called once if the viewer fails; stage: returns the current stage of the run."""
        self._server, self._warn, self._stage = server, warn, stage
        self._latest: dict[int, _Snapshot] = {}
        self._heard: dict[int, float] = {}  # when the last step of a half was taken
        self._current = 0
        self._not_before = 0.0
        self._closed = False
        self._news = threading.Event()
        self._splats = Splats(server)
        self._aimed = False
        self._drawn = "no Gaussians yet"
        gui = server.gui
        self._text = gui.add_markdown("The first Gaussians appear when a half is fitted.")
        self._half = gui.add_dropdown("show", (_EITHER, _FIRST, _SECOND), initial_value=_EITHER)
        self._colour = gui.add_dropdown("colour by", (MASS, SIZE, ANISOTROPY, ONE), initial_value=SIZE)
        self._legend = gui.add_html("")
        self._size = gui.add_slider("size", 0.2, 2.5, 0.05, 1.0, hint="factor on σ; the mass stays")
        self._opacity = gui.add_slider("opacity", 0.1, 10.0, 0.1, 1.0, hint="factor on the absorption")
        for control in (self._half, self._colour, self._size, self._opacity):
            control.on_update(lambda _: self._news.set())
        server.on_client_connect(lambda _: self._news.set())
        self._thread = threading.Thread(target=self._work, name="viewer", daemon=True)
        self._thread.start()

    def __call__(self, half: int, parameters: Parameters, pixel_size: float) -> None:
        """Take a copy of the parameters if it is time. The fit calls this after every step and then changes them."""
        self._heard[half] = time.monotonic()
        if time.monotonic() < self._not_before or self._closed:
            return
        self._not_before = time.monotonic() + _SHORTEST_PAUSE
        copy = parameters.map(lambda _, tensor: tensor.clone().cpu())
        self._latest[half] = _Snapshot(half, copy, pixel_size)
        # Of two halves that are fitted at the same time, the picture stays at the first.
        self._current = min(each for each, at in self._heard.items() if time.monotonic() - at < _BUSY)
        self._news.set()

    def close(self) -> None:
        """Stop the server. Browsers keep the last picture."""
        self._closed = True
        self._news.set()
        self._thread.join(timeout=2.0)
        self._server.stop()

    def _work(self) -> None:
        try:
            while True:
                news = self._news.wait(_BETWEEN_LOOKS)
                self._news.clear()
                if self._closed:
                    return
                if not self._server.get_clients() or not self._latest:
                    continue
                if not news:
                    self._say()
                    continue
                before = time.thread_time()
                self._draw()
                cost = time.thread_time() - before
                pause = max(_SHORTEST_PAUSE, cost / _SHARE)
                self._not_before = time.monotonic() + pause
        except Exception as error:
            self._closed = True
            self._warn(f"the live view has failed ({type(error).__name__}: {error}); the run goes on without it")

    def _draw(self) -> None:
        wanted = {_FIRST: 1, _SECOND: 2}.get(self._half.value, self._current)
        snapshot = self._latest.get(wanted)
        if snapshot is None:
            self._splats.hide()
            self._text.content = f"Half {wanted} is not fitted yet."
            return
        gaussians = snapshot.parameters.gaussians(snapshot.pixel_size)
        model = thinned(gaussians, _MOST_SPLATS)
        if not self._aimed:
            self._aimed = True
            self._aim(model)
        colours, legend = colouring(model, self._colour.value)
        self._splats.show(model.splats(Look(self._size.value, self._opacity.value), colours))
        self._legend.content = legend
        drawn = f"{model.total:,} Gaussians"
        if len(model) < model.total:
            drawn = f"{len(model):,} of {drawn}, chosen at random"
        self._drawn = f"half {wanted}: {drawn}"
        self._say()

    def _say(self) -> None:
        text = f"**{self._stage()}**, {self._drawn}"
        if self._text.content != text:
            self._text.content = text

    def _aim(self, model: Model) -> None:
        self._splats.scale = aim(self._server, model)
        camera: Any = self._server.initial_camera
        for client in self._server.get_clients().values():
            client.camera.position, client.camera.look_at = camera.position, camera.look_at


@contextmanager
def watched(reporter: Reporter, host: str, port: int) -> Iterator[None]:
    """Show the fits of the block in the browser, at this port or one of the next ports.

    Raises:
        InputError: no port is free, or the host is not an address of this machine.
    """
    server = start(host, port, or_next=True)
    for line in addresses(server):
        reporter.line(line)
    view = LiveView(server, reporter.warn, lambda: reporter.current)
    reporter.watcher = view
    try:
        yield
    finally:
        reporter.watcher = None
        view.close()
