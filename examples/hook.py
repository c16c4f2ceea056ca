"""A hook to use on the command line: loopback for everybody, else a question.

    portseccomp run --hook examples/hook.py:decide -- python3 -m http.server

PORTSECCOMP_TRUST names programs, separated by commas, that may listen anywhere:

    PORTSECCOMP_TRUST=/usr/sbin/nginx portseccomp run --hook ...
"""

from __future__ import annotations

import ipaddress
import os
import sys

from portseccomp import ALLOW, Request, Verdict, deny

TRUSTED = set(os.environ.get("PORTSECCOMP_TRUST", "").split(",")) - {""}


def decide(request: Request) -> Verdict:
    """Allow loopback, unix sockets and trusted programs; deny the rest with EPERM."""
    if request.family not in ("ipv4", "ipv6"):
        return ALLOW
    host = (request.host or "::").partition("%")[0]
    if ipaddress.ip_address(host).is_loopback:
        return ALLOW
    # Read only now: it costs a look into /proc.
    if request.exe in TRUSTED:
        return ALLOW
    print(
        f"hook: {request.exe} may not listen on {host} port {request.port}",
        file=sys.stderr,
    )
    return deny("EPERM")
