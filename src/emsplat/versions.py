"""Versions of everything that could change a number: the program, its libraries, and the operating system."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.2.0"
_LIBRARIES = ("numpy", "scipy", "torch", "numba")


def versions() -> dict[str, str]:
    """Versions by name, of everything that could change a number."""
    found = {"emsplat": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
