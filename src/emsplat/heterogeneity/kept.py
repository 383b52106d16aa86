"""Finished stages as checkpoints, and stages that the ranks divide by half."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from emsplat.heterogeneity.agreement import Seen
from emsplat.heterogeneity.decoder import Decoder
from emsplat.heterogeneity.fit_decoder import DecoderHistory, Fitted
from emsplat.heterogeneity.posterior import ContrastPrior
from emsplat.heterogeneity.subspace import Subspace
from emsplat.models.gaussians import Gaussians
from emsplat.runtime.checkpoint import State
from emsplat.runtime.context import Context

T = TypeVar("T")

_CLASSES = {c.__name__: c for c in (ContrastPrior, Decoder, DecoderHistory, Fitted, Gaussians, Seen, Subspace)}


def packed(value: Any) -> State:
    """A value as a state: numbers, texts, arrays and tensors, in tuples, lists and the dataclasses of this room."""
    tensors: dict[str, Tensor] = {}

    def tree(value: Any) -> Any:
        name = f"t{len(tensors)}"
        if isinstance(value, np.ndarray):
            tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
            return {"array": name}
        if isinstance(value, Tensor):
            tensors[name] = value.detach()
            return {"tensor": name}
        if is_dataclass(value) and type(value).__name__ in _CLASSES:
            inner = {f.name: tree(getattr(value, f.name)) for f in fields(value)}
            return {"class": type(value).__name__, "fields": inner}
        if isinstance(value, tuple | list):
            return {type(value).__name__: [tree(item) for item in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        raise TypeError(f"a {type(value).__name__} cannot be kept")

    structure = tree(value)
    return State(tensors, {"tree": structure})


def unpacked(state: State) -> Any:
    """The value that `packed` was given."""

    def value(tree: dict[str, Any]) -> Any:
        if "array" in tree:
            return state.tensors[tree["array"]].numpy()
        if "tensor" in tree:
            return state.tensors[tree["tensor"]]
        if "class" in tree:
            return _CLASSES[tree["class"]](**{name: value(inner) for name, inner in tree["fields"].items()})
        if "tuple" in tree:
            return tuple(map(value, tree["tuple"]))
        if "list" in tree:
            return list(map(value, tree["list"]))
        return tree["value"]

    return value(state.facts["tree"])


def kept(context: Context, name: str, make: Callable[[], T]) -> T:
    """A value that is the same on every rank: from the checkpoint of this name, or made by all ranks together."""
    checkpoint = context.checkpoints.named(name, context.world)
    state = checkpoint.load()
    if state:
        return unpacked(state)
    value = make()
    checkpoint.offer(partial(packed, value))
    return value


def of_both_halves(
    context: Context,
    name: str,
    make: Callable[[int], T],
    prepare: Callable[[int], None] = lambda half: None,
) -> tuple[T, T]:
    """A value of each half, on every rank: from a checkpoint, or made by the rank that owns the half.

    Args:
        prepare: called by all ranks together for each half whose value is made. One process makes the value of half 1
            before it prepares half 2, so that it holds the data of one half at a time.
    """
    world = context.world
    checkpoints = {half: context.checkpoints.named(f"{name}-half{half}", world) for half in (1, 2)}
    states = {half: checkpoint.load() for half, checkpoint in checkpoints.items()}
    found: dict[int, T] = {half: unpacked(state) for half, state in states.items() if state}
    missing = [half for half in (1, 2) if half not in found]
    if world.size > 1:
        for half in missing:
            prepare(half)
    for half in missing:
        if world.owner(half) != world.rank:
            continue
        if world.size == 1:
            prepare(half)
        value = found[half] = make(half)
        if world.is_first:
            checkpoints[half].offer(partial(packed, value))
    for half in missing:
        value = found[half] = world.broadcast(found.get(half), world.owner(half))
        if world.owner(half) != 0:
            checkpoints[half].offer(partial(packed, value))
    return found[1], found[2]
