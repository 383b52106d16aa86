"""Jobs that are ended after some of their states have been written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from emsplat.runtime.checkpoint import Checkpoints


class Ended(Exception):
    """Stands in for a kill."""


def ended_after(number: int, name: str, monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> None:
    """`run`, ended as soon as so many states of a name have been written."""
    save, left = Checkpoints.save, [number]

    def until_ended(self: Checkpoints, saved: str, *arguments: Any) -> bool:
        written = save(self, saved, *arguments)
        left[0] -= saved == name
        if left[0] == 0:
            raise Ended
        return written

    with monkeypatch.context() as patch, pytest.raises(Ended):
        patch.setattr(Checkpoints, "save", until_ended)
        run()
