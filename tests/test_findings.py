"""Ways past the guard that an attack found, each closed and kept as a test."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest
from conftest import python

from portseccomp import Guard

FORBIDDEN = 22222  # not one that the kernel could choose
LIMIT = 30  # seconds; only a hang takes so long

root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: userfaultfd(2), setuid"
)

SO_LOCK_FILTER = 44  # asm-generic/socket.h


@root
@pytest.mark.parametrize("policy", ["deny any", f"deny {FORBIDDEN}"])
def test_udp_socket_that_changes_its_family(victim, policy):
    """A socket turned from IPv6 to IPv4 in its bind opens no denied UDP port."""
    with Guard(policy) as guard:
        command = [victim("addrform"), str(FORBIDDEN)]
        done = guard.run(command, stdout=subprocess.PIPE, timeout=LIMIT)
    assert done.stdout.splitlines() == [b"bind: EAFNOSUPPORT", b"port: 0"]


@root
def test_tcp_socket_that_changes_its_family(victim):
    """Nor does it pass for an ephemeral one, and listen on a chosen port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        with Guard("allow tcp:ephemeral") as guard:
            command = [victim("addrform"), str(FORBIDDEN), port]
            done = guard.run(command, stdout=subprocess.PIPE, timeout=LIMIT)
    assert done.stdout.splitlines()[0] == b"bind: EAFNOSUPPORT"
    assert b"port: %d" % FORBIDDEN not in done.stdout


VSOCK = """
import ctypes, os, socket
unshare = ctypes.CDLL(None).unshare
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
def attempt():
    with socket.socket(socket.AF_VSOCK) as one:
        try:
            one.bind((socket.VMADDR_CID_ANY, 80))
            print("bound")
        except OSError as error:
            print(type(error).__name__)
attempt()
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
assert unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
attempt()
"""


@root
def test_privileged_vsock_port_from_an_own_user_namespace():
    """Root in a user namespace of its own gets no privileged vsock port."""
    outside = subprocess.run(python(VSOCK), stdout=subprocess.PIPE)
    with Guard("deny udp:1") as guard:
        inside = guard.run(python(VSOCK), stdout=subprocess.PIPE)
    assert outside.stdout == b"PermissionError\nPermissionError\n"
    assert inside.stdout == outside.stdout


def test_names_are_escaped_in_what_python_prints():
    """No name of a hostile program steers a terminal through a repr."""
    source = (
        "import ctypes, socket\n"
        "ctypes.CDLL(None).prctl(15, b'\\x1b[2Jevil', 0, 0, 0)\n"
        "socket.socket().listen()\n"
    )
    seen = []

    def hook(request) -> bool:
        seen.append(repr(request))
        return True

    with Guard("ask tcp:any", hook=hook) as guard:
        guard.run(python(source), stderr=subprocess.DEVNULL)
        seen.append(repr(next(guard.events())))
    assert len(seen) == 2
    for one in seen:
        assert "\x1b" not in one
        assert r"\x1b[2Jevil" in one


def test_name_is_that_of_the_moment():
    """A caller that renames itself between two calls is named right in both."""
    source = (
        "import ctypes, socket\n"
        "for name in (b'first', b'second'):\n"
        "    ctypes.CDLL(None).prctl(15, name, 0, 0, 0)\n"
        "    with socket.socket() as one:\n"
        "        one.listen()\n"
    )
    with Guard("deny tcp:1") as guard:
        guard.run(python(source))
        assert [one.comm for one in guard.events()] == ["first", "second"]


@pytest.mark.parametrize("locked", [False, True], ids=["open", "locked"])
def test_udp_socket_that_hears_ipv4_by_the_time_of_the_hooks_answer(free_port, locked):
    """V6ONLY taken off while the hook decides is judged anew: nothing opens."""
    port = free_port()

    def hook(request) -> bool:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        one.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, int(locked))
        return True

    rules = ["ask ipv6:udp:any", "deny ipv4:udp:any"]
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside,
        Guard(rules, hook=hook) as guard,
    ):
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with pytest.raises(PermissionError):
            guard.call(one.bind, ("::", port))
        (event,) = guard.events()
        outside.sendto(b"x", ("127.0.0.1", port))
        one.settimeout(0.1)
        with pytest.raises(TimeoutError):
            one.recv(1)
        assert one.getsockname()[1] == 0
    assert (event.rule, event.requested_port) == ("error", port)
