"""What the terminal shows."""

from __future__ import annotations

import gc
import json
import re
import threading
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from emsplat.cli import main
from emsplat.runtime.console import ConsoleReporter


def reporter(terminal: bool, width: int = 100, **pace: float) -> tuple[ConsoleReporter, StringIO]:
    file = StringIO()
    return ConsoleReporter(Console(file=file, force_terminal=terminal, width=width, highlight=False), **pace), file


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


def test_a_file_sees_lines_alone() -> None:
    listener, file = reporter(terminal=False, worth_a_line=0.05)
    work(listener, 0.02)
    listener.warn("a path [with brackets] " + 40 * "long ")
    path = Path("run") / (30 * "deep/") / "map.mrc"
    listener.closing([("resolution", "3.00 Å"), ("map", path)], ["1.0 ┤", "0.5 ┤", ""])
    shown = file.getvalue()
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert "reading images: 400 images in 0." in shown
    lines = shown.splitlines()
    assert f"warning: a path [with brackets] {40 * 'long '}".rstrip() in lines[1]
    assert lines[2:] == ["", "1.0 ┤", "0.5 ┤", "", "resolution       3.00 Å", f"map              {path}"]


def test_a_terminal_is_given_links(tmp_path: Path) -> None:
    listener, file = reporter(terminal=True, width=300)
    listener.closing([("map", tmp_path / "a map.mrc")], [])
    target = (tmp_path / "a map.mrc").as_uri()
    assert f";{target}\x1b\\" in file.getvalue()  # OSC 8


def test_a_file_is_told_now_and_then_that_long_work_goes_on() -> None:
    listener, file = reporter(terminal=False, sign_of_life=0.05)
    work(listener, 0.04)
    lines = file.getvalue().splitlines()
    assert 1 <= len(lines) <= 2
    assert all(
        re.fullmatch(r"reading images: [1-3]00 / 400 images, [\d,]+/s, about 1 min left", line) for line in lines
    )
    assert listener.log == []


def test_a_dumb_terminal_sees_lines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    listener, file = reporter(terminal=True)
    work(listener, 0.01)
    listener.closing([("map", Path("map.mrc"))], [])
    assert "\x1b" not in file.getvalue()


def test_nothing_forces_control_characters_into_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    listener = ConsoleReporter()
    listener.warn("careful")
    work(listener, 0.01)
    assert capsys.readouterr().out == "warning: careful\n"


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


# --- what a run prints ------------------------------------------------------------------------------------------------

_QUICKLY = ("--max-resolution", "14", "--n-gaussians", "200")


def test_json_has_the_standard_output_to_itself(simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "run"
    assert main(["reconstruct", str(simulated / "particles.star"), "-o", str(folder), "--json", *_QUICKLY]) == 0
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    assert shown.out.count("\n") == 1
    assert printed == {"folder": str(folder)} | json.loads((folder / "summary.json").read_text())
    assert "\nmap              " + str(folder / "map.mrc") in shown.err
    assert "1.0 ┤⠉" in shown.err
    assert "\x1b" not in shown.err
    assert not [line for line in shown.err.splitlines() if line.endswith(" ")]


def test_quiet_prints_nothing_but_errors(simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["reconstruct", str(simulated / "particles.star"), "-o", str(tmp_path / "run"), "--quiet", *_QUICKLY]
    assert main(arguments) == 0
    assert capsys.readouterr() == ("", "")
    assert "resolution: " in (tmp_path / "run" / "run.log").read_text()
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "--overwrite" in shown.err


def test_imports_are_kept_from_the_garbage_collector_and_it_works_again_afterwards() -> None:
    reporter = ConsoleReporter(quiet=True)
    before = gc.get_freeze_count()
    try:
        with pytest.raises(ImportError), reporter.loading():
            assert not gc.isenabled()
            lasting = [[] for _ in range(1000)]
            raise ImportError
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(lasting)
        assert reporter.seconds["loading"] > 0
    finally:
        gc.unfreeze()


def test_threads_that_work_at_the_same_time_have_a_line_each() -> None:
    listener, file = reporter(terminal=True)
    both = threading.Barrier(2, timeout=10)

    def fit(number: int) -> None:
        with listener.stage("fit"), listener.bar(f"fitting half {number}", "steps") as advance:
            advance(1, 2)
            both.wait()  # so that each sees the other's line
            time.sleep(0.2 * number)

    workers = [threading.Thread(target=fit, args=(number,)) for number in (1, 2)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    frames = file.getvalue().split("\x1b[1A")
    assert any("fitting half 1" in frame for frame in frames)
    assert "fitting half 2" in frames[-1] or "fitting half 2" in frames[-2]
    assert listener.seconds["fit"] <= time.perf_counter() - started  # the time of both counts once
    assert listener.current == "start"
