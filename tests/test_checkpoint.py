"""A state is there whole, or the one before it; of the same job, or one line says what differs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emsplat import checkpoint
from emsplat.checkpoint import Checkpoints, State, checkpoints_of, fingerprint, identity
from emsplat.settings import ReconstructSettings
from phantom import imagined_particles

JOB = {"seed": 3, "particles": "abc", "range": None}


def state(number: int) -> State:
    generator = torch.Generator().manual_seed(number)
    tensors = {"a": torch.randn(50, 3, generator=generator), "b": torch.arange(number)}
    return State(tensors, {"round": number, "best": float("inf"), "list": [1, 2.5], "big": 2**120})


def nothing_to_tell(text: str) -> None:
    raise AssertionError(text)


def same(one: State | None, other: State) -> bool:
    assert one is not None
    return one.facts == other.facts and all(torch.equal(one.tensors[key], other.tensors[key]) for key in other.tensors)


def saved(folder: Path, *numbers: int) -> Checkpoints:
    job = Checkpoints(folder, identity=JOB)
    for number in numbers:
        job.save("half1", state(number))
    return replace(job, resume=True)


def test_what_was_saved_last_is_loaded(tmp_path: Path) -> None:
    job = saved(tmp_path / "new", 1, 2, 3)
    assert same(job.load("half1", nothing_to_tell), state(3))
    assert job.load("half2", nothing_to_tell) is None
    assert replace(job, resume=False).load("half1", nothing_to_tell) is None


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_one_cut_short_gives_way_to_the_one_before(keep: float, tmp_path: Path) -> None:
    job, told = saved(tmp_path, 1, 2), []
    content = (tmp_path / "half1.safetensors").read_bytes()
    (tmp_path / "half1.safetensors").write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    assert same(job.load("half1", told.append), state(1))
    assert len(told) == 1
    assert "half1.safetensors" in told[0]
    assert "before" in told[0]


def test_a_damaged_byte_is_noticed(tmp_path: Path) -> None:
    job, told = saved(tmp_path, 1, 2), []
    content = bytearray((tmp_path / "half1.safetensors").read_bytes())
    content[-200] ^= 1
    (tmp_path / "half1.safetensors").write_bytes(content)
    assert same(job.load("half1", told.append), state(1))
    assert "checksum" in told[0]


def test_none_that_can_be_read(tmp_path: Path, refuses: Callable) -> None:
    job = saved(tmp_path, 1)
    (tmp_path / "half1.safetensors").write_bytes(b"nothing")
    with refuses("half1.safetensors", "without --resume"):
        job.load("half1", nothing_to_tell)


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
    assert same(job.load("half1", nothing_to_tell), state(2))


def test_another_job_is_refused(tmp_path: Path, refuses: Callable) -> None:
    job = saved(tmp_path, 1)
    with refuses("seed 3 there, 4 here", "--resume"):
        job.belonging_to(JOB | {"seed": 4}).load("half1", nothing_to_tell)


def test_a_folder_is_prepared(tmp_path: Path, refuses: Callable) -> None:
    with refuses("no checkpoint", "--resume"):
        Checkpoints(tmp_path / "run", resume=True).prepare(overwrite=False)
    Checkpoints(tmp_path / "run").prepare(overwrite=False)
    job = saved(tmp_path / "run", 1)
    job.prepare(overwrite=True)
    assert same(job.load("half1", nothing_to_tell), state(1))
    with refuses("unfinished", "--resume", "--overwrite"):
        Checkpoints(tmp_path / "run").prepare(overwrite=False)
    Checkpoints(tmp_path / "run").prepare(overwrite=True)
    assert not (tmp_path / "run").exists()


def test_what_makes_another_job(tmp_path: Path) -> None:
    particles, settings = imagined_particles(10, 32), ReconstructSettings()
    here = identity(particles, settings)
    moved = replace(particles, source=tmp_path / "elsewhere.star", stacks=(tmp_path / "other.mrcs",))
    assert identity(moved, replace(settings, threads=1, sharpen=-50.0, datadir=tmp_path)) == here
    assert identity(particles, replace(settings, seed=1)) != here
    for change in ("euler_angles_in_degrees", "defocus_u_in_angstroms", "half_set"):
        changed = replace(particles, **{change: getattr(particles, change) + 1})
        assert fingerprint(changed) != here["particles"]
    optics = (replace(particles.optics[0], amplitude_contrast=0.07),)
    assert fingerprint(replace(particles, optics=optics)) != here["particles"]


def test_only_the_images_solver_has_them(tmp_path: Path, refuses: Callable) -> None:
    assert checkpoints_of(tmp_path, ReconstructSettings(), resume=False, overwrite=False) is None
    with refuses("--resume", "statistics"):
        checkpoints_of(tmp_path, ReconstructSettings(), resume=True, overwrite=False)
