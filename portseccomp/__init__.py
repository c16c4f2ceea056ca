"""Decide which ports a process tree may open, and know when one opens.

import portseccomp

with portseccomp.Guard("allow loopback:8000-8999") as guard:
    process = guard.popen(["python3", "-m", "http.server", "-b", "127.0.0.1"])
    print(guard.wait_listening("tcp:any", timeout=10))
"""

from portseccomp._core import Request
from portseccomp._version import __version__
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
from portseccomp.guard import Guard, Stats, run
from portseccomp.policy import Explanation, Policy
from portseccomp.probe import Feature, Probe, probe
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
