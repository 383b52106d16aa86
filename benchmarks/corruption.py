"""Spoilt files for the readers: do they give the right table, one line that says what is wrong, or something worse?"""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import emsplat
from common import REPOSITORY, Report, arguments
from programs import measured

sys.path.append(str(REPOSITORY / "tests"))
from places import PLACES
from spoilt.readers import BYTES, READERS, SECONDS, Reader, outcome

_SEEDS_OF_LARGE = 2  # files of megabytes

_TEXT = f"""Each file is made from a valid one by one mutation with a seed of its own (`tests/spoilt/mutations`), or is
something else than a file (`tests/places.py`), and read in a process that may take {SECONDS} s and {BYTES >> 30} GB
for it. **table**: what was read is what the file says, judged independently of the reader (`tests/spoilt/readers.py`).
**one line**: refused with an InputError of one line. **wrong**: anything else: a wrong table, another exception, too
slow, too much memory, code of the file executed. **peak** is the process's largest size beyond what it had before the
first file."""
_HUGE_TEXT = """Files of 100 MB and more, each in a process of its own, from its start: its libraries take half a second
and some ten MB. Files with holes take no room on the disk and read as zeros."""


def spoilt(reader: Reader, folder: Path, seeds: int) -> dict[str, Counter]:
    """The outcomes of a reader, by mutation."""
    os.chdir(folder)  # a file called "executed" would appear here
    path = reader.make(folder)
    valid = path.read_bytes()
    assert outcome(reader, path) == "table", outcome(reader, path)
    found: dict[str, Counter] = {}
    for name, mutation in reader.mutations.items():
        found[name] = Counter()
        for seed in range(min(seeds, _SEEDS_OF_LARGE) if name.startswith(("large", "many")) else seeds):
            rng = np.random.default_rng([seed, zlib.crc32(f"{reader.name} {name}".encode())])
            path.write_bytes(mutation(valid, rng))
            found[name][judged(reader, path, f"{name}, seed {seed}")] += 1
    for name, place in PLACES.items():
        place.put(path, valid)
        result = judged(reader, path, name)
        found[f"place: {name}"] = Counter([result if (result == "table") == place.is_read else "wrong"])
    return found


def judged(reader: Reader, path: Path, what: str) -> str:
    result = outcome(reader, path)
    if Path("executed").exists():
        result = "EXECUTED"
    if result not in ("table", "one line"):
        print(f"{reader.name}: {what}: {result}", file=sys.stderr, flush=True)
        return "wrong"
    return result


def in_a_process(number: int, folder: Path, seeds: int) -> dict[str, Any]:
    """Collect one reader's outcomes in a process of its own; a crash counts as wrong."""
    command = [sys.executable, __file__, "--work", folder, "--seeds", str(seeds), "--reader", str(number)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        return {"outcomes": {"a crash of the process": {"wrong": 1}}, "peak": 0, "seconds": None}
    return json.loads(done.stdout.splitlines()[-1])


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def one_reader(number: int, seeds: int) -> None:
    """Print the outcomes of one reader as JSON."""
    import emsplat.io.star_scan  # noqa: F401 (the compiler's memory is not the file's)

    with tempfile.TemporaryDirectory() as folder:
        before, start = _peak(), time.perf_counter()
        outcomes = spoilt(READERS[number], Path(folder), seeds)
        seconds = time.perf_counter() - start
        os.chdir("/")
    print(json.dumps({"outcomes": outcomes, "peak": _peak() - before, "seconds": seconds}))


def _written(start: bytes, piece: bytes, times: int, end: bytes = b"") -> Callable[[Path], None]:
    return lambda path: path.write_bytes(start + piece * times + end) and None


def _with_hole(start: bytes, size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    return make


def _mrc_header(columns: int, rows: int, sections: int) -> bytes:
    header = bytearray(1024)
    struct.pack_into("<4i", header, 0, columns, rows, sections, 2)
    header[208:214] = b"MAP \x44\x44"
    return bytes(header)


def _npy(rows: int) -> bytes:
    header = f"{{'descr': [('uid', '<u8')], 'fortran_order': False, 'shape': ({rows},), }}".ljust(118).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


_STAR = b"data_particles\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n"
_READ = "from emsplat.io import read_particles, read_map; read_{}('{}')"
_LIST = "from pathlib import Path; from emsplat.io.lists import read_ids; read_ids(Path('{1}'))"
_HUGE: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "star, a word of 100 MB": (_READ, "particles", _written(_STAR + b"1@a ", b"9", 10**8, b"\n")),
    "star, 100 MB of quotes": (_READ, "particles", _written(_STAR, b"'a ", 10**8 // 3)),
    "star, 100 MB of blank lines": (_READ, "particles", _written(_STAR, b"\n", 10**8)),
    "star, 100 MB of short rows": (_READ, "particles", _written(_STAR, b"1 1\n", 10**8 // 4)),
    "star, 100 MB of comments": (_READ, "particles", _written(_STAR, b"#\n", 10**8 // 2)),
    "star, a hole of 1 TB": (_READ, "particles", _with_hole(_STAR, 10**12)),
    "MRC map, a hole of 4 TB": (_READ, "map", _with_hole(_mrc_header(10**4, 10**4, 10**4), 1024 + 4 * 10**12)),
    "cryoSPARC table, a hole of 8 TB": (_READ, "particles", _with_hole(_npy(10**12), 10**12 * 8 + 128)),
    "ids, a line of 100 MB": (_LIST, "", _written(b"", b"9", 10**8)),
}


def huge(name: str, work: Path) -> dict[str, Any]:
    code, reader, make = _HUGE[name]
    path, said = work / "huge.star", work / "said"
    make(path)
    program = f"""
import pathlib
from emsplat.errors import InputError
try:
    {code.format(reader, path)}
    said = "read"
except InputError as error:
    said = str(error).replace({str(path)!r}, "FILE")
pathlib.Path({str(said)!r}).write_text(said)
"""
    environ = {"PYTHONPATH": str(Path(emsplat.__file__).parents[1])}
    row = {"file": name, "on the disk, MB": path.stat().st_blocks * 512 / 1e6}
    try:
        took = measured([sys.executable, "-c", program], work, environ=environ)
        row |= {"said": said.read_text()[:150], "one line": True, "seconds": took.seconds}
        return row | {"peak, MB": took.peak_bytes / 1e6}
    except RuntimeError as error:
        return row | {"said": str(error).splitlines()[-1], "one line": False, "seconds": None, "peak, MB": None}
    finally:
        path.unlink()


def main() -> None:
    args = arguments(__doc__, seeds=(20, "files a mutation and reader"), reader=(-1, "only this one, as JSON"))
    if args.reader >= 0:
        one_reader(args.reader, args.seeds)
        return
    seeds = 1 if args.quick else args.seeds
    report = Report("corruption", "Spoilt files", args)
    rows: list[dict[str, Any]] = []
    all_outcomes: dict[str, Any] = {}
    for number, reader in enumerate(READERS):
        found = in_a_process(number, args.work, seeds)
        total = sum((Counter(c) for c in found["outcomes"].values()), Counter())
        counts = {name: total[name] for name in ("table", "one line", "wrong")}
        row = {"reader": reader.name, "files": sum(counts.values()), **counts}
        rows.append(row | {"seconds": found["seconds"], "peak, MB": found["peak"] / 1e6})
        all_outcomes[reader.name] = found["outcomes"]
        report.extra["outcomes"] = all_outcomes
        report.table("By reader", rows, _TEXT)
    names = list(dict.fromkeys(name for found in all_outcomes.values() for name in found))
    report.table("By mutation", [_of_mutation(name, all_outcomes) for name in names], "All readers together.")
    large: list[dict[str, Any]] = []
    for name in list(_HUGE)[-3:] if args.quick else _HUGE:
        large.append(huge(name, args.work))
        report.table("Huge files", large, _HUGE_TEXT)


def _of_mutation(name: str, all_outcomes: dict[str, Any]) -> dict[str, Any]:
    total = sum((Counter(found.get(name, {})) for found in all_outcomes.values()), Counter())
    return {"mutation": name, **{kind: total[kind] for kind in ("table", "one line", "wrong")}}


if __name__ == "__main__":
    main()
