"""A pytest plugin: which tests take the most processor time, their own and that of the programs they start.

``python -m pytest -p cpu_seconds tests/io`` lists them at the end. On a machine that others use too, processor seconds
tell what a test costs, and wall-clock seconds (``--durations``) do not. A fixture's time is counted with the test that
first asks for it.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Iterator

import pytest

_SHOWN = 40
_seconds: Counter[str] = Counter()


def _used() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _measured(item: pytest.Item, when: str) -> Iterator[None]:
    before = _used()
    yield
    _seconds[f"{item.nodeid} ({when})"] += _used() - before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    yield from _measured(item, "fixtures")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    yield from _measured(item, "test")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield from _measured(item, "fixtures")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("processor seconds")
    by_file: Counter[str] = Counter()
    for name, seconds in _seconds.items():
        by_file[name.split("::")[0]] += seconds
    for title, counted in (("tests", _seconds), ("files", by_file)):
        terminalreporter.write_line(f"{title}: {sum(counted.values()):.1f} s in all")
        for name, seconds in counted.most_common(_SHOWN):
            terminalreporter.write_line(f"{seconds:8.2f}  {name}")
