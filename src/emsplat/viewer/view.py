"""A finished run in the browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from emsplat.runs.heterogeneity_run import open_heterogeneity
from emsplat.viewer.atoms import load_model
from emsplat.viewer.content import MOST_SPLATS, Content
from emsplat.viewer.controls import Controls
from emsplat.viewer.latent import LatentContent, LatentControls
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
    """Start a server that shows the run in a folder until it is stopped.

    Args:
        tell: called with the lines that say where to look.
        model: file of an atomic model to lay over the map.
    Raises:
        InputError: the folder holds no finished run, a file cannot be read, or the port is taken.
    """
    content = Content.of(folder, most_splats)
    if model:
        load_model(model, content.origin, centred=False)  # so that a mistake is reported before the server starts
    server = start(host, port)
    controls = Controls(server, content)
    if model:
        controls.load(model)
    shown = content.model("average")
    if len(shown) < shown.total:
        tell(f"a random selection of {len(shown):,} of {shown.total:,} Gaussians is drawn; --most-gaussians draws more")
    for line in addresses(server):
        tell(line)
    return server, controls


def open_latent_view(
    folder: Path, tell: Callable[[str], None], host: str = HOST, port: int = PORT, most_splats: int = MOST_SPLATS
) -> tuple[viser.ViserServer, LatentControls]:
    """Start a server that shows the search for heterogeneity in a folder. Arguments and errors as for `open_view`."""
    content = LatentContent.of(open_heterogeneity(folder), most_splats)
    server = start(host, port)
    controls = LatentControls(server, content)
    for line in addresses(server):
        tell(line)
    return server, controls
