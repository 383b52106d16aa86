"""Where the viewer listens, and what it refuses."""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emsplat.cli import main
from emsplat.viewer import server

pytest.importorskip("viser")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that someone listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_taken_port_is_refused_or_passed_over(
    taken: int, refuses: Callable, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    with refuses(f"--port {taken}", "another program"):
        server.start("127.0.0.1", taken)
    started = server.start("127.0.0.1", taken, or_next=True)
    try:
        port = started.get_port()
        assert taken < port <= taken + 50
        here, there = server.addresses(started)
        assert f"http://localhost:{port}" in here
        assert f"ssh -L {port}:localhost:{port} " in there
        with socket.socket() as elsewhere, pytest.raises(ConnectionRefusedError):
            elsewhere.connect(("127.0.0.2", port))  # listens at one address, not at all
        for greeting in (b"", b"nonsense\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port)) as rude:
                rude.sendall(greeting)
        time.sleep(0.5)
        said = capfd.readouterr()
        assert said.out + said.err == "" and caplog.records == []
    finally:
        started.stop()


def test_bad_addresses_are_refused(refuses: Callable) -> None:
    with refuses("--port 70000", "65535"):
        server.start("127.0.0.1", 70000)
    with refuses("--host 203.0.113.7", "not an address of this machine"):
        server.start("203.0.113.7", 0)


def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, taken: int, run_folder: Path
) -> None:
    half_done = tmp_path / "half_done"
    half_done.mkdir()
    (half_done / "map.mrc").touch()
    cases = [
        (["view", str(tmp_path / "nowhere")], "no finished run"),
        (["view", str(half_done)], "no finished run"),
        (["view", str(run_folder), "--port", str(taken)], f"--port {taken}"),
        (["view", str(run_folder), "--port", "0", "--model", str(tmp_path / "no.pdb")], "no.pdb"),
        (["view", str(run_folder), "--most-gaussians", "0"], "--most-gaussians 0"),
    ]
    for arguments, culprit in cases:
        assert main(arguments) == 2
        complaint = capsys.readouterr().err
        assert culprit in complaint and complaint.count("\n") == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for arguments in (["view", str(run_folder)], ["reconstruct", "x.star", "-o", str(tmp_path / "out"), "--view"]):
        assert main(arguments) == 2
        assert "pip install 'emsplat[viewer]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
