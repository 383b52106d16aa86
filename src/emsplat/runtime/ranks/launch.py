"""Which rank this process is, as torchrun or SLURM's srun says in the environment."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from emsplat.errors import InputError

_PORTS = range(15_000, 30_000)  # below those that systems give to outgoing connections
_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


@dataclass(frozen=True)
class Launch:
    """One process of a job."""

    rank: int  # from 0
    size: int
    local_rank: int  # among those of its machine
    address: str  # where the ranks meet
    port: int
    serves: bool  # whether this process hosts the meeting place; under torchrun the agent does
    attempt: str = "0"  # number of restarts by torchrun


def launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """The rank according to the environment; None for a process on its own.

    Raises:
        InputError: the environment is incomplete or makes no sense.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        found = _of_torchrun(environment)
    # Only srun sets this variable. A batch script, which runs once, also has SLURM_PROCID and SLURM_NTASKS.
    elif "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        found = _of_slurm(environment)
    else:
        return None
    if not 0 <= found.rank < found.size:
        raise InputError(f"rank {found.rank} of {found.size}: ranks count from 0; start the job with torchrun or srun")
    return found if found.size > 1 else None


def _of_torchrun(environment: Mapping[str, str]) -> Launch:
    rank = _number(environment, "RANK")
    by_agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch(
        rank=rank,
        size=_number(environment, "WORLD_SIZE"),
        local_rank=_number(environment, "LOCAL_RANK", "0"),
        address=_text(environment, "MASTER_ADDR"),
        port=_number(environment, "MASTER_PORT"),
        serves=rank == 0 and not by_agent,
        attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def _of_slurm(environment: Mapping[str, str]) -> Launch:
    rank = _number(environment, "SLURM_PROCID")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    job, step = (_number(environment, name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    chosen = _PORTS[(job + 101 * step) % len(_PORTS)]  # so that steps that share a node use different ports
    return Launch(
        rank=rank,
        size=_number(environment, "SLURM_STEP_NUM_TASKS"),
        local_rank=_number(environment, "SLURM_LOCALID", "0"),
        address=environment.get("MASTER_ADDR") or first_host(nodes),
        port=_number(environment, "MASTER_PORT", str(chosen)),
        serves=rank == 0,
    )


def first_host(nodes: str) -> str:
    """The first of a list of nodes as SLURM writes it: "gpu[07-09,12],login" → "gpu07"."""
    match = re.match(r"([^\[\],\s]+)(?:\[(\d+)[^\]]*\]([^\[\],\s]*))?", nodes)
    if not match:
        raise InputError(f"SLURM's list of nodes is {nodes!r}: it must name the first; set MASTER_ADDR to that node")
    return "".join(part or "" for part in match.groups())


def interface_towards(address: str, port: int) -> str | None:
    """The network interface that leads to an address; None if the system does not say.

    Without it, gloo takes the interface that the name of the machine resolves to, which is often the loopback.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))  # sends nothing
            mine = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                try:
                    answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                except OSError:  # an interface without an address
                    continue
                if socket.inet_ntoa(answer[20:24]) == mine:
                    return name
    except OSError:
        return None
    return None


def _text(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise InputError(f"RANK and WORLD_SIZE are set and {name} is not; start the job with torchrun or srun")
    return environment[name]


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environment.get(name, default) if default is not None else _text(environment, name)
    assert text is not None
    if not text.strip().isdecimal():
        raise InputError(f"{name} is {text!r}: it must be a number; start the job with torchrun or srun")
    return int(text)
