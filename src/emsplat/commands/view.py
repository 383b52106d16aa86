"""``emsplat view``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def view(
    run: Annotated[Positional[Path], arg(metavar="DIR")],
    model: Annotated[Path | None, arg(metavar="FILE")] = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    most_gaussians: int = 200_000,
) -> None:
    """Show a finished run in the browser: its Gaussians, its surface and an atomic model. Ctrl-C ends it.

    Of a search for heterogeneity it shows the Gaussians at any point of latent space: sliders move them, and
    trajectories can be played and saved.

    Args:
        run: Folder that emsplat reconstruct, abinitio or heterogeneity wrote.
        model: PDB or mmCIF file to lay over the map. Others can be loaded in the browser.
        host: Address that the viewer listens on. With the default only this machine can look; with 0.0.0.0 everyone who
            can reach this machine can.
        port: Port that the viewer listens on, or 0 for any free one.
        most_gaussians: Largest number of Gaussians to draw. If the model has more, a random selection is drawn.

    Examples:
        # Look at a run, with an atomic model on top:
        emsplat view run --model 7pbl.cif
        # Move through the latent space of a search for heterogeneity:
        emsplat view states
        # Show it to colleagues in the same network:
        emsplat view run --host 0.0.0.0 --port 8090
    """
    from emsplat.errors import InputError
    from emsplat.runtime.console import ConsoleReporter
    from emsplat.viewer.server import check_installed

    check_installed()
    if most_gaussians < 1:
        raise InputError(f"--most-gaussians {most_gaussians}: it must be at least 1")
    reporter = ConsoleReporter()
    with reporter.loading():
        from emsplat.runs.heterogeneity_folder import holds_heterogeneity
        from emsplat.viewer.view import open_latent_view, open_view

        if not holds_heterogeneity(run):
            server, _ = open_view(run, reporter.line, host, port, model, most_gaussians)
        elif model:
            raise InputError("--model: an atomic model can be laid over a reconstruction; give DIR/consensus")
        else:
            server, _ = open_latent_view(run, reporter.line, host, port, most_gaussians)
    try:
        server.sleep_forever()
    except KeyboardInterrupt:
        reporter.line("closed")
    finally:
        server.stop()
