"""cryoSPARC's groups of outputs (.csg): which tables hold the slots of a set of particles.

A group is a YAML file of one fixed layout. Under ``results``, every slot (blob, ctf, alignments3D, …) has the
``metafile`` that holds it; a leading ``>`` means the folder of the group. Slots that a job only passed on lie in
another table than those it wrote.

Source: CryoSPARC Guide, "Manipulating .cs Files" and "Data Management".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emsplat.errors import InputError
from emsplat.io.stacks import find_file
from emsplat.runtime.files import open_regular

_LARGEST_IN_BYTES = 1 << 20
_LINE = re.compile(r"^( *)([\w.\-]+):\s*(.*?)\s*$")
_MAIN_SLOTS = ("alignments3D", "alignments3D_multi", "blob")  # the first of these that there is leads to the main table


@dataclass(frozen=True)
class Group:
    """The tables of a group."""

    main: Path
    passthrough: tuple[Path, ...]
    table_of: Mapping[str, Path]  # the table that holds each slot
    n_items: int | None  # number of particles that the group says it has; None: it does not say


def read_group(path: Path, datadir: Path | None = None, strip_prefix: str | None = None) -> Group:
    """The tables that a group names.

    Args:
        datadir, strip_prefix: as for the names of stacks, for tables that lie in another folder than the group.
    Raises:
        InputError: the file is no group of particles, or a table that it names is missing.
    """
    sections = _parsed(path)
    kind = sections.get("group", {}).get("", {}).get("type", "particle")
    slots = {slot: keys for slot, keys in sections.get("results", {}).items() if keys.get("metafile")}
    if kind != "particle":
        raise InputError(f"{path}: a group of the type {kind!r}, not of particles; give the group of the particles")
    if not slots:
        raise InputError(f"{path}: names no table (no metafile under results); export the particles again")
    names = dict.fromkeys(keys["metafile"] for keys in slots.values())
    files = {name: _table(name, path, datadir, strip_prefix) for name in names}
    table_of = {slot: files[keys["metafile"]] for slot, keys in slots.items()}
    first = next((slot for slot in _MAIN_SLOTS if slot in slots), next(iter(slots)))
    main = table_of[first]
    number = slots[first].get("num_items", "")
    return Group(
        main,
        tuple(dict.fromkeys(table for table in table_of.values() if table != main)),
        table_of,
        int(number) if number.isascii() and number.isdecimal() and len(number) < 19 else None,
    )


def _table(name: str, path: Path, datadir: Path | None, strip_prefix: str | None) -> Path:
    beside = path.parent / name.removeprefix(">")
    if name.startswith(">") and beside.is_file():
        return beside
    return find_file(name, path, datadir, strip_prefix, what="table")


def _parsed(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Values by section, slot and key; the slot of a section without slots is ""."""
    try:
        with open_regular(path) as file:
            raw = file.read(_LARGEST_IN_BYTES)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text, so no group of cryoSPARC's; check the path") from None
    if "\0" in text:
        raise InputError(f"{path}: a binary file, not a group of cryoSPARC's (text); check the path")
    sections: dict[str, dict[str, dict[str, str]]] = {}
    section, slot = "", ""
    depth_of_slot = 0
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        depth, key, value = len(match[1]), match[2], _unquoted(match[3])
        if depth == 0:
            section, slot, depth_of_slot = key, "", 0
        elif value == "" and depth_of_slot in (0, depth):
            slot, depth_of_slot = key, depth
        else:
            here = slot if depth > depth_of_slot else ""
            sections.setdefault(section, {}).setdefault(here, {})[key] = value
    return sections


def _unquoted(value: str) -> str:
    for quote in "'\"":
        if len(value) > 1 and value.startswith(quote) and value.endswith(quote):
            return value[1:-1].replace(quote * 2, quote)
    return value
