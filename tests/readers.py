"""Every reader with a valid file of its own, and an independent look at what it makes of that file spoilt."""

from __future__ import annotations

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

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.gaussians import Gaussians
from emsplat.io import ImageSource, StackReader, Table, read_map, read_particles, read_star, write_map, write_star
from emsplat.io.subset import read_ids
from emsplat.io.unpickle import read_arrays
from emsplat.io.write_back import open_source, write_back
from emsplat.particles import Particles
from emsplat.simulation.atoms import read_atoms
from mutations import ANY, MRC, NPY, PICKLE, SAFETENSORS, STAR, TEXT, Mutation

N, BOX = 40, 16
SECONDS, BYTES = 10, 1 << 30  # for one file, beside what the process has taken before
LONGEST_LINE = 1000  # characters of a message


@dataclass(frozen=True)
class Reader:
    """A reader and what it is tried on."""

    name: str
    make: Callable[[Path], Path]  # writes valid files into a folder; returns the one to be spoilt
    read: Callable[[Path], None]  # reads it; AssertionError: what was read is not what the file says
    mutations: dict[str, Mutation]


class Hangs(BaseException):
    """Not an Exception: no reader shall catch it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Limits time, and on Linux memory; Hangs or MemoryError beyond."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, _hangs)
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        taken = int(sizes.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def _hangs(*_: object) -> NoReturn:
    raise Hangs(f"no end after {SECONDS} s")


def outcome(reader: Reader, path: Path) -> str:
    """ "table", "one line", or what went wrong."""
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


# --- valid files ------------------------------------------------------------------------------------------------------


def _stack(folder: Path) -> Path:
    images = np.random.default_rng(0).normal(1, 1, (N, BOX, BOX))
    write_map(folder / "stack.mrcs", images, 1.5)
    return folder / "stack.mrcs"


def _columns(rng: np.random.Generator) -> dict[str, list[str]]:
    columns = {"rlnImageName": [f"{i + 1:06d}@stack.mrcs" for i in range(N)]}
    for name in (
        "AngleRot",
        "AngleTilt",
        "AnglePsi",
        "OriginXAngst",
        "OriginYAngst",
        "CoordinateX",
        "CtfMaxResolution",
    ):
        columns[f"rln{name}"] = [f"{v:.6f}" for v in rng.uniform(0, 90, N)]
    for name in ("DefocusU", "DefocusV", "DefocusAngle"):
        columns[f"rln{name}"] = [f"{v:.2f}" for v in rng.uniform(8000, 9000, N)]
    return columns | {"rlnOpticsGroup": ["1"] * N, "rlnRandomSubset": ["1", "2"] * (N // 2)}


def _row(words: str) -> Table:
    """A table of one row, from names and values in turn."""
    names, values = words.split()[::2], words.split()[1::2]
    return Table({name: [value] for name, value in zip(names, values, strict=True)})


def _star(folder: Path) -> Path:
    """RELION 3.1."""
    _stack(folder)
    optics = _row(
        "rlnOpticsGroup 1 rlnOpticsGroupName scope rlnVoltage 300 rlnSphericalAberration 2.7 rlnAmplitudeContrast 0.1 "
        f"rlnImagePixelSize 1.5 rlnImageSize {BOX} rlnBeamTiltX 0.1 rlnBeamTiltY 0.2 rlnEvenZernike [1,2,3]"
    )
    write_star(folder / "a.star", {"optics": optics, "particles": Table(_columns(np.random.default_rng(0)))})
    return folder / "a.star"


def _star_30(folder: Path) -> Path:
    _stack(folder)
    columns = _columns(np.random.default_rng(0))
    optics = {
        "rlnVoltage": "300",
        "rlnSphericalAberration": "2.7",
        "rlnAmplitudeContrast": "0.1",
        "rlnPixelSize": "1.5",
    }
    write_star(folder / "a.star", {"": Table(columns | {name: [value] * N for name, value in optics.items()})})
    return folder / "a.star"


def _spoilt_stack(folder: Path) -> Path:
    _star(folder)
    return folder / "stack.mrcs"


def _map(folder: Path) -> Path:
    write_map(folder / "a.mrc", np.random.default_rng(0).normal(size=(BOX, BOX, BOX)), 1.5)
    return folder / "a.mrc"


def _cs(folder: Path) -> Path:
    _stack(folder)
    rng = np.random.default_rng(0)
    one = {
        "ctf/accel_kv": 300,
        "ctf/cs_mm": 2.7,
        "ctf/amp_contrast": 0.1,
        "blob/psize_A": 1.5,
        "alignments3D/psize_A": 1.5,
    }
    types = [
        ("uid", "<u8"),
        ("blob/path", "S16"),
        ("blob/idx", "<u4"),
        ("blob/shape", "<u4", (2,)),
        ("blob/sign", "<f4"),
    ]
    types += [(name, "<f4") for name in (*one, "ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad")]
    types += [("alignments3D/pose", "<f4", (3,)), ("alignments3D/shift", "<f4", (2,)), ("alignments3D/split", "<u4")]
    table = np.zeros(N, dtype=types)
    table["uid"] = rng.integers(0, 2**63, N)
    table["blob/path"], table["blob/idx"], table["blob/shape"], table["blob/sign"] = (
        b"stack.mrcs",
        np.arange(N),
        BOX,
        -1,
    )
    table["alignments3D/pose"], table["alignments3D/split"] = rng.normal(size=(N, 3)), np.arange(N) % 2
    table["ctf/df1_A"], table["ctf/df2_A"] = rng.uniform(8000, 9000, (2, N))
    for name, value in one.items():
        table[name] = value
    with (folder / "a.cs").open("wb") as file:
        np.save(file, table)
    return folder / "a.cs"


def _pickles(folder: Path) -> None:
    _stack(folder)
    matrices = np.linalg.qr(np.random.default_rng(0).normal(size=(N, 3, 3)))[0]
    poses = matrices * np.linalg.det(matrices)[:, None, None], np.zeros((N, 2))
    (folder / "poses.pkl").write_bytes(pickle.dumps(poses, protocol=4))
    ctf = np.tile([BOX, 1.5, 10000.0, 9000.0, 5.0, 300.0, 2.7, 0.1, 0.0], (N, 1))
    (folder / "ctf.pkl").write_bytes(pickle.dumps(ctf, protocol=2))


def _poses(folder: Path) -> Path:
    _pickles(folder)
    return folder / "poses.pkl"


def _ctf(folder: Path) -> Path:
    _pickles(folder)
    return folder / "ctf.pkl"


def _stack_list(folder: Path) -> Path:
    _pickles(folder)
    (folder / "a.txt").write_text("stack.mrcs\n")
    return folder / "a.txt"


def _safetensors(folder: Path) -> Path:
    rng = torch.Generator().manual_seed(0)
    tensors = (torch.randn(*shape, generator=rng) for shape in ((N, 3), (N, 3), (N, 4), (N,)))
    Gaussians(*tensors).save(folder / "a.safetensors")
    return folder / "a.safetensors"


def _ids(folder: Path) -> Path:
    (folder / "a.csv").write_text("id,score\n" + "".join(f"{i + 1:06d}@stack.mrcs,{i / 7:.3f}\n" for i in range(N)))
    return folder / "a.csv"


def _tilt_series(folder: Path) -> Path:
    """A tomography of RELION 5 of one tomogram."""
    rng = np.random.default_rng(0)
    overview = _row(
        "rlnTomoName T rlnTomoTiltSeriesPixelSize 1.5 rlnTomoHand -1 rlnTomoSizeX 3000 rlnTomoSizeY 2400 "
        "rlnTomoSizeZ 1000 rlnTomoTiltSeriesStarFile tilts.star"
    )
    write_star(folder / "tomograms.star", {"global": overview})
    tilts = {"rlnMicrographPreExposure": [f"{3 * i}" for i in range(5)]}
    for name in ("rlnTomoXTilt", "rlnTomoYTilt", "rlnTomoZRot", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"):
        tilts[name] = [f"{v:.3f}" for v in rng.uniform(-60, 60, 5)]
    write_star(folder / "tilts.star", {"T": Table(tilts)})
    optics = _row(
        "rlnOpticsGroup 1 rlnVoltage 300 rlnSphericalAberration 2.7 rlnAmplitudeContrast 0.1 rlnImagePixelSize 1.5 "
        f"rlnImageSize {BOX} rlnCtfDataAreCtfPremultiplied 1"
    )
    n = N // 5
    columns = {
        "rlnTomoName": ["T"] * n,
        "rlnTomoParticleName": [f"T/{i}" for i in range(n)],
        "rlnOpticsGroup": ["1"] * n,
        "rlnImageName": [f"stack{i}.mrcs" for i in range(n)],
        "rlnTomoVisibleFrames": ["[1,1,1,1,1]"] * n,
        **{f"rlnAngle{a}": [f"{v:.3f}" for v in rng.uniform(0, 90, n)] for a in ("Rot", "Tilt", "Psi")},
        **{f"rlnCenteredCoordinate{a}Angst": [f"{v:.3f}" for v in rng.uniform(0, 90, n)] for a in "XYZ"},
    }
    write_star(folder / "particles.star", {"optics": optics, "particles": Table(columns)})
    files = {"rlnTomoParticlesFile": ["particles.star"], "rlnTomoTomogramsFile": ["tomograms.star"]}
    write_star(folder / "set.star", {"": Table(files, is_loop=False)})
    for i in range(n):
        write_map(folder / f"stack{i}.mrcs", rng.normal(size=(5, BOX, BOX)), 1.5)
    return folder / "tilts.star"


def _tomograms(folder: Path) -> Path:
    return _tilt_series(folder).with_name("tomograms.star")


def _tomo_particles(folder: Path) -> Path:
    return _tilt_series(folder).with_name("particles.star")


def _optimisation_set(folder: Path) -> Path:
    return _tilt_series(folder).with_name("set.star")


def _atoms(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        structure, model, chain = gemmi.Structure(), gemmi.Model(1), gemmi.Chain("A")
        for i in range(20):
            residue, atom = gemmi.Residue(), gemmi.Atom()
            residue.name, residue.seqid, atom.name = "ALA", gemmi.SeqId(i + 1, " "), "CA"
            atom.element, atom.pos, atom.b_iso = gemmi.Element("C"), gemmi.Position(3 * i, i, 0), 20.0
            residue.add_atom(atom)
            chain.add_residue(residue)
        model.add_chain(chain)
        structure.add_model(model)
        path = folder / f"a.{suffix}"
        if suffix == "pdb":
            structure.write_pdb(str(path))
        else:
            structure.make_mmcif_document().write_file(str(path))
        return path

    return make


# --- what is read of them ---------------------------------------------------------------------------------------------


def _check_star(path: Path) -> None:
    """Rows in the file's order are the tables' rows, where nothing is quoted or commented."""
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
    """What the rest of the program builds on."""
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


def _read_pickle(path: Path) -> None:
    """The reader by itself, and the images with it."""
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
    Reader("star, any table", _star, _check_star, {**ANY, **TEXT, **STAR}),
    Reader("RELION 3.1 star with its images", _star, _read_particles, {**ANY, **TEXT, **STAR}),
    Reader("RELION 3.0 star with its images", _star_30, _read_particles, {**ANY, **TEXT, **STAR}),
    Reader("RELION tilt series", _tilt_series, _read_tomo, {**ANY, **TEXT, **STAR}),
    Reader("RELION tomograms", _tomograms, _read_tomo, {**ANY, **TEXT, **STAR}),
    Reader("RELION tomography particles", _tomo_particles, _read_tomo, {**ANY, **TEXT, **STAR}),
    Reader("RELION optimisation set", _optimisation_set, _read_tomo, {**ANY, **TEXT}),
    Reader("star, part of it written back", _star, _read_subset, {**ANY, **TEXT, **STAR}),
    Reader("MRC stack", _stack, _read_stack, {**ANY, **MRC}),
    Reader("MRC stack of a star", _spoilt_stack, _read_spoilt_stack, {**ANY, **MRC}),
    Reader("MRC map", _map, _read_map, {**ANY, **MRC}),
    Reader("cryoSPARC table", _cs, _read_cs, {**ANY, **NPY}),
    Reader("cryoSPARC table, part of it written back", _cs, _read_subset, {**ANY, **NPY}),
    Reader("cryoDRGN poses", _poses, _read_pickle, {**ANY, **PICKLE}),
    Reader("cryoDRGN CTFs", _ctf, _read_pickle, {**ANY, **PICKLE}),
    Reader("list of stacks", _stack_list, _read_stack_list, {**ANY, **TEXT}),
    Reader("Gaussians", _safetensors, _read_gaussians, {**ANY, **SAFETENSORS}),
    Reader("list of ids", _ids, _read_ids, {**ANY, **TEXT}),
    Reader("atoms, PDB", _atoms("pdb"), _read_atoms, {**ANY, **TEXT}),
    Reader("atoms, mmCIF", _atoms("cif"), _read_atoms, {**ANY, **TEXT}),
)
