"""The one exception a user's mistake raises."""

_LONGEST = 900  # characters


class InputError(Exception):
    """Bad input: one line saying what, which value, which rule, and what to do next.

    The command line prints it without a traceback and exits with code 2. A message that quotes a whole damaged file is
    shortened in its middle.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 3 :]}")
