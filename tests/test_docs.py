"""The pages: links lead somewhere, files that they name exist, and the command line understands their commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from emsplat import cli
from emsplat.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"])
Command = Callable[..., Any]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path) if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_script_and_source_file_that_is_named_exists(page: Path) -> None:
    ours = {path.name for base in (ROOT, ROOT / "src" / "emsplat") for path in base.iterdir() if path.is_dir()}
    for name in re.findall(r"`((?:[\w]+/)+\w+\.(?:py|sh|md))`", page.read_text(encoding="utf-8")):
        if name.split("/")[0] not in ours:
            continue  # of another program
        assert any((base / name).is_file() for base in (ROOT, ROOT / "src" / "emsplat")), name


def commands_of(page: Path) -> list[str]:
    """The emsplat commands in the code blocks of a page, without comments; parts that are optional are included."""
    text = page.read_text(encoding="utf-8")
    blocks = [*re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S), *re.findall(r"^    (.*)$", text, re.M)]
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [re.sub(r"[\[\]]", "", line.partition("  #")[0]) for line in lines if line.startswith("emsplat ")]


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=lambda page: page.stem)
def test_every_command_is_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def idle(command: Command, chosen: bool) -> Command:
        """The same command line, without the work behind it."""
        return wraps(command)(lambda *_, **__: called.append(command.__name__))

    monkeypatch.setattr(cli, "for_the_terminal", idle)
    for line in commands_of(page):
        words = shlex.split(line)
        assert words[1] in COMMANDS, line
        assert cli.main(words[1:]) == 0, line
    assert len(called) == len(commands_of(page))
