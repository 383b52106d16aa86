"""Verdicts from the table alone, and the rows of the terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emsplat.check.facts import Facts, fact_rows, gather_facts, table_findings
from emsplat.io import read_particles
from emsplat.particles.table import Particles


@pytest.fixture(scope="module")
def table(tiny: Path) -> Particles:
    return read_particles(tiny / "particles.star")


def facts_of(table: Particles) -> Facts:
    return gather_facts(table, None, pixel_size_given=False)


def problems(table: Particles) -> list[str]:
    return [finding.topic for finding in table_findings(facts_of(table)) if finding.verdict == "problem"]


def test_facts_of_a_simulation(table: Particles) -> None:
    found = facts_of(table)
    assert (found.n_images, found.n_particles, found.n_stacks, found.n_views) == (500, 500, 1, 500)
    assert found.half_sets == (250, 250)
    assert found.shift_rms == pytest.approx(np.sqrt(2) * 3, rel=0.1)  # 3 Å in x and in y
    assert 8_000 <= found.defocus[0] < 8_200 and 19_800 < found.defocus[2] <= 20_000
    assert found.pixel_size_source == "the stack's header agrees"
    assert problems(table) == []
    rows = dict(fact_rows(found))
    assert rows["images"] == "500 of 500 particles in 1 stack"
    assert rows["box"].startswith("32 × 32 pixels, 160 Å; Nyquist 10 Å")
    assert "phase shift" not in rows


def test_only_what_the_box_cannot_hold_of_the_ctf_is_said(table: Particles) -> None:
    """At z = 10 µm, 300 kV the phase π λ z s² turns by π a shell of 1/160 Å where 2 λ z s = 160 Å: at 24.6 Å."""
    far = np.full(len(table), 100_000.0)
    found = facts_of(replace(table, defocus_u_in_angstroms=far, defocus_v_in_angstroms=far))
    assert "holds the CTF only to 24.6 Å" in dict(fact_rows(found))["box"]


@pytest.mark.parametrize(
    ("factor", "word"), [(1e-4, "almost none"), (0.1, None), (10.0, "must be in Å"), (-1.0, "overfocus")]
)
def test_defocus_in_other_units(factor: float, word: str | None, table: Particles) -> None:
    scaled = replace(
        table,
        defocus_u_in_angstroms=factor * table.defocus_u_in_angstroms,
        defocus_v_in_angstroms=factor * table.defocus_v_in_angstroms,
    )
    found = [f for f in table_findings(facts_of(scaled)) if f.topic == "defocus"]
    assert len(found) == (word is not None)
    assert all(word is not None and word in finding.text for finding in found)


def test_large_shifts(table: Particles) -> None:
    origin = table.origin_in_angstroms.copy()
    origin[3] = 50.0, 0.0  # of 160
    assert problems(replace(table, origin_in_angstroms=origin)) == ["shifts"]


def test_poses_of_two_dimensions(table: Particles) -> None:
    angles = table.euler_angles_in_degrees * [0, 0, 1]
    assert problems(replace(table, euler_angles_in_degrees=angles)) == ["views"]


@pytest.mark.parametrize(("ones", "verdict"), [(250, "fine"), (150, "note"), (500, "problem"), (None, "note")])
def test_half_sets(ones: int | None, verdict: str, table: Particles) -> None:
    half_set = np.where(np.arange(500) < (ones or 0), 1, 2).astype(np.int8) * (ones is not None)
    findings = table_findings(facts_of(replace(table, half_set=half_set)))
    assert [finding.verdict for finding in findings if finding.topic == "half sets"] == [verdict]


def test_two_optics_groups_are_listed(table: Particles) -> None:
    groups = tuple(replace(table.optics[0], name=name, premultiplied=name == "b") for name in "ab")
    group = (np.arange(500) % 5 == 0).astype(np.int32)
    rows = fact_rows(facts_of(replace(table, optics=groups, optics_group=group)))
    lines = [value for name, value in rows if "images, 300 kV" in value]
    assert lines[0].startswith("a: 400 images") and lines[1].startswith("b: 100 images")
    assert lines[1].endswith("CTF-premultiplied")
