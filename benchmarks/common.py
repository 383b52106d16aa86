"""What all benchmarks share: options, result files, cached simulations, and F."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import emsplat
from emsplat.io.mrc import read_map
from emsplat.runtime.reporting import Reporter
from emsplat.runtime.threads import relax_openmp
from emsplat.settings import ReconstructSettings, SimulationSettings
from emsplat.validation.correlation import fsc

relax_openmp()  # before anything imports torch

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
SHARED = Path(os.environ.get("EMSPLAT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))


def arguments(description: str | None, **defaults: tuple[Any, str]) -> argparse.Namespace:
    """The options all benchmarks have, and whole numbers of their own: ``name=(default, help)``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for simulations and runs; kept and used again")
    parser.add_argument("--quick", action="store_true", help="tiny data: a smoke test, its numbers mean nothing")
    parser.add_argument("--results", type=Path, help="folder of the tables [benchmarks/results; quick: WORK/results]")
    for name, (default, text) in defaults.items():
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=type(default), default=default, help=f"{text} [{default}]")
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    args.results = args.results or (args.work / "results" if args.quick else RESULTS)
    return args


# --- result files -----------------------------------------------------------------------------------------------------


class Report:
    """A Markdown page and the same numbers as JSON, written anew after every table so that nothing is lost."""

    def __init__(self, name: str, title: str, args: argparse.Namespace, keep: bool = False) -> None:
        """Args: keep: begin with the tables of the last run, to which this one adds rows."""
        self.name, self.title, self.folder, self.quick = name, title, args.results, args.quick
        self.environment = environment()
        self.started = time.perf_counter()
        self.texts: dict[str, str] = {}
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.extra: dict[str, Any] = {}  # goes into the JSON only
        if keep:
            self.take_up()

    def take_up(self) -> None:
        """Take the tables that the files hold, which another run may have written meanwhile."""
        last = self.folder / f"{self.name}.json"
        content = json.loads(last.read_text(encoding="utf-8")) if last.exists() else {"quick": None}
        if content["quick"] == self.quick:
            self.tables, self.texts = content["tables"], content.get("texts", {})

    def table(self, heading: str, rows: list[dict[str, Any]], text: str = "") -> None:
        """Set the table under a heading; rows are dicts with the same keys, in the order of the columns."""
        shown = len(self.tables.get(heading, ()))
        self.tables[heading], self.texts[heading] = list(rows), text
        self.write()
        lines = markdown(rows).splitlines()
        print("\n".join(lines[shown + 2 :] if shown else ["", heading, "", *lines]), flush=True)

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = self.environment | {"seconds so far": round(time.perf_counter() - self.started)}
        page = [f"# {self.title}", ""]
        page += ["**Quick run: a smoke test, the numbers mean nothing.**", ""] if self.quick else []
        for heading, rows in self.tables.items():
            text = self.texts.get(heading)
            page += [f"## {heading}", "", *([text, ""] if text else [])]
            page += [markdown(rows), ""]
        page += ["## How this was made", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
        (self.folder / f"{self.name}.md").write_text("\n".join(page), encoding="utf-8")
        content = {"environment": facts, "quick": self.quick, "texts": self.texts, "tables": self.tables} | self.extra
        text = json.dumps(content, indent=1, default=_plain, ensure_ascii=False)
        (self.folder / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def markdown(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "(nothing yet)"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_shown(v) for v in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "**no**"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}" if abs(value) < 1 else f"{value:.4g}"
    return str(value)


def environment() -> dict[str, Any]:
    """The command, the date, the machine and the versions of the libraries."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    command = [Path(sys.argv[0]).resolve().relative_to(REPOSITORY).as_posix(), *sys.argv[1:]]
    for option in ("--work", "--results", "--cryodrgn", "--recovar"):
        if option in command:
            command[command.index(option) + 1] = option.removeprefix("--").upper()  # where is nobody's business
    versions = {name: _version(name) for name in ("numpy", "scipy", "numba", "torch")}
    relion = _output(["relion_reconstruct", "--version"]).removeprefix("RELION version:").split("\n")[0].strip()
    revision = _output(["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"])
    return {
        "command": f"`python {' '.join(command)}`",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{cores()} cores, {model}, load {os.getloadavg()[0]:.1f} at the start",
        "emsplat": f"{emsplat.__version__}, revision {revision}",
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "RELION": relion or "not installed",
    }


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


# --- times ------------------------------------------------------------------------------------------------------------


class ProcessorTimes(Reporter):
    """A reporter that takes the processor time of each stage, which other work on the machine hardly changes."""

    def __init__(self) -> None:
        super().__init__()
        self.processor_seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.process_time()
        with super().stage(name):
            yield
        self.processor_seconds[name] = self.processor_seconds.get(name, 0.0) + time.process_time() - start

    def line(self, text: str) -> None:
        super().line(text)
        print(f"  [{time.process_time():.0f} CPU s] {text}", flush=True)


# --- simulations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A simulation by name, so that tables can be read."""

    name: str
    model: str  # in shared/data/models
    settings: SimulationSettings


def simulated(case: Case, work: Path, seed: int = 0) -> Path:
    """The star of a case; simulated once, then found again by its settings."""
    settings = replace(case.settings, seed=seed)
    key = hashlib.sha256(repr((case.model, settings)).encode()).hexdigest()[:10]
    folder = (
        work / "simulations" / f"{Path(case.model).name.split('.')[0]}-{settings.box_size}-{settings.n_images}-{key}"
    )
    if not (folder / "particles.star").exists():
        print(f"simulating {case.name}, seed {seed}: {folder.name}", flush=True)
        emsplat.simulate(SHARED / "models" / case.model, folder, settings, overwrite=True)
    return folder / "particles.star"


def reconstructed(source: Any, warnings: list[str] | None = None, **settings: Any) -> tuple[Any, dict[str, float]]:
    """Our job in this process, and its seconds by stage; what it warns of is appended to `warnings`."""
    reporter = Reporter()
    result = emsplat.reconstruct(source, ReconstructSettings(**settings), reporter)
    if warnings is not None:
        warnings += reporter.warnings
    return result, reporter.seconds


def mean_fsc(volume: NDArray, truth: NDArray, mask: NDArray) -> float:
    """F: the FSC with the truth within the true mask, mean over shells 1 .. D//2."""
    return float(np.mean(np.nan_to_num(fsc(np.asarray(volume, dtype=np.float32), truth, mask))))


def truth_and_mask(star: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return read_map(star.parent / "truth.mrc").values, read_map(star.parent / "mask.mrc").values
