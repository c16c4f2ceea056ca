"""What this kernel, container and user allow, tried out rather than guessed."""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from portseccomp import _core
from portseccomp.errors import KernelError

_PIDFD_THREAD = 0o200  # O_EXCL; Linux 6.9
_CAP_SYS_PTRACE = 19


class Feature(NamedTuple):
    """One thing that a guard uses.

    `available`: whether it works here. `detail`: what was seen. `without`:
    what it costs to lack it.
    """

    name: str
    available: bool
    detail: str
    without: str


class Probe(NamedTuple):
    """What works here. `usable`: whether a guard can be used at all."""

    usable: bool
    kernel: str
    machine: str
    features: tuple[Feature, ...]


def _guard_features() -> list[Feature]:
    """Guard a `listen` of our own, and look at what happened."""
    import socket

    from portseccomp.guard import Guard

    def listen() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
            one.bind(("127.0.0.1", 0))
            one.listen()

    without = "nothing can be guarded"
    try:
        with Guard("deny 1 with EPERM", on_event=lambda event: None) as guard:
            features = guard._features
            try:
                guard.call(listen)
                copied = Feature("pidfd_getfd", True, "a socket was copied", "")
            except OSError:
                reason = next(iter(guard.events())).reason or "refused"
                copied = Feature(
                    "pidfd_getfd",
                    False,
                    reason,
                    "every call is denied where the policy can deny (a container "
                    "needs --cap-add SYS_PTRACE, or its own seccomp profile)",
                )
    except KernelError as error:
        return [Feature("seccomp listener", False, str(error), without)]
    killable = bool(features & _core.WAIT_KILLABLE)
    sync = bool(features & _core.SYNC_WAKE_UP)
    return [
        Feature("seccomp listener", True, "a filter was installed", without),
        copied,
        Feature(
            "WAIT_KILLABLE_RECV",
            killable,
            "Linux 5.19",
            "signals interrupt calls that are being decided; they are made again",
        ),
        Feature(
            "synchronous wake-up",
            sync,
            "Linux 6.6",
            "a call takes some 60 microseconds instead of some 5",
        ),
    ]


def _pidfd_thread() -> Feature:
    """Open a thread that is not its group's leader."""
    works: list[bool] = []

    def attempt() -> None:
        try:
            os.close(os.pidfd_open(threading.get_native_id(), _PIDFD_THREAD))
            works.append(True)
        except OSError:
            works.append(False)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return Feature(
        "PIDFD_THREAD",
        works[0],
        "Linux 6.9",
        "threads with a descriptor table of their own are denied (kcmp tells)",
    )


def _kcmp() -> Feature:
    """Compare the descriptor tables of a process with itself."""
    try:
        same = _core.same_files(os.getpid(), os.getpid())
        detail = "tables of threads can be compared" if same else "it lies"
    except OSError as error:
        same, detail = False, error.strerror or str(error)
    return Feature(
        "kcmp",
        same,
        detail,
        "nothing, with PIDFD_THREAD; else calls of all threads but a process's "
        "first are denied",
    )


def _ptrace_access() -> Feature:
    try:
        with open("/proc/self/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        capable = bool(int(fields["CapEff"], 16) >> _CAP_SYS_PTRACE & 1)
    except (OSError, KeyError, ValueError):
        capable = False  # /proc can't be seen, or is something else: not known
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            scope = int(file.read())
    except OSError:
        scope = 0
    detail = "CAP_SYS_PTRACE" if capable else f"same user only, Yama scope {scope}"
    return Feature(
        "access to any target",
        capable,
        detail,
        "calls of programs that are not dumpable (ssh-agent, setuid) are denied",
    )


def _end_of_tree() -> Feature:
    from portseccomp.guard import tells_end_unreaped

    return Feature(
        "end of a tree seen at once",
        tells_end_unreaped(),
        "Linux 6.12",
        "targets are reaped by the guard while it waits for the end",
    )


def _confinement() -> Feature:
    try:
        version = _core.confine_version()
        detail = f"Landlock ABI {version}"
    except OSError as error:
        version, detail = 0, f"no Landlock: {error.strerror}"
    return Feature(
        "confinement",
        version >= 6,
        detail,
        "confine is refused: a target of the same user can ptrace the supervisor",
    )


def _io_uring() -> Feature:
    try:
        with open("/proc/sys/kernel/io_uring_disabled") as file:
            disabled = file.read().strip() == "2"
    except OSError:
        disabled = False
    return Feature(
        "io_uring outside a guard",
        not disabled,
        "io_uring_disabled is 2" if disabled else "not disabled",
        "nothing: a policy that can deny switches io_uring off for its targets",
    )


def probe() -> Probe:
    """Try out what a guard needs; nothing is left behind.

    Starts threads, and one guarded `listen` on a loopback port.
    """
    features = _guard_features()
    usable = all(one.available for one in features[:2]) and len(features) > 1
    features += [_pidfd_thread(), _kcmp(), _ptrace_access(), _end_of_tree()]
    features += [_confinement(), _io_uring()]
    system = os.uname()
    return Probe(usable, system.release, system.machine, tuple(features))
