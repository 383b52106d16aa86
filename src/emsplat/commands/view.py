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
    """A finished run in the browser: Gaussians as splats, the map as a surface, an atomic model on top. Ctrl-C ends it.

    Args:
        run: the folder that emsplat reconstruct wrote.
        model: a PDB or mmCIF file to lay over the map; others can be loaded in the browser.
        host: the address to listen at; only this machine can look unless it is left. 0.0.0.0: everyone who reaches it.
        port: to listen at; 0: any that is free.
        most_gaussians: that are drawn; of more, some are drawn by lot.
    """
    from emsplat.errors import InputError
    from emsplat.runtime.console import ConsoleReporter
    from emsplat.viewer.server import check_installed

    check_installed()
    if most_gaussians < 1:
        raise InputError(f"--most-gaussians {most_gaussians}: it must be at least 1")
    reporter = ConsoleReporter()
    with reporter.stage("loading"):
        from emsplat.viewer.view import open_view

        server, _ = open_view(run, reporter.line, host, port, model, most_gaussians)
    try:
        server.sleep_forever()
    except KeyboardInterrupt:
        reporter.line("closed")
    finally:
        server.stop()
