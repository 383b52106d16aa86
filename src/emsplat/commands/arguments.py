"""Arguments that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

Output = Annotated[Path, arg(aliases=["-o"], metavar="DIR")]
