"""Sockets that targets inherit of us, and that children of ours must not.

What is inherited is asked where it is; asking waits for the socket's lock, which
another target may keep for as long as it likes.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from conftest import python
from test_mid_call import wait_for
from test_races import LIMIT, read_line

from portseccomp import Guard

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: userfaultfd(2)")
SOON = 15.0  # seconds; a second is what asking may take


# ---- whose lock is kept ----


@contextmanager
def keeper(guard: Guard, *command: str, **options) -> Iterator[None]:
    """A target that keeps a socket's lock."""
    process = guard.popen(command, stdin=-1, stdout=-1, bufsize=0, **options)
    with process:
        try:
            assert read_line(process.stdout) == "stuck\n"
            yield
        finally:
            process.kill()


def returns(function: Callable[[], object]) -> bool:
    """Whether a call comes back while a lock is kept."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(SOON)
    return not thread.is_alive()


def starts(guard: Guard, *inherited: int) -> dict[str, bool]:
    """Which ways to start a target come back."""
    ways = {
        "popen": lambda: guard.run(["true"], pass_fds=inherited),
        "stdin": lambda: guard.run(["true"], stdin=inherited[0] if inherited else -3),
        "all": lambda: guard.run(["true"], close_fds=False),
        "call": lambda: guard.call(int),
    }
    return {name: returns(way) for name, way in ways.items()}


@root
@pytest.mark.parametrize("kind", ["connected", "bound", "new"])
def test_inherited_socket_whose_lock_is_held(victim, kind):
    """Targets that inherit the same socket start, in this guard and in another one."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket() as one,
        Guard("allow loopback:any") as first,
        Guard("allow loopback:any") as second,
    ):
        if kind == "connected":
            one.connect(server.getsockname())
        elif kind == "bound":
            one.bind(("127.0.0.1", 0))
        number = one.fileno()
        with keeper(first, victim("lockhold"), "0", str(number), pass_fds=[number]):
            results = [starts(guard, number) for guard in (first, second)]
    assert [all(one.values()) for one in results] == [True, True], results


@root
def test_copy_of_a_targets_socket_whose_lock_is_held(victim):
    """Nor does one guard's target keep another guard's from its start."""
    with (
        Guard("deny udp:1") as first,
        Guard("deny udp:1") as second,
        keeper(first, victim("lockhold"), "1"),
    ):
        # There is a copy of its socket in this process, in a call that waits.
        wait_for(lambda: first.stats().takeovers == 1)
        results = [starts(guard) for guard in (first, second)]
    assert [all(one.values()) for one in results] == [True, True], results


# ---- where they are, and what they may do ----


def listens_again(one: socket.socket) -> str:
    """What another `listen` on an inherited socket gives."""
    try:
        one.listen(4)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "0"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("deny 1", "0"),
        ("allow {}", "0"),
        ("allow loopback:{}", "0"),
        ("allow tcp:ephemeral", "EACCES"),
        ("deny {}", "EACCES"),
    ],
)
def test_inherited_listener_may_listen_again(rule, expected):
    """It is judged by where it is, and told as open, though not for the first time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with Guard(rule.format(port)) as guard:
            assert guard.call(listens_again, server) == expected
            listed = [one.port for one in guard.listeners()]
            assert listed == ([port] if expected == "0" else [])
            if listed:
                assert guard.wait_listening(port, timeout=LIMIT).first is False
            (event,) = guard.events()
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT).close()
    assert (event.first, event.is_open) == (False, expected == "0")


def test_wildcard_listener_may_not_listen_again_as_a_loopback_one():
    """Connections that it has accepted do not make its place another one."""
    with (
        socket.create_server(("0.0.0.0", 0)) as server,
        socket.create_connection(("127.0.0.1", server.getsockname()[1])),
        Guard("allow loopback:any") as guard,
    ):
        assert guard.call(listens_again, server) == "EACCES"


@pytest.mark.parametrize("make", [list, set, iter], ids=["list", "set", "iterator"])
def test_pass_fds_of_any_kind(victim, make):
    """An iterator of descriptors is read by the guard and by Popen alike."""
    with socket.socket() as one, Guard("allow loopback:any") as guard:
        one.bind(("127.0.0.1", 0))
        number = one.fileno()
        command = [victim("listen"), "fd", str(number), "0"]
        done = guard.run(command, stdout=-1, pass_fds=make([number]))
    assert done.stdout.startswith(b"listen: 0\n")


# ---- forks of ours ----

FORKING = """
import os, subprocess, sys, time
from portseccomp import Guard
def sockets():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    return [one for one in found if one.startswith("socket:")]
assert not sockets()
keep = 0
with Guard("allow tcp:ephemeral") as guard:
    targets = [guard.popen(sys.argv[2:]) for _ in range(2)]
    while guard.stats().requests < 1000:
        time.sleep(0.001)
    for _ in range(int(sys.argv[1])):
        if (pid := os.fork()) == 0:
            os._exit(len(sockets()))
        keep += os.waitpid(pid, 0)[1] != 0
    calls = guard.stats().requests
    for one in targets:
        one.kill()
        one.wait()
print(keep, calls > 2000)
"""


def test_forked_children_keep_no_socket_of_a_target(victim):
    """300 children, forked while targets call, have no copy of a target's socket."""
    command = python(FORKING, "300", victim("hammer"), "100000000")
    command[1:1] = ["-W", "ignore"]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=LIMIT)
    assert done.stdout == b"0 True\n"
