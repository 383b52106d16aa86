"""The findings of a check: a verdict, and one line of advice if something is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["fine", "problem", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    verdict: Verdict
    text: str  # what was found, with its numbers
    advice: str | None = None  # what to do about it

    def line(self) -> str:
        """The finding as the terminal shows it."""
        return f"{self.topic}: {self.text}" + (f" → {self.advice}" if self.advice else "")


def fine(topic: str, text: str) -> Finding:
    return Finding(topic, "fine", text)


def problem(topic: str, text: str, advice: str) -> Finding:
    return Finding(topic, "problem", text, advice)


def note(topic: str, text: str, advice: str | None = None) -> Finding:
    return Finding(topic, "note", text, advice)
