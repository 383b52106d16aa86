"""A state is there whole, or the one before it; of the same job, or one line says what differs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emsplat.reconstruction.identity import identity
from emsplat.runtime import checkpoint
from emsplat.runtime.checkpoint import Checkpoints, Pace, State
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings
from phantom import imagined_particles

JOB = {"seed": 3, "particles": "abc", "range": None}


def state(number: int, n: int = 50) -> State:
    generator = torch.Generator().manual_seed(number)
    tensors = {"a": torch.randn(n, 3, generator=generator), "b": torch.arange(number), "c": torch.randn(2, 3).T > 0}
    return State(tensors, {"round": number, "best": float("inf"), "list": [1, 2.5], "big": 2**120})


def same(one: State | None, other: State) -> bool:
    assert one is not None
    alike = all(torch.equal(one.tensors[key], other.tensors[key]) for key in ("a", "b"))
    return alike and one.facts == other.facts and one.tensors.keys() == other.tensors.keys()


def saved(folder: Path, *numbers: int) -> Checkpoints:
    job = Checkpoints(folder, identity=JOB)
    for number in numbers:
        assert job.save("half1", state(number))
    return replace(job, resume=True, reporter=Reporter())


def test_what_was_saved_last_is_loaded(tmp_path: Path) -> None:
    job = saved(tmp_path / "new", 1, 2, 3)
    assert same(job.load("half1"), state(3))
    assert job.load("half2") is None
    assert replace(job, resume=False).load("half1") is None
    assert job.reporter.warnings == []
    assert "half1.safetensors" in job.reporter.log[0]


def test_the_format_is_the_librarys(tmp_path: Path) -> None:
    kept = state(5)
    Checkpoints(tmp_path).save("half1", kept)
    read = load_file(tmp_path / "half1.safetensors")
    assert read.keys() == kept.tensors.keys()
    assert all(torch.equal(read[name], kept.tensors[name]) for name in read)


def test_arrays_are_filled_where_they_are(tmp_path: Path) -> None:
    """And left empty where nothing is whole, or of another shape."""
    job, a = saved(tmp_path, 1), np.zeros((50, 3), dtype=np.float32)
    loaded = job.load("half1", {"a": a})
    assert loaded is not None
    assert loaded.tensors["a"].data_ptr() == a.ctypes.data
    np.testing.assert_array_equal(a, state(1).tensors["a"].numpy())
    other = np.zeros((3, 50), dtype=np.float32)
    assert job.load("half1", {"a": other}) is None
    assert "shape" in job.reporter.warnings[-1]
    content = bytearray((tmp_path / "half1.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "half1.safetensors").write_bytes(content)
    assert job.load("half1", {"a": a}) is None
    assert not a.any()


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_one_cut_short_gives_way_to_the_one_before(keep: float, tmp_path: Path) -> None:
    job = saved(tmp_path, 1, 2)
    content = (tmp_path / "half1.safetensors").read_bytes()
    (tmp_path / "half1.safetensors").write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    assert same(job.load("half1"), state(1))
    [told] = job.reporter.warnings
    assert "half1.safetensors: cut short" in told
    assert "the previous state is used" in told
    job.save("half1", state(3))
    (tmp_path / "half1.safetensors").unlink()
    assert same(job.load("half1"), state(1))  # what was broken has not taken its place


@pytest.mark.parametrize("place", [40, 200, -200, -1])
def test_a_damaged_byte_is_noticed(place: int, tmp_path: Path) -> None:
    """In the header, and in the data."""
    job = saved(tmp_path, 1, 2)
    content = bytearray((tmp_path / "half1.safetensors").read_bytes())
    content[place] ^= 1
    (tmp_path / "half1.safetensors").write_bytes(content)
    assert same(job.load("half1"), state(1))
    assert len(job.reporter.warnings) == 1


def test_none_that_can_be_read(tmp_path: Path) -> None:
    job = saved(tmp_path, 1)
    (tmp_path / "half1.safetensors").write_bytes(b"nothing")
    assert job.belonging_to(JOB | {"seed": 4}).load("half1") is None
    [told] = job.reporter.warnings
    assert "half1.safetensors: cut short" in told
    assert "done again" in told


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_a_kill_at_any_moment_leaves_one(moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first flush, and at either renaming."""
    job = saved(tmp_path, 1, 2)
    left = [moment]

    def until_killed(function: Callable) -> Callable:
        def wrapped(*arguments: object) -> object:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return function(*arguments)

        return wrapped

    monkeypatch.setattr(checkpoint.os, "fsync", until_killed(os.fsync))
    monkeypatch.setattr(checkpoint.os, "replace", until_killed(os.replace))
    with pytest.raises(KeyboardInterrupt):
        job.save("half1", state(3))
    monkeypatch.undo()
    assert same(job.load("half1"), state(2))


def test_another_job_is_refused(tmp_path: Path, refuses: Callable) -> None:
    job = saved(tmp_path, 1)
    with refuses("seed 3 there, 4 here", "--resume"):
        job.belonging_to(JOB | {"seed": 4})
    with refuses("seed 3 there, 4 here", "--resume"):
        replace(job, identity=JOB | {"seed": 4}).load("half1")


def test_a_folder_is_prepared(tmp_path: Path, refuses: Callable) -> None:
    first = Checkpoints(tmp_path / "run", resume=True)
    first.prepare(overwrite=False)
    assert "starts at its beginning" in first.reporter.log[0]
    job = saved(tmp_path / "run", 1)
    (tmp_path / "run" / ".half1.safetensors.123.tmp").write_bytes(b"of a killed run")
    job.prepare(overwrite=True)
    assert same(job.load("half1"), state(1))
    assert len(list((tmp_path / "run").iterdir())) == 1
    with refuses("unfinished", "--resume", "--overwrite"):
        Checkpoints(tmp_path / "run").prepare(overwrite=False)
    Checkpoints(tmp_path / "run").prepare(overwrite=True)
    assert not (tmp_path / "run").exists()


def test_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the power could go when the name is on the disk and the content is not."""
    job, calls = saved(tmp_path, 1), []

    def recorded(name: str, function: Callable) -> Callable:
        def call(*arguments: object) -> object:
            if name == "fsync":
                calls.append(Path(os.readlink(f"/proc/self/fd/{arguments[0]}")).name.removeprefix(".").split(".")[0])
            else:
                calls.append(name)
            return function(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, recorded(name, getattr(os, name)))
    job.save("half1", state(2))
    assert calls == ["half1", "replace", "replace", tmp_path.name.split(".")[0]]


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("NO RIGHT TO MOUNT: a full disk is untested here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_costs_no_run_and_no_state(tmp_path: Path) -> None:
    """There may be room for two states, and not for three; then for none."""
    with small_disk(tmp_path / "disk", 1000) as disk:
        job = Checkpoints(disk / "checkpoints", resume=True)
        for number in range(4):
            assert job.save("half1", state(number, 30_000))  # 360 kB
        assert job.reporter.warnings == []
        (disk / "filler").write_bytes(bytes(200_000))
        for number in range(4, 6):
            assert not job.save("half1", state(number, 60_000))
        [told] = job.reporter.warnings
        assert "the disk is full" in told
        assert "continues without" in told
        assert same(job.load("half1"), state(3, 30_000))
        assert not list(disk.glob("checkpoints/.*"))


def test_the_pace_of_a_disk() -> None:
    """A thirtieth of the time is for writing, and at most one state in ten seconds is written."""
    slow, fast = Pace(), Pace()
    for _ in range(20):
        slow.learn(10**9, 50.0)  # seconds
        fast.learn(10**9, 0.4)
    assert not fast.is_due(9.0, 1000)
    assert fast.is_due(11.0, 1000)
    assert fast.is_due(32.0, 2 * 10**9)
    assert not fast.is_due(20.0, 2 * 10**9)
    assert not slow.is_due(2900.0, 2 * 10**9)
    assert slow.is_due(3100.0, 2 * 10**9)


def test_written_when_it_pays(tmp_path: Path) -> None:
    job = Checkpoints(tmp_path, pace=Pace(times=0, least=60.0))
    stage = job.named("pass")
    assert not stage.offer(lambda: pytest.fail("too early to look"))
    stage.since -= 61
    following = stage.followed_by("statistics1")
    assert stage.offer(lambda: state(1))
    assert not stage.offer(lambda: state(2))
    assert following.offer(lambda: state(3))
    stage.remove_others()
    assert [p.name for p in tmp_path.iterdir()] == ["pass.safetensors"]
    stage.remove()
    assert not list(tmp_path.iterdir())
    nowhere = Checkpoints(None).named("pass")
    nowhere.since -= 1000
    assert not nowhere.offer(lambda: pytest.fail("nothing is kept"))
    assert nowhere.load() is None


def test_what_makes_another_job(tmp_path: Path) -> None:
    particles, settings = imagined_particles(10, 32), ReconstructSettings()
    here = identity(particles, settings)
    moved = replace(particles, source=tmp_path / "elsewhere.star", stacks=(tmp_path / "other.mrcs",))
    assert identity(moved, replace(settings, threads=1, sharpen=-50.0, datadir=tmp_path)) == here
    assert identity(particles, replace(settings, seed=1)) != here
    for change in ("euler_angles_in_degrees", "defocus_u_in_angstroms", "half_set"):
        changed = replace(particles, **{change: getattr(particles, change) + 1})
        assert changed.fingerprint() != here["particles"]
    optics = (replace(particles.optics[0], amplitude_contrast=0.07),)
    assert replace(particles, optics=optics).fingerprint() != here["particles"]
