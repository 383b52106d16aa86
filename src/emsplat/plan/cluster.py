"""The machines a plan is made for. Light to import: the command line shows it as help."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emsplat.errors import InputError


@dataclass(frozen=True)
class Cluster:
    """Machines like this one; None: as measured or assumed, and said."""

    machines: int = 1
    gpus: int = 0  # of each machine, one process each
    processes: int | None = None  # of each machine; default: one a GPU, else one with all cores
    storage: float | None = None  # GB/s that the file system delivers to all machines together
    network: float = 10.0  # Gbit/s between machines
    memory: float | None = None  # GB of each machine

    @property
    def processes_of_a_machine(self) -> int:
        """One a GPU, or as asked for."""
        return self.processes or max(self.gpus, 1)

    @property
    def ranks(self) -> int:
        """Processes of the whole job."""
        return self.machines * self.processes_of_a_machine

    def __post_init__(self) -> None:
        rules: tuple[tuple[str, float | None, float, str], ...] = (
            ("--machines", self.machines, 1, "1 or more"),
            ("--gpus", self.gpus, 0, "0 or more, of each machine"),
            ("--processes", self.processes, 1, "1 or more, of each machine"),
            ("--storage", self.storage, 1e-6, "a positive number of GB/s"),
            ("--network", self.network, 1e-6, "a positive number of Gbit/s"),
            ("--memory", self.memory, 1e-3, "a positive number of GB"),
        )
        for option, value, least, rule in rules:
            if value is not None and not least <= value < math.inf:
                raise InputError(f"{option} {value}: it must be {rule}")
        if self.gpus and self.processes and self.processes != self.gpus:
            raise InputError(
                f"--processes {self.processes} with --gpus {self.gpus}: each GPU has one process; leave out --processes"
            )
