"""Sockets that targets inherit of us, and that children of ours must not.

What is inherited is asked where it is; asking waits for the socket's lock, which
another target may keep for as long as it likes.
"""

from __future__ import annotations

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
