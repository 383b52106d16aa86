"""A plan as a table to read in the terminal."""

from __future__ import annotations

from rich.table import Table

from emsplat.plan.model import held_bytes
from emsplat.plan.run import Plan


def plan_table(plan: Plan) -> Table:
    """A table with a row for each stage, and one for the whole job."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage")
    for name in ("time", "memory of a process", "left on the disk"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("limited by")
    held = held_bytes(plan.job, plan.rates)
    for stage in plan.stages:
        disk = size_text(stage.disk_bytes) if stage.disk_bytes else ""
        table.add_row(
            stage.name, time_text(stage.seconds), size_text(held + stage.memory_bytes), disk, stage.limited_by
        )
    table.add_row(
        "whole job", time_text(plan.seconds), size_text(plan.peak_bytes), size_text(plan.disk_bytes),
        f"{plan.longest.name}: {plan.longest.limited_by}", style="bold",
    )  # fmt: skip
    return table


def time_text(seconds: float) -> str:
    """A time with two or three digits and a unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def size_text(size: float) -> str:
    """A number of bytes in a suitable unit."""
    for unit, bytes_ in (("TB", 1e12), ("GB", 1e9)):
        if size >= bytes_:
            return f"{size / bytes_:.2f} {unit}"
    return f"{size / 1e6:.0f} MB"
