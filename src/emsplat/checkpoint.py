"""Checkpoints: the state of a long job on the disk, from which it goes on after whatever ended it.

A state is a safetensors file: tensors, and facts and the job's identity as JSON in its metadata. It is written aside,
flushed to the disk and renamed; the one before is kept, so that one readable state is there at any moment. A job of
other settings, images or program does not go on from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

import emsplat
from emsplat.errors import InputError
from emsplat.io.files import replacing
from emsplat.particles import Particles
from emsplat.settings import InputSettings, ReconstructSettings

_FORMAT = "emsplat checkpoint 1"
_SHOWN = 3  # differences told
_NO_MATTER = {*(field.name for field in fields(InputSettings)), "threads", "device", "sharpen", "cache", "cache_size"}


@dataclass(frozen=True)
class State:
    """What a job goes on from."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]  # as JSON takes it


@dataclass(frozen=True)
class Checkpoints:
    """The states of a job by name, in a folder of their own."""

    folder: Path
    resume: bool = False  # go on from what is there
    identity: dict[str, Any] = field(default_factory=dict)  # what must be the same, as JSON takes it

    def prepare(self, overwrite: bool) -> None:
        """Take away what is to be replaced.

        Raises:
            InputError: there is nothing to resume from, or a new job would replace what could be gone on with.
        """
        there = any(self.folder.glob("*.safetensors"))
        if self.resume and not there:
            raise InputError(
                f"{self.folder}: no checkpoint to resume from; leave out --resume, or give the run's own folder"
            )
        if there and not self.resume and not overwrite:
            raise InputError(
                f"{self.folder}: the checkpoint of an unfinished run; go on with --resume, or replace it with "
                "--overwrite"
            )
        if there and not self.resume:
            self.discard()

    def belonging_to(self, identity: dict[str, Any]) -> Checkpoints:
        """The same, for a job of this identity."""
        return replace(self, identity=json.loads(json.dumps(identity, default=str)))

    def named(self, name: str, warn: Callable[[str], None]) -> Checkpoint:
        """One of the states; `warn` is told where its latest file is broken and the one before is taken."""
        return Checkpoint(self, name, warn)

    def save(self, name: str, state: State) -> None:
        """Write a state, keeping the one before; InputError where the disk does not take it."""
        metadata = {
            "format": _FORMAT,
            "identity": json.dumps(self.identity),
            "facts": json.dumps(state.facts),
            "checksum": _checksum(state.tensors),
        }
        content = save({key: tensor.contiguous() for key, tensor in state.tensors.items()}, metadata=metadata)
        latest, before = self._paths(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(latest) as temporary:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if latest.exists():
                os.replace(latest, before)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # or the renaming could be lost with the power
        finally:
            os.close(folder)

    def load(self, name: str, warn: Callable[[str], None]) -> State | None:
        """The latest state that is whole; None where none is wanted or there.

        Args:
            warn: told where the latest one is broken and the one before is taken.
        Raises:
            InputError: it belongs to a job of another identity, or none is whole.
        """
        found = [path for path in self._paths(name) if path.exists()] if self.resume else []
        broken = ""
        for path in found:
            try:
                state, identity = _read(path)
            except Exception as error:  # whatever a damaged file makes the reader stumble over
                broken = broken or f"{path}: cut short or damaged ({error})"
                continue
            self._refuse_another(path, identity)
            if broken:
                warn(f"{broken}; the state before it is taken")
            return state
        if found:
            raise InputError(f"{broken}, and none before it can be read; start anew without --resume")
        return None

    def discard(self) -> None:
        """Remove them all: the job is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self, name: str) -> tuple[Path, Path]:
        """Where the latest state is, and the one before."""
        return self.folder / f"{name}.safetensors", self.folder / f"{name}.before.safetensors"

    def _refuse_another(self, path: Path, identity: dict[str, Any]) -> None:
        ours = self.identity
        differing = [key for key in sorted(ours.keys() | identity.keys()) if ours.get(key) != identity.get(key)]
        if differing:
            told = [f"{key} {identity.get(key)} there, {ours.get(key)} here" for key in differing[:_SHOWN]]
            more = f" (and {len(differing) - _SHOWN} more)" if len(differing) > _SHOWN else ""
            raise InputError(
                f"{path}: of another run: {'; '.join(told)}{more}; resume with what that run was given, "
                "or start anew without --resume"
            )


@dataclass(frozen=True)
class Checkpoint:
    """One state of a job."""

    job: Checkpoints
    name: str
    warn: Callable[[str], None]

    def save(self, state: State) -> None:
        self.job.save(self.name, state)

    def load(self) -> State | None:
        return self.job.load(self.name, self.warn)


def checkpoints_of(
    run_folder: Path, settings: ReconstructSettings, resume: bool, overwrite: bool
) -> Checkpoints | None:
    """Of a reconstruction by images, prepared; a fit to statistics takes seconds and has none."""
    if settings.solver != "images":
        if resume:
            raise InputError(
                f"--resume: --solver {settings.solver} writes no checkpoints; leave it out, and run it again"
            )
        return None
    checkpoints = Checkpoints(run_folder / "checkpoints", resume)
    checkpoints.prepare(overwrite)
    return checkpoints


def identity(particles: Particles, settings: ReconstructSettings) -> dict[str, Any]:
    """What a reconstruction goes on with only if it is the same: all but where files lie and how fast it is."""
    asked = {name: value for name, value in asdict(settings).items() if name not in _NO_MATTER}
    return {"emsplat": emsplat.__version__, "particles": fingerprint(particles)} | asked


def fingerprint(particles: Particles) -> str:
    """Of everything in the table but where its files lie: ids, poses, optics, half sets."""
    digest = hashlib.sha256(repr(particles.optics).encode())
    for entry in fields(particles):
        value = getattr(particles, entry.name)
        if isinstance(value, np.ndarray):
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> tuple[State, dict[str, Any]]:
    """A state and the identity of its job; raises whatever a damaged file brings about."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"its format is {metadata.get('format')!r}, not {_FORMAT!r}")
    if metadata["checksum"] != _checksum(tensors):
        raise ValueError("its checksum is wrong")
    return State(tensors, json.loads(metadata["facts"])), json.loads(metadata["identity"])


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode() + tensors[key].contiguous().numpy().tobytes())
    return digest.hexdigest()
