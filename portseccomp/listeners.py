"""Which of the ports that were opened are open still, asked of the kernel."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias

from portseccomp.events import Event

_Net: TypeAlias = tuple[int, int] | None  # a network namespace

_LISTEN = "0A"  # TCP_LISTEN, as /proc/net/tcp prints states (proc_net(5))
_UNIX_LISTENING = 0x10000  # SO_ACCEPTCON in /proc/net/unix's flags


@lru_cache(maxsize=4096)
def _kernel_form(host: str, port: int) -> str:
    """An address as /proc/net/tcp prints it: each 32-bit word in host order."""
    packed = ipaddress.ip_address(host.partition("%")[0]).packed
    words = [packed[i : i + 4] for i in range(0, len(packed), 4)]
    digits = "".join(f"{int.from_bytes(one, sys.byteorder):08X}" for one in words)
    return f"{digits}:{port:04X}"


def _read_lines(pid: int, name: str) -> list[str]:
    """The table as the process's network namespace has it, or as ours has."""
    for place in (str(pid), "self"):
        try:
            with open(f"/proc/{place}/net/{name}", errors="surrogateescape") as file:
                return file.read().splitlines()[1:]
        except OSError:
            continue
    return []


def _open_addresses(pid: int, protocol: str) -> set[str]:
    """What is open: TCP sockets that listen, and all UDP sockets."""
    found = set()
    for name in (protocol, f"{protocol}6"):
        for line in _read_lines(pid, name):
            fields = line.split()
            if protocol != "tcp" or fields[3] == _LISTEN:
                found.add(fields[1])
    return found


def _listening_paths(pid: int) -> set[str]:
    found = set()
    for line in _read_lines(pid, "unix"):
        fields = line.split(maxsplit=7)
        if int(fields[3], 16) & _UNIX_LISTENING and len(fields) > 7:
            found.add(fields[7])
    return found


def _net_of(pid: int) -> _Net:
    try:
        found = os.stat(f"/proc/{pid}/ns/net")
    except OSError:
        return None
    return found.st_dev, found.st_ino


class OpenPorts:
    """One look at the kernel's tables, each read at most once."""

    def __init__(self) -> None:
        self._addresses: dict[tuple[_Net, str], set[str]] = {}
        self._paths: dict[_Net, set[str]] = {}

    def has(self, event: Event) -> bool:
        """Whether what an event has opened is open now."""
        if event.host is None:
            return False
        net = _net_of(event.pid)
        if event.family in ("ipv4", "ipv6"):
            protocol = event.protocol or ""
            table = protocol if protocol in ("udp", "udplite") else "tcp"
            if (net, table) not in self._addresses:
                self._addresses[net, table] = _open_addresses(event.pid, table)
            addresses = self._addresses[net, table]
            port = event.port or 0
            if _kernel_form(event.host, port) in addresses:
                return True
            # IPv4 on an IPv6 socket
            return event.family == "ipv4" and (
                _kernel_form(f"::ffff:{event.host}", port) in addresses
            )
        if event.family == "unix":
            if net not in self._paths:
                self._paths[net] = _listening_paths(event.pid)
            return event.host in self._paths[net]
        return os.path.exists(f"/proc/{event.pid}")


def still_open(events: Iterable[Event]) -> list[Event]:
    """Return those of the events whose ports are open still."""
    ports = OpenPorts()
    return [one for one in events if ports.has(one)]
