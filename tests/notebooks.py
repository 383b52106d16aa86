"""Runs the cells of a notebook without Jupyter.

As a program (``python tests/notebooks.py docs/tutorial.ipynb``), it runs the notebook in a new folder and stores in it
what the cells print and draw.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt

_DOTS_PER_INCH = 80


def read_notebook(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def run_cells(notebook: dict[str, Any], changed: Mapping[str, str]) -> dict[str, Any]:
    """Run the code cells in the working directory, one after another, and store their outputs in them.

    Args:
        changed: texts of cells and what stands in their place, to run on less data; each must occur.
    Returns:
        The names that the cells have defined.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    left = dict(changed)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        text = "".join(cell["source"])
        for old in [old for old in left if old in text]:
            text = text.replace(old, left.pop(old))
        pictures: list[str] = []
        printed = io.StringIO()
        with redirect_stdout(printed), mock.patch.object(plt, "show", lambda kept=pictures: kept.append(_picture())):
            exec(compile(text, f"cell {number}", "exec"), names)
        cell["execution_count"], cell["outputs"] = number, _outputs(printed.getvalue(), pictures)
    assert not left, f"no cell has {list(left)}"
    return names


def _picture() -> str:
    """The current figure, which is closed."""
    buffer = io.BytesIO()
    plt.savefig(buffer, dpi=_DOTS_PER_INCH, bbox_inches="tight")
    plt.close("all")
    return base64.b64encode(buffer.getvalue()).decode()


def _outputs(printed: str, pictures: list[str]) -> list[dict[str, Any]]:
    text = [{"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)}] if printed else []
    shown = [{"output_type": "display_data", "data": {"image/png": picture}, "metadata": {}} for picture in pictures]
    return [*text, *shown]


def main() -> None:
    path = Path(sys.argv[1]).absolute()
    notebook = read_notebook(path)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run_cells(notebook, {})
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    plt.switch_backend("agg")
    main()
