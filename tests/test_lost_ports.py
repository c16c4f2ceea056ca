"""TCP sockets that lose the port that the kernel chose for them, and get another.

A connection that fails, or ends, takes a port away that was not asked for by its
number; getsockname(2) shows it still. The next `listen` takes another one: it is
judged as the choice of the kernel that it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from conftest import accepts, feature_named
from test_bind import code
from test_lock_attacks import numbers
from test_races import LIMIT, TRIES

from portseccomp import Guard, Policy

SEQUENCES = 300
LOST = max(TRIES // 50, 1)

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def closed() -> Iterator[int]:
    """A port that is in use, so nobody else gets it, and refuses connections."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield one.getsockname()[1]


# ---- as without a guard ----

STEPS: dict[str, Callable[[socket.socket, int, int], object]] = {
    "bind": lambda one, server, closed: one.bind(("127.0.0.1", 0)),
    "bind-wildcard": lambda one, server, closed: one.bind(("0.0.0.0", 0)),
    "connect": lambda one, server, closed: one.connect(("127.0.0.1", server)),
    "refused": lambda one, server, closed: one.connect(("127.0.0.1", closed)),
    # AF_UNSPEC: the connection ends (connect(2)).
    "leave": lambda one, server, closed: libc.connect(one.fileno(), bytes(16), 16),
    "listen": lambda one, server, closed: one.listen(),
    "shutdown": lambda one, server, closed: one.shutdown(socket.SHUT_RDWR),
}


def play(steps: list[str], server: int, closed: int) -> list[object]:
    """What the steps of one socket give, and where it is at last."""
    with socket.socket() as one:
        # The ends of connections to the server wait for a while.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        seen: list[object] = [
            (step, code(lambda s=step: STEPS[s](one, server, closed))) for step in steps
        ]
        host, port = one.getsockname()
        listening = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return [*seen, listening, host, port != 0]


def play_all(sequences: list[list[str]], closed: int) -> list[list[object]]:
    # A server of their own: what it does not accept has to fit its queue.
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        return [play(one, server.getsockname()[1], closed) for one in sequences]


@pytest.mark.parametrize("rules", [None, "allow any", "deny 1", "move 1 -> 2"], ids=str)
def test_random_steps_give_the_same(rules, closed):
    """300 random lives of a socket: the same errnos and places with and without."""
    chance = random.Random(3)
    steps = list(STEPS)
    lengths = [chance.randint(2, 7) for _ in range(SEQUENCES)]
    sequences = [chance.choices(steps, k=length) for length in lengths]
    # What this is about, among them.
    sequences += [[b, "refused", "listen", "listen"] for b in ("bind", "bind-wildcard")]
    outside = play_all(sequences, closed)
    with Guard(rules) as guard:
        inside = guard.call(play_all, sequences, closed)
    if not feature_named("WAIT_KILLABLE_RECV").available:
        # A bind that is made again may have been interrupted, and gives 0.
        for steps_seen in (*outside, *inside):
            for at, step in enumerate(steps_seen):
                if step in (("bind", "EINVAL"), ("bind-wildcard", "EINVAL")):
                    steps_seen[at] = (step[0], "0")
    pairs = zip(outside, inside, strict=True)
    assert [one for one in pairs if one[0] != one[1]] == []
    assert [one[-3] for one in outside[-2:]] == [1, 1]


# ---- how they are judged ----


def lose(one: socket.socket, host: str, closed: int, port: int = 0) -> int:
    """Bind a socket, and have it lose its port; which it was."""
    one.bind((host, port))
    name = one.getsockname()
    assert code(one.connect, ("127.0.0.1", closed)) == "ECONNREFUSED"
    assert one.getsockname() == name  # so it says
    return name[1]


@contextmanager
def taken(port: int) -> Iterator[None]:
    """Somebody else has the port: it is free."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        yield


@pytest.mark.parametrize(
    ("policy", "host", "expected"),
    [
        ("deny 1", "127.0.0.1", "0"),
        ("deny 1", "0.0.0.0", "0"),
        ("allow tcp:ephemeral", "127.0.0.1", "0"),
        ("allow tcp:1-65535", "127.0.0.1", "EACCES"),  # by number: nobody asked for one
        ("allow loopback:any", "127.0.0.1", "0"),
        ("allow loopback:any", "0.0.0.0", "EACCES"),
        ("deny tcp:wildcard:any", "127.0.0.1", "0"),
        ("deny tcp:wildcard:any", "0.0.0.0", "EACCES"),
        ("ask tcp:ephemeral", "127.0.0.1", "0"),
        (["ask tcp:1-65535", "deny tcp:any"], "127.0.0.1", "EACCES"),
    ],
    ids=str,
)
def test_another_port_is_the_kernels_choice(policy, host, expected, closed):
    """A lost port's number counts for nothing; the event has the one that opened."""
    asked = []

    def hook(request) -> bool:
        asked.append((request.host, request.port))
        return True

    with socket.socket() as one, Guard(policy, hook=hook) as guard:
        lost = guard.call(lose, one, host, closed)
        with taken(lost):
            result = guard.call(code, one.listen)
        port = one.getsockname()[1]
        reached = accepts("127.0.0.1", port)
        (event,) = guard.events()
    opened = expected == "0"
    assert (result, port != lost, reached) == (expected, opened, opened)
    assert (event.requested_host, event.requested_port) == (host, 0)
    assert (event.host, event.port) == ((host, port) if opened else (None, None))
    assert asked == ([(host, 0)] if "ask tcp:ephemeral" in policy else [])


def test_moved_socket_that_lost_its_port(closed, free_port):
    """A socket that was moved to an ephemeral port gets another one there."""
    port = free_port()
    policy = Policy([f"move tcp:{port} -> 127.0.0.1:ephemeral"], default="deny")

    with socket.socket() as one, Guard(policy) as guard:
        lost = guard.call(lose, one, "0.0.0.0", closed, port)
        with taken(lost):
            assert guard.call(code, one.listen) == "0"
        host, found = one.getsockname()
        assert (host, found != lost, accepts(host, found)) == ("127.0.0.1", True, True)


@pytest.mark.parametrize("inherited", [True, False])
def test_hook_that_was_asked_about_a_lost_port(inherited, closed):
    """Its yes is for the number that it was told, and no other; it is asked again."""
    asked = []

    def hook(request) -> bool:
        asked.append(request.port)
        return True

    with socket.socket() as one, Guard("ask any", hook=hook) as guard:
        # Nobody saw its bind: it was connect(2) that gave it a port.
        connect = one.connect if inherited else lambda at: guard.call(one.connect, at)
        assert code(connect, ("127.0.0.1", closed)) == "ECONNREFUSED"
        lost = one.getsockname()[1]
        with taken(lost):
            results = [guard.call(code, one.listen) for _ in range(3)]
        found = one.getsockname()[1]
        denied, *allowed = guard.events()
    assert results == ["EACCES", "0", "0"]
    assert asked == [lost, 0, 0]
    assert (denied.rule, denied.port) == ("error", None)
    assert [(x.rule, x.port) for x in allowed] == [("hook", found)] * 2


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("deny 1", ["EACCES", "0"]),
        ("allow tcp:1-65535", ["EACCES", "EACCES"]),
        ("allow loopback:1-65535", ["EACCES", "EACCES"]),
    ],
)
def test_inherited_socket_that_had_lost_its_port(policy, expected, closed):
    """A rule that allows the number it calls itself opens no other one."""
    with socket.socket() as one, Guard(policy) as guard:
        lost = lose(one, "127.0.0.1", closed)
        with taken(lost):
            results = [guard.call(code, one.listen) for _ in range(2)]
        found = one.getsockname()[1]
        stats = guard.stats()
    assert results == expected
    # It has got the port by which it is known now.
    assert found != lost
    assert stats.failed == 1


# ---- lost in mid-call ----


def test_port_that_is_lost_after_the_hooks_yes(victim):
    """2,000 sockets that lose the port that the hook has allowed get no other one."""
    asked = []

    def hook(request) -> bool:
        asked.append(request.port)
        return True

    def accept() -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                server.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        thread = threading.Thread(target=accept)
        thread.start()
        command = [victim("lostport"), str(server.getsockname()[1]), str(LOST)]
        with Guard("ask tcp:any", hook=hook) as guard:
            result = numbers(guard.run(command, stdout=subprocess.PIPE, timeout=LIMIT))
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert result == {"tries": LOST, "wins": 0, "good": 0}
    assert len(asked) == LOST and 0 not in asked


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("ask tcp:any", "EACCES"),
        ("allow any", "0"),
        ("deny 1", "0"),
        ("allow loopback:any", "EACCES"),
    ],
)
def test_hook_that_is_asked_about_a_socket_that_nobody_saw_bound(policy, expected):
    """A yes to its number is not enough: it may be one that can be lost."""
    asked, ready, bound = [], threading.Event(), threading.Event()

    def hook(request) -> bool:
        asked.append((request.host, request.port))
        return True

    def attempt() -> str:
        ready.set()
        assert bound.wait(LIMIT)
        return code(one.listen)

    def bind() -> None:
        assert ready.wait(LIMIT)
        one.bind(("127.0.0.1", 0))
        bound.set()

    with socket.socket() as one, Guard(policy, hook=hook) as guard:
        outside = threading.Thread(target=bind)
        outside.start()
        assert guard.call(attempt) == expected
        outside.join()
        port = one.getsockname()[1]
    assert asked == ([("0.0.0.0", port)] if policy.startswith("ask") else [])
