"""Where stacks are looked for, and what is said when they are not there."""

from __future__ import annotations

import json
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
    expected = tuple(tmp_path / "new" / job / "stack.mrcs" for job in ("job1", "job2"))
    assert find_stacks(names, tmp_path / "new", "/old") == expected
    assert find_stacks(names, tmp_path / "new") == expected  # the longest end of each name that is there
    with refuses("jobA", "jobB", "would both be"):
        find_stacks(names_of(tmp_path, "/old/jobA/stack.mrcs", "/old/jobB/stack.mrcs"), tmp_path / "new")
    with refuses("jobA", "would both be"):
        find_stacks(names_of(tmp_path, "new/stack.mrcs", "/old/jobA/stack.mrcs"), tmp_path / "new")


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


# --- the path as it is written ----------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, write_stack, monkeypatch):
    """A folder with Extract/job005/stack.mrcs; a star in Select/job009, and another stack of that name beside it."""
    for folder, n in (("Extract/job005", 6), ("Select/job009", 7)):
        (tmp_path / folder).mkdir(parents=True)
        write_stack(tmp_path / folder / "stack.mrcs", n=n)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return tmp_path


NAME = "Extract/job005/stack.mrcs"


@pytest.mark.parametrize("spelled", [NAME, f"./{NAME}", f">{NAME}", f"{NAME}:mrcs", NAME.replace("/", "\\")])
@pytest.mark.parametrize("where", [".", "elsewhere"])
def test_the_path_as_written_comes_before_the_bare_name(project, monkeypatch, spelled, where):
    monkeypatch.chdir(project / where)
    (found,) = find_stacks(names_of(project / "Select/job009", spelled), None)
    assert found.resolve() == (project / NAME).resolve()


def test_an_absolute_path_comes_before_the_bare_name(project):
    assert find_stacks(names_of(project / "Select/job009", str(project / NAME)), None) == (project / NAME,)


def test_two_different_files_of_one_name_are_refused_with_both_named(project, write_stack, refuses):
    (project / "elsewhere/Extract/job005").mkdir(parents=True)
    write_stack(project / "elsewhere" / NAME, n=9)
    with refuses(f"may be {NAME}", str(project / NAME), "which differ", "--datadir"):
        find_stacks(names_of(project / "Select/job009", NAME), None)
    assert find_stacks(names_of(project / "Select/job009", NAME), project) == (project / NAME,)
    (project / "elsewhere" / NAME).write_bytes((project / NAME).read_bytes())  # a copy: it does not matter which
    assert len(find_stacks(names_of(project / "Select/job009", NAME), None)) == 1
    with refuses("Select/job009/stack.mrcs", str(project / NAME), "which differ"):
        find_stacks(names_of(project, NAME), project / "Select/job009")  # the option and the path disagree


# --- a table in a run folder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stack.mrcs", "job/stack.mrcs", "/old/job/stack.mrcs", "stack.mrc"])
def test_a_table_in_a_run_folder_leads_to_the_stacks_that_the_run_has_read(tmp_path, write_stack, refuses, name):
    (tmp_path / "data/job").mkdir(parents=True)
    (tmp_path / "found").mkdir()
    stacks = [tmp_path / "data/job/stack.mrcs", tmp_path / "data/stack.mrcs"]
    recorded = {"stacks": [{"path": str(path)} for path in stacks]}
    (tmp_path / "found/config.json").write_text(json.dumps(recorded))
    expected = stacks[0] if "job" in name else stacks[1]
    with refuses(f"(looked in {tmp_path / 'found'}", f"has read {expected}, which is not there now"):
        find_stacks(names_of(tmp_path / "found", f"{name.removesuffix('s')}s"), None)
    for path in stacks:
        write_stack(path)
    assert find_stacks(names_of(tmp_path / "found", name), None) == (expected,)
    (tmp_path / "found/stack.mrcs").write_bytes(b"of another data set")
    if name == "stack.mrcs":
        with refuses("found/stack.mrcs", str(expected), "which differ"):
            find_stacks(names_of(tmp_path / "found", name), None)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"stacks": [1]}', '{"stacks": null}', "{}"])
def test_a_config_that_is_not_of_a_run_is_passed_over(tmp_path, write_stack, text):
    (tmp_path / "config.json").write_text(text)
    write_stack(tmp_path / "stack.mrcs")
    assert find_stacks(names_of(tmp_path, "stack.mrcs"), None) == (tmp_path / "stack.mrcs",)


@pytest.mark.parametrize(
    ("name", "looked"),
    [
        ("a.mrcs", "{0}/stars, the working directory {0}/here"),
        ("job/a.mrcs", "{0}/stars, the folders above it, the working directory {0}/here"),
        ("/old/a.mrcs", "{0}/stars"),
    ],
)
def test_an_error_names_the_folders_that_were_looked_in_and_no_others(tmp_path, monkeypatch, refuses, name, looked):
    for folder in ("stars", "here"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with refuses(f"(looked in {looked.format(tmp_path)}); say where it is with --datadir"):
        find_stacks(names_of(tmp_path / "stars", name), None)


def test_a_stack_under_the_other_ending_is_read_and_said(dataset, tmp_path):
    path = dataset()
    (tmp_path / "stack.mrcs").rename(tmp_path / "stack.mrc")
    particles = read_particles(path)
    assert particles.stacks == (tmp_path / "stack.mrc",)
    assert "stack.mrcs is read as" in particles.warnings[0]


def test_the_exact_ending_comes_first(tmp_path, write_stack):
    for name in ("stack.mrc", "stack.mrcs"):
        write_stack(tmp_path / name)
    for name in ("stack.mrc", "stack.mrcs"):
        assert find_stacks(names_of(tmp_path, name), None) == (tmp_path / name,)


@pytest.mark.parametrize("target", ["../moved/stack.mrcs", "/data/imported/stack.mrcs"])
def test_a_link_to_nothing_is_named_with_its_target(tmp_path, refuses, target):
    (tmp_path / "stack.mrcs").symlink_to(target)
    with refuses("not found", f"{tmp_path / 'stack.mrcs'} is a link to {target}"):
        find_stacks(names_of(tmp_path, "stack.mrcs"), None)


def test_a_link_of_git_annex_and_a_folder_are_named(dataset, tmp_path, refuses):
    star = dataset()
    stack = tmp_path / "stack.mrcs"
    stack.unlink()
    stack.symlink_to(".git/annex/objects/a/b/SHA256E-s5--0/SHA256E-s5--0")
    with refuses("stack stack.mrcs is a link of git-annex", f"git annex get {stack}"):
        read_particles(star)
    stack.unlink()
    stack.mkdir()
    with refuses(f"stack stack.mrcs is {stack}, a folder"):
        read_particles(star)


@pytest.mark.parametrize(("ending", "command"), [(".gz", "gunzip -k"), (".bz2", "bunzip2 -k"), (".zst", "unzstd -k")])
def test_a_compressed_stack_is_named_with_the_command_to_unpack_it(tmp_path, refuses, ending, command):
    (tmp_path / f"stack.mrcs{ending}").write_bytes(b"packed")
    with refuses("compressed", f"{command} {tmp_path / 'stack.mrcs'}{ending}"):
        find_stacks(names_of(tmp_path, "stack.mrcs"), None)
