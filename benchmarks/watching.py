"""The cost of watching a fit: without a browser, with a browser elsewhere, and with one that draws on the same cores.

The three kinds take turns, and every watched fit is compared with the unwatched fit before it. The browser elsewhere is
one on this machine with a tiny window, which receives everything and draws hardly anything.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import emsplat
from cases import QUICK, RUVB
from common import Report, arguments, simulated
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings
from emsplat.viewer.live import watched

_LIMIT = 1.05
_FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--window-size=900,700")
_TEXT = f"""The stage `fit` of the whole job, both halves: medians of the quotients of neighbouring fits. CPU time is
that of the process, sending included and the browser left out; it says what the fit loses where every core is busy.
**Required: at most {_LIMIT} for a browser elsewhere.** Drawing without a graphics card takes the cores themselves."""


class Clocked(Reporter):
    """A reporter that also keeps the processor time of the fits."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu, self.pictures = 0.0, 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        before = time.process_time()
        with super().stage(name):
            yield
        if name == "fit":
            self.cpu += time.process_time() - before


@contextmanager
def looking(reporter: Clocked, hidden: bool) -> Iterator[None]:
    """Keep the page of a watched job open in a browser."""
    view: Any = reporter.watcher
    address = f"http://localhost:{view._server.get_port()}"
    show = view._draw

    def counted() -> None:
        show()
        reporter.pictures += 1

    view._draw = counted
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Hardly anything to draw; a page without an area never says that it is there.
        size = ("--window-size=200,150",) if hidden else ()
        command = [shutil.which("chromium"), "--headless", *_FLAGS, *size, f"--user-data-dir={profile}", address]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as browser:
            while not view._server.get_clients():
                time.sleep(0.1)
            yield
            browser.kill()


def fit(star: Any, kind: str) -> tuple[float, float, Clocked]:
    """The wall-clock and processor seconds of the fits of one job."""
    reporter = Clocked()
    with watched(reporter, "127.0.0.1", 0) if kind != "not watched" else nullcontext():
        looked_at = kind.startswith("browser")
        with looking(reporter, "elsewhere" in kind) if looked_at else nullcontext():
            emsplat.reconstruct(star, ReconstructSettings(), reporter)
    return reporter.seconds["fit"], reporter.cpu, reporter


def main() -> None:
    args = arguments(__doc__, repeats=(5, "of every kind"))
    star = simulated(QUICK if args.quick else RUVB, args.work)
    report = Report("watching", "A fit that is watched", args)
    fit(star, "not watched")  # compiles
    kinds = ("no browser", "browser elsewhere", "browser on these cores")
    ratios: dict[str, list[tuple[float, float, int, float]]] = {kind: [] for kind in kinds}
    for _ in range(1 if args.quick else args.repeats):
        for kind in kinds:
            seconds, cpu, _ = fit(star, "not watched")
            slowed, used, reporter = fit(star, kind)
            ratios[kind].append((slowed / seconds, used / cpu, reporter.pictures, slowed))
        rows = []
        for kind in kinds:
            time_ratio, cpu_ratio, pictures, slowed = map(statistics.median, zip(*ratios[kind], strict=True))
            rows.append({
                "watched by": kind, "fits": len(ratios[kind]), "seconds": slowed, "pictures sent": int(pictures),
                "time, of unwatched": time_ratio, "CPU time, of unwatched": cpu_ratio,
                f"at most {_LIMIT}": max(time_ratio, cpu_ratio) <= _LIMIT,
            })  # fmt: skip
        report.table("Watched and unwatched", rows, _TEXT)


if __name__ == "__main__":
    main()
