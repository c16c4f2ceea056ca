# SPDX-License-Identifier: MIT
"""A program that embeds a guard in a poor world, and what tests steer it with.

The program is this file: it opens a guard and evaluates the expressions that
come on its standard input. `Embedder` starts it, possibly through a launcher that
takes something away from it, and `Outside` looks at ports from the outside.
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Any

LIMIT = 30.0  # seconds; only a hang takes as long

# ---- the outside ----


def open_ports() -> set[tuple[str, int]]:
    """The TCP ports that listen and the UDP ports that are bound, by any process."""
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        with open(f"/proc/net/{table}") as file:
            rows = [row.split() for row in file.readlines()[1:]]
        for row in rows:
            if table.startswith("udp") or row[3] == "0A":
                found.add((table[:3], int(row[1].rpartition(":")[2], 16)))
    return found


def quiet_port() -> int:
    """A port that nothing uses, and that the kernel chooses for nobody meanwhile."""
    while True:
        port = random.randrange(10_000, 30_000)
        if port not in _given and not any(one[1] == port for one in open_ports()):
            _given.add(port)
            return port


_given: set[int] = set()


class Outside(threading.Thread):
    """Looks again and again whether ports are open that never may be."""

    def __init__(self, *ports: int) -> None:
        super().__init__(name="outside")
        self._ports = set(ports)
        self._end = threading.Event()
        self.looks = 0
        self.seen: set[tuple[str, int]] = set()

    def run(self) -> None:
        while not self._end.is_set():
            self.seen |= {one for one in open_ports() if one[1] in self._ports}
            self.looks += 1
            self._end.wait(0.005)

    def __enter__(self) -> Outside:
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._end.set()
        self.join()
        if failure[0] is None:
            assert self.looks > 0
            assert self.seen == set()


def accepts(port: int) -> bool:
    """Whether a connection to a loopback port is accepted."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


# ---- the test's side ----


class EmbedderError(Exception):
    """What an expression raised there; `kind` is its class, `text` the rest."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class Embedder:
    """The program: call it with an expression to get its value."""

    def __init__(
        self,
        rules: Any,
        *,
        through: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        arguments = json.dumps({"rules": rules, "options": options})
        command = [*through, sys.executable, "-W", "ignore", __file__, arguments]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            self._answer()
        except BaseException:
            self.kill()
            raise

    def __call__(self, expression: str, limit: float = LIMIT) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(expression) + "\n")
        self.process.stdin.flush()
        return self._answer(limit)

    def _answer(self, limit: float = LIMIT) -> Any:
        out = self.process.stdout
        assert out is not None
        assert select.select([out], [], [], limit)[0], "no answer: it hangs"
        line = out.readline()
        assert line, "the program died"
        answer = json.loads(line)
        if "error" in answer:
            raise EmbedderError(*answer["error"])
        return answer["value"]

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
            return
        self.process.stdin.close()
        try:
            assert self.process.wait(LIMIT) == 0
        finally:
            self.kill()


# ---- the program ----

_taken: list[int] = []
_targets: list[subprocess.Popen[bytes]] = []


def start(*command: str) -> int:
    """Start a target; its number."""
    pipe = subprocess.PIPE
    _targets.append(guard.popen(command, stdin=pipe, stdout=pipe, bufsize=0))
    return len(_targets) - 1


def tell(number: int) -> None:
    """Let a target go on: a byte on its standard input."""
    _targets[number].stdin.write(b"x")


def hear(number: int) -> str:
    """The next line that a target prints."""
    return _targets[number].stdout.readline().decode().rstrip("\n")


def step(number: int) -> Any:
    """Let the target go on, and return what it prints."""
    tell(number)
    text = hear(number)
    return json.loads(text) if text.startswith("{") else text


def end(number: int) -> int:
    """Close a target's standard input, and wait for its end."""
    process = _targets[number]
    process.stdin.close()
    process.stdout.close()
    return process.wait(LIMIT)


def fill(leave: int = 0, looks: int = 3) -> None:
    """Take all descriptors but some; those that threads still close, too."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limit[1]), limit[1]))
    for look in range(looks):
        time.sleep(0.02 if look else 0)
        try:
            while True:
                _taken.append(os.dup(0))
        except OSError:
            pass
    for _ in range(leave):
        os.close(_taken.pop())


def give_back() -> None:
    """Close what fill() has taken."""
    while _taken:
        os.close(_taken.pop())


def flicker(numbers: list[int]) -> list[Any]:
    """Let targets go on, while descriptors run out and come back; what they print."""
    waiting = select.poll()
    heard: dict[int, Any] = {}
    for number in numbers:
        waiting.register(_targets[number].stdout)
    for number in numbers:
        tell(number)
    while len(heard) < len(numbers):
        fill(looks=1)
        ready = waiting.poll(1)
        give_back()
        ready += waiting.poll(1)
        for number in numbers:
            out = _targets[number].stdout
            if number not in heard and any(fd == out.fileno() for fd, _ in ready):
                heard[number] = json.loads(hear(number))
                waiting.unregister(out)
    return [heard[number] for number in numbers]


def limit_threads(more: int | None) -> None:
    """Let this process, alone of its user, start some more threads; None: any."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    soft = hard if more is None else len(os.listdir("/proc/self/task")) + more
    resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))


def resources() -> tuple[int, list[str]]:
    """The number of descriptors, and the threads' names."""
    import gc

    gc.collect()
    names = sorted(one.name for one in threading.enumerate())
    return len(os.listdir("/proc/self/fd")), names


def resources_at_rest() -> tuple[int, list[str]]:
    """The same, when the threads of guards that are closed have ended."""
    while threading.active_count() > 1:
        time.sleep(0.01)
    return resources()


def resources_but(before: list[Any]) -> Any:
    """None as soon as they are as before; else, after a while, what they are."""
    end = time.monotonic() + 10
    while (now := list(resources())) != before:
        if time.monotonic() > end:
            return now
        time.sleep(0.01)
    return None


def events() -> list[dict[str, Any]]:
    """The events that are kept."""
    guard.listeners()
    log = guard._log
    found, number = [], log.start
    while number < log.end:
        event, number = log.take(number)
        found.append(event.to_dict())
    return found


def _main() -> None:
    global guard
    from portseccomp import Guard, Policy

    given = json.loads(sys.argv[1])
    rules, options = given["rules"], given["options"]
    policy = Policy(rules) if rules is not None else None
    names = globals()
    if options.pop("without_guard", False):
        names.update(Guard=Guard, Policy=Policy, guard=None)
        _serve(names)
        return
    hook = options.pop("hook", None)
    if hook is not None:
        # What an expression refers to lives among the other names.
        exec(hook, names)
        options["hook"] = names["hook"]
    try:
        guard = Guard(policy, **options)
    except OSError as error:
        _reply({"error": [type(error).__name__, str(error)]})
        return
    with guard:
        _serve(names)
        for process in _targets:
            process.kill()
            process.wait()


def _serve(names: dict[str, Any]) -> None:
    _reply({"value": None})
    for line in sys.stdin:
        try:
            value = eval(json.loads(line), names)
            text = {"value": value}
        except BaseException as error:
            text = {"error": [type(error).__name__, str(error)]}
        _reply(text)


def _reply(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main()
