"""docs/architecture.md draws the house as the import contract enforces it, and every room lists its modules."""

from __future__ import annotations

import re
import tomllib
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "emsplat"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = sorted(path.parent for path in SOURCE.glob("*/__init__.py") if path.parent.name != "commands")


def layers() -> list[list[str]]:
    """Rooms from top to bottom, each layer's in a list."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    return [re.findall(r"\w+", layer) for layer in contract["contracts"][0]["layers"]]


def test_the_drawing_has_the_rooms_in_the_order_of_the_contract() -> None:
    layer_of = {room: number for number, layer in enumerate(layers()) for room in layer}
    drawn: list[str] = []
    for line in PAGE.split("```")[1].splitlines():
        drawn += takewhile(lambda word: word in layer_of, line[23:].split())  # the words after them explain the rooms
    assert sorted(drawn) == sorted(layer_of)
    places = [layer_of[room] for room in drawn]
    assert places == sorted(places)


def test_every_path_that_the_page_names_exists() -> None:
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|md))`", PAGE):
        assert any((base / name).is_file() for base in (SOURCE, ROOT)), name


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.name)
def test_every_room_lists_its_modules(room: Path) -> None:
    listed = set(re.findall(r"``(\w+)``", (room / "__init__.py").read_text(encoding="utf-8")))
    there = {path.stem for path in room.glob("*.py")} | {path.parent.name for path in room.glob("*/__init__.py")}
    assert there - {"__init__"} <= listed
