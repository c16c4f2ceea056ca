"""Sockets that are not where they say, and whose lock the target keeps.

A TCP socket on 0.0.0.0 that is connected through 127.0.0.1 calls itself that. So a
guard that goes by a socket's name can be told anything, and one that looks again
after the call is made to wait by whoever holds the socket's lock.

PORTSECCOMP_ATTACKS sets how often the attacks are tried (100,000).
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import accepts, need_locked_names, python
from test_races import LIMIT, TRIES, watched

from portseccomp import Guard

MPTCP = 262
# Each takes a millisecond or two.
HELD = max(TRIES // 200, 1)

root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: userfaultfd(2), /proc/PID/task/TID/syscall"
)


@contextmanager
def one_cpu() -> Iterator[None]:
    """Keep this thread, and all that it starts, on one CPU: who is woken comes next."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture(params=["tcp", "mptcp"])
def protocol(request) -> str:
    """A protocol that this kernel has."""
    if request.param == "mptcp":
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP).close()
        except OSError as error:
            pytest.skip(f"needs a kernel with MPTCP: {error}")
    return request.param


def numbers(done: subprocess.CompletedProcess[bytes]) -> dict[str, int]:
    """What an attack has counted."""
    text = done.stdout.decode()
    assert done.returncode == 0, text
    return {
        key: int(value) for key, value in (x.split(": ") for x in text.splitlines())
    }


# ---- while the lock is held ----


@root
@pytest.mark.parametrize(
    "policy", ["allow loopback:any", "deny tcp:wildcard:any"], ids=["allow", "deny"]
)
def test_reconnecting_a_socket_whose_lock_is_held(victim, free_port, protocol, policy):
    """500 sockets that are not where they say, and can't be looked at, never listen."""
    port = free_port()
    command = [victim("lockrace"), protocol, str(port), str(HELD)]
    with watched(victim, port) as outside, one_cpu(), Guard(policy) as guard:
        result = numbers(guard.run(command, stdout=subprocess.PIPE, timeout=LIMIT))
        stats = guard.stats()
    assert (result["tries"], result["wins"], result["good"]) == (HELD, 0, 0)
    # Not even for microseconds: all were denied by the policy, before the call.
    assert outside["seen"] == 0
    assert (stats.denied, stats.failed) == (HELD, 0)


# An emulated machine wakes threads too late for it to win.
@pytest.mark.slow
@root
def test_the_same_attack_wins_where_a_name_is_believed(victim, free_port, protocol):
    """The attack is a real one: a supervisor that goes by the name falls to it."""
    port = free_port()
    command = [victim("namer"), "0", victim("lockrace"), protocol, str(port), "50"]
    with watched(victim, port) as outside, one_cpu():
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=LIMIT)
    result = numbers(done)
    assert result["wins"] > 0
    # Where it is open it is open to other addresses, for as long as it is held.
    assert result["reached"] == result["wins"]
    assert outside["seen"] > 0


@root
def test_one_round_of_a_socket_at_a_time(victim, free_port):
    """While a `listen` waits for a socket's lock nobody can bind the socket."""
    need_locked_names()
    command = [victim("lockrace"), "two", str(free_port()), "1"]
    with Guard("allow loopback:any") as guard:
        done = guard.run(command, stdout=subprocess.PIPE, timeout=LIMIT)
        assert done.stdout == b"bind: EACCES\nlisten: waits\nthen: 0\n"
        second, first = guard.events()
    assert (second.call, second.rule) == ("bind", "error")
    assert (first.call, first.verdict) == ("listen", "allow")


# ---- sockets that nobody saw bound ----


def connected(host: str, server: tuple, only6: bool = False) -> socket.socket:
    """A client's socket that is connected, and was never bound."""
    one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if only6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.connect((host, server[1]))
    return one


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("deny 1", "EINVAL"),  # it is connected: the kernel's answer
        ("allow any", "EINVAL"),
        ("deny tcp:wildcard:1-9", "EINVAL"),
        ("deny tcp:loopback:1024-65535", "EACCES"),  # what it calls itself
        ("deny tcp:wildcard:1024-65535", "EACCES"),  # once it is disconnected
        ("deny tcp:ephemeral", "EACCES"),  # as the kernel chose its port
        ("deny tcp:wildcard:ephemeral", "EACCES"),
        ("deny tcp:loopback:ephemeral", "EACCES"),  # chosen, and where it is
        ("allow loopback:any", "EACCES"),
        ("allow 1024-65535", "EACCES"),
        ("allow wildcard:any", "EACCES"),
        ("ask loopback:1024-65535", "hook"),
        (["ask loopback:any", "deny tcp:wildcard:any"], "EACCES"),
    ],
    ids=str,
)
def test_socket_that_got_its_port_by_connecting(policy, expected):
    """It meets the strictest verdict: as named or everywhere, chosen or ephemeral."""
    asked = []

    def hook(request) -> bool:
        asked.append(request.host)
        return True

    def attempt() -> str:
        with connected("127.0.0.1", server.getsockname()) as one:
            try:
                one.listen()
            except OSError as error:
                return errno.errorcode[error.errno]
        return "0"

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Guard(policy, hook=hook) as (guard),
    ):
        results = {guard.call(attempt) for _ in range(20)}
    assert results == {"EINVAL" if expected == "hook" else expected}
    assert len(asked) == (20 if expected == "hook" else 0)
    # The most that it may let open, not the name that the connection gave.
    assert set(asked) <= {"0.0.0.0"}


@pytest.mark.parametrize(
    ("host", "only6", "policy", "expected"),
    [
        ("::1", False, "deny ipv6:tcp:wildcard:any", "EACCES"),
        ("::1", False, "deny ipv4:tcp:any", "EACCES"),
        ("::1", True, "deny ipv6:tcp:wildcard:any", "EACCES"),
        ("::1", True, "deny ipv4:tcp:any", "EINVAL"),
        ("::ffff:127.0.0.1", False, "deny ipv6:tcp:any", "EACCES"),
        ("::ffff:127.0.0.1", False, "deny ipv4:tcp:any", "EACCES"),
        ("::ffff:127.0.0.1", False, "deny ipv6:tcp:loopback:any", "EINVAL"),
    ],
)
def test_ipv6_socket_that_got_its_port_by_connecting(host, only6, policy, expected):
    """The wildcard that it may fall back to is its own family's, and dual stack."""

    def attempt() -> str:
        with connected(host, server.getsockname(), only6) as one:
            try:
                one.listen()
            except OSError as error:
                return errno.errorcode[error.errno]
        return "0"

    with (
        socket.create_server(
            ("::", 0), family=socket.AF_INET6, dualstack_ipv6=True
        ) as server,
        Guard(policy) as guard,
    ):
        assert {guard.call(attempt) for _ in range(20)} == {expected}


# ---- sockets from outside ----

# Listens on a socket that it has inherited, or that comes over descriptor 0.
ELSEWHERE = """
import array, errno, socket, sys
door = socket.socket(fileno=0)
number = int(sys.argv[1])
if number < 0:
    _, ((_, _, packed),), _, _ = door.recvmsg(1, 64)
    number = array.array("i", packed)[0]
one = socket.socket(fileno=number)
try:
    one.listen()
    door.sendall(b"0")
except OSError as error:
    door.sendall(errno.errorcode[error.errno].encode())
door.recv(1)
"""


def listen_elsewhere(guard: Guard, host: str, port: int, inherits: bool) -> str:
    """Let a target listen on a socket that is bound here; what it gets."""
    here, there = socket.socketpair()
    with here, there, socket.socket() as one:
        here.settimeout(LIMIT)
        number = one.fileno()
        command = python(ELSEWHERE, str(number if inherits else -1))
        if inherits:
            one.bind((host, port))
        with guard.popen(
            command, stdin=there, pass_fds=[number] if inherits else []
        ) as process:
            if not inherits:
                one.bind((host, port))
                socket.send_fds(here, [b"x"], [number])
            result = here.recv(99).decode()
            assert accepts("127.0.0.1", port) == (result == "0")
            here.sendall(b"x")
        assert process.returncode == 0
    return result


@pytest.mark.parametrize(
    ("policy", "host", "inherited", "received"),
    [
        ("allow loopback:any", "127.0.0.1", "0", "EACCES"),
        ("allow loopback:any", "0.0.0.0", "EACCES", "EACCES"),
        ("allow tcp:{}", "127.0.0.1", "0", "EACCES"),
        ("allow tcp:{}", "0.0.0.0", "0", "EACCES"),
        ("deny tcp:wildcard:any", "127.0.0.1", "0", "EACCES"),
        ("deny tcp:ephemeral", "127.0.0.1", "0", "EACCES"),
        ("deny tcp:{}", "127.0.0.1", "EACCES", "EACCES"),
        ("deny 1", "0.0.0.0", "0", "0"),
        ("allow any", "0.0.0.0", "0", "0"),
    ],
)
def test_socket_from_outside(free_port, policy, host, inherited, received):
    """What a target inherits is taken at its word; what it gets later is not."""
    for inherits, expected in ((True, inherited), (False, received)):
        port = free_port()
        with Guard(policy.format(port)) as guard:
            assert listen_elsewhere(guard, host, port, inherits) == expected


def test_inherited_socket_that_is_connected(free_port, protocol):
    """Its name is no word: it is on 0.0.0.0, and does not listen there at last."""
    port, kind = free_port(), MPTCP if protocol == "mptcp" else 0
    source = (
        "import ctypes, errno, socket, sys\n"
        "number = int(sys.argv[1])\n"
        "ctypes.CDLL(None).connect(number, bytes(16), 16)\n"  # AF_UNSPEC
        "try:\n"
        "    socket.socket(fileno=number).listen()\n"
        "    print('0')\n"
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno])\n"
    )
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, kind) as server,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, kind) as one,
        Guard("allow loopback:any") as guard,
    ):
        server.bind(("127.0.0.1", 0))
        server.listen()
        one.bind(("0.0.0.0", port))
        one.connect(server.getsockname())
        assert one.getsockname() == ("127.0.0.1", port)
        number = one.fileno()
        done = guard.run(python(source, str(number)), stdout=-1, pass_fds=[number])
        assert done.stdout == b"EACCES\n"
        assert not accepts("127.0.0.2", port)
        assert guard.stats().failed == 0
