"""Test hosts on one machine: network namespaces on a switch of their own, whose cables can be pulled."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


class NoHostsError(Exception):
    """This machine does not let us make any."""


@dataclass(frozen=True)
class Hosts:
    """`size` namespaces h0, h1, ... with the addresses 10.77.0.1, 10.77.0.2, ..."""

    prefix: str
    size: int
    names: Path  # a file of all hosts' names and addresses, in the form of /etc/hosts

    def command(self, host: int, command: Sequence[object]) -> list[str]:
        """The command, run on a host, which has a name of its own and knows those of the others."""
        named = ["unshare", "--uts", "--mount", "sh", "-c"]
        named += [f'hostname h{host} && mount --bind "$0" /etc/hosts && exec "$@"', str(self.names)]
        return ["ip", "netns", "exec", self._name(host), *named, *map(str, command)]

    @staticmethod
    def address(host: int) -> str:
        return f"10.77.0.{host + 1}"

    def cut_off(self, host: int) -> None:
        """Pull the cable: packets vanish, nobody is told."""
        _ip("-n", self._switch, "link", "set", f"port{host}", "down")

    def plug_in(self, host: int) -> None:
        _ip("-n", self._switch, "link", "set", f"port{host}", "up")

    @property
    def _switch(self) -> str:
        return f"{self.prefix}-switch"

    def _name(self, host: int) -> str:
        return f"{self.prefix}-h{host}"

    def set_up(self) -> None:
        known = "".join(f"{self.address(host)} h{host}\n" for host in range(self.size))
        self.names.write_text(f"127.0.0.1 localhost\n{known}")
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        for host in range(self.size):
            name = self._name(host)
            _ip("netns", "add", name)
            cable = ("link", "add", "eth0", "type", "veth", "peer", "name", f"port{host}", "netns", self._switch)
            _ip("-n", name, *cable)
            _ip("-n", self._switch, "link", "set", f"port{host}", "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", name, "link", "set", link, "up")

    def take_down(self) -> None:
        for name in (self._switch, *map(self._name, range(self.size))):
            with suppress(OSError):  # without the tool there was nothing to set up
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextmanager
def hosts(size: int) -> Iterator[Hosts]:
    """Raises NoHostsError without the right, or the tools, to make them."""
    with tempfile.TemporaryDirectory() as folder:
        made = Hosts(f"emsplat{os.getpid()}", size, Path(folder) / "hosts")
        try:
            try:
                made.set_up()
            except (OSError, subprocess.CalledProcessError) as error:
                raise NoHostsError(getattr(error, "stderr", None) or str(error)) from None
            yield made
        finally:
            made.take_down()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
