"""The subcommands: one file each. Nothing heavy is imported before a command runs, so that help comes at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emsplat.commands.demo import demo
from emsplat.commands.fsc import fsc
from emsplat.commands.reconstruct import reconstruct
from emsplat.commands.simulate import simulate

COMMANDS: dict[str, Callable[..., Any]] = {
    "reconstruct": reconstruct,
    "simulate": simulate,
    "fsc": fsc,
    "demo": demo,
}
