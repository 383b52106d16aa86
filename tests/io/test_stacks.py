"""Where stacks are looked for, and what is said when they are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emsplat.io import read_particles
from emsplat.io.stacks import ImageNames, agreed_pixel_size, check_stacks, find_stacks, parse_image_names

N_IMAGES = 6  # of the data set fixture
STORED = "/data/session 7/Extract/job012/stack.mrcs"  # as a star may name it, on another machine


def names_of(folder: Path, *stacks: str) -> ImageNames:
    numbers = np.arange(len(stacks))
    return ImageNames(folder / "a.star", stacks, numbers.astype(np.int32), np.zeros(len(stacks), dtype=np.int64))


@pytest.mark.parametrize(
    ("where", "datadir", "prefix"),
    [
        ("job012/stack.mrcs", ".", "/data/session 7/Extract"),
        ("job012/stack.mrcs", ".", "/data/session 7/Extract/"),
        ("new/Extract/job012/stack.mrcs", "new", "/data/session 7"),
        ("new/2/stack.mrcs", "new", "/data/session 7/Extract/job01"),  # cut anywhere: what is left is a path
        ("new/stack.mrcs", "new", None),
        ("new/stack.mrcs", "new", "/data"),
        ("Extract/job012/stack.mrcs", None, "/data/session 7"),
    ],
)
def test_moved_stacks_are_found(tmp_path, write_stack, where, datadir, prefix):
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    write_stack(tmp_path / where)
    folder = None if datadir is None else tmp_path / datadir
    assert find_stacks(names_of(tmp_path, STORED), folder, prefix) == (tmp_path / where,)


def test_stacks_of_one_name_are_told_apart_by_what_the_prefix_leaves(tmp_path, write_stack, refuses):
    for job in ("job1", "job2"):
        (tmp_path / "new" / job).mkdir(parents=True)
        write_stack(tmp_path / "new" / job / "stack.mrcs")
    write_stack(tmp_path / "new" / "stack.mrcs")
    names = names_of(tmp_path, "/old/job1/stack.mrcs", "/old/job2/stack.mrcs")
    assert find_stacks(names, tmp_path / "new", "/old") == tuple(
        tmp_path / "new" / job / "stack.mrcs" for job in ("job1", "job2")
    )
    with refuses("job1", "job2", "would both be"):
        find_stacks(names, tmp_path / "new")


def test_a_prefix_no_name_has_is_refused(tmp_path, write_stack, refuses):
    write_stack(tmp_path / "stack.mrcs")
    with refuses("--strip-prefix /wrong", STORED, "leave it out"):
        find_stacks(names_of(tmp_path, STORED), None, "/wrong")


def test_a_name_that_relion_is_told_to_read_as_a_stack(tmp_path, write_stack):
    write_stack(tmp_path / "stack.mrc")
    assert find_stacks(names_of(tmp_path, "stack.mrc:mrcs"), None) == (tmp_path / "stack.mrc",)


def test_a_prefix_is_for_those_that_have_it(tmp_path, write_stack):
    for name in ("a.mrcs", "b.mrcs"):
        write_stack(tmp_path / name)
    names = names_of(tmp_path, "/old/a.mrcs", "b.mrcs")
    assert find_stacks(names, None, "/old/") == (tmp_path / "a.mrcs", tmp_path / "b.mrcs")


@pytest.mark.parametrize("name", ["x" * 300 + ".mrcs", "a\0b.mrcs", ".", "/", "", "stack.mrcs/more"])
def test_names_that_can_be_no_file_are_not_found(tmp_path, write_stack, refuses, name):
    write_stack(tmp_path / "stack.mrcs")
    with refuses("not found", "--datadir", "--strip-prefix"):
        find_stacks(names_of(tmp_path, name), None)


def test_the_door_passes_both_options_on(dataset, tmp_path):
    path = dataset(rlnImageName=[f"{i + 1}@{STORED}" for i in range(N_IMAGES)])
    (tmp_path / "new" / "job012").mkdir(parents=True)
    (tmp_path / "stack.mrcs").rename(tmp_path / "new" / "job012" / "stack.mrcs")
    found = read_particles(path, datadir=tmp_path / "new", strip_prefix="/data/session 7/Extract")
    assert found.stacks == (tmp_path / "new" / "job012" / "stack.mrcs",)
    assert found.ids[0] == f"1@{STORED}"  # a row's id does not move with its stack


@pytest.mark.parametrize("name", ["0@a", "-1@a", "1.5@a", "a@b", "@a", "1@", "1", "", "٣@a", "9" * 5000 + "@a"])
def test_image_names_that_name_none_are_refused(refuses, name):
    with refuses("a.star, row 2", "number@stack"):
        parse_image_names(["1@a.mrcs", name], Path("a.star"))


def test_headers_are_summed_up(tmp_path, write_stack, refuses):
    for name, n in (("a.mrcs", 3), ("b.mrcs", 5)):
        write_stack(tmp_path / name, n=n)
    paths = (tmp_path / "a.mrcs", tmp_path / "b.mrcs")
    facts = check_stacks(names_of(tmp_path, "a.mrcs", "b.mrcs"), paths)
    assert (facts.box_size, facts.n_images, facts.pixel_sizes_in_angstroms) == (8, (3, 5), (1.5, 1.5))
    assert agreed_pixel_size(Path("a.star"), None, None, "", paths, facts) == 1.5
    assert agreed_pixel_size(Path("a.star"), 2.0, 1.5, "", paths, facts) == 2.0
    with refuses("1.6 Å (its column)", "1.5 Å", "--pixel-size"):
        agreed_pixel_size(Path("a.star"), None, 1.6, "its column", paths, facts)
