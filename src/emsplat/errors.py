"""The exception for mistakes of the user, and messages for other exceptions that a user can cause."""

from __future__ import annotations

import errno

BAD_INPUT, FAILED = 2, 1  # exit codes

_LONGEST = 900  # characters


class InputError(Exception):
    """Bad input. Its message is one line that says what is wrong, which value, which rule, and what to do next.

    The command line prints it without a traceback and exits with code 2. A message that quotes a whole damaged file is
    shortened in its middle.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 3 :]}")


# Messages of torch, of threads and of the loader of libraries when memory runs out.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "can't start new thread",
    "failed to map segment",
    "Cannot allocate memory",
)
_OUT_OF_CARD = (  # messages of torch's allocator, the driver, the libraries and Triton
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
)
_COARSER = "look at coarser detail with --max-resolution"


def in_one_line(error: BaseException) -> tuple[str, int] | None:
    """The message for the user and the exit code of an error; None if the error is a fault of the program."""
    if isinstance(error, InputError):
        return str(error), BAD_INPUT
    if isinstance(error, OSError) and not _is_out_of_memory(error):
        return _of_the_system(error), BAD_INPUT
    if is_out_of_card(error):
        needed = str(error).removeprefix(_OUT_OF_CARD[0]).strip(". ").split(". ")[0].split("\n")[0]
        return (
            f"out of memory on the graphics card ({needed}); {_COARSER}, or work on the CPU with --device cpu",
            FAILED,
        )
    if _is_out_of_memory(error):
        why = f" ({str(error).rsplit('/', 1)[-1]})" if str(error) else ""
        return f"out of memory{why}; {_COARSER}", FAILED
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, as the error says, or the one during whose handling it was raised."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError | ImportError | OSError):
        return False
    if any(text in str(error) for text in _OUT_OF_MEMORY):
        return True
    return error.__context__ is not None and _is_out_of_memory(error.__context__)


def is_out_of_card(error: BaseException) -> bool:
    """Whether the memory of a graphics card ran out."""
    return any(text in str(error) for text in _OUT_OF_CARD)


def _of_the_system(error: OSError) -> str:
    """The message for an error of the operating system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space or choose another output folder"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; check the path and its permissions"
