"""The server of the viewer: whether it can start, where it listens, and how to reach it from another machine."""

from __future__ import annotations

import errno
import getpass
import importlib.util
import logging
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from emsplat.errors import InputError

if TYPE_CHECKING:
    import viser

HOST, PORT = "127.0.0.1", 8080
_NEEDED = {"viser": "viser", "skimage": "scikit-image"}
_PORTS_TRIED = 50
_LAST_PORT = 65535


def check_installed() -> None:
    """InputError if the libraries of the viewer are missing."""
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"the viewer needs {' and '.join(missing)}; type pip install 'emsplat[viewer]'")


def start(host: str, port: int, *, or_next: bool = False) -> viser.ViserServer:
    """Start a server, which only this machine can reach unless `host` says otherwise.

    Args:
        port: the port to listen on, or 0 for any free one.
        or_next: take one of the next ports if this one is taken.
    Raises:
        InputError: the port is taken, or the host is not an address of this machine.
    """
    free = _free_port(host, port, or_next)
    import rich
    import viser

    # viser always prints its addresses and its end, but standard output belongs to the caller.
    rich.get_console().quiet = True
    # A browser that hangs up during the handshake would leave a traceback in the terminal.
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
    server = viser.ViserServer(host=host, port=free, label="emsplat", verbose=False)
    if server.get_port() != free:
        server.stop()
        raise InputError(_taken(host, free))
    server.gui.configure_theme(show_logo=False, show_share_button=False, dark_mode=True, brand_color=(86, 140, 196))
    server.gui.main_panel.dock_right()  # beside the scene, not over it
    return server


def _free_port(host: str, port: int, or_next: bool) -> int:
    """The port to listen on. It is tested here because viser would try the next ports without end."""
    if not 0 <= port <= _LAST_PORT:
        raise InputError(f"--port {port}: it must be a number from 1 to {_LAST_PORT}, or 0 for any free port")
    for tried in range(port, min(port + _PORTS_TRIED, _LAST_PORT) + 1) if or_next and port else [port]:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, tried, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
                return trial.getsockname()[1]
        except OSError as error:
            if error.errno == errno.EACCES:
                raise InputError(f"--port {tried}: only root may listen there; choose one above 1023") from None
            if error.errno != errno.EADDRINUSE:
                raise InputError(
                    f"--host {host}: this is not an address of this machine; leave it out for {HOST}"
                ) from None
    raise InputError(_taken(host, port))


def _taken(host: str, port: int) -> str:
    return f"--port {port}: another program listens on it at {host}; choose another port, or 0 for any free one"


def addresses(server: viser.ViserServer) -> list[str]:
    """Lines that say where to look, on this machine and from another one."""
    host, port = server.get_host(), server.get_port()
    name = socket.gethostname()
    if host in ("0.0.0.0", "::"):
        return [
            f"look at http://{name}:{port} (everyone who can reach this machine can)",
            f"or through ssh: ssh -L {port}:localhost:{port} {_user()}@{name}, then http://localhost:{port}",
        ]
    there = "localhost" if host in ("127.0.0.1", "::1", "localhost") else host
    return [
        f"look at http://{there}:{port}",
        f"from another machine: ssh -L {port}:{there}:{port} {_user()}@{name}, then http://localhost:{port}",
    ]


def _user() -> str:
    with suppress(KeyError, OSError, ImportError):
        return getpass.getuser()
    return str(os.getuid())
