"""Which of the ports that were opened are open still, asked of the kernel."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from portseccomp.events import Event

_Net: TypeAlias = tuple[int, int] | None  # a network namespace

_TCP_LISTEN = b"0A"  # as /proc/net/tcp prints states (proc_pid_net(5))
_UNIX_LISTENING = 0x10000  # __SO_ACCEPTCON in /proc/net/unix's flags
_INODE = 9  # the column of the inode in the tables of TCP and UDP
_UNIX_ROW = re.compile(
    rb"[0-9a-f]{8,16}: [0-9A-F]{8} [0-9A-F]{8} ([0-9A-F]{8}) \d{4} \d\d +(\d+)(?: |$)"
)


def _tables_for(event: Event) -> tuple[str, ...]:
    """The tables that have sockets like an event's, IPv4 on IPv6 ones too."""
    if event.family == "unix":
        return ("unix",)
    if event.protocol in ("udp", "udplite"):
        return (event.protocol, f"{event.protocol}6")
    # MPTCP sockets are there with the inode of their own.
    return ("tcp", "tcp6")


def _rows(pid: int, table: str) -> list[bytes]:
    """A table as a process's network namespace has it, or as ours has."""
    for place in (str(pid), "self"):
        try:
            with open(f"/proc/{place}/net/{table}", "rb") as file:
                return file.read().split(b"\n")[1:]
        except OSError:
            continue
    return []


def _open_inodes(pid: int, tables: tuple[str, ...]) -> Iterator[int]:
    """The inodes of sockets that are open to others."""
    for table in tables:
        for row in _rows(pid, table):
            if table == "unix":
                # Paths stand as they are, with newlines if they have any.
                if (found := _UNIX_ROW.match(row)) and (
                    int(found[1], 16) & _UNIX_LISTENING
                ):
                    yield int(found[2])
            elif row:
                fields = row.split()
                if not table.startswith("tcp") or fields[3] == _TCP_LISTEN:
                    yield int(fields[_INODE])


def _net_of(pid: int) -> _Net:
    try:
        found = os.stat(f"/proc/{pid}/ns/net")
    except OSError:
        return None
    return found.st_dev, found.st_ino


class OpenSockets:
    """One look at the kernel's tables, each read at most once."""

    def __init__(self) -> None:
        self._inodes: dict[tuple[_Net, str], set[int]] = {}

    def has(self, event: Event) -> bool:
        """Whether the very socket that an event is about is open now."""
        if event.host is None:
            return False
        if event.family not in ("ipv4", "ipv6", "unix"):
            # No table of the others: as long as their process is there.
            return os.path.exists(f"/proc/{event.pid}")
        tables = _tables_for(event)
        net = _net_of(event.pid)
        key = (net, tables[0])
        if key not in self._inodes:
            self._inodes[key] = self._look(event.pid, net, tables)
        return event._inode in self._inodes[key]

    @staticmethod
    def _look(pid: int, net: _Net, tables: tuple[str, ...]) -> set[int]:
        # Of a process that is gone, our own namespace is the best guess.
        if tables[0] in ("tcp", "udp") and net in (None, _net_of(os.getpid())):
            from portseccomp.sock_diag import open_inodes

            try:
                return open_inodes(tables[0])
            except OSError:
                pass  # a kernel without it
        return set(_open_inodes(pid, tables))


def still_open(events: Iterable[Event]) -> list[Event]:
    """Return those of the events whose sockets are open still."""
    sockets = OpenSockets()
    return [one for one in events if sockets.has(one)]
