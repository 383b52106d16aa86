"""The command line. Every exception that a user can cause becomes one line that names the remedy."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff

from emsplat.commands import COMMANDS
from emsplat.commands.help import examples_of, examples_text, for_the_terminal
from emsplat.errors import in_one_line
from emsplat.runtime.threads import relax_openmp
from emsplat.versions import __version__

_INTERRUPTED, _BROKEN_PIPE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
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
            {name: for_the_terminal(command, name in arguments[:1]) for name, command in COMMANDS.items()},
            prog="emsplat",
            description="From cryo-EM particle images to a 3D map made of Gaussians, with a resolution that can be "
            "trusted. emsplat COMMAND --help explains a command and gives examples; emsplat --version prints the "
            "version.",
            args=arguments,
            config=(FlagCreatePairsOff, DisallowNone),
        )
        if sys.stdout:  # None where it was closed, as by >&-
            sys.stdout.flush()
    except SystemExit as end:  # help was printed, or the arguments are wrong
        if not end.code and arguments[:1] and arguments[0] in COMMANDS:
            print(examples_text(examples_of(COMMANDS[arguments[0]])))
        raise
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
