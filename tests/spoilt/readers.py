"""Every reader with a valid file of its own, and an independent look at what it makes of that file spoilt."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from cistem_tables import values_of_binary
from emsplat.errors import InputError
from emsplat.io import ImageSource, StackReader, read_map, read_particles, read_star
from emsplat.io.lists import read_ids
from emsplat.io.unpickle import read_arrays
from emsplat.io.write_back import open_source, write_back
from emsplat.models.gaussians import Gaussians
from emsplat.particles.table import Particles
from emsplat.simulation.atoms import read_atoms
from spoilt import valid_files
from spoilt.mutations import ANY, CISTEM, GZIP, MRC, NPY, PICKLE, SAFETENSORS, STAR, TEXT, Mutation
from spoilt.valid_files import PACKERS, N

SECONDS, BYTES = 10, 1 << 30  # of the processor's time and of memory for one file, beside what was taken before
LONGEST_WAIT = 120  # seconds by the clock, on a busy machine, for what waits instead of working
LONGEST_LINE = 1000  # characters of a message


@dataclass(frozen=True)
class Reader:
    """A reader and what it is tried on."""

    name: str
    make: Callable[[Path], Path]  # writes valid files into a folder; returns the one to be spoilt
    read: Callable[[Path], None]  # reads it; AssertionError: what was read is not what the file says
    mutations: dict[str, Mutation]


class Hangs(BaseException):
    """A reader took too long. It is no Exception, so that no reader catches it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Limit the time that the block may take, and on Linux its memory. Beyond, it raises Hangs or MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    timers = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, LONGEST_WAIT)}
    before = {number: signal.signal(number, _hangs) for number in timers}
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        taken = int(sizes.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + BYTES, hard))
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in before.items():
            signal.signal(number, handler)


def _hangs(*_: object) -> NoReturn:
    raise Hangs(f"no end after {SECONDS} s of work or {LONGEST_WAIT} s of waiting")


def outcome(reader: Reader, path: Path) -> str:
    """What became of a file: "table" if it was read, "one line" if it was refused in one, or else what went wrong."""
    try:
        with bounded():
            reader.read(path)
    except InputError as error:
        message = str(error)
        if message.splitlines() == [message] and len(message) <= LONGEST_LINE:
            return "one line"
        return f"a message of {len(message)} characters and {len(message.splitlines())} lines: {message[:200]!r}"
    except (Exception, Hangs) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "table"


def _check_star(path: Path) -> None:
    """The rows of the tables are the lines of the file, where nothing is quoted or commented."""
    tables = read_star(path)
    text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    if any(c in text for c in "#'\""):
        text = re.sub(r"^(_\S+) #\d+ *$", r"\1", text, flags=re.MULTILINE)
    if any(c in text for c in "#'\""):
        return
    rows = [line.split() for line in text.split("\n")]
    rows = [row for row in rows if len(row) > 1 and not row[0].startswith("_")]
    loops = [table for table in tables.values() if table.is_loop and len(table.columns) > 1]
    assert rows == [list(row) for table in loops for row in zip(*map(table.column, table.columns), strict=True)]


def _check_particles(particles: Particles) -> None:
    """The table has the properties that the rest of the program relies on."""
    n = len(particles)
    assert n > 0
    for field in fields(particles):
        values = getattr(particles, field.name)
        if isinstance(values, np.ndarray):
            assert len(values) == n, field.name
            assert values.dtype.kind in "U" or np.isfinite(values).all(), field.name
    assert 0 <= particles.stack.min() <= particles.stack.max() < len(particles.stacks)
    assert 0 <= particles.optics_group.min() <= particles.optics_group.max() < len(particles.optics)
    assert particles.section.min() >= 0
    assert set(particles.half_set) <= {0, 1, 2}
    for group in particles.optics:
        assert 0 < group.pixel_size_in_angstroms < np.inf
        assert 0 < group.voltage_in_kilovolts < 5000
        assert group.box_size == particles.box_size >= 0


def _read_particles(path: Path) -> None:
    particles = read_particles(path)
    _check_particles(particles)
    with ImageSource(particles) as images:
        assert np.isfinite(images.read(np.arange(min(len(particles), N)))).all()


def _read_spoilt_stack(path: Path) -> None:
    _read_particles(path.with_name("a.star"))


def _read_tomo(path: Path) -> None:
    _read_particles(path.with_name("set.star"))


def _pixels(raw: bytes, order: str) -> NDArray[np.float32] | None:
    """(sections, rows, columns) as an MRC file's header says, in this byte order."""
    columns, rows, sections, mode = struct.unpack_from(f"{order}4i", raw)
    (extended,) = struct.unpack_from(f"{order}i", raw, 92)
    kind = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}.get(mode)
    if kind is None or min(columns, rows, sections) <= 0 or extended < 0:
        return None
    count = columns * rows * sections
    if 1024 + extended + count * np.dtype(kind).itemsize > len(raw):
        return None
    values = np.frombuffer(raw, f"{order}{kind}", count, 1024 + extended)
    return values.astype(np.float32).reshape(sections, rows, columns)


def _read_stack(path: Path) -> None:
    with StackReader(path) as reader:
        found = reader.read(np.arange(reader.shape[0]))
        pixel_size = reader.pixel_size_in_angstroms
    assert pixel_size is None or 0 < pixel_size < np.inf
    either = [_pixels(path.read_bytes(), order) for order in "<>"]
    assert any(values is not None and np.array_equal(values, found, equal_nan=True) for values in either)


def _read_map(path: Path) -> None:
    found = read_map(path)
    assert np.isfinite(found.values).all()
    assert np.isfinite(found.origin_in_angstroms).all()
    assert len(set(found.values.shape)) == 1
    either = [_pixels(path.read_bytes(), order) for order in "<>"]
    assert any(v is not None and np.array_equal(np.sort(v.ravel()), np.sort(found.values.ravel())) for v in either)


def _read_cs(path: Path) -> None:
    particles = read_particles(path)
    _check_particles(particles)
    table = np.load(path, allow_pickle=False)
    np.testing.assert_array_equal(particles.ids, table["uid"].astype(str))
    np.testing.assert_array_equal(particles.defocus_u_in_angstroms, table["ctf/df1_A"].astype(np.float64))
    np.testing.assert_array_equal(particles.section, table["blob/idx"])


def _read_cistem(path: Path) -> None:
    particles = read_particles(path)
    _check_particles(particles)
    raw = path.read_bytes()
    if path.suffix == ".cistem" and len(particles) == N:
        said = values_of_binary(raw, "Defocus1")
        np.testing.assert_array_equal(particles.defocus_u_in_angstroms, said)


def _read_compressed_star(path: Path) -> None:
    """What is read is what Python's own gzip unpacks, to the checksum at the end."""
    particles = read_particles(path)
    _check_particles(particles)
    plain = path.with_name("plain.star")
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    np.testing.assert_array_equal(particles.ids, read_particles(plain).ids)


def _read_compressed_map(path: Path) -> None:
    found = read_map(path)
    raw = PACKERS[path.suffix[1:]].decompress(path.read_bytes())
    either = [_pixels(raw, order) for order in "<>"]
    assert any(v is not None and np.array_equal(np.sort(v.ravel()), np.sort(found.values.ravel())) for v in either)


def _read_pickle(path: Path) -> None:
    """Read the images with their pickles, and then the pickle by itself."""
    folder = path.parent
    particles = read_particles(folder / "stack.mrcs", poses=folder / "poses.pkl", ctf=folder / "ctf.pkl")
    _check_particles(particles)
    found = read_arrays(path)
    said = pickle.loads(path.read_bytes())  # what was accepted holds arrays and nothing else
    for array, other in zip(found, said if isinstance(said, tuple) else (said,), strict=True):
        np.testing.assert_array_equal(array, other)


def _read_stack_list(path: Path) -> None:
    particles = read_particles(path, poses=path.with_name("poses.pkl"), ctf=path.with_name("ctf.pkl"))
    _check_particles(particles)
    assert len(particles) == N


def _read_gaussians(path: Path) -> None:
    found = Gaussians.load(path)
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    for name in ("centres", "log_scales", "quaternions", "log_masses"):
        begin, end = header[name]["data_offsets"]
        kind = {"F16": "f2", "F32": "f4", "F64": "f8"}[header[name]["dtype"]]
        said = np.frombuffer(raw[8 + length + begin : 8 + length + end], kind).reshape(header[name]["shape"])
        values = getattr(found, name).numpy()
        np.testing.assert_array_equal(values, said)
        assert np.isfinite(values).all()
        assert values.dtype == np.float32


def _read_ids(path: Path) -> None:
    found = read_ids(path)
    assert found
    words = set(re.split(r"[,\s]+", path.read_bytes().decode("utf-8-sig")))
    assert all(word in words or '"' in word for name in found for word in name.split())


def _read_subset(path: Path) -> None:
    """Every other row, written back: what is not a row of particles stays as it was."""
    out = path.with_name(f"out{path.suffix}")
    ids = list(open_source(path).ids)
    write_back(path, out, ids[::2])
    assert list(open_source(out).ids) == ids[::2]
    if path.suffix == ".star":
        before, after = read_star(path), read_star(out)
        of_particles = next(name for name, table in before.items() if name != "optics" and "rlnImageName" in table)
        assert list(before) == list(after)
        for name, table in before.items():
            step = 2 if name == of_particles else 1
            assert {n: list(values[::step]) for n, values in table.columns.items()} == dict(after[name].columns)


def _read_atoms(path: Path) -> None:
    model = read_atoms(path)
    positions = np.array([site.atom.pos.tolist() for site in model.all()])
    assert len(positions)
    assert np.isfinite(positions).all()


READERS = (
    Reader("star, any table", valid_files.star_31, _check_star, {**ANY, **TEXT, **STAR}),
    Reader("RELION 3.1 star with its images", valid_files.star_31, _read_particles, {**ANY, **TEXT, **STAR}),
    Reader("RELION 3.0 star with its images", valid_files.star_30, _read_particles, {**ANY, **TEXT, **STAR}),
    Reader("RELION tilt series", valid_files.tilt_series, _read_tomo, {**ANY, **TEXT, **STAR}),
    Reader("RELION tomograms", valid_files.tomograms, _read_tomo, {**ANY, **TEXT, **STAR}),
    Reader("RELION tomography particles", valid_files.tomo_particles, _read_tomo, {**ANY, **TEXT, **STAR}),
    Reader("RELION optimisation set", valid_files.optimisation_set, _read_tomo, {**ANY, **TEXT}),
    Reader("star, part of it written back", valid_files.star_31, _read_subset, {**ANY, **TEXT, **STAR}),
    Reader("MRC stack", valid_files.stack, _read_stack, {**ANY, **MRC}),
    Reader("MRC stack of a star", valid_files.stack_of_star, _read_spoilt_stack, {**ANY, **MRC}),
    Reader("MRC map", valid_files.volume, _read_map, {**ANY, **MRC}),
    Reader("cryoSPARC table", valid_files.cryosparc_table, _read_cs, {**ANY, **NPY}),
    Reader("cryoSPARC table, part of it written back", valid_files.cryosparc_table, _read_subset, {**ANY, **NPY}),
    Reader("cryoSPARC group", valid_files.cryosparc_group, _read_particles, {**ANY, **TEXT}),
    Reader("cisTEM star", valid_files.cistem_star, _read_cistem, {**ANY, **TEXT, **STAR}),
    Reader("cisTEM binary table", valid_files.cistem_binary, _read_cistem, {**ANY, **CISTEM}),
    Reader("star, compressed", valid_files.compressed_star, _read_compressed_star, {**ANY, **GZIP}),
    Reader("MRC map, gzip", valid_files.compressed_map("gz"), _read_compressed_map, {**ANY, **GZIP}),
    Reader("MRC map, bzip2", valid_files.compressed_map("bz2"), _read_compressed_map, ANY),
    Reader("cryoDRGN poses", valid_files.poses, _read_pickle, {**ANY, **PICKLE}),
    Reader("cryoDRGN CTFs", valid_files.ctfs, _read_pickle, {**ANY, **PICKLE}),
    Reader("list of stacks", valid_files.stack_list, _read_stack_list, {**ANY, **TEXT}),
    Reader("Gaussians", valid_files.gaussians, _read_gaussians, {**ANY, **SAFETENSORS}),
    Reader("list of ids", valid_files.ids, _read_ids, {**ANY, **TEXT}),
    Reader("atoms, PDB", valid_files.atoms("pdb"), _read_atoms, {**ANY, **TEXT}),
    Reader("atoms, mmCIF", valid_files.atoms("cif"), _read_atoms, {**ANY, **TEXT}),
)
