"""The guarded thread: it carries the filter, and starts targets.

A filter and no_new_privs belong to a thread and are inherited by what it
forks. So one thread takes them, leaves the listener, a descriptor of this very
process, to the supervisor, and runs `subprocess.Popen` there. When it ends, and
the targets that it started have ended, the kernel says so on the listener: that
is how a guard knows that nobody is left. A thread that has to end early for
somebody who waits for that is replaced by another one, with a listener of its
own.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from portseccomp import _core
from portseccomp.errors import GuardError, KernelError

T = TypeVar("T")

_HINTS = {
    _core.INSTALL_BUILD: "portseccomp knows x86-64 and aarch64",
    _core.INSTALL_SIZES: "this kernel, or a container's seccomp profile, has no "
    "seccomp notifications (Linux 5.0 has; Docker: --security-opt seccomp=...)",
    _core.INSTALL_NO_NEW_PRIVS: "prctl(PR_SET_NO_NEW_PRIVS) is refused here",
}


def explain_install_error(error: _core.InstallError) -> KernelError:
    """Say which step of the installation failed, and what would help."""
    import errno

    number = error.errno or 0
    if error.stage == _core.INSTALL_SERVE:
        return KernelError(number, f"can't serve the listener: {os.strerror(number)}")
    if error.stage in _HINTS:
        hint = _HINTS[error.stage]
    elif number == errno.EBUSY:
        hint = (
            "this thread is under a seccomp listener already, and Linux allows one: "
            "a guard can't run inside a guard, nor in a container whose runtime has "
            "a seccomp agent"
        )
    elif number in (errno.EPERM, errno.EACCES):
        hint = "a container's seccomp profile refuses the seccomp system call"
    elif number == errno.EINVAL:
        hint = "Linux 5.0 or newer is needed, with CONFIG_SECCOMP_FILTER"
    else:
        hint = "portseccomp probe says what works here"
    return KernelError(
        number, f"can't install the filter: {os.strerror(number)}; {hint}"
    )


def explain_confine_error(error: OSError) -> KernelError:
    """Say why the thread could not be confined, and what would help."""
    try:
        found = f"this kernel's Landlock has ABI {_core.confine_version()}"
    except OSError as missing:
        found = f"there is no Landlock here: {missing.strerror}"
    return KernelError(
        error.errno,
        f"can't confine the target: {found}, and ABI 6 is needed (Linux 6.12, with "
        "landlock among the security modules); without confine a target of the same "
        "user can reach the supervisor by ptrace",
    )


class _Job:
    """A function to run on the guarded thread, and its result."""

    __slots__ = ("function", "mask", "done", "result", "error")

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        # A child inherits its parent thread's signal mask: the caller's.
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self.done = threading.Lock()
        self.done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        own = signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
        try:
            self.result = self.function()
        except BaseException as error:
            self.error = error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, own)
            self.done.release()


class Launcher:
    """One guarded thread.

    Raises KernelError where the filter can't be installed.
    """

    def __init__(
        self, core: _core.Supervisor, table: _core.Table, *, bind: bool, confine: bool
    ) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.RLock()  # see Supervision._lock
        self._retired = False
        self.features = 0
        self.used = False
        started: SimpleQueue[BaseException | None] = SimpleQueue()

        def install() -> None:
            if confine:
                _core.confine_thread()
            self.features = core.install(
                table,
                listen=True,
                bind=bind,
                no_io_uring=table.can_deny,
                no_listener=table.can_deny,
                no_prlimit=confine,
                wanted=_core.WAIT_KILLABLE | _core.SYNC_WAKE_UP,
            )

        self._thread = threading.Thread(
            target=self._main,
            args=(install, started),
            name="portseccomp-launcher",
            daemon=True,
        )
        self._thread.start()
        failure = started.get()
        if failure is not None:
            self._thread.join()
            raise failure from None

    def _main(
        self, install: Callable[[], None], started: SimpleQueue[BaseException | None]
    ) -> None:
        try:
            install()
        except _core.InstallError as error:
            started.put(explain_install_error(error))
            return
        except OSError as error:
            started.put(explain_confine_error(error))
            return
        except BaseException as error:
            started.put(error)  # or nobody would ever hear of it
            return
        started.put(None)
        while (job := self._jobs.get()) is not None:
            job.run()
            job = None  # or its result would live until the next one

    def submit(self, function: Callable[[], T]) -> T:
        """Run a function on the guarded thread; return or raise what it does."""
        job = _Job(function)
        with self._lock:
            if self._retired:
                raise GuardError("the guarded thread has ended")
            self.used = True
            self._jobs.put(job)
        job.done.acquire()
        if job.error is not None:
            try:
                raise job.error
            finally:
                job.error = None  # no cycle through the traceback
        result: T = job.result
        return result

    def retire(self) -> None:
        """End the thread once its jobs are done; later jobs are refused."""
        with self._lock:
            if not self._retired:
                self._retired = True
                self._jobs.put(None)

    def join(self, timeout: float | None) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout)
