"""A small valid file of every kind that is read, each made in a folder with what belongs to it."""

from __future__ import annotations

import bz2
import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gemmi
import numpy as np
import torch

import cistem_tables
from cistem_tables import write_cistem_binary, write_cistem_star
from emsplat.io import Table, write_map, write_star
from emsplat.models.gaussians import Gaussians

N, BOX = 40, 16
PACKERS: dict[str, ModuleType] = {"gz": gzip, "bz2": bz2}


def stack(folder: Path) -> Path:
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


def star_31(folder: Path) -> Path:
    """RELION 3.1."""
    stack(folder)
    optics = _row(
        "rlnOpticsGroup 1 rlnOpticsGroupName scope rlnVoltage 300 rlnSphericalAberration 2.7 rlnAmplitudeContrast 0.1 "
        f"rlnImagePixelSize 1.5 rlnImageSize {BOX} rlnBeamTiltX 0.1 rlnBeamTiltY 0.2 rlnEvenZernike [1,2,3]"
    )
    write_star(folder / "a.star", {"optics": optics, "particles": Table(_columns(np.random.default_rng(0)))})
    return folder / "a.star"


def star_30(folder: Path) -> Path:
    stack(folder)
    columns = _columns(np.random.default_rng(0))
    optics = {
        "rlnVoltage": "300",
        "rlnSphericalAberration": "2.7",
        "rlnAmplitudeContrast": "0.1",
        "rlnPixelSize": "1.5",
    }
    write_star(folder / "a.star", {"": Table(columns | {name: [value] * N for name, value in optics.items()})})
    return folder / "a.star"


def stack_of_star(folder: Path) -> Path:
    star_31(folder)
    return folder / "stack.mrcs"


def volume(folder: Path) -> Path:
    write_map(folder / "a.mrc", np.random.default_rng(0).normal(size=(BOX, BOX, BOX)), 1.5)
    return folder / "a.mrc"


def cryosparc_table(folder: Path) -> Path:
    stack(folder)
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


def cryosparc_group(folder: Path) -> Path:
    """A group of one table that holds everything."""
    cryosparc_table(folder)
    slots = "".join(f"  {s}:\n    metafile: '>a.cs'\n    num_items: {N}\n" for s in ("alignments3D", "blob", "ctf"))
    (folder / "a.csg").write_text(f"created: 2024-02-29\ngroup:\n  type: particle\nresults:\n{slots}version: v4.4.1\n")
    return folder / "a.csg"


def cistem_star(folder: Path) -> Path:
    stack(folder)
    return write_cistem_star(folder / "a.star", cistem_tables.table(N))


def cistem_binary(folder: Path) -> Path:
    stack(folder)
    return write_cistem_binary(folder / "a.cistem", cistem_tables.table(N))


def compressed_star(folder: Path) -> Path:
    path = folder / "a.star.gz"
    path.write_bytes(gzip.compress(star_31(folder).read_bytes()))
    return path


def compressed_map(method: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"a.map.{method}"
        path.write_bytes(PACKERS[method].compress(volume(folder).read_bytes()))
        return path

    return make


def _pickles(folder: Path) -> None:
    stack(folder)
    matrices = np.linalg.qr(np.random.default_rng(0).normal(size=(N, 3, 3)))[0]
    poses = matrices * np.linalg.det(matrices)[:, None, None], np.zeros((N, 2))
    (folder / "poses.pkl").write_bytes(pickle.dumps(poses, protocol=4))
    ctf = np.tile([BOX, 1.5, 10000.0, 9000.0, 5.0, 300.0, 2.7, 0.1, 0.0], (N, 1))
    (folder / "ctf.pkl").write_bytes(pickle.dumps(ctf, protocol=2))


def poses(folder: Path) -> Path:
    _pickles(folder)
    return folder / "poses.pkl"


def ctfs(folder: Path) -> Path:
    _pickles(folder)
    return folder / "ctf.pkl"


def stack_list(folder: Path) -> Path:
    _pickles(folder)
    (folder / "a.txt").write_text("stack.mrcs\n")
    return folder / "a.txt"


def gaussians(folder: Path) -> Path:
    rng = torch.Generator().manual_seed(0)
    tensors = (torch.randn(*shape, generator=rng) for shape in ((N, 3), (N, 3), (N, 4), (N,)))
    Gaussians(*tensors).save(folder / "a.safetensors")
    return folder / "a.safetensors"


def ids(folder: Path) -> Path:
    (folder / "a.csv").write_text("id,score\n" + "".join(f"{i + 1:06d}@stack.mrcs,{i / 7:.3f}\n" for i in range(N)))
    return folder / "a.csv"


def tilt_series(folder: Path) -> Path:
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


def tomograms(folder: Path) -> Path:
    return tilt_series(folder).with_name("tomograms.star")


def tomo_particles(folder: Path) -> Path:
    return tilt_series(folder).with_name("particles.star")


def optimisation_set(folder: Path) -> Path:
    return tilt_series(folder).with_name("set.star")


def atoms(suffix: str) -> Callable[[Path], Path]:
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
