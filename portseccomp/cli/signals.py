"""Passing on the signals that portseccomp is sent.

The command shares our terminal and process group: what the terminal sends
(Ctrl-C), it has already. What somebody sends to us alone is passed on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from types import FrameType

_PASSED_ON = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCONT,
    signal.SIGWINCH,
)
_FROM_KERNEL = 0x80  # SI_KERNEL: the terminal; see sigaction(2)
_WAKE = signal.SIGURG  # ends our own wait


class SignalForwarder:
    """Blocks those signals in this thread, and so in all that it starts.

    `start` runs what starts the command, then passes on what comes.
    """

    def __init__(self) -> None:
        # What is ignored from the outside (nohup) stays ignored, for both.
        self._signals = {
            one for one in _PASSED_ON if signal.getsignal(one) != signal.SIG_IGN
        }
        self._early: list[int] = []
        self.late: int | None = None  # a signal that came after the command's end
        self._ended = False
        self._thread: threading.Thread | None = None
        for one in self._signals:
            # Only for the instant in which the command is started with them
            # unblocked: a blocked signal would stay blocked in it.
            signal.signal(one, self._remember)
        self._old = signal.pthread_sigmask(signal.SIG_BLOCK, {*self._signals, _WAKE})

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._early.append(number)

    def start(
        self, popen: Callable[[], subprocess.Popen[bytes]]
    ) -> subprocess.Popen[bytes]:
        """Start the command with the signal mask that we were started with."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._old)
        try:
            process = popen()
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, {*self._signals, _WAKE})
        for number in self._early:
            _send(process, number)
        self._thread = threading.Thread(
            target=self._forward, args=(process,), name="signals", daemon=True
        )
        self._thread.start()
        return process

    def _forward(self, process: subprocess.Popen[bytes]) -> None:
        while True:
            found = signal.sigwaitinfo({*self._signals, _WAKE})
            if self._ended:
                return
            if found.si_signo == _WAKE:
                continue
            if process.returncode is not None:
                self.late = found.si_signo
            elif found.si_code != _FROM_KERNEL:
                _send(process, found.si_signo)

    def stop(self) -> None:
        """End the passing on."""
        self._ended = True
        if self._thread is not None:
            signal.pthread_kill(self._thread.ident or 0, _WAKE)
            self._thread.join(1.0)


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.returncode is None:
            os.kill(process.pid, number)
