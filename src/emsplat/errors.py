"""The one exception a user's mistake raises."""


class InputError(Exception):
    """Bad input: one line saying what, which value, which rule, and what to do next.

    The command line prints it without a traceback and exits with code 2.
    """
