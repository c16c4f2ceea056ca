"""How events look to a person."""

from __future__ import annotations

import os
from typing import TextIO

from portseccomp._process import printable
from portseccomp.events import Event

_COLOURS = {"green": "32", "red": "31", "yellow": "33", "dim": "2", "bold": "1"}


def wants_colour(stream: TextIO) -> bool:
    """Whether a stream is a terminal that is to be coloured (NO_COLOR says no)."""
    return (
        stream.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )


def _paint(text: str, colour: str, painted: bool) -> str:
    return f"\033[{_COLOURS[colour]}m{text}\033[0m" if painted else text


def _place(host: str | None, port: int | None) -> str:
    if host is None:
        return "?"
    shown = f"[{host}]" if ":" in host and port is not None else host or "(unnamed)"
    if port is None:
        return printable(shown)
    return f"{shown}:{port if port else 'ephemeral'}"


def _word(event: Event) -> tuple[str, str]:
    if event.verdict == "deny":
        return "denied", "red"
    if event.errno is not None:
        return "failed", "yellow"
    if event.verdict == "move":
        return "moved", "yellow"
    if event.verdict == "continue" and event.host is None:
        return "unseen", "yellow"
    return ("open", "green") if event.first else ("again", "dim")


def _why(event: Event) -> str:
    if event.reason is not None:
        return event.reason
    if event.verdict == "deny":
        by = "" if event.rule in ("hook", "default") else "rule: "
        return f"{event.errno} by {by}{event.rule}"
    if event.errno is not None:
        return event.errno
    return ""


def format_event(event: Event, *, colour: bool, clock: bool = False) -> str:
    """Return one line about an event."""
    word, paint = _word(event)
    requested = _place(event.requested_host, event.requested_port)
    place = _place(event.host, event.port) if event.host is not None else requested
    if event.verdict == "move":
        place = f"{requested} -> {place}"
    kind = event.protocol or "?"
    if event.family == "unix":
        kind = "unix"
    parts = [
        _paint(f"{word:<6}", paint, colour),
        f"{kind:<5}",
        _paint(f"{place:<21}", "bold", colour),
        printable(f"{event.comm}[{event.pid}]"),
    ]
    if why := printable(_why(event)):
        parts.append(_paint(f"({why})", "dim", colour))
    if clock:
        parts.insert(0, _paint(event.time[11:23], "dim", colour))
    return "  ".join(parts).rstrip()
