"""Names of numbers, and what /proc tells of a calling thread."""

from __future__ import annotations

import os

# enum psc_family (csrc/endpoint.h); the last stands for all other families.
_FAMILIES = ("unknown", "ipv4", "ipv6", "unix", "vsock")

# AF_ numbers without ports that can listen, or that people try to (socket.h).
_OTHER_FAMILIES = {
    4: "ipx",
    9: "x25",
    16: "netlink",
    17: "packet",
    21: "rds",
    30: "tipc",
    31: "bluetooth",
    35: "phonet",
    37: "caif",
    38: "alg",
    42: "qipcrtr",
    44: "xdp",
}

_AF_INET, _AF_INET6, _AF_SMC = 2, 10, 43

_PROTOCOLS = {
    1: "icmp",
    6: "tcp",
    17: "udp",
    33: "dccp",
    58: "icmpv6",
    132: "sctp",
    136: "udplite",
    255: "raw",
    256: "smc",
    262: "mptcp",
}

_TYPES = {1: "stream", 2: "dgram", 3: "raw", 4: "rdm", 5: "seqpacket"}


def family_name(family: int, af: int) -> str:
    """Return the name of a family, "ipv4" for example."""
    if family < len(_FAMILIES):
        return _FAMILIES[family]
    return _OTHER_FAMILIES.get(af, f"af-{af}")


def protocol_name(af: int, protocol: int, kind: int) -> str:
    """Return "tcp", "mptcp", ...; for families without, the socket's type."""
    if af == _AF_SMC:
        return "smc"
    if af in (_AF_INET, _AF_INET6):
        return _PROTOCOLS.get(protocol, f"protocol-{protocol}")
    return _TYPES.get(kind, f"type-{kind}")


def printable(text: str) -> str:
    """Escape what could steer a terminal: names come from hostile programs."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode()
        for one in text.encode(errors="backslashreplace").decode()
    )


def _read(tid: int, name: str) -> bytes:
    with open(f"/proc/{tid}/{name}", "rb", buffering=0) as file:
        return file.read()


def exe(tid: int) -> str:
    """Return the path of the program that a thread runs."""
    return os.readlink(f"/proc/{tid}/exe")


def cmdline(tid: int) -> list[str]:
    """Return the arguments that a thread's program was started with."""
    arguments = _read(tid, "cmdline").removesuffix(b"\0")
    return [os.fsdecode(one) for one in arguments.split(b"\0")]


def cwd(tid: int) -> str:
    """Return a thread's working directory."""
    return os.readlink(f"/proc/{tid}/cwd")


def _effective_id(tid: int, key: bytes) -> int:
    for line in _read(tid, "status").splitlines():
        if line.startswith(key):
            return int(line.split()[2])
    raise ProcessLookupError(f"thread {tid} is gone")


def uid(tid: int) -> int:
    """Return a thread's effective user id."""
    return _effective_id(tid, b"Uid:")


def gid(tid: int) -> int:
    """Return a thread's effective group id."""
    return _effective_id(tid, b"Gid:")


def cgroup(tid: int) -> str:
    """Return a thread's cgroup: the version 2 path, else the first one."""
    lines = _read(tid, "cgroup").decode(errors="surrogateescape").splitlines()
    for line in lines:
        if line.startswith("0::"):
            return line[3:]
    return lines[0].split(":", 2)[2] if lines else "/"
