"""Spoilt files: every reader gives what the file says, or one line on what is wrong with it, soon and in little memory.

Thousands of them are read by ``benchmarks/corruption.py``.
"""

from __future__ import annotations

import pickle
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import emsplat.io.star_scan  # noqa: F401 (the compiler's memory is not the file's)
from emsplat.errors import InputError
from emsplat.io.unpickle import read_arrays
from places import PLACES
from spoilt.mutations import HOSTILE_PICKLES
from spoilt.readers import READERS, Reader, outcome

SEEDS = 2
HEAVY = ("large", "many")  # megabytes of text; all stars, lists and models are split into lines the same way
ALSO_HEAVY = ("star, any table", "list of ids", "atoms, mmCIF")


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_spoilt_files(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where hostile code would leave a file
    path = reader.make(tmp_path)
    assert outcome(reader, path) == "table"
    valid, found = path.read_bytes(), Counter()
    for name, mutation in reader.mutations.items():
        is_heavy = name.startswith(HEAVY)
        if is_heavy and reader.name not in ALSO_HEAVY:
            continue
        for seed in range(1 if is_heavy else SEEDS):
            rng = np.random.default_rng([seed, zlib.crc32(f"{reader.name} {name}".encode())])
            path.write_bytes(mutation(valid, rng))
            result = outcome(reader, path)
            assert result in ("table", "one line"), f"{name}, seed {seed}: {result}"
            found[result] += 1
    assert min(found["table"], found["one line"]) > 0, found
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_what_is_no_file(reader: Reader, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    path = reader.make(folder)
    valid = path.read_bytes()
    for name, place in PLACES.items():
        place.put(path, valid)
        assert outcome(reader, path) == ("table" if place.is_read else "one line"), name


def test_the_hostile_pickles_are_hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own reader obeys the first five; ours refuses all."""
    monkeypatch.chdir(tmp_path)
    for number, data in enumerate(HOSTILE_PICKLES):
        path = tmp_path / "a.pkl"
        path.write_bytes(data)
        with pytest.raises(InputError):
            read_arrays(path)
        assert not (tmp_path / "executed").exists()
        if number < 5:
            pickle.loads(data)
            made = tmp_path / "executed"
            assert made.exists(), number
            made.rmdir() if made.is_dir() else made.unlink()


def test_a_long_message_keeps_its_ends() -> None:
    message = str(InputError(f"a.star: {'x ' * 5000}\nis wrong; mend it"))
    assert len(message) < 1000
    assert message.startswith("a.star: x x")
    assert message.endswith("x is wrong; mend it")
