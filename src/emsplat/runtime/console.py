"""What the terminal shows of a job: lines, warnings, progress, and a closing table."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text

from emsplat.runtime.reporting import Reporter

_WIDTH_OF_A_FILE = 200  # columns of the output if there is no terminal
_MAIN = threading.main_thread()


class _Rate(ProgressColumn):
    """Done, total and rate, as "1,200 / 10,000 images, 410/s", or elapsed seconds if no total is known."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(f"{task.elapsed or 0:.0f} s", style="dim")
        rate = f", {task.speed:,.0f}/s" if task.speed else ""
        return Text(f"{task.completed:,.0f} / {task.total:,.0f} {task.fields['unit']}{rate}", style="dim")


class _Left(TimeRemainingColumn):
    """Time left, or nothing if no total is known."""

    def render(self, task: Task) -> Text:
        return Text("") if task.total is None else Text("left ", style="dim") + super().render(task)


class ConsoleReporter(Reporter):
    """Shows everything. Moving parts, colours and links appear only on a terminal, so that a log file holds lines."""

    def __init__(
        self,
        console: Console | None = None,
        *,
        quiet: bool = False,
        to_stderr: bool = False,
        worth_a_line: float = 2.0,
        sign_of_life: float = 60.0,
    ) -> None:
        """Report to a console.

        Args:
            console: by default, the standard output.
            quiet: show nothing, but keep the log.
            to_stderr: leave standard output to the caller.
            worth_a_line: seconds; work that took longer leaves a line when it is done.
            sign_of_life: seconds between two lines about the same work, if there is no terminal.
        """
        super().__init__()
        self._worth_a_line, self._sign_of_life = worth_a_line, sign_of_life
        stream = sys.stderr if to_stderr else sys.stdout
        # Colours that the environment forces on other programs have no place in a log file.
        terminal = stream is not None and stream.isatty()
        self.console = console or Console(highlight=False, quiet=quiet, stderr=to_stderr, force_terminal=terminal)
        self.is_terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        if not self.is_terminal:
            self.console.width = _WIDTH_OF_A_FILE
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), _Rate(), _Left(compact=True),
            console=self.console, transient=True,
        )  # fmt: skip

    def line(self, text: str) -> None:
        super().line(text)
        style = "yellow" if text.startswith("warning:") else None
        self.console.print(text, style=style, markup=False, soft_wrap=not self.is_terminal)

    @contextmanager
    def bar(self, title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        start = time.perf_counter()
        last, told = 0, start
        with self._task(title, unit) as update:

            def advance(done: int, total: int) -> None:
                nonlocal last, told
                last = done
                update(done, total)
                now = time.perf_counter()
                if not self.is_terminal and done < total and now - told > self._sign_of_life:
                    told = now
                    self._plain(_sign_of_life(title, unit, done, total, now - start))

            yield advance
        elapsed = time.perf_counter() - start
        if elapsed > self._worth_a_line:
            self.line(f"{title}: {last:,} {unit} in {elapsed:.1f} s, {last / elapsed:,.0f} {unit}/s")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with super().stage(name), self._task(name, ""):
            yield

    @contextmanager
    def loading(self) -> Iterator[None]:
        """The stage in which modules are imported; what they leave is never looked at by the garbage collector.

        Imports make half a million objects that live to the end. The collector would go through them again and again
        while they are made, at every later full collection, and at the exit of the program.
        """
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            with self.stage("loading"):
                yield
        finally:
            gc.freeze()
            if was_enabled:
                gc.enable()

    @contextmanager
    def _task(self, title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """A line that moves while the block runs. It hides the line of the outer stage.

        Threads that work at the same time have a line each.
        """
        if not self.is_terminal:
            yield lambda done, total: None
            return
        progress, thread = self._progress, threading.current_thread()
        with self._lock:
            outer = [task.id for task in progress.tasks if task.visible and task.fields["thread"] in (thread, _MAIN)]
            for task_id in outer:
                progress.update(task_id, visible=False)
            mine = progress.add_task(title, total=None, unit=unit, thread=thread)
            progress.start()
        try:
            yield lambda done, total: progress.update(mine, completed=done, total=total)
        finally:
            with self._lock:
                progress.remove_task(mine)
                for task_id in outer:
                    progress.update(task_id, visible=True)
                if not progress.tasks:
                    progress.stop()

    def closing(self, rows: Iterable[tuple[str, str | Path]], curve: Iterable[str]) -> None:
        """Print a curve in text, then names and values; paths can be clicked on."""
        self._plain("")
        for line in curve:
            self._plain(line)
        if not self.is_terminal:
            for name, value in rows:
                self._plain(f"{name:<15}  {value}")
            return
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            link = value.absolute().as_uri() if isinstance(value, Path) else None
            table.add_row(name, Text().append(str(value), Style(bold="resolution" in name, link=link)))
        self.console.print(table)

    def _plain(self, text: str) -> None:
        """Print a line that does not go to the log."""
        self.console.print(text, markup=False, soft_wrap=True)


def _sign_of_life(title: str, unit: str, done: int, total: int, seconds: float) -> str:
    left = seconds * (total - done) / max(done, 1) / 60
    return f"{title}: {done:,} / {total:,} {unit}, {done / seconds:,.0f}/s, about {max(left, 1):.0f} min left"
