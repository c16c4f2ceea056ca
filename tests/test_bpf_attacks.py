"""Binds that a BPF program of the target's cgroup rewrites after they were judged.

It runs inside of bind(2), on whoever makes the call: also on the supervisor's. So
what was allowed is not what is bound. Root alone can load one; but root may have
loaded it for other reasons than to get around a guard.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess

import pytest
from conftest import accepts
from test_races import LIMIT, numbers

from portseccomp import Guard, Stats

TRIES = 50

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: bpf(2), a mount of cgroup2"
)


def knock(port: int) -> None:
    """Send a datagram to a UDP port, over IPv4 and IPv6."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            one.sendto(b"x", (host, port))


def attack(guard: Guard | None, command: list[str], port: int) -> dict[str, int]:
    """Run it, and look at its port from outside while it is there."""
    popen = subprocess.Popen if guard is None else guard.popen
    with popen(command, stdin=-1, stdout=-1, bufsize=0) as process:
        found = {}
        while (line := process.stdout.readline()) not in (b"holding\n", b""):
            key, _, value = line.decode().partition(": ")
            assert value.strip().isdigit(), f"needs BPF and cgroup2: {line!r}"
            found[key] = int(value)
        with contextlib.suppress(ConnectionRefusedError):
            knock(port)
        found["accepts"] = accepts("127.0.0.1", port) or accepts("::1", port)
        process.stdin.close()
        found |= numbers(process.stdout)
    return found


def guarded(victim, policy: str, what: str, places: tuple) -> tuple[dict, Stats]:
    """Run it under a policy; what it and the guard have counted."""
    asked, moved, host = places
    port = moved or asked
    command = [victim("bpfbind"), what, str(asked), str(moved), host, str(TRIES)]
    outside = attack(None, command, port)
    # Without a guard it works, or it would show nothing.
    assert (outside["0"], outside["bound"]) == (TRIES, TRIES)
    if what.startswith("tcp"):
        assert (outside["listen"], outside["accepts"]) == (TRIES, True)
    else:
        assert (outside["heard"], outside["from outside"]) == (TRIES, 1)
    with Guard(policy.format(asked, port)) as guard:
        found = attack(guard, command, port)
        assert guard.wait(LIMIT)
    return found, guard.stats()


@pytest.mark.parametrize("what", ["udp4", "udp6"])
@pytest.mark.parametrize(
    ("policy", "moves", "host"),
    [
        ("allow udp:{0}", True, "same"),
        ("deny udp:{1}", True, "same"),
        ("allow loopback:any", False, "any"),
        ("deny udp:wildcard:any", False, "any"),
        ("deny udp:wildcard:any", True, "any"),
    ],
)
def test_udp_bind_that_is_rewritten(victim, free_port, what, policy, moves, host):
    """50 binds that end at a denied port, or address, are denied, and deaf."""
    places = (free_port(), free_port() if moves else 0, host)
    found, stats = guarded(victim, policy, what, places)
    assert found.get("EACCES") == TRIES
    # The port can't be given back: it is bound, and deaf, or soon deaf: what comes
    # within microseconds of its bind has come.
    assert found["bound"] == TRIES
    assert found["heard"] <= TRIES / 10
    assert found["from outside"] == 0
    assert (stats.denied, stats.failed, stats.allowed) == (TRIES, TRIES, 0)


@pytest.mark.parametrize("what", ["tcp4", "tcp6"])
@pytest.mark.parametrize(
    ("policy", "moves", "host", "unseen"),
    [
        ("allow tcp:{0}", True, "same", True),
        ("deny tcp:{1}", True, "same", True),
        ("allow loopback:any", True, "any", True),
        ("deny tcp:wildcard:any", True, "any", True),
        ("allow loopback:any", False, "any", False),
        ("deny tcp:wildcard:any", False, "any", False),
    ],
)
def test_tcp_bind_that_is_rewritten(
    victim, free_port, what, policy, moves, host, unseen
):
    """50 sockets that are bound to a denied port, or address, don't listen there."""
    places = (free_port(), free_port() if moves else 0, host)
    found, stats = guarded(victim, policy, what, places)
    assert (found.get("EACCES"), found["bound"]) == (TRIES, TRIES)
    assert (found["listen"], found["accepts"]) == (0, False)
    assert stats.denied == TRIES
    if unseen:
        # A port that was not asked for was bound by nobody known: the policy denies
        # it before the call, and nothing is open for however short.
        assert stats.failed == 0
