"""The subcommands, one file for each. Nothing heavy is imported before a command runs, so that help comes at once.

- ``help``: lays out the docstring of a command for the terminal
- ``arguments``: what several commands can be asked; ``session``: what surrounds a long job
- ``run_demo``: what the demonstration does; ``relion_job``: the separate command `emsplat-relion`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emsplat.commands.abinitio import abinitio
from emsplat.commands.check import check
from emsplat.commands.decode import decode
from emsplat.commands.demo import demo
from emsplat.commands.export import export
from emsplat.commands.flip import flip
from emsplat.commands.fsc import fsc
from emsplat.commands.heterogeneity import heterogeneity
from emsplat.commands.plan import plan
from emsplat.commands.reconstruct import reconstruct
from emsplat.commands.report import report
from emsplat.commands.simulate import simulate
from emsplat.commands.subset import subset
from emsplat.commands.view import view

COMMANDS: dict[str, Callable[..., Any]] = {
    "check": check,
    "abinitio": abinitio,
    "reconstruct": reconstruct,
    "heterogeneity": heterogeneity,
    "decode": decode,
    "plan": plan,
    "simulate": simulate,
    "subset": subset,
    "export": export,
    "flip": flip,
    "report": report,
    "view": view,
    "fsc": fsc,
    "demo": demo,
}
