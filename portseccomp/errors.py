"""The exceptions of portseccomp; all derive from PortseccompError."""

from __future__ import annotations


class PortseccompError(Exception):
    """Anything that portseccomp itself reports."""


class PolicyError(PortseccompError, ValueError):
    """A rule, a policy or a policy file is wrong. The message quotes it."""


class GuardError(PortseccompError, RuntimeError):
    """A guard is used in a way that can't work: after its close, for example."""


class KernelError(PortseccompError, OSError):
    """The kernel, or a container around us, refuses what a guard needs.

    `errno` is the kernel's; the message says at which step, and what helps.
    """

    def __str__(self) -> str:
        return str(self.strerror)


class HookError(PortseccompError):
    """A hook, or `on_event`, failed; raised when its guard closes.

    Each call that a failing hook should have decided was denied. The first
    failure is the `__cause__` where the hook raised; `count` says how many.
    """

    def __init__(self, message: str, count: int = 1) -> None:
        super().__init__(message)
        self.count = count


class ListenTimeout(PortseccompError, TimeoutError):
    """Nothing listened in time."""


class TargetExited(PortseccompError):
    """Nothing listens, and no guarded process is left that could."""
