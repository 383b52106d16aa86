"""The machines that a plan is made for. The command line shows the comments on the fields as help."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emsplat.errors import InputError


@dataclass(frozen=True)
class Cluster:
    """Machines like this one. What is None is measured or assumed, and the plan says so."""

    machines: int = 1  # Number of machines.
    gpus: int = 0  # Number of graphics cards in each machine; each card has a process of its own.
    # Number of processes on each machine. If left out, one for each graphics card, or one that uses all cores.
    processes: int | None = None
    storage: float | None = None  # Rate in GB/s at which the file system serves all machines together.
    network: float = 10.0  # Rate of the network between the machines in Gbit/s.
    memory: float | None = None  # Memory of each machine in GB.

    @property
    def processes_of_a_machine(self) -> int:
        """Number of processes on each machine: as asked for, or one for each graphics card, and at least one."""
        return self.processes or max(self.gpus, 1)

    @property
    def ranks(self) -> int:
        """Number of processes of the whole job."""
        return self.machines * self.processes_of_a_machine

    def __post_init__(self) -> None:
        rules: tuple[tuple[str, float | None, float, str], ...] = (
            ("--machines", self.machines, 1, "1 or more"),
            ("--gpus", self.gpus, 0, "0 or more for each machine"),
            ("--processes", self.processes, 1, "1 or more for each machine"),
            ("--storage", self.storage, 1e-6, "a positive number of GB/s"),
            ("--network", self.network, 1e-6, "a positive number of Gbit/s"),
            ("--memory", self.memory, 1e-3, "a positive number of GB"),
        )
        for option, value, least, rule in rules:
            if value is not None and not least <= value < math.inf:
                raise InputError(f"{option} {value}: it must be {rule}")
        if self.gpus and self.processes and self.processes != self.gpus:
            raise InputError(
                f"--processes {self.processes} with --gpus {self.gpus}: each graphics card has one process; "
                "leave out --processes"
            )
