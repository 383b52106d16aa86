"""Which alignment of a cryoSPARC table is taken where there are several."""

from __future__ import annotations

import numpy as np
import pytest
from cs_project import NO_PLAIN, as_one_slot, class_columns, complete, only, write_cs, write_project
from scipy.spatial.transform import Rotation

from emsplat.io.cs import read_cs


@pytest.fixture
def table(tmp_path, write_stack):
    """Writes a project; returns its table."""
    return lambda changes=None: write_project(tmp_path, write_stack, changes)


@pytest.mark.parametrize("prefix", ["alignments_class_", "alignments_class3D_"])
@pytest.mark.parametrize("multi", [False, True])
def test_an_image_has_the_pose_of_its_most_probable_class(table, prefix, multi):
    n_classes = 12  # "class_10" sorts after "class_9"
    slots, best = class_columns(n_classes, prefix)
    particles = read_cs(table({**NO_PLAIN, **(as_one_slot(slots, n_classes, prefix) if multi else slots)}))
    for row, k in enumerate(best):
        rotation = Rotation.from_rotvec(slots[f"{prefix}{k}/pose"][row]).as_matrix()
        np.testing.assert_allclose(particles.rotations()[row], rotation.T, atol=1e-6)
        np.testing.assert_allclose(
            particles.origin_in_angstroms[row], 1.5 * slots[f"{prefix}{k}/shift"][row], rtol=1e-6
        )
        assert particles.ctf_scale[row] == 0.5 * (1 + k)
    assert "most probable class of 12" in particles.warnings[0]


def test_the_plain_alignment_comes_before_classes(table):
    slots, _ = class_columns(2, "alignments_class_")
    particles = read_cs(table(slots))
    np.testing.assert_array_equal(particles.rotations(), read_cs(table()).rotations())
    assert particles.warnings == (
        "the poses are those of alignments3D; not used: alignments_class_0 to alignments_class_1",
    )


def test_the_main_tables_classes_come_before_the_passthroughs_plain_alignment(table, tmp_path):
    slots, best = class_columns(2, "alignments_class_")
    older = write_cs(tmp_path / "older.cs", only(complete(), "alignments3D"))
    particles = read_cs(table({**NO_PLAIN, **slots}), passthrough=[older])
    pose = np.where(best[:, None] == 0, slots["alignments_class_0/pose"], slots["alignments_class_1/pose"])
    expected = Rotation.from_rotvec(pose).as_matrix().transpose(0, 2, 1)
    np.testing.assert_allclose(particles.rotations(), expected, atol=1e-6)
    assert "not used: alignments3D" in particles.warnings[1]


def test_one_class_is_no_choice(table):
    slots, _ = class_columns(1, "alignments_class_")
    assert read_cs(table({**NO_PLAIN, **slots})).warnings == ()
