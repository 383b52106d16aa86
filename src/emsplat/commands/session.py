"""What surrounds a long job at the command line: reporter, ranks, claimed folder, checkpoints, and view."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emsplat.commands.arguments import LongJobOptions
from emsplat.versions import __version__

if TYPE_CHECKING:
    from emsplat.outputs.claims import Folder
    from emsplat.runtime.checkpoint import Checkpoints
    from emsplat.runtime.console import ConsoleReporter
    from emsplat.runtime.ranks import World


@dataclass(frozen=True)
class Session:
    """One process of a long job."""

    output: Path
    options: LongJobOptions
    reporter: ConsoleReporter  # shows nothing on other ranks than the first
    world: World

    @property
    def may_be_complete(self) -> bool:
        """Whether to look for a complete run in the folder, with which a resumed job has nothing left to do."""
        return self.world.is_first and self.options.resume and not self.options.overwrite

    @contextmanager
    def at_work(self, kind: type[Folder] | None = None) -> Iterator[Checkpoints]:
        """Claim the folder and show the view while the block works; yields the job's checkpoints.

        Args: kind: the kind of folder that the job writes; by default that of a reconstruction.
        """
        from emsplat.outputs.claims import claimed
        from emsplat.runs.run_folder import RunFolder
        from emsplat.runtime.checkpoint import checkpoints_of

        options, reporter, world = self.options, self.reporter, self.world
        view: AbstractContextManager[None] = nullcontext()
        if options.view and world.is_first:
            from emsplat.viewer.live import watched

            view = watched(reporter, options.host, options.port)
        claim = claimed(self.output, options.overwrite, reporter, kind or RunFolder)
        with claim if world.is_first else nullcontext(), view:
            checkpoints = checkpoints_of(self.output, options.resume, options.overwrite, reporter, world)
            with checkpoints.told_of_if_ended():
                yield checkpoints

    def tell_complete(self) -> None:
        """Report that the folder holds a complete run."""
        self.reporter.line(
            f"{self.output}: this run is complete, nothing is left to do; to make it again, use --overwrite"
        )


@contextmanager
def session(particles: Path, output: Path, options: LongJobOptions) -> Iterator[Session]:
    """The session of a command that was given these arguments, together with the other ranks."""
    from emsplat.runtime.console import ConsoleReporter
    from emsplat.runtime.ranks import joined

    if options.view:
        from emsplat.viewer.server import check_installed

        check_installed()
    reporter = ConsoleReporter(quiet=options.quiet, to_stderr=options.json)
    with joined(lambda: reporter.current) as world:
        if not world.is_first:
            reporter = ConsoleReporter(quiet=True)
        reporter.line(f"emsplat {__version__}: {particles} → {output}")
        if world.size > 1:
            reporter.line(f"{world.size} ranks on {', '.join(dict.fromkeys(world.hosts))}")
        yield Session(output, options, reporter, world)
