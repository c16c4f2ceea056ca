"""Embed a guard in a sandbox: a tool may listen on loopback 8000-8999 only.

    python examples/embed.py

Whatever else the tool wants to open is for the hook to decide. The tool's
network is otherwise left as it is. The tool here is a few lines of Python that
try four places.
"""

from __future__ import annotations

import socket
import sys

import portseccomp

POLICY = ["allow loopback:8000-8999", "ask any"]

TOOL = """
import socket, sys
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    with socket.socket() as one:
        one.bind((host, int(port)))
        try:
            one.listen()
        except PermissionError as error:
            print(f"tool: {place}: {error.strerror}")
        else:
            print(f"tool: {place}: listens")
"""


def decide(request: portseccomp.Request) -> portseccomp.Verdict:
    """Allow loopback for Python's own servers; deny the rest, and say so."""
    if request.host == "127.0.0.1" and request.comm.startswith("python"):
        return portseccomp.ALLOW
    return portseccomp.deny("EPERM")


def free_port(ports: range) -> int:
    """The first of some ports that nothing uses just now."""
    for port in ports:
        with socket.socket() as one:
            try:
                one.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise SystemExit(f"no port of {ports} is free")


def main() -> int:
    """Run the tool; return its exit status."""
    inside, outside = free_port(range(8000, 9000)), free_port(range(9000, 10000))
    places = [
        f"127.0.0.1:{inside}",  # allowed by the rule
        f"127.0.0.1:{outside}",  # the hook allows it
        f"0.0.0.0:{inside}",  # the hook does not: that is not loopback
        f"0.0.0.0:{outside}",
    ]
    events: list[portseccomp.Event] = []
    with portseccomp.Guard(POLICY, hook=decide, on_event=events.append) as guard:
        done = guard.run([sys.executable, "-c", TOOL, *places], timeout=30)
    # Closing the guard has delivered every event.
    for event in events:
        place = f"{event.requested_host}:{event.requested_port}"
        print(f"guard: {place}: {event.verdict}, by {event.rule}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
