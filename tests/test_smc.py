"""SMC sockets, which are TCP to others: collected where the kernel has them.

The module smc is in Debian's kernels, and loaded by few: `make test-kernels` loads
it. AF_SMC is older than Linux 5.9, IPPROTO_SMC came with 6.11.
"""

from __future__ import annotations

import socket

import pytest
from conftest import accepts, has_socket
from test_bind import code

from portseccomp import Guard

AF_SMC, IPPROTO_SMC = 43, 256
KINDS = {
    "af-smc": (AF_SMC, 0, "127.0.0.1"),
    "af-smc6": (AF_SMC, 1, "::1"),
    "tcp-smc": (socket.AF_INET, IPPROTO_SMC, "127.0.0.1"),
    "tcp-smc6": (socket.AF_INET6, IPPROTO_SMC, "::1"),
}


@pytest.fixture(params=[key for key, (af, p, _) in KINDS.items() if has_socket(af, p)])
def kind(request) -> tuple[int, int, str]:
    """A kind of SMC socket that this kernel has."""
    return KINDS[request.param]


def listen(kind: tuple[int, int, str], port: int) -> tuple[str, bool]:
    """What `listen` gives at a port, or unbound at -1; whether it is open then."""
    family, protocol, host = kind
    # Python knows no addresses of AF_SMC, and they are those of AF_INET.
    like = socket.AF_INET6 if ":" in host else socket.AF_INET
    number = socket.socket(family, socket.SOCK_STREAM, protocol).detach()
    with socket.socket(like, fileno=number) as one:
        if port >= 0:
            assert code(one.bind, (host, port)) in ("0", "EACCES")
        result = code(one.listen)
        found = one.getsockname()[1]
        return result, bool(found) and accepts(host, found)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("deny {}", "EACCES"),
        ("deny tcp:{}", "EACCES"),
        ("allow tcp:1", "EACCES"),
        ("allow udp:any", "EACCES"),
        ("allow tcp:{}", "0"),
        ("deny udp:any", "0"),
        ("deny 1", "0"),
    ],
)
def test_smc_is_tcp(free_port, kind, rule, expected):
    """SMC sockets are judged by the rules for TCP, and reported as smc."""
    port = free_port()
    with Guard(rule.format(port)) as guard:
        assert guard.call(listen, kind, port) == (expected, expected == "0")
        (event,) = guard.events()
    assert (event.protocol, event.requested_port) == ("smc", port)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("deny 1", "0"), ("allow tcp:ephemeral", "0"), ("allow tcp:1-65535", "EACCES")],
)
@pytest.mark.parametrize("port", [-1, 0])
def test_smc_on_an_ephemeral_port(kind, policy, expected, port):
    """Unbound or bound to port 0, they are judged as ephemeral."""
    with Guard(policy) as guard:
        assert guard.call(listen, kind, port) == (expected, expected == "0")
        (event,) = guard.events()
    assert event.requested_port == 0
