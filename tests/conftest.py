"""Fixtures for all rooms."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from emsplat.errors import InputError


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of other people's data (see its README); a test that needs it skips where it is absent."""
    beside_the_repository = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EMSPLAT_SHARED_DATA", beside_the_repository))
    if not folder.is_dir():
        pytest.skip(f"NO SHARED DATA at {folder}: real images untested; set EMSPLAT_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def refuses() -> Callable[..., AbstractContextManager[None]]:
    """``with refuses("culprit", ...)``: the block raises InputError, in one line that names each culprit."""

    @contextmanager
    def expect(*culprits: str) -> Iterator[None]:
        with pytest.raises(InputError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        for culprit in culprits:
            assert culprit in message

    return expect
