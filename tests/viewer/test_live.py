"""A fit that is watched: the browser shows it moving, and nothing that becomes of the browser disturbs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chromium import CHROMIUM, FLAGS, pixels
from emsplat.models.parameters import Parameters
from emsplat.reconstruction.reconstruct import Reconstruction, reconstruct
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings
from processes import PATIENCE

pytest.importorskip("viser")
from emsplat.viewer.live import watched


class Job:
    """The main job in a thread, watched, slowed so that there is something to see; seed as the fixture's."""

    def __init__(self, star: Path) -> None:
        self.reporter, self.steps = Reporter(), 0
        self.result: Reconstruction | None = None
        self.view: Any = None
        self._ready = threading.Event()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(star,))
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        [self.address] = re.findall(r"look at (http://localhost:\d+)", "\n".join(self.reporter.log))

    def _work(self, star: Path) -> None:
        with watched(self.reporter, "127.0.0.1", 0):
            view = self.view = self.reporter.watcher

            def slow(*shown: Any) -> None:
                self.steps += 1
                view(*shown)
                self._hurry.wait(1.5)

            self.reporter.watcher = slow
            self._ready.set()
            self.result = reconstruct(star, ReconstructSettings(seed=3, threads=2), self.reporter)

    def finished(self) -> Reconstruction:
        """What it makes, as fast as it can from now on."""
        self._hurry.set()
        self._thread.join(120)
        assert self.result is not None
        return self.result


def is_same(result: Reconstruction, expected: Reconstruction) -> bool:
    return np.allclose(result.map, expected.map, atol=1e-3 * np.abs(expected.map).max())


def test_the_browser_shows_the_fit_moving(
    browser: Any, simulated: Path, reconstructed: tuple[Reconstruction, Reporter]
) -> None:
    job = Job(simulated / "particles.star")
    page = browser.new_page(viewport={"width": 700, "height": 500})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(job.address)
    page.get_by_text("Gaussians", exact=False).first.wait_for(timeout=60_000)
    page.get_by_text(re.compile(r"half \d: [\d,]+ Gaussians")).wait_for(timeout=60_000)
    assert moves(page, job) >= 2
    page.reload()
    page.get_by_text(re.compile(r"half \d: [\d,]+ Gaussians")).wait_for(timeout=60_000)
    assert moves(page, job) >= 2
    result = job.finished()
    assert [url for url in asked if not url.startswith((job.address, "data:", "blob:"))] == []
    assert job.reporter.warnings == reconstructed[1].warnings
    assert is_same(result, reconstructed[0])
    page.close()


def moves(page: Any, job: Job) -> int:
    """How often another picture of the fit is shown, while it lasts, at most twice."""
    count, before = 0, pixels(page, "canvas[data-engine]")
    while count < 2 and job.result is None:
        page.wait_for_timeout(400)
        now = pixels(page, "canvas[data-engine]")
        count += int(np.abs(now - before).mean() > 1e-3)
        before = now
    return count


def test_a_killed_browser_disturbs_nothing(
    simulated: Path, reconstructed: tuple[Reconstruction, Reporter], tmp_path: Path
) -> None:
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM: a browser that dies is untested")
    job = Job(simulated / "particles.star")
    command = [CHROMIUM, "--headless", *FLAGS, f"--user-data-dir={tmp_path}", job.address]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as chromium:
        server = job.view._server
        for _ in range(300):
            if server.get_clients() and job.steps:
                break
            time.sleep(0.1)
        assert server.get_clients() and job.result is None
        os.killpg(chromium.pid, signal.SIGKILL)
    at_death = job.steps
    result = job.finished()
    assert job.steps > at_death
    assert job.reporter.warnings == reconstructed[1].warnings
    assert is_same(result, reconstructed[0])


def test_a_watcher_that_fails_is_dropped_with_one_warning() -> None:
    reporter = Reporter()
    calls = []

    def fails(*shown: Any) -> None:
        calls.append(shown)
        raise ValueError("no picture")

    reporter.watcher = fails
    for _ in range(3):
        reporter.watch(1, some_parameters(), 2.0)
    assert len(calls) == 1
    [warning] = reporter.warnings
    assert "no picture" in warning and "continues" in warning


def some_parameters(n: int = 50) -> Parameters:
    generator = torch.Generator().manual_seed(1)
    return Parameters(
        torch.randn(n, 3, generator=generator) * 10, torch.zeros(n, 3), torch.randn(n, 4, generator=generator),
        torch.zeros(n),
    )  # fmt: skip


class _Counting:
    """Parameters that count how often they are copied."""

    copies = 0

    def map(self, change: Callable) -> Parameters:
        type(self).copies += 1
        return some_parameters().map(change)


def test_a_fit_is_copied_seldom_and_a_viewer_that_fails_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = Reporter()
    with watched(reporter, "127.0.0.1", 0):
        view: Any = reporter.watcher
        start = time.monotonic()
        for _ in range(20_000):
            reporter.watch(1, _Counting(), 2.0)  # type: ignore[arg-type]
        elapsed = time.monotonic() - start
        assert 1 <= _Counting.copies <= 1 + elapsed / 0.5
        monkeypatch.setattr(view, "_draw", lambda: 1 / 0)
        monkeypatch.setattr(view._server, "get_clients", lambda: {0: None})
        view._news.set()
        view._thread.join(PATIENCE)
        reporter.watch(2, some_parameters(), 2.0)
        assert 2 not in view._latest
    [warning] = reporter.warnings
    assert "ZeroDivisionError" in warning and "the run goes on" in warning
