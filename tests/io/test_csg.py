"""cryoSPARC's groups: the tables they name, and which of them each slot is taken from."""

from __future__ import annotations

import numpy as np
import pytest
from cs_project import N_IMAGES, column, complete, only, write_cs

from emsplat.io import read_particles
from emsplat.io.formats import Format, sniff
from emsplat.io.subset import subset
from emsplat.settings import InputSettings

MAIN, PASSED = "J24_particles.cs", "J24_passthrough_particles.cs"


def write_group(path, slots, kind="particle", n=N_IMAGES):
    lines = ["created: 2024-02-29 12:00:00.000000", "group:", "  description: All particles, including alignments"]
    lines += ["  name: particles", "  title: All particles", f"  type: {kind}", "results:"]
    for slot, table in slots.items():
        lines += [f"  {slot}:", f"    metafile: '{table}'", f"    num_items: {n}", f"    type: particle.{slot}"]
    path.write_text("\n".join([*lines, "version: v4.4.1", ""]))
    return path


@pytest.fixture
def job(tmp_path, write_stack):
    """A job's folder with a table of what it wrote, and a passthrough in another order with everything else."""
    (tmp_path / "J1/extract").mkdir(parents=True)
    write_stack(tmp_path / "J1/extract/stack.mrcs")
    folder = tmp_path / "J24"
    write_cs(folder / MAIN, only(complete(), "alignments3D/"))
    rest = {name: values[::-1] for name, values in only(complete(), "blob/", "ctf/").items()}
    write_cs(folder / PASSED, rest)
    return folder


SLOTS = {"alignments3D": f">{MAIN}", "blob": f">{PASSED}", "ctf": f">{PASSED}"}


def test_a_group_leads_to_its_table_and_passthrough(job):
    path = write_group(job / "J24_particles.csg", SLOTS)
    assert sniff(path) is Format.CRYOSPARC_GROUP
    found, joined = read_particles(path), read_particles(job / MAIN, passthrough=[job / PASSED])
    assert found.source == job / MAIN
    assert found.warnings == ()
    for name in ("ids", "section", "euler_angles_in_degrees", "origin_in_angstroms", "defocus_u_in_angstroms"):
        np.testing.assert_array_equal(getattr(found, name), getattr(joined, name))


def test_a_group_is_known_by_its_content(job):
    path = write_group(job / "group.txt", SLOTS)
    assert sniff(path) is Format.CRYOSPARC_GROUP
    assert len(read_particles(path)) == N_IMAGES


def test_a_slot_is_taken_from_the_table_that_the_group_says(job):
    """The passthrough's alignments of an earlier job are not read, nor are the main table's CTFs."""
    write_cs(job / MAIN, only(complete(), "alignments3D/", "ctf/") | {"ctf/df1_A": column(5), "ctf/df2_A": column(5)})
    both = only(complete(), "blob/", "ctf/") | {"alignments3D/pose": column((1, 1, 1))}
    write_cs(job / PASSED, both)
    found = read_particles(write_group(job / "a.csg", SLOTS))
    np.testing.assert_array_equal(found.defocus_u_in_angstroms, complete()["ctf/df1_A"])
    swapped = read_particles(write_group(job / "a.csg", SLOTS | {"ctf": f">{MAIN}"}))
    np.testing.assert_array_equal(swapped.defocus_u_in_angstroms, 5)


def test_a_table_relative_to_the_project_is_found(job, tmp_path):
    slots = {slot: table.replace(">", "J24/") for slot, table in SLOTS.items()}
    assert len(read_particles(write_group(job / "a.csg", slots))) == N_IMAGES


def test_another_number_of_particles_is_said(job):
    (line,) = read_particles(write_group(job / "a.csg", SLOTS, n=99)).warnings
    assert "99 particles" in line
    assert f"holds {N_IMAGES}" in line


def test_what_is_no_group_of_particles_is_refused(job, refuses):
    with refuses("a.csg", "type 'volume'", "particles"):
        read_particles(write_group(job / "a.csg", SLOTS, kind="volume"))
    with refuses("a.csg", "names no table"):
        read_particles(write_group(job / "a.csg", {}))
    with refuses("a.csg", "table >gone.cs not found", "--datadir"):
        read_particles(write_group(job / "a.csg", SLOTS | {"ctf": ">gone.cs"}))
    with refuses("ctf/df1_A", "--passthrough"):
        read_particles(write_group(job / "a.csg", {"alignments3D": f">{MAIN}"}))
    (job / "b.csg").write_bytes(b"\xff\xfe")
    with refuses("b.csg", "not UTF-8"):
        read_particles(job / "b.csg")


def test_a_part_of_a_group_is_written_as_a_star(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_group(job / "a.csg", SLOTS)
    ids = read_particles(path).ids.tolist()
    (tmp_path / "ids").write_text("\n".join(ids[:2]))
    assert subset(path, tmp_path / "out.star", InputSettings(drop=tmp_path / "ids"))[:2] == (N_IMAGES - 2, N_IMAGES)
    assert len(read_particles(tmp_path / "out.star")) == N_IMAGES - 2
