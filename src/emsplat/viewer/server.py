"""The viewer's server: whether it can start, where it listens, and how to get there from another machine."""

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
    """InputError where the viewer's libraries are missing."""
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"the viewer needs {' and '.join(missing)}: pip install 'emsplat[viewer]'")


def start(host: str, port: int, *, or_next: bool = False) -> viser.ViserServer:
    """A server that listens; only this machine can reach it unless `host` says otherwise.

    Args:
        port: 0 for any that is free.
        or_next: take one of the next ports where this one is taken.
    Raises:
        InputError: the port is taken, or the host is not an address of this machine.
    """
    free = _free_port(host, port, or_next)
    import rich
    import viser

    # viser prints its addresses and its end whatever it is told; standard output is someone else's.
    rich.get_console().quiet = True
    # Whoever hangs up in the middle of a greeting would leave a traceback in the terminal.
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
    server = viser.ViserServer(host=host, port=free, label="emsplat", verbose=False)
    if server.get_port() != free:
        server.stop()
        raise InputError(_taken(host, free))
    server.gui.configure_theme(show_logo=False, show_share_button=False, dark_mode=True, brand_color=(86, 140, 196))
    server.gui.main_panel.dock_right()  # beside the scene, not over it
    return server


def _free_port(host: str, port: int, or_next: bool) -> int:
    """Asked for beforehand, for viser would go on to the next one without end."""
    if not 0 <= port <= _LAST_PORT:
        raise InputError(f"--port {port}: a port is a number from 1 to {_LAST_PORT}; 0 takes any that is free")
    for tried in range(port, min(port + _PORTS_TRIED, _LAST_PORT) + 1) if or_next and port else [port]:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, tried, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
                return trial.getsockname()[1]
        except OSError as error:
            if error.errno == errno.EACCES:
                raise InputError(f"--port {tried}: needs the rights of root; choose one above 1023") from None
            if error.errno != errno.EADDRINUSE:
                raise InputError(f"--host {host}: not an address of this machine; leave it out for {HOST}") from None
    raise InputError(_taken(host, port))


def _taken(host: str, port: int) -> str:
    return f"--port {port}: another program listens on it at {host}; choose another port, or 0 for any that is free"


def addresses(server: viser.ViserServer) -> list[str]:
    """Lines on where to look, here and from another machine."""
    host, port = server.get_host(), server.get_port()
    name = socket.gethostname()
    if host in ("0.0.0.0", "::"):
        return [
            f"look at http://{name}:{port} (anyone who reaches this machine can)",
            f"or, through ssh: ssh -L {port}:localhost:{port} {_user()}@{name}, then http://localhost:{port}",
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
