"""The command line: every exception a user can cause becomes one line that names the remedy."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff

from emsplat.commands import COMMANDS
from emsplat.errors import in_one_line
from emsplat.runtime.threads import relax_openmp
from emsplat.versions import __version__

_INTERRUPTED, _BROKEN_PIPE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["-V"]):
        print(f"emsplat {__version__}")
        return 0
    relax_openmp()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):  # a queue's cancel and a lost terminal clean up as Ctrl-C does
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, signal.default_int_handler)
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="emsplat",
            description="From cryo-EM particle images to a 3D map made of Gaussians, with a resolution that can be "
            "believed. emsplat COMMAND --help tells the options of a command, emsplat --version the version.",
            args=arguments,
            config=(FlagCreatePairsOff, DisallowNone),
        )
        if sys.stdout:  # None where it was closed, as by >&-
            sys.stdout.flush()
    except KeyboardInterrupt:
        return _complain("interrupted; no half-written file is left", _INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`: not worth a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it exits
        return _BROKEN_PIPE
    except Exception as error:
        told = in_one_line(error)
        if told is None:
            raise
        return _complain(*told)
    return 0


def _complain(text: str, code: int) -> int:
    print("emsplat: " + " ".join(text.split()), file=sys.stderr)
    return code
