"""Decide which ports a process tree may open, and know when one opens.

    import portseccomp

    with portseccomp.Guard("allow loopback:8000-8999") as guard:
        process = guard.popen(["python3", "-m", "http.server", "-b", "127.0.0.1"])
        print(guard.wait_listening("tcp:any", timeout=10))

Each name is imported when it is first used, so that the import itself costs
nothing to programs that may not need it.
"""

from portseccomp._version import __version__

TYPE_CHECKING = False  # without importing typing, which takes longer than we do
if TYPE_CHECKING:
    from portseccomp._core import Request
    from portseccomp.errors import (
        GuardError,
        HookError,
        KernelError,
        ListenTimeout,
        PolicyError,
        PortseccompError,
        TargetExited,
    )
    from portseccomp.events import Event, EventStream
    from portseccomp.features import Feature, Probe, probe
    from portseccomp.guard import Guard, Stats, run
    from portseccomp.policy import Explanation, Policy
    from portseccomp.verdict import ALLOW, DENY, Verdict, deny, move

__all__ = [
    "ALLOW",
    "DENY",
    "Event",
    "EventStream",
    "Explanation",
    "Feature",
    "Guard",
    "GuardError",
    "HookError",
    "KernelError",
    "ListenTimeout",
    "Policy",
    "PolicyError",
    "PortseccompError",
    "Probe",
    "Request",
    "Stats",
    "TargetExited",
    "Verdict",
    "__version__",
    "deny",
    "move",
    "probe",
    "run",
]

_HOMES = {
    "_core": ["Request"],
    "errors": [
        "GuardError",
        "HookError",
        "KernelError",
        "ListenTimeout",
        "PolicyError",
        "PortseccompError",
        "TargetExited",
    ],
    "events": ["Event", "EventStream"],
    "features": ["Feature", "Probe", "probe"],
    "guard": ["Guard", "Stats", "run"],
    "policy": ["Explanation", "Policy"],
    "verdict": ["ALLOW", "DENY", "Verdict", "deny", "move"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'portseccomp' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"portseccomp.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
