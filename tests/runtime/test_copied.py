"""Work that two processes share comes to the same as work that one does."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from emsplat.runtime import copied


def note(path: Path) -> None:
    path.write_text(str(os.getpid()))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(copied, "_may_copy", lambda: True)
    return [tmp_path / str(number) for number in range(5)]


def test_every_second_piece_is_done_elsewhere(files: list[Path]) -> None:
    copied.in_two_processes([partial(note, path) for path in files])
    makers = [int(path.read_text()) for path in files]
    assert makers[::2] == [os.getpid()] * 3
    assert makers[1] == makers[3] != os.getpid()


def test_with_one_thread_all_is_done_here(files: list[Path]) -> None:
    copied.in_two_processes([partial(note, path) for path in files], only_one=True)
    assert {int(path.read_text()) for path in files} == {os.getpid()}


def test_interrupts_reach_the_original_alone(files: list[Path]) -> None:
    def tell(path: Path) -> None:
        path.write_text(str(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())))

    copied.in_two_processes([partial(tell, path) for path in files[:2]])
    assert [path.read_text() for path in files[:2]] == ["False", "True"]


def test_what_fails_in_the_copy_is_done_again_here(files: list[Path]) -> None:
    here = os.getpid()

    def fail_elsewhere() -> None:
        assert os.getpid() == here
        note(files[1])

    copied.in_two_processes([partial(note, files[0]), fail_elsewhere, partial(note, files[2])])
    assert [int(path.read_text()) for path in files[:3]] == [here] * 3


def test_an_error_is_raised_here(files: list[Path]) -> None:
    with pytest.raises(ZeroDivisionError):
        copied.in_two_processes([partial(note, files[0]), lambda: 1 // 0])  # type: ignore[list-item, return-value]
    with pytest.raises(ZeroDivisionError):
        copied.in_two_processes([lambda: 1 // 0, partial(note, files[1])])  # type: ignore[list-item, return-value]
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # no copy is left


def test_a_copy_that_hangs_is_given_up(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied, "_PATIENCE", 0.05)
    here = os.getpid()

    def hang_elsewhere() -> None:
        while os.getpid() != here:
            pass
        note(files[1])

    copied.in_two_processes([partial(note, files[0]), hang_elsewhere])
    assert int(files[1].read_text()) == here
