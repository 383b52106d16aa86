"""The subcommands: one file each. Nothing heavy is imported before a command runs, so that help comes at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emsplat.commands.check import check
from emsplat.commands.demo import demo
from emsplat.commands.export import export
from emsplat.commands.fsc import fsc
from emsplat.commands.plan import plan
from emsplat.commands.reconstruct import reconstruct
from emsplat.commands.report import report
from emsplat.commands.simulate import simulate
from emsplat.commands.subset import subset
from emsplat.commands.view import view

COMMANDS: dict[str, Callable[..., Any]] = {
    "check": check,
    "reconstruct": reconstruct,
    "plan": plan,
    "simulate": simulate,
    "subset": subset,
    "export": export,
    "report": report,
    "view": view,
    "fsc": fsc,
    "demo": demo,
}
