"""TCP sockets that are somewhere else at `listen` than where they were bound.

A bind of a unix socket is the kernel's to make, and the kernel looks up the
descriptor once more: a TCP socket that has taken its place by then is bound where
nobody sees it. And a connection can take a socket's port or address away.

PORTSECCOMP_ATTACKS sets how often the attacks are tried (100,000).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import subprocess

import pytest
from embedder import quiet_port
from test_bind import code
from test_lock_attacks import HELD, numbers, one_cpu
from test_races import LIMIT, TRIES, watched

from portseccomp import Guard, Policy

IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h
# Each try makes two sockets, and four calls that are judged.
UNSEEN = max(TRIES // 200, 1)
LISTENS = max(TRIES // 50, 1)
BROADCAST = "127.255.255.255"  # of the loopback interface

libc = ctypes.CDLL(None, use_errno=True)
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: userfaultfd(2)")


class Swap:
    """A unix socket whose place a TCP socket takes while its bind is judged."""

    def __init__(self, *rules: str, default: str | None = None) -> None:
        self._unix = socket.socket(socket.AF_UNIX)
        self._slot = os.dup(self._unix.fileno())
        self._tcp = -1
        policy = Policy(["ask unix", *rules], default=default)
        self.guard = Guard(policy, hook=self._hook)

    def _hook(self, request) -> bool:
        os.dup2(self._tcp, self._slot)
        return True

    def bind(self, one: socket.socket, host: str, port: int) -> str:
        """Bind a TCP socket unseen: 0, or what the kernel says."""
        os.dup2(self._unix.fileno(), self._slot)
        self._tcp = one.fileno()
        address = struct.pack("=H", socket.AF_INET)
        address += struct.pack("!H4s8x", port, socket.inet_aton(host))
        result = libc.bind(self._slot, address, len(address))
        return errno.errorcode[ctypes.get_errno()] if result < 0 else "0"

    def __enter__(self) -> Swap:
        self.guard.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self.guard.__exit__(*failure)
        self._unix.close()
        os.close(self._slot)


def tcp_socket() -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return one


def is_listening(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


@pytest.mark.parametrize("rule", ["allow tcp:ephemeral", "deny tcp:{}"])
def test_ephemeral_socket_that_is_bound_unseen(rule):
    """A socket that waits for its ephemeral port does not listen on a chosen one."""
    port, wins = quiet_port(), 0

    def attack() -> None:
        nonlocal wins
        with tcp_socket() as one:
            one.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            one.bind(("0.0.0.0", 0))
            assert one.getsockname() == ("0.0.0.0", 0)
            # It is the kernel that binds it: the attack works up to here.
            assert swap.bind(one, "0.0.0.0", port) == "0"
            assert one.getsockname() == ("0.0.0.0", port)
            assert code(one.listen) in ("0", "EACCES")
            wins += is_listening(one)

    with Swap(rule.format(port)) as swap:
        swap.guard.call(lambda: [attack() for _ in range(UNSEEN)])
        stats = swap.guard.stats()
    assert (stats.asked, wins) == (UNSEEN, 0)
    assert (stats.denied, stats.failed) == (UNSEEN, 0)


@pytest.mark.parametrize("elsewhere", ["0.0.0.0", "127.0.0.2"])
def test_moved_socket_that_is_bound_unseen(elsewhere):
    """A socket moved to 127.0.0.1 does not listen on its port anywhere else."""
    port, closed, wins, bound = quiet_port(), quiet_port(), 0, 0

    def attack() -> None:
        nonlocal wins, bound
        with tcp_socket() as one:
            one.bind(("0.0.0.0", port))
            host, moved = one.getsockname()
            assert (host, moved == port) == ("127.0.0.1", False)
            # A port that the kernel chose is lost with the connection.
            assert one.connect_ex(("127.0.0.1", closed)) == errno.ECONNREFUSED
            if swap.bind(one, elsewhere, moved) == "0":
                assert one.getsockname() == (elsewhere, moved)
                bound += 1
            code(one.listen)
            wins += is_listening(one) and one.getsockname() == (elsewhere, moved)

    rule = f"move tcp:{port} -> 127.0.0.1:ephemeral"
    with Swap(rule, default="deny") as swap:
        swap.guard.call(lambda: [attack() for _ in range(UNSEEN)])
        stats = swap.guard.stats()
    assert (stats.asked, wins) == (UNSEEN, 0)
    # Others may have got that port meanwhile, now and then.
    assert UNSEEN * 0.9 < bound <= stats.denied


# ---- broadcast addresses ----


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (f"allow tcp:{BROADCAST}:any", "EACCES"),
        ("deny tcp:127.0.0.1:any", "EACCES"),
        ("deny tcp:wildcard:any", "EACCES"),
        ("deny tcp:1", "0"),
    ],
)
def test_socket_on_a_broadcast_address(victim, policy, expected):
    """Wherever it goes it does not listen there, not even for microseconds."""
    port, closed = quiet_port(), quiet_port()
    tries = LISTENS if expected != "0" else 1

    def attack() -> set[str]:
        with tcp_socket() as one:
            one.bind((BROADCAST, port))
            assert one.connect_ex(("127.0.0.1", closed)) == errno.ECONNREFUSED
            assert one.getsockname() == ("127.0.0.1", port)
            return {code(one.listen) for _ in range(tries)}

    with watched(victim, port) as outside, Guard(policy) as guard:
        results = guard.call(attack)
        stats = guard.stats()
    assert results == {expected}
    assert outside["seen"] == 0 or expected == "0"
    # By the policy: one that is looked at only afterwards has been open.
    assert (stats.denied, stats.failed) == (tries if expected != "0" else 0, 0)


@root
def test_socket_on_a_broadcast_address_whose_lock_is_held(victim):
    """Nor does it where nobody can look at it after its `listen`."""
    port = quiet_port()
    command = [victim("lockrace"), "broadcast", str(port), str(HELD)]
    policy = f"allow tcp:{BROADCAST}:any"
    with watched(victim, port) as outside, one_cpu(), Guard(policy) as guard:
        result = numbers(guard.run(command, stdout=subprocess.PIPE, timeout=LIMIT))
        stats = guard.stats()
    assert (result["tries"], result["wins"], result["good"]) == (HELD, 0, 0)
    assert outside["seen"] == 0
    assert (stats.denied, stats.failed) == (HELD, 0)


def test_broadcast_address_without_a_port():
    """A broadcast address without a port is no loopback: connect would change it."""

    def attempt(host: str) -> str:
        with socket.socket() as one:
            one.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
            one.bind((host, 0))
            try:
                one.listen()
            except OSError as error:
                return errno.errorcode[error.errno]
        return "0"

    with Guard("allow loopback:any") as guard:
        assert guard.call(attempt, "127.255.255.255") == "EACCES"
        assert guard.call(attempt, "127.0.0.1") == "0"
