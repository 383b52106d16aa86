"""Checkpoints: states of a long job on disk, from which it can be resumed after any kind of end.

A state is a safetensors file that holds tensors and, as JSON in its metadata, facts and the identity of the job. It is
written under a temporary name, flushed to disk and renamed. The previous state is kept, so that one readable state
exists at any moment. A job with other settings, images or another version of the program does not resume from it.

Every stage of a job has a state of its own and offers it whenever it could be resumed from it. An offered state is
written as often as that pays. If the disk does not take a state, the run continues.
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
from threading import RLock
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
_FORMAT = "emsplat checkpoint 4"
_SHOWN = 3  # number of differences that a message names
_GUESS = 256e6, 1.28  # bytes and seconds that are assumed before anything has been written


@dataclass(frozen=True)
class State:
    """What a job is resumed from."""

    tensors: dict[str, Tensor]  # tensors of real numbers
    facts: dict[str, Any] = field(default_factory=dict)  # values that JSON can hold

    @property
    def n_bytes(self) -> int:
        """Number of bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Views of the tensors, without a copy."""
        return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in self.tensors.items()}


@dataclass
class Pace:
    """Decides how often states are written: when the work that they save took many times as long as writing them."""

    times: float = 30.0  # work over writing; at most one part in this many of a run is spent on writing
    least: float = 10.0  # smallest time in seconds between two states; less work is quickly repeated
    bytes: int = 0  # number of bytes written so far
    seconds: float = 0.0  # time that writing has taken so far, flushing included
    states: int = 0

    def is_due(self, elapsed: float, n_bytes: int) -> bool:
        """Whether to write this many bytes after this many seconds of work."""
        speed = (_GUESS[0] + self.bytes) / (_GUESS[1] + self.seconds)
        return elapsed >= max(self.least, self.times * n_bytes / speed)

    def learn(self, n_bytes: int, seconds: float) -> None:
        """Take into account what writing a state took. A state that the disk did not take has 0 bytes."""
        self.bytes += n_bytes
        self.seconds += seconds
        self.states += n_bytes > 0


@dataclass(frozen=True)
class Checkpoints:
    """The states of a job by name, in a folder of their own."""

    folder: Path | None  # None: nothing is kept
    resume: bool = False  # whether to continue from the states in the folder
    identity: dict[str, Any] = field(default_factory=dict)  # values that must agree, such that JSON can hold them
    reporter: Reporter = field(default_factory=Reporter)
    pace: Pace = field(default_factory=Pace)
    troubles: list[str] = field(default_factory=list)  # problems with the disk so far
    suffix: str = ""  # suffix of all names
    lock: RLock = field(default_factory=RLock)  # held by the thread that writes

    def prepare(self, overwrite: bool) -> None:
        """Remove what is to be replaced, and what a killed process was writing.

        Raises:
            InputError: a new job would replace a run that could be resumed.
        """
        assert self.folder
        there = any(self.folder.rglob("*.safetensors"))
        for path in self.folder.rglob(".*.tmp"):
            path.unlink(missing_ok=True)
        if self.resume and not there:
            self.reporter.line(f"{self.folder}: there is no checkpoint to resume from; the run starts at its beginning")
        if there and not self.resume and not overwrite:
            raise InputError(
                f"{self.folder}: holds the checkpoint of an unfinished run; continue with --resume, or replace it with "
                "--overwrite"
            )
        if not self.resume:
            shutil.rmtree(self.folder, ignore_errors=True)

    def tell_cost(self) -> None:
        """Report in one line what was written, if anything was."""
        pace = self.pace
        if pace.states:
            self.reporter.line(f"checkpoints: {pace.states} states, {pace.bytes / 1e9:.3f} GB in {pace.seconds:.1f} s")

    @contextmanager
    def told_of_if_ended(self) -> Iterator[None]:
        """Report in one line that the block can be resumed, if an error or interrupt ends it after a state."""
        try:
            yield
        except BaseException:
            if self.pace.states:
                self.reporter.line(f"{self.folder}: holds what is done so far; --resume continues from there")
            raise

    def belonging_to(self, identity: dict[str, Any]) -> Checkpoints:
        """The same checkpoints, for a job with this identity.

        Raises:
            InputError: a state to resume from belongs to a job with another identity.
        """
        job = replace(self, identity=json.loads(json.dumps(identity, default=str)))
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder and self.resume else ():
            try:
                found = _header(path).identity
            except Exception:  # a broken state is reported when it is loaded
                continue
            job._refuse_another(path, found)
        return job

    def nested(self, name: str) -> Checkpoints:
        """The checkpoints of another job that is a stage of this one, in a folder of their own."""
        return replace(self, folder=self.folder / name, identity={}) if self.folder else self

    def remove_nested(self, name: str) -> None:
        """Remove the states of a job that was a stage of this one and is complete."""
        if self.folder is not None:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def within(self, part: str) -> Checkpoints:
        """The checkpoints of a part of the job whose stages have the same names as those of other parts."""
        return replace(self, suffix=f"-{part}")

    def named(self, name: str, world: World | None = None) -> Checkpoint:
        """The checkpoint of a stage that now begins.

        Args:
            world: given for a stage whose state is the same on all ranks. The first rank then writes, and sends the
                others what it loads.
        """
        return Checkpoint(self, name, world)

    def save(self, name: str, state: State) -> bool:
        """Write a state and keep the previous one. Returns whether the disk took it; the first failure is a warning."""
        if self.folder is None:
            return False
        with self.lock:
            begun = time.monotonic()
            trouble = self._attempt(self.folder, name, state)
            self.pace.learn(0 if trouble else state.n_bytes, time.monotonic() - begun)
            if trouble and not self.troubles:
                self.reporter.warn(
                    f"{trouble}. The run continues without writing its state; the checkpoints that exist stay"
                )
            self.troubles.extend([trouble] if trouble else [])
        return not trouble

    def _attempt(self, folder: Path, name: str, state: State) -> str:
        """Write a state. Returns the reason why the disk did not take it, or an empty string."""
        try:
            self._write(folder, name, state)
        except (InputError, OSError) as error:
            latest, before = self._paths(folder, name)
            with suppress(InputError, OSError):  # there may be room for two states although there is none for three
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
                flush(above)  # so that the folders survive a power failure
        with replacing(latest) as temporary:
            with open(temporary, "wb") as file:
                write_tensors(file, state.arrays(), metadata)
                file.flush()
                os.fsync(file.fileno())
            if latest.exists():
                os.replace(latest, before)
        flush(folder)  # so that the renaming survives it too

    def load(self, name: str, into: Mapping[str, NDArray[Any]] | None = None) -> State | None:
        """The latest state that is intact; None if none is wanted or none exists.

        There is a warning if the latest state is broken, whether the previous one replaces it or not.

        Args:
            into: C-contiguous arrays to fill with the tensors of the same name, or with zeros if there is no state.
        Raises:
            InputError: the state belongs to a job with another identity.
        """
        into = into or {}
        paths = [*self._paths(self.folder, name)] if self.folder and self.resume else []
        broken = ""
        for path in paths:
            if not path.exists():
                continue
            try:
                header = _header(path)
            except Exception as error:  # a damaged file can make the reader fail in any way
                broken = broken or f"{path}: cut short or damaged ({error})"
                continue
            self._refuse_another(path, header.identity)
            try:
                arrays = read_tensors(path, header.header, into)
            except Exception as error:
                broken = broken or f"{path}: cut short or damaged ({error})"
                continue
            if broken:
                self.reporter.warn(f"{broken}; the previous state is used")
                paths[0].unlink()  # otherwise it would become the previous state
            written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
            self.reporter.resumed = True
            self.reporter.line(f"resuming from {path.name}, written {written}")
            return State({key: torch.from_numpy(array) for key, array in arrays.items()}, header.facts)
        if broken:
            for array in into.values():
                array.fill(0)
            self.reporter.warn(f"{broken}, and no previous state can be read; this part of the run is done again")
        return None

    def remove(self, name: str) -> None:
        """Remove a state that is no longer needed, and its pieces."""
        if self.folder is None:
            return
        ends = tuple(path.name.removeprefix(name) for path in self._paths(self.folder, name))
        pieces = [path for path in self.folder.glob(f"{name}.*") if path.name.endswith(ends)]
        for path in (*self._paths(self.folder, name), *pieces):
            with suppress(OSError):
                path.unlink()

    def remove_all_but(self, name: str) -> None:
        """Remove the states of all other names."""
        if self.folder is None:
            return
        kept = self._paths(self.folder, name)
        for path in self.folder.glob("*.safetensors"):
            if path not in kept:
                with suppress(OSError):
                    path.unlink()

    def _paths(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Paths of the latest state and of the previous one."""
        return folder / f"{name}{self.suffix}.safetensors", folder / f"{name}{self.suffix}.before.safetensors"

    def _refuse_another(self, path: Path, identity: dict[str, Any]) -> None:
        ours = self.identity
        differing = [key for key in sorted(ours.keys() | identity.keys()) if ours.get(key) != identity.get(key)]
        if differing:
            told = [f"{key} {identity.get(key)} there, {ours.get(key)} here" for key in differing[:_SHOWN]]
            more = f" (and {len(differing) - _SHOWN} more)" if len(differing) > _SHOWN else ""
            raise InputError(
                f"{path}: belongs to another run: {'; '.join(told)}{more}; resume with the options of that run, or "
                "leave out --resume and replace it with --overwrite"
            )


@dataclass
class Checkpoint:
    """The state of one stage of a job."""

    job: Checkpoints
    name: str
    world: World | None = None  # given if all its ranks have the same state
    since: float = field(default_factory=time.monotonic)  # when the stage began or its state was last written

    def load(self, into: Mapping[str, NDArray[Any]] | None = None) -> State | None:
        """See `Checkpoints.load`."""
        if self.world is None:
            return self.job.load(self.name, into)
        assert into is None, "a state for all ranks is always in new arrays"
        return self.world.broadcast(self.job.load(self.name) if self.world.is_first else None)

    def offer(self, state: Callable[[], State]) -> bool:
        """Write the state if that pays by now. Returns whether it was written."""
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
        """The checkpoint of the result of this stage. It is written when the next state of this stage would be."""
        return Checkpoint(self.job, name, self.world, self.since)

    def piece(self, name: str) -> Checkpoint:
        """The state of a piece of the stage, which is removed together with it."""
        return self.followed_by(f"{self.name}.{name}")

    def remove(self) -> None:
        """Remove the state and its pieces, which are no longer needed."""
        self.job.remove(self.name)

    def remove_others(self) -> None:
        """Remove the states of other names, which are no longer needed."""
        self.job.remove_all_but(self.name)


NO_CHECKPOINTS = Checkpoints(None)
UNKEPT = Checkpoint(NO_CHECKPOINTS, "")


def checkpoints_of(
    run_folder: Path, resume: bool, overwrite: bool, reporter: Reporter, world: World, pace: Pace | None = None
) -> Checkpoints:
    """The checkpoints of a reconstruction, prepared by the first rank."""
    checkpoints = Checkpoints(run_folder / FOLDER, resume, reporter=reporter, pace=pace or Pace())
    if world.is_first:
        checkpoints.prepare(overwrite)
    return checkpoints


@dataclass(frozen=True)
class _Header:
    header: Header
    identity: dict[str, Any]
    facts: dict[str, Any]


def _header(path: Path) -> _Header:
    """The header of a state; a damaged file can raise any exception."""
    header = read_header(path)
    if header.metadata.get("format") != _FORMAT:
        raise ValueError(f"its format is {header.metadata.get('format')!r}, not {_FORMAT!r}")
    content = header.metadata["content"]
    if zlib.crc32(content.encode()) != int(header.metadata["content_crc32"]):
        raise ValueError("the checksum of its header is wrong")
    return _Header(header, **json.loads(content))
