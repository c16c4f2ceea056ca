"""`portseccomp run` and `portseccomp watch`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import TextIO

from portseccomp._process import printable
from portseccomp.cli import fail
from portseccomp.cli.display import format_event, wants_colour
from portseccomp.cli.signals import SignalForwarder
from portseccomp.errors import HookError
from portseccomp.events import Event
from portseccomp.guard import Guard
from portseccomp.policy import Policy

_LOOK_FOR_SIGNALS = 0.2  # seconds, while --wait waits for daemons
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


class _Printer:
    """Prints events as they come: to stderr, and to the log."""

    def __init__(
        self, *, watching: bool, json_lines: bool, quiet: bool, log: TextIO | None
    ) -> None:
        self._watching = watching
        self._json = json_lines
        self._quiet = quiet
        self._log = log
        self._colour = wants_colour(sys.stderr)

    def __call__(self, event: Event) -> None:
        if self._log is not None:
            try:
                self._log.write(event.to_json() + "\n")
                self._log.flush()
            except OSError as error:
                self._log = None
                self._print(f"portseccomp: --log ends here: {error.strerror}")
        if self._quiet:
            return
        if self._json:
            self._print(event.to_json())
        elif self._watching:
            self._print(format_event(event, colour=self._colour, clock=True))
        elif event.verdict in ("deny", "move"):
            self._print(f"portseccomp: {format_event(event, colour=self._colour)}")

    def _print(self, line: str) -> None:
        # Whoever closes our stderr does not want to read on.
        with contextlib.suppress(OSError, ValueError):
            # In one write: the command writes to the same place.
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def _warn_on_stderr(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"portseccomp: {str(message).removeprefix('portseccomp ')}", file=sys.stderr)


def _start_errors(command: str, start: Callable[[], int]) -> int:
    try:
        return start()
    except FileNotFoundError as error:
        fail(f"{command}: {error.strerror}")
        return _NOT_FOUND
    except PermissionError as error:
        fail(f"{command}: {error.strerror}")
        return _NOT_EXECUTABLE
    except OSError as error:
        fail(f"{command}: {error.strerror} (a script needs a #! line)")
        return _NOT_EXECUTABLE


def run_command(
    command: list[str],
    policy: Policy,
    *,
    watching: bool,
    json_lines: bool,
    log: str | None,
    quiet: bool,
    wait: bool,
    confine: bool,
) -> int:
    """Run a command under a guard; return the exit status."""
    warnings.showwarning = _warn_on_stderr
    signals = SignalForwarder()
    status = 0
    with contextlib.ExitStack() as stack:
        file = None
        if log is not None:
            file = stack.enter_context(open(log, "a", encoding="utf-8"))
        printer = _Printer(
            watching=watching, json_lines=json_lines, quiet=quiet, log=file
        )
        try:
            with Guard(policy, on_event=printer, confine=confine) as guard:
                status = _start_errors(
                    command[0], lambda: _run(guard, signals, command, wait)
                )
                _tell_lost(guard)
        except HookError as error:
            # The command had its denial, and its status tells of that.
            print(f"portseccomp: {printable(str(error))}", file=sys.stderr)
    return status


def _run(guard: Guard, signals: SignalForwarder, command: list[str], wait: bool) -> int:
    process: subprocess.Popen[bytes] = signals.start(lambda: guard.popen(command))
    try:
        code = process.wait()
        while wait and not guard.wait(timeout=_LOOK_FOR_SIGNALS):
            if signals.late is not None:
                return 128 + signals.late
    finally:
        signals.stop()
    return code if code >= 0 else 128 - code


def _tell_lost(guard: Guard) -> None:
    if lost := guard.stats().events_lost:
        print(f"portseccomp: {lost} events were lost", file=sys.stderr)
