"""A real server under a guard: allowed on one port, denied on another.

    python examples/demo.py

Prints each event as it happens. Exits with 0 if the server could be used where
it may listen, and could not where it may not.
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack

import portseccomp

LIMIT = 15  # seconds; only a hang takes so long
COLOURED = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
GREEN, RED, DIM, BOLD = "32", "31", "2", "1"


def paint(text: str, colour: str) -> str:
    """Colour a text, on a terminal."""
    return f"\033[{colour}m{text}\033[0m" if COLOURED else text


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)


def step(label: str, text: str, colour: str = DIM) -> None:
    """Print one thing that happened."""
    say(f"  {paint(f'{label:<8}', colour)}  {text}")


class Screen:
    """Prints events as they happen; `next()` waits until one is printed."""

    def __init__(self) -> None:
        self._printed: queue.Queue[portseccomp.Event] = queue.Queue()

    def __call__(self, event: portseccomp.Event) -> None:
        place = f"{event.protocol} {event.requested_host}:{event.requested_port}"
        colour, label = (RED, "denied") if event.errno else (GREEN, "open")
        why = "the default" if event.rule == "default" else f"rule: {event.rule}"
        if event.errno:
            why = f"{event.errno} by {why}"
        who = f"{event.comm}[{event.pid}]"
        step(label, f"{paint(place, BOLD)}  {who}  ({why})", colour)
        self._printed.put(event)

    def next(self) -> portseccomp.Event:
        """Return the next event, once it is on the screen."""
        try:
            return self._printed.get(timeout=LIMIT)
        except queue.Empty:
            raise TimeoutError(f"nothing listened within {LIMIT} s") from None


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nothing uses just now."""
    with ExitStack() as stack:
        found = []
        for _ in range(number):
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            found.append(one.getsockname()[1])
        return found


def start(guard: portseccomp.Guard, port: int, place: str) -> subprocess.Popen[str]:
    """Start Python's own web server under the guard."""
    arguments = ["-m", "http.server", "--bind", "127.0.0.1", str(port)]
    step("start", f"python3 {' '.join(arguments)}")
    return guard.popen(
        [sys.executable, *arguments],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> str:
    """End a server, if it has not; return the last line that it wrote."""
    process.terminate()
    _, errors = process.communicate(timeout=LIMIT)
    return (errors.strip().splitlines() or [""])[-1]


def serves(guard: portseccomp.Guard, screen: Screen, port: int, place: str) -> bool:
    """Start the server where it may listen, and fetch a page from it."""
    process = start(guard, port, place)
    try:
        event = screen.next()
        url = f"http://{event.host}:{event.port}/"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=LIMIT) as answer:
            text = answer.read().decode().strip()
            step("fetch", f"{url} -> {answer.status}, {text!r}")
            return bool(answer.status == 200 and text == "hello")
    except OSError as error:
        step("failed", str(error), RED)
        return False
    finally:
        end(process)


def is_denied(guard: portseccomp.Guard, screen: Screen, port: int, place: str) -> bool:
    """Start the server where it may not listen, and see it fail."""
    process = start(guard, port, place)
    try:
        event = screen.next()
        status = process.wait(timeout=LIMIT)
    except (subprocess.TimeoutExpired, OSError) as error:
        step("failed", str(error), RED)
        return False
    finally:
        last = end(process)
    step("exit", f"status {status}, {last!r}")
    with socket.socket() as one:
        refused = one.connect_ex(("127.0.0.1", port)) != 0
    step("connect", f"127.0.0.1:{port} -> {'refused' if refused else 'accepted'}")
    return event.verdict == "deny" and status != 0 and refused


def main() -> int:
    """Run both; return the exit status."""
    good, bad = free_ports(2)
    policy = portseccomp.Policy(f"allow loopback:{good}")
    screen = Screen()
    with tempfile.TemporaryDirectory() as place:
        with open(os.path.join(place, "index.html"), "w") as page:
            page.write("hello\n")
        try:
            with portseccomp.Guard(policy, on_event=screen) as guard:
                say(f"policy: {policy.rules[0]}, {policy.default} everything else\n")
                served = serves(guard, screen, good, place)
                say()
                denied = is_denied(guard, screen, bad, place)
        except portseccomp.KernelError as error:
            say(f"portseccomp does not work here: {error}")
            return 1
    say()
    for fine, port, wanted in (
        (served, good, "allowed, and it served"),
        (denied, bad, "denied, and nothing listens there"),
    ):
        word = paint("ok  ", GREEN) if fine else paint("FAIL", RED)
        say(f"{word}  port {port}: {'' if fine else 'should be '}{wanted}")
    return 0 if served and denied else 1


if __name__ == "__main__":
    sys.exit(main())
