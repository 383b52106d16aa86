"""The help of every command ends with examples that the command line understands."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest

from emsplat import cli
from emsplat.commands import COMMANDS, relion_job
from emsplat.commands.help import examples_of

Command = Callable[..., Any]


def commands_in(examples: str) -> list[list[str]]:
    """The words of each command line, each of which has a comment before it."""
    lines = examples.strip().split("\n")
    comments, typed = lines[::2], lines[1::2]
    assert len(comments) == len(typed) >= 2
    assert all(line.strip().startswith("# ") and line.endswith(":") for line in comments)
    return [shlex.split(line) for line in typed]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def idle(command: Command, chosen: bool) -> Command:
        """The same command line, without the work behind it."""
        return wraps(command)(lambda *_, **__: called.append(command.__name__))

    monkeypatch.setattr(cli, "for_the_terminal", idle)
    examples = commands_in(examples_of(COMMANDS[name]))
    for words in examples:
        assert words[:2] == ["emsplat", name]
        assert cli.main(words[1:]) == 0
    assert called == [name] * len(examples)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_the_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    shown, _, examples = capsys.readouterr().out.partition("\nexamples:\n")
    assert commands_in(examples) == commands_in(examples_of(COMMANDS[name]))
    assert "Examples" not in shown


def test_the_overview_has_one_paragraph_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert "examples:" not in shown
    assert shown.count("•") == len(COMMANDS)


def test_a_mistake_shows_no_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "--nonsense"])
    assert ended.value.code == 2
    assert "examples:" not in capsys.readouterr().out


def test_the_examples_of_the_external_job_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        relion_job.main(["--help"])
    shown = capsys.readouterr().out.partition("\nexamples:\n")[2]
    for words in commands_in(shown):
        assert words[0] == "emsplat-relion"
        options, passed_on = relion_job._parser().parse_known_args(words[1:])
        assert options.o
        assert options.in_parts
        assert all(option.startswith("--") for option in passed_on[::2])
