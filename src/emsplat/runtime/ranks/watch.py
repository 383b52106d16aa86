"""The watch over the ranks: every rank sends a pulse once a second, and a rank that is missed ends the job on all.

A rank writes its pulse, with its current stage, into PyTorch's key-value store. The first rank listens to all others,
and these listen to the first. Three things end the job: a rank that has been silent for longer than `Patience` allows
(because it was killed or stopped, or its machine was cut off), a rank that cannot reach the store, and a rank whose
images cannot be read. Whoever finds it first writes the ending into the store, once, and all ranks read it. One rank
prints it, and all end with the same exit code.

There are two threads. One exchanges pulses, and the network may hold it up. The other notices that, interrupts the main
thread if it does not look here by itself, and ends the process if even that does not help.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

_RANKS_IN_A_PERIOD = 64  # larger worlds send pulses more slowly
_ASLEEP = 5.0  # seconds without a look at the clock that mean that this process itself was stopped

LOST, INTERRUPTED = 3, 130  # exit codes


@dataclass(frozen=True)
class Patience:
    """How long ranks wait for each other, all in seconds."""

    silence: float = 25.0  # without a pulse, after which a rank counts as lost
    silence_when_interrupted: float = 5.0  # that marks a rank killed before this one was told to end
    period: float = 1.0  # between pulses in a small world
    reading: float = 25.0  # longest time to read a block of images
    noticing: float = 1.0  # that the main thread has to look at the watch
    unwinding: float = 12.0  # that the main thread has to end in good order
    agreeing: float = 2.0  # within which ranks find the same fault
    leaving: float = 8.0  # within which all other ranks see an ending


@dataclass(frozen=True)
class Ending:
    """Why the job ends on every rank."""

    text: str  # one line
    code: int
    told_by: int  # the rank that prints it


class Lost(Exception):
    """The job was ended by another rank, or by its loss. `Watch.ending` holds the reason."""


class Watch:
    """The pulse of one rank, and its watch over the others."""

    def __init__(
        self,
        connect: Callable[[], Any],
        rank: int,
        hosts: tuple[str, ...],
        stage: Callable[[], str],
        patience: Patience = Patience(),
    ) -> None:
        """Args: connect: makes a new connection to the store of all ranks; stage: returns the stage of this rank."""
        self._patience = patience
        self.rank, self.hosts, self.stage = rank, hosts, stage
        self.ending: Ending | None = None
        self._store = connect()
        self._watched = [r for r in range(len(hosts)) if r != rank] if rank == 0 else [0]
        self._period = patience.period * max(1.0, len(hosts) / _RANKS_IN_A_PERIOD)
        self._beats = 0
        self._heard = {r: ("", time.monotonic()) for r in self._watched}  # last pulse, and since when it is the last
        self._answered = time.monotonic()  # when the store last did
        self._reading: tuple[Path, float] | None = None
        self._interrupted = False
        self._looked, self._unwound, self._leaving = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()  # of the store, and of deciding
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._exchange, self._guard)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    # --- what the main thread calls -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise Lost if the job has ended."""
        if self.ending:
            self._looked.set()
            raise Lost

    def explain(self, error: Exception) -> NoReturn:
        """Wait until it is known why an exchange failed. Raises Lost, or the error itself if no rank is missing."""
        until = time.monotonic() + self._patience.silence + 2 * self._period
        while time.monotonic() < until:
            self.check()
            time.sleep(0.05)
        raise error

    def reading(self, path: Path | None) -> None:
        """Note that this file is being read from now on; None: no file."""
        self._reading = (path, time.monotonic()) if path else None

    def interrupted(self) -> Ending:
        """The ending after a signal. Waits until it is known whether the user or the loss of a rank caused it."""
        self._looked.set()
        self._interrupted = True
        until = time.monotonic() + self._patience.silence_when_interrupted + (2 if self.rank == 0 else 5) * self._period
        while not self.ending and time.monotonic() < until:
            if self.rank == 0 and all(json.loads(last or "{}").get("interrupted") for last, _ in self._heard.values()):
                break
            time.sleep(0.05)
        return self.ending or self._end(Ending("interrupted; no half-written file is left", INTERRUPTED, self.rank))

    def failed(self, text: str, code: int) -> Ending:
        """End the job after an error on this rank, after a moment to see whether all ranks have the same error."""
        self._looked.set()
        with contextlib.suppress(Exception), self._held():
            self._store.set(f"failed/{self.rank}", text)
        everywhere = False
        until = time.monotonic() + self._patience.agreeing
        while not everywhere and not self.ending and time.monotonic() < until:
            time.sleep(0.02)
            everywhere = self._is_everywhere(text)
        where = "" if everywhere else f"rank {self.rank} on {self.hosts[self.rank]}: "
        return self.ending or self._end(Ending(where + text, code, self.rank))

    def farewell(self) -> None:
        """Part from the others after the last exchange. The process that hosts the store waits until they know."""
        self._unwound.set()
        self._leaving.set()
        names = [f"left/{rank}" for rank in range(len(self.hosts))]
        until = time.monotonic() + self._patience.leaving
        with contextlib.suppress(Exception):  # if the store is gone or cut off, there is nobody to wait for
            with self._held():
                self._store.set(names[self.rank], "1")
            while self.rank == 0 and time.monotonic() < until:
                with self._held():
                    if self._store.check(names):
                        break
                time.sleep(0.05)

    # --- what the threads do ------------------------------------------------------------------------------------------

    def _exchange(self) -> None:
        """Exchange pulses until the job ends."""
        while not self._leaving.wait(self._period):
            try:
                with self._lock:
                    self._beat()
            except Exception as error:  # the connection broke
                if not self._leaving.is_set():
                    self._conclude_unreachable(" ".join(str(error).split())[:80])
                return

    def _beat(self) -> None:
        self._beats += 1
        mine = {"beat": self._beats, "stage": self.stage(), "interrupted": self._interrupted}
        self._store.set(f"pulse/{self.rank}", json.dumps(mine))
        if self._store.check(["ending"]):
            self._adopt(self._store.get("ending"))
            return
        now = time.monotonic()
        patience = self._patience.silence_when_interrupted if self._interrupted else self._patience.silence
        asleep = now - self._answered > _ASLEEP + self._period
        for rank, pulse in zip(self._watched, self._pulses(), strict=True):
            last, since = self._heard[rank]
            if pulse != last or asleep:
                self._heard[rank] = pulse, now
            elif now - since > patience:
                self._decide(self._loss_of(rank, json.loads(pulse or "{}").get("stage", "start"), now - since))
                return
        self._answered = time.monotonic()

    def _pulses(self) -> list[str]:
        names = [f"pulse/{rank}" for rank in self._watched]
        if not self._beats > 1 or not self._store.check(names):
            return ["" for _ in names]  # not all have begun
        return [pulse.decode() for pulse in self._store.multi_get(names)]

    def _loss_of(self, rank: int, stage: str, seconds: float) -> Ending:
        return Ending(
            f"rank {rank} on {self.hosts[rank]} has not been heard of for {seconds:.0f} s, in stage {stage}: it was "
            "killed or hangs, or its machine is cut off; look there, and run the job again",
            LOST,
            self.rank,
        )

    def _guard(self) -> None:
        """Make sure that this process ends when the job does."""
        before = time.monotonic()
        while not self.ending and not self._leaving.wait(0.25):
            now = time.monotonic()
            if now - before > _ASLEEP:
                self._answered = now
                self._reading = self._reading and (self._reading[0], now)
            before = now
            if now - self._answered > self._patience.silence:
                self._conclude_unreachable(f"no answer for {now - self._answered:.0f} s")
            elif (reading := self._reading) and now - reading[1] > self._patience.reading:
                self._report_stuck(reading[0], now - reading[1])
        if not self.ending or self._unwound.is_set():
            return
        if not self._looked.wait(self._patience.noticing):
            # The handler raises KeyboardInterrupt in the main thread, whatever it is doing, as Ctrl-C does.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        if not self._unwound.wait(self._patience.unwinding):
            if self.ending.told_by == self.rank:
                print(f"emsplat: {self.ending.text}", file=sys.stderr, flush=True)
            os._exit(self.ending.code)

    def _report_stuck(self, path: Path, seconds: float) -> None:
        text = (
            f"rank {self.rank} on {self.hosts[self.rank]}, in stage {self.stage()}: reading {path} has taken "
            f"{seconds:.0f} s; look at that machine's file system"
        )
        self._end(Ending(text, LOST, self.rank))

    def _conclude_unreachable(self, why: str) -> None:
        """End the job because the store cannot be reached: this machine is cut off, or that of the first rank is."""
        here, first = self.hosts[self.rank], self.hosts[0]
        text = (
            f"rank {self.rank} on {here}, in stage {self.stage()}: rank 0 on {first}, where the ranks meet, cannot be "
            f"reached ({why}): one of the two machines is cut off or down, or rank 0 was killed; run the job again"
        )
        # The ranks cannot agree on who prints it, so the first rank of each machine does.
        self._adopt(json.dumps(asdict(Ending(text, LOST, self.hosts.index(here)))).encode())

    def _end(self, ending: Ending) -> Ending:
        """End the job in this way, unless it has ended meanwhile, and return how it ends."""
        try:
            with self._held():
                self._decide(ending)
        except Exception:
            self._adopt(json.dumps(asdict(ending)).encode())
        return self.ending or ending

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Reserve the store for this thread; TimeoutError if the network holds up the other thread."""
        if not self._lock.acquire(timeout=self._patience.agreeing):
            raise TimeoutError
        try:
            yield
        finally:
            self._lock.release()

    def _decide(self, ending: Ending) -> None:
        """Write the ending unless another rank was first; compare_set is atomic."""
        mine = json.dumps(asdict(ending))
        self._adopt(self._store.compare_set("ending", "", mine) or mine.encode())

    def _adopt(self, ending: bytes) -> None:
        self.ending = self.ending or Ending(**json.loads(ending))

    def _is_everywhere(self, text: str) -> bool:
        names = [f"failed/{rank}" for rank in range(len(self.hosts))]
        try:
            with self._held():
                return self._store.check(names) and all(v.decode() == text for v in self._store.multi_get(names))
        except Exception:
            return False
