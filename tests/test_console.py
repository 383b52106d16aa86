"""What the terminal shows."""

from __future__ import annotations

import time
from io import StringIO

import pytest
from rich.console import Console

from emsplat import console as module
from emsplat.console import ConsoleReporter


def reporter(terminal: bool, width: int = 100) -> tuple[ConsoleReporter, StringIO]:
    file = StringIO()
    return ConsoleReporter(Console(file=file, force_terminal=terminal, width=width, highlight=False)), file


def work(reporter: ConsoleReporter, pause: float) -> None:
    with reporter.stage("outer"), reporter.bar("reading images", "images") as advance:
        for done in range(0, 401, 100):
            advance(done, 400)
            time.sleep(pause)


def test_a_terminal_sees_rate_and_time_left() -> None:
    listener, file = reporter(terminal=True)
    work(listener, 0.15)
    shown = file.getvalue()
    assert "reading images" in shown
    assert "400 images" in shown
    assert "/s" in shown
    assert "left" in shown
    assert shown.rstrip().endswith(("\x1b[?25h", "\x1b[2K", "\x1b[1A\x1b[2K"))  # cursor shown again, the bar wiped


def test_a_file_sees_lines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_A_LINE", 0.05)
    listener, file = reporter(terminal=False)
    work(listener, 0.02)
    listener.warn("a path [with brackets] " + 40 * "long ")
    listener.table([("resolution", "3.00 Å"), ("map", "run/" + 30 * "deep/" + "map.mrc")])
    shown = file.getvalue()
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert "reading images: 400 images in 0." in shown
    assert f"warning: a path [with brackets] {40 * 'long '}".rstrip() in shown.splitlines()[1]
    assert len(shown.splitlines()) == 5


def test_the_log_has_time_stamps_and_the_warnings() -> None:
    listener, _ = reporter(terminal=True)
    listener.line("first")
    listener.warn("careful")
    assert [line[19:] for line in listener.log] == ["  first", "  warning: careful"]
    assert listener.warnings == ["careful"]


def test_an_interrupt_gives_the_cursor_back() -> None:
    listener, file = reporter(terminal=True)
    with pytest.raises(KeyboardInterrupt), listener.stage("outer"), listener.bar("fitting", "steps") as advance:
        advance(1, 10)
        raise KeyboardInterrupt
    assert file.getvalue().rfind("\x1b[?25h") > file.getvalue().rfind("\x1b[?25l")
    assert set(listener.seconds) == {"outer"}
