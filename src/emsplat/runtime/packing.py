"""Nested dataclasses as the state of a checkpoint, and back.

Arrays become tensors of the state. Everything else becomes a tree that JSON can hold, in which every dataclass has its
name. Only the dataclasses that the reader names are made again, so that a file cannot make anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.runtime.checkpoint import State

_TREE = "tree"


def packed(value: Any) -> State:
    """The state that `unpacked` makes an equal value from.

    Args:
        value: a dataclass of arrays, numbers, texts, None, and of lists, tuples, dictionaries and dataclasses of these.
    """
    tensors: dict[str, torch.Tensor] = {}
    return State(tensors, {_TREE: _tree(value, "", tensors)})


def unpacked(state: State, *kinds: type) -> Any:
    """The value that a state was packed from.

    Args:
        kinds: the dataclasses that may occur in it.
    """
    return _value(state.facts[_TREE], state.arrays(), {kind.__name__: kind for kind in kinds})


def _tree(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, np.ndarray):
        numbers = np.ascontiguousarray(value)
        is_complex = np.iscomplexobj(numbers)
        tensors[name] = torch.from_numpy(
            numbers.view(numbers.real.dtype).reshape(*value.shape, 2) if is_complex else numbers
        )
        return {"tensor": name, "complex": is_complex}
    if is_dataclass(value):
        parts = {f.name: _tree(getattr(value, f.name), f"{name}.{f.name}", tensors) for f in fields(value)}
        return {"kind": type(value).__name__, "fields": parts}
    if isinstance(value, Mapping):
        return {"dict": {key: _tree(part, f"{name}.{key}", tensors) for key, part in value.items()}}
    if isinstance(value, list | tuple):
        found = [_tree(part, f"{name}.{i}", tensors) for i, part in enumerate(value)]
        return {"tuple": found} if isinstance(value, tuple) else found
    return value.item() if isinstance(value, np.generic) else value


def _value(tree: Any, arrays: Mapping[str, NDArray[Any]], kinds: Mapping[str, type]) -> Any:
    if isinstance(tree, list):
        return [_value(part, arrays, kinds) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        array = arrays[tree["tensor"]]
        if not tree["complex"]:
            return array
        return array.view(np.result_type(array.dtype, np.complex64)).reshape(array.shape[:-1])
    if "tuple" in tree:
        return tuple(_value(part, arrays, kinds) for part in tree["tuple"])
    if "dict" in tree:
        return {key: _value(part, arrays, kinds) for key, part in tree["dict"].items()}
    parts = {name: _value(part, arrays, kinds) for name, part in tree["fields"].items()}
    return kinds[tree["kind"]](**parts)
