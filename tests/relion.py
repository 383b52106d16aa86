"""RELION as a judge: runs one of its programs, or skips the test, loudly, where it is not installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from processes import PATIENCE


def run_relion(program: str, *arguments: object, folder: Path | None = None) -> str:
    """Standard output of ``program arguments``, run in `folder`."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed, so RELION cannot judge this: apt-get install relion")
    command = [program, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
