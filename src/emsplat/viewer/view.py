"""A finished run in the browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from emsplat.viewer.atoms import load_model
from emsplat.viewer.content import MOST_SPLATS, Content
from emsplat.viewer.controls import Controls
from emsplat.viewer.server import HOST, PORT, addresses, start

if TYPE_CHECKING:
    import viser


def open_view(
    folder: Path,
    tell: Callable[[str], None],
    host: str = HOST,
    port: int = PORT,
    model: Path | None = None,
    most_splats: int = MOST_SPLATS,
) -> tuple[viser.ViserServer, Controls]:
    """Starts a server that shows the run in a folder; it works until it is stopped.

    Args:
        tell: is given the lines on where to look.
        model: of atoms, laid over the map.
    Raises:
        InputError: no finished run in the folder, a file that cannot be read, or a port that is taken.
    """
    content = Content.of(folder, most_splats)
    if model:
        load_model(model, content.origin, centred=False)  # a mistake is better said before anything listens
    server = start(host, port)
    controls = Controls(server, content)
    if model:
        controls.load(model)
    shown = content.model("average")
    if len(shown) < shown.total:
        tell(f"{len(shown):,} of {shown.total:,} Gaussians are drawn, by lot; more with --most-gaussians")
    for line in addresses(server):
        tell(line)
    return server, controls
