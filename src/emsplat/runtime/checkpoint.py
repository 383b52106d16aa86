"""Checkpoints: the state of a long job on the disk, from which it goes on after whatever ended it.

A state is a safetensors file: tensors, and facts and the job's identity as JSON in its metadata. It is written aside,
flushed to the disk and renamed; the one before is kept, so that one readable state is there at any moment. A job of
other settings, images or program does not go on from it.

Every stage of a job has its own, and offers it whenever it could go on from it; what is offered is written as often as
that pays. A disk that does not take a state costs no run.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from emsplat.errors import InputError
from emsplat.runtime.files import flush, replacing
from emsplat.runtime.ranks import World
from emsplat.runtime.reporting import Reporter
from emsplat.runtime.tensors import Header, read_header, read_tensors, write_tensors

FOLDER = "checkpoints"
_FORMAT = "emsplat checkpoint 2"
_SHOWN = 3  # differences told
_GUESS = 256e6, 1.28  # bytes and seconds of a disk that nothing has been written to


@dataclass(frozen=True)
class State:
    """What a job goes on from."""

    tensors: dict[str, Tensor]  # of real numbers
    facts: dict[str, Any] = field(default_factory=dict)  # as JSON takes it

    @property
    def n_bytes(self) -> int:
        """Of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its tensors, where they lie."""
        return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in self.tensors.items()}


@dataclass
class Pace:
    """How often states are written: as soon as what they save has taken many times as long as the writing does."""

    times: float = 30.0  # as long: at most this share of a run is spent on writing
    least: float = 10.0  # seconds between two states; what takes less is as soon done again
    bytes: int = 0  # that were written
    seconds: float = 0.0  # that took, flushing included
    states: int = 0

    def is_due(self, elapsed: float, n_bytes: int) -> bool:
        """Whether to write so many bytes after so many seconds."""
        speed = (_GUESS[0] + self.bytes) / (_GUESS[1] + self.seconds)
        return elapsed >= max(self.least, self.times * n_bytes / speed)

    def learn(self, n_bytes: int, seconds: float) -> None:
        """What a state took; of 0 bytes, if the disk did not take it."""
        self.bytes += n_bytes
        self.seconds += seconds
        self.states += n_bytes > 0


@dataclass(frozen=True)
class Checkpoints:
    """The states of a job by name, in a folder of their own."""

    folder: Path | None  # None: nothing is kept
    resume: bool = False  # go on from what is there
    identity: dict[str, Any] = field(default_factory=dict)  # what must be the same, as JSON takes it
    reporter: Reporter = field(default_factory=Reporter)
    pace: Pace = field(default_factory=Pace)
    troubles: list[str] = field(default_factory=list)  # with the disk, so far
    suffix: str = ""  # of the names

    def prepare(self, overwrite: bool) -> None:
        """Take away what is to be replaced, and what a killed process was writing.

        Raises:
            InputError: a new job would replace what could be gone on with.
        """
        assert self.folder
        there = any(self.folder.glob("*.safetensors"))
        for path in self.folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)
        if self.resume and not there:
            self.reporter.line(f"{self.folder}: no checkpoint to resume from; the run starts at its beginning")
        if there and not self.resume and not overwrite:
            raise InputError(
                f"{self.folder}: the checkpoint of an unfinished run; go on with --resume, or replace it with "
                "--overwrite"
            )
        if not self.resume:
            shutil.rmtree(self.folder, ignore_errors=True)

    def tell_cost(self) -> None:
        """A line on what was written, if anything was."""
        pace = self.pace
        if pace.states:
            self.reporter.line(f"checkpoints: {pace.states} states, {pace.bytes / 1e9:.3f} GB in {pace.seconds:.1f} s")

    @contextmanager
    def told_of_if_ended(self) -> Iterator[None]:
        """Where an error or an interrupt ends the block that has written something to go on from, a line on it."""
        try:
            yield
        except BaseException:
            if self.pace.states:
                self.reporter.line(f"{self.folder}: what is done so far; --resume goes on from there")
            raise

    def belonging_to(self, identity: dict[str, Any]) -> Checkpoints:
        """The same, for a job of this identity.

        Raises:
            InputError: a state that would be gone on from is of a job of another identity.
        """
        job = replace(self, identity=json.loads(json.dumps(identity, default=str)))
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder and self.resume else ():
            try:
                found = _header(path).identity
            except Exception:  # what is broken is told of when it is its turn
                continue
            job._refuse_another(path, found)
        return job

    def within(self, part: str) -> Checkpoints:
        """Those of a part of the job whose stages are called the same as others'."""
        return replace(self, suffix=f"-{part}")

    def named(self, name: str, world: World | None = None) -> Checkpoint:
        """One of the states, of a stage that now begins.

        Args:
            world: for a stage whose state is the same on all ranks: the first one writes, and tells the others what it
                loads.
        """
        return Checkpoint(self, name, world)

    def save(self, name: str, state: State) -> bool:
        """Write a state, keeping the one before; whether the disk took it. The first time it does not, a warning."""
        if self.folder is None:
            return False
        begun = time.monotonic()
        trouble = self._attempt(self.folder, name, state)
        self.pace.learn(0 if trouble else state.n_bytes, time.monotonic() - begun)
        if trouble and not self.troubles:
            self.reporter.warn(
                f"{trouble}. The run goes on without writing down its state; the checkpoints that are there stay"
            )
        self.troubles.extend([trouble] if trouble else [])
        return not trouble

    def _attempt(self, folder: Path, name: str, state: State) -> str:
        """Write a state; what kept it from the disk, nothing if nothing did."""
        try:
            self._write(folder, name, state)
        except (InputError, OSError) as error:
            latest, before = self._paths(folder, name)
            with suppress(InputError, OSError):  # there may be room for two states where there is not for three
                if latest.exists() and before.exists():
                    before.unlink()
                    self._write(folder, name, state)
                    return ""
            return str(error)
        return ""

    def _write(self, folder: Path, name: str, state: State) -> None:
        content = json.dumps({"identity": self.identity, "facts": state.facts})
        metadata = {"format": _FORMAT, "content": content, "content_crc32": str(zlib.crc32(content.encode()))}
        latest, before = self._paths(folder, name)
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            for above in (folder.parent, folder.parent.parent):
                flush(above)  # or the folders could be lost with the power
        with replacing(latest) as temporary:
            with open(temporary, "wb") as file:
                write_tensors(file, state.arrays(), metadata)
                file.flush()
                os.fsync(file.fileno())
            if latest.exists():
                os.replace(latest, before)
        flush(folder)  # or the renaming could be lost

    def load(self, name: str, into: Mapping[str, NDArray[Any]] | None = None) -> State | None:
        """The latest state that is whole; None where none is wanted or there.

        A warning where the latest one is broken, and the one before is taken or none is whole.

        Args:
            into: C-contiguous arrays to be filled with the tensors of their name; with zeros where there is no state.
        Raises:
            InputError: it belongs to a job of another identity.
        """
        into = into or {}
        paths = [*self._paths(self.folder, name)] if self.folder and self.resume else []
        broken = ""
        for path in paths:
            if not path.exists():
                continue
            try:
                header = _header(path)
            except Exception as error:  # whatever a damaged file makes the reader stumble over
                broken = broken or f"{path}: cut short or damaged ({error})"
                continue
            self._refuse_another(path, header.identity)
            try:
                arrays = read_tensors(path, header.header, into)
            except Exception as error:
                broken = broken or f"{path}: cut short or damaged ({error})"
                continue
            if broken:
                self.reporter.warn(f"{broken}; the state before it is taken")
                paths[0].unlink()  # or it would become the one before
            written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
            self.reporter.resumed = True
            self.reporter.line(f"going on from {path.name}, written {written}")
            return State({key: torch.from_numpy(array) for key, array in arrays.items()}, header.facts)
        if broken:
            for array in into.values():
                array.fill(0)
            self.reporter.warn(f"{broken}, and none before it can be read; this part of the run is done again")
        return None

    def remove(self, name: str) -> None:
        """Remove a state that nothing needs any more, and its pieces."""
        if self.folder is None:
            return
        ends = tuple(path.name.removeprefix(name) for path in self._paths(self.folder, name))
        pieces = [path for path in self.folder.glob(f"{name}.*") if path.name.endswith(ends)]
        for path in (*self._paths(self.folder, name), *pieces):
            with suppress(OSError):
                path.unlink()

    def remove_all_but(self, name: str) -> None:
        """The states of all other names."""
        if self.folder is None:
            return
        kept = self._paths(self.folder, name)
        for path in self.folder.glob("*.safetensors"):
            if path not in kept:
                with suppress(OSError):
                    path.unlink()

    def _paths(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Where the latest state is, and the one before."""
        return folder / f"{name}{self.suffix}.safetensors", folder / f"{name}{self.suffix}.before.safetensors"

    def _refuse_another(self, path: Path, identity: dict[str, Any]) -> None:
        ours = self.identity
        differing = [key for key in sorted(ours.keys() | identity.keys()) if ours.get(key) != identity.get(key)]
        if differing:
            told = [f"{key} {identity.get(key)} there, {ours.get(key)} here" for key in differing[:_SHOWN]]
            more = f" (and {len(differing) - _SHOWN} more)" if len(differing) > _SHOWN else ""
            raise InputError(
                f"{path}: of another run: {'; '.join(told)}{more}; resume with what that run was given, "
                "or leave out --resume and replace it with --overwrite"
            )


@dataclass
class Checkpoint:
    """The state of one stage of a job."""

    job: Checkpoints
    name: str
    world: World | None = None  # whose ranks all are at this stage
    since: float = field(default_factory=time.monotonic)  # when the stage began, or its state was last written

    def load(self, into: Mapping[str, NDArray[Any]] | None = None) -> State | None:
        """See `Checkpoints.load`."""
        if self.world is None:
            return self.job.load(self.name, into)
        assert into is None, "what all ranks are given is new"
        return self.world.broadcast(self.job.load(self.name) if self.world.is_first else None)

    def offer(self, state: Callable[[], State]) -> bool:
        """Write the state down if that pays by now; whether it was written."""
        elapsed = time.monotonic() - self.since
        writes = self.job.folder is not None and (self.world is None or self.world.is_first)
        if not writes or elapsed < self.job.pace.least:
            return False
        offered = state()
        if not self.job.pace.is_due(elapsed, offered.n_bytes):
            return False
        written = self.job.save(self.name, offered)
        self.since = time.monotonic()
        return written

    def followed_by(self, name: str) -> Checkpoint:
        """The state of what comes out of the stage: it pays as the stage's next one would."""
        return Checkpoint(self.job, name, self.world, self.since)

    def piece(self, name: str) -> Checkpoint:
        """The state of a piece of the stage, which is removed together with it."""
        return self.followed_by(f"{self.name}.{name}")

    def remove(self) -> None:
        """Remove the state and its pieces, which nothing needs any more."""
        self.job.remove(self.name)

    def remove_others(self) -> None:
        """Nothing needs those of other names any more."""
        self.job.remove_all_but(self.name)


NO_CHECKPOINTS = Checkpoints(None)
UNKEPT = Checkpoint(NO_CHECKPOINTS, "")


def checkpoints_of(run_folder: Path, resume: bool, overwrite: bool, reporter: Reporter, world: World) -> Checkpoints:
    """Of a reconstruction, prepared by the first rank."""
    checkpoints = Checkpoints(run_folder / FOLDER, resume, reporter=reporter)
    if world.is_first:
        checkpoints.prepare(overwrite)
    return checkpoints


@dataclass(frozen=True)
class _Header:
    header: Header
    identity: dict[str, Any]
    facts: dict[str, Any]


def _header(path: Path) -> _Header:
    """Raises whatever a damaged file brings about."""
    header = read_header(path)
    if header.metadata.get("format") != _FORMAT:
        raise ValueError(f"its format is {header.metadata.get('format')!r}, not {_FORMAT!r}")
    content = header.metadata["content"]
    if zlib.crc32(content.encode()) != int(header.metadata["content_crc32"]):
        raise ValueError("the checksum of its header is wrong")
    return _Header(header, **json.loads(content))
