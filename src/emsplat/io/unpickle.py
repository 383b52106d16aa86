"""NumPy arrays read from a pickle of which nothing is executed.

The pickle's instructions are read as data: those that put texts, numbers, tuples and arrays together are followed,
and any other is refused. Neither `pickle` nor NumPy's own ``__setstate__`` sees them, so a hostile file can neither run
code nor claim memory.

Source: Python's ``pickletools``; ``numpy.ndarray.__reduce__`` and ``__reduce_ex__``.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError

_LARGEST_FILE_IN_BYTES = 4 << 30  # poses of fifty million images
_MOST_INSTRUCTIONS = 10_000  # a tuple of arrays takes some hundred
_ARRAY_MODULES = {  # NumPy 1 and 2
    "numpy",
    *("numpy.core.multiarray", "numpy.core.numeric"),
    *("numpy._core.multiarray", "numpy._core.numeric"),
}
_ARRAY_NAMES = ("ndarray", "dtype", "_reconstruct", "_frombuffer")
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


class _Refused(Exception):
    """The pickle holds something other than arrays; the message says what."""


@dataclass(frozen=True)
class _Name:
    """A function or class the pickle names; it is never looked up."""

    name: str


@dataclass
class _Dtype:
    code: str
    order: str = "="


@dataclass
class _Array:
    values: NDArray | None = None


def read_arrays(path: Path) -> tuple[NDArray, ...]:
    """The array a pickle holds, or the tuple of arrays.

    Returns:
        One or more arrays of floats or integers, each in this machine's byte order.
    Raises:
        InputError: the file is missing, damaged, or holds anything else; nothing of it has been executed.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file; check the path")
        if path.stat().st_size > _LARGEST_FILE_IN_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes, too large for poses or CTFs; check the path")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    try:
        value = _value_of(raw)
    except _Refused as reason:
        raise InputError(f"{path}: {reason}; only a pickle of NumPy arrays is read: write it again as one") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        raise InputError(f"{path}: not a pickle, or a damaged one; copy or write it again") from None
    return value if isinstance(value, tuple) else (value,)


def _value_of(raw: bytes) -> NDArray | tuple[NDArray, ...]:
    value = _build(raw)
    items = value if isinstance(value, tuple) else (value,)
    arrays = tuple(item.values for item in items if isinstance(item, _Array) and item.values is not None)
    if not items or len(arrays) != len(items):
        raise _Refused(f"it holds {_kind(next((i for i in items if not isinstance(i, _Array)), value))}")
    return arrays if isinstance(value, tuple) else arrays[0]


def _kind(value: object) -> str:
    return "an empty array" if isinstance(value, _Array) else f"a {type(value).__name__.strip('_').lower()}"


def _build(raw: bytes) -> object:
    """The object that the instructions put together."""
    stack: list[Any] = []
    marks: list[int] = []
    memory: dict[int, Any] = {}
    argument: Any
    for number, (code, argument, _) in enumerate(pickletools.genops(raw)):
        name = code.name
        if number >= _MOST_INSTRUCTIONS:
            raise _Refused(f"it has more than {_MOST_INSTRUCTIONS} instructions")
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
            memory[len(memory) if argument is None else int(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memory[int(argument)])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            start = marks.pop() if name == "TUPLE" else len(stack) - int(name[-1])
            stack[start:] = [tuple(stack[start:])]
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, attribute = argument.split(" ") if name == "GLOBAL" else (stack.pop(-2), stack.pop())
            stack.append(_named(module, attribute))
        elif name in ("REDUCE", "BUILD"):
            arguments, target = stack.pop(), stack.pop()
            stack.append(_called(target, arguments) if name == "REDUCE" else _with_state(target, arguments))
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"it has an instruction {name}, which no array needs")
    raise ValueError("no end")


def _named(module: object, attribute: object) -> _Name:
    if module in _ARRAY_MODULES and attribute in _ARRAY_NAMES:
        return _Name(str(attribute))
    if (module, attribute) == ("_codecs", "encode"):  # protocols 0 to 2 write bytes in this way
        return _Name("encode")
    raise _Refused(f"it asks for {f'{module}.{attribute}'[:60]!r}")


def _called(function: object, arguments: Sequence) -> object:
    """What a call of one of the known names would return."""
    name = function.name if isinstance(function, _Name) else ""
    if name == "dtype":
        return _Dtype(str(arguments[0]))
    if name == "_reconstruct":
        return _Array()
    if name == "_frombuffer":
        values, kind, shape, order = arguments
        return _Array(_array(values, kind, shape, order == "F"))
    if name == "encode":
        text, encoding = arguments
        if encoding == "latin1":
            return text.encode("latin-1")
    raise _Refused("it calls something that is no array")


def _with_state(target: object, state: Sequence) -> object:
    """A dtype with its byte order, or an array with its values."""
    if isinstance(target, _Dtype):
        target.order = state[1]
    elif isinstance(target, _Array):
        _, shape, kind, by_columns, values = state
        target.values = _array(values, kind, shape, by_columns)
    else:
        raise _Refused("it sets the state of something that is no array")
    return target


def _array(values: object, kind: object, shape: object, by_columns: object) -> NDArray:
    """(shape) the bytes as numbers; _Refused where their number does not fit the shape."""
    if not (isinstance(kind, _Dtype) and kind.code in _NUMBERS):
        code = kind.code if isinstance(kind, _Dtype) else ""
        raise _Refused(f"it holds an array of type {code[:20]!r}, not of numbers")
    if not (isinstance(values, bytes | bytearray) and isinstance(shape, tuple) and kind.order in ("<", ">", "=", "|")):
        raise _Refused("it holds an array whose values are not bytes")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise _Refused(f"it holds an array of shape {shape}"[:100])
    dtype = np.dtype(kind.order + kind.code)
    if math.prod(shape) * dtype.itemsize != len(values):
        raise _Refused(f"it holds {len(values)} bytes for an array of shape {shape}"[:100])
    found = np.frombuffer(values, dtype).reshape(shape, order="F" if by_columns else "C")
    return found.astype(kind.code, copy=False)
