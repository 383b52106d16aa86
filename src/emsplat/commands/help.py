"""The help of a command is its docstring, laid out for the terminal.

A docstring is wrapped for the source code. For the terminal, the lines of an argument are joined, since tyro wraps them
again. The section "Examples:" is printed after the options.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from types import FunctionType
from typing import Any

_EXAMPLES = "Examples:"
_ARGUMENTS = "Args:"
_INDENT = " " * 4

Command = Callable[..., Any]


def for_the_terminal(command: Command, chosen: bool) -> Command:
    """A copy of a command whose docstring is laid out for the terminal.

    Args:
        chosen: Whether the help of this command is asked for. The overview of all commands shows its first paragraph.
    """
    assert isinstance(command, FunctionType)
    copy = FunctionType(command.__code__, command.__globals__, command.__name__, command.__defaults__)
    copy.__annotations__, copy.__kwdefaults__ = command.__annotations__, command.__kwdefaults__
    text = (inspect.getdoc(command) or "").partition(f"\n{_EXAMPLES}\n")[0].rstrip()
    description, _, arguments = text.partition(f"\n{_ARGUMENTS}\n")
    if not chosen:
        description = description.partition("\n\n")[0]
    arguments = re.sub(rf"\n{_INDENT * 2}", " ", arguments)  # the second and further lines of an argument
    copy.__doc__ = f"{description.rstrip()}\n\n{_ARGUMENTS}\n{arguments}"
    return copy


def examples_of(command: Command) -> str:
    """The lines of the section "Examples:" of a command's docstring."""
    return inspect.cleandoc((inspect.getdoc(command) or "").partition(f"\n{_EXAMPLES}\n")[2])


def examples_text(examples: str) -> str:
    """The examples under a heading, as they end the help."""
    return f"\n{_EXAMPLES.lower()}\n" + textwrap.indent(examples, "  ")
