"""What may be said of a particle file; each mistake gives one line."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.settings import InputSettings, ReconstructSettings
from phantom import imagined_particles


@pytest.mark.parametrize("settings", [InputSettings, ReconstructSettings])
def test_values_that_make_no_sense_are_refused(settings, refuses):
    for size in (0, -1.5, float("nan"), float("inf")):
        with refuses("--pixel-size", str(size), "positive"):
            settings(pixel_size=size)
    for one in ("poses", "ctf"):
        with refuses("--poses and --ctf", "both"):
            settings(**{one: Path("one.pkl")})
    with refuses("--keep and --drop"):
        settings(keep=Path("a.csv"), drop=Path("b.csv"))
    settings(pixel_size=1.0, poses=Path("poses.pkl"), ctf=Path("ctf.pkl"))
    settings(poses=Path("poses.pkl"), no_ctf=True)


def test_what_is_said_of_a_file_is_refused_where_none_is_read(refuses):
    values = {
        "datadir": Path("x"),
        "strip_prefix": "x",
        "pixel_size": 1.0,
        "poses": Path("x"),
        "ctf": Path("x"),
        "passthrough": (Path("x"),),
        "keep": Path("x"),
        "drop": Path("x"),
    }
    of_tables_too = {"no_ctf"}  # the CTFs of a table can be left out as well as those of a file
    assert set(values) | of_tables_too == {field.name for field in fields(InputSettings)}
    particles = imagined_particles(4, 16)
    for name in values:
        pair = {n: values[n] for n in ("poses", "ctf")} if name in ("poses", "ctf") else {name: values[name]}
        with refuses(name, "read_particles"):
            reconstruct(particles, replace(ReconstructSettings(), **pair))
