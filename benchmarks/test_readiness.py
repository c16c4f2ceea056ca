"""From a server's `listen` to the moment that somebody knows of it."""

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import pytest

from portseccomp import Guard

SERVER = """
import socket, sys, time
one = socket.socket()
one.bind(("127.0.0.1", int(sys.argv[1])))
sys.stdin.readline()
one.listen()
print(time.monotonic_ns(), flush=True)
sys.stdin.readline()
"""
LISTEN = "0A"
TURNS = 20
POLL = 0.1  # seconds; editors that forward ports wait longer


def seen_after(start: Callable, find: Callable[[], None], port: int) -> float:
    """Seconds from the server's return from `listen` to the return of `find`."""
    with start(
        [sys.executable, "-c", SERVER, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdin.write("listen\n")
        process.stdin.flush()
        find()
        found = time.monotonic_ns()
        listened = int(process.stdout.readline())
        process.stdin.write("end\n")
    return (found - listened) / 1e9


def poll(port: int) -> None:
    """Look into /proc/net/tcp until the port is there."""
    wanted = f":{port:04X}"
    while True:
        with open("/proc/net/tcp") as table:
            for line in table.readlines()[1:]:
                fields = line.split()
                if fields[1].endswith(wanted) and fields[3] == LISTEN:
                    return
        time.sleep(POLL)


@pytest.mark.benchmark(group="readiness")
def test_readiness(benchmark, note):
    """Seconds from `listen` to wait_listening's return, beside polling."""
    guarded: list[float] = []
    polled: list[float] = []
    port = 5998

    def turn() -> None:
        with Guard("deny tcp:1") as guard:
            find = lambda: guard.wait_listening(f"tcp:{port}", timeout=10)  # noqa: E731
            guarded.append(seen_after(guard.popen, find, port))
        polled.append(seen_after(subprocess.Popen, lambda: poll(port), port))

    benchmark.pedantic(turn, rounds=TURNS, iterations=1, warmup_rounds=1)
    note(
        f"from listen to knowing: wait_listening {median(guarded) * 1e6:.0f} us, "
        f"polling /proc/net/tcp each {POLL * 1000:.0f} ms "
        f"{median(polled) * 1e6:.0f} us"
    )
