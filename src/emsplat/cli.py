"""The command line: every exception a user can cause becomes one line that names the remedy."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Sequence

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff

import emsplat
from emsplat.commands import COMMANDS
from emsplat.errors import InputError
from emsplat.threads import relax_openmp

_BAD_INPUT, _FAILED, _INTERRUPTED, _BROKEN_PIPE = 2, 1, 130, 141
# How torch, the threads and the loader of libraries say it.
_OUT_OF_MEMORY = ("can't allocate memory", "can't start new thread", "failed to map segment", "Cannot allocate memory")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["-V"]):
        print(f"emsplat {emsplat.__version__}")
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
    except InputError as error:
        return _complain(str(error), _BAD_INPUT)
    except KeyboardInterrupt:
        return _complain("interrupted; no half-written file is left", _INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`: not worth a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it exits
        return _BROKEN_PIPE
    except OSError as error:
        return _complain(*_of_the_system(error))
    except (MemoryError, RuntimeError, ImportError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in _OUT_OF_MEMORY):
            raise
        why = f" ({str(error).rsplit('/', 1)[-1]})" if str(error) else ""
        return _complain(f"out of memory{why}; look at coarser detail with --max-resolution", _FAILED)
    return 0


def _complain(text: str, code: int) -> int:
    print("emsplat: " + " ".join(text.split()), file=sys.stderr)
    return code


def _of_the_system(error: OSError) -> tuple[str, int]:
    """What the operating system refused, and the exit code."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space or choose another output folder", _BAD_INPUT
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; check the path and its permissions", _BAD_INPUT
