"""Arguments that commands share. The command line shows the comments on the fields as help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

Output = Annotated[Path, arg(aliases=["-o"], metavar="DIR")]


@dataclass(frozen=True)
class JobOptions:
    """What every job can be asked besides its settings."""

    overwrite: bool = False  # Replace a run that the folder holds. The old run stays until the new one is complete.
    quiet: bool = False  # Print nothing but errors. The file run.log in the folder has the whole log.
    json: bool = False  # Print the summary as one JSON object; progress and warnings go to standard error.


@dataclass(frozen=True)
class LongJobOptions(JobOptions):
    """What a job can be asked that can be resumed and watched."""

    # Continue the run that was interrupted in the folder, to the same result. If there is none, start one.
    resume: bool = False
    view: bool = False  # Show the run in the browser while it is in progress.
    # Address that the view listens on. With the default only this machine can look; with 0.0.0.0 everyone who can reach
    # this machine can.
    host: str = "127.0.0.1"
    port: int = 8080  # Port that the view listens on. If it is taken, one of the next ports is used.
