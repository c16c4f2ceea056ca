"""Every kind of socket that can listen, and how a guard judges it."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest
from conftest import need

from portseccomp import Event, Guard, Policy

MPTCP = 262


def listen_once(guard: Guard, victim, *arguments: str) -> tuple[str, Event]:
    """Run the victim under the guard; what it printed first, and its event."""
    done = guard.run([victim("listen"), *arguments], stdout=subprocess.PIPE)
    (event,) = guard.events()
    return done.stdout.decode().splitlines()[0], event


@pytest.mark.parametrize(
    ("what", "host", "family"),
    [
        ("tcp4", "127.0.0.1", "ipv4"),
        ("tcp4", "127.8.8.8", "ipv4"),
        ("tcp6", "::1", "ipv6"),
        ("tcp6only", "::1", "ipv6"),
    ],
)
@pytest.mark.parametrize("verdict", ["allow", "deny"])
def test_ipv4_and_ipv6(victim, free_port, what, host, family, verdict):
    """IPv4 and IPv6 sockets are judged by their address and port."""
    port = free_port()
    address = f"[{host}]" if ":" in host else host
    rule = f"{verdict} {family}:tcp:{address}:{port}"
    with Guard(rule) as guard:
        printed, event = listen_once(guard, victim, what, host, str(port))
    assert printed == ("listen: 0" if verdict == "allow" else "listen: EACCES")
    assert (event.family, event.protocol, event.rule) == (family, "tcp", rule)
    assert (event.requested_host, event.requested_port) == (host, port)


@pytest.mark.parametrize(
    ("rule", "what", "expected"),
    [
        ("deny ipv4:any", "tcp6", "EACCES"),
        ("deny ipv4:any", "tcp6only", "0"),
        ("deny ipv6:any", "tcp6", "EACCES"),
        ("deny ipv6:any", "tcp6only", "EACCES"),
        ("deny 0.0.0.0:any", "tcp6", "EACCES"),
        ("deny 0.0.0.0:any", "tcp6only", "0"),
        ("deny 10.0.0.0/8:any", "tcp6", "0"),
        ("deny wildcard:any", "tcp6", "EACCES"),
        ("allow ipv6:any", "tcp6", "EACCES"),
        ("allow ipv6:any", "tcp6only", "0"),
        ("allow ipv4:any", "tcp6", "EACCES"),
        ("allow any", "tcp6", "0"),
    ],
)
def test_dual_stack_is_judged_as_both(victim, free_port, rule, what, expected):
    """An IPv6 wildcard is judged on both stacks, the stricter holds; V6ONLY on one."""
    with Guard(rule) as guard:
        printed, event = listen_once(guard, victim, what, "::", str(free_port()))
    assert printed == f"listen: {expected}"
    assert event.requested_host == "::"


def test_dual_stack_without_bind_is_judged_as_both(victim):
    """An unbound IPv6 socket is dual stack too, and judged as such."""
    with Guard("deny ipv4:any") as guard:
        printed, event = listen_once(guard, victim, "tcp6", "-", "0")
    assert printed == "listen: EACCES"
    assert (event.family, event.requested_port) == ("ipv6", 0)


@pytest.mark.parametrize(
    ("host", "plain", "rule", "expected"),
    [
        ("::ffff:127.0.0.1", "127.0.0.1", "deny ipv4:loopback:any", "EACCES"),
        ("::ffff:127.0.0.1", "127.0.0.1", "deny ipv6:any", "0"),
        ("::ffff:127.0.0.1", "127.0.0.1", "allow 127.0.0.1:any", "0"),
        ("::ffff:0.0.0.0", "0.0.0.0", "deny wildcard:any", "EACCES"),
        ("::ffff:0.0.0.0", "0.0.0.0", "allow loopback:any", "EACCES"),
    ],
)
def test_v4_mapped_is_judged_as_ipv4(victim, free_port, host, plain, rule, expected):
    """A v4-mapped IPv6 address is judged, and shown, as the IPv4 address it is."""
    with Guard(rule) as guard:
        printed, event = listen_once(guard, victim, "tcp6", host, str(free_port()))
    assert printed == f"listen: {expected}"
    assert (event.family, event.requested_host) == ("ipv4", plain)


def test_v4_mapped_listener_is_listed(victim, free_port):
    """listeners() has a v4-mapped listener for as long as it is open."""
    port = free_port()
    command = [victim("listen"), "tcp6", "::ffff:127.0.0.1", str(port), "hold"]
    with Guard("deny 1") as guard:
        with guard.popen(command, stdin=-1, stdout=-1) as process:
            assert process.stdout.readline() == b"listen: 0\n"
            assert [one.port for one in guard.listeners()] == [port]
        assert guard.listeners() == []


# ---- unix ----


@pytest.fixture
def unix_name(tmp_path) -> Iterator[dict[str, str]]:
    """Names for unix sockets, by kind."""
    yield {"path": str(tmp_path / "socket"), "abstract": f"@portseccomp-{os.getpid()}"}


@pytest.mark.parametrize("kind", ["path", "abstract"])
@pytest.mark.parametrize("policy", ["deny 1", Policy(default="deny"), None])
def test_unix_sockets_are_observed(victim, unix_name, kind, policy):
    """A unix socket listens where no rule names `unix`; its name is the host."""
    with Guard(policy) as guard:
        printed, event = listen_once(guard, victim, "unix", unix_name[kind], "0")
    assert printed == "listen: 0"
    assert event.verdict == ("continue" if policy is None else "allow")
    assert (event.family, event.protocol) == ("unix", "stream")
    assert (event.requested_host, event.requested_port) == (unix_name[kind], None)
    assert (event.host, event.port, event.first) == (unix_name[kind], None, True)


@pytest.mark.parametrize("kind", ["path", "abstract"])
@pytest.mark.parametrize("unix", ["perform", "continue"])
def test_deny_unix(victim, unix_name, kind, unix):
    """`deny unix` denies unix sockets, whatever `unix=` says, and nothing else."""
    with Guard("deny unix", unix=unix) as guard:
        command = [victim("listen"), "unix", unix_name[kind], "0"]
        done = guard.run(command, stdout=subprocess.PIPE)
        assert done.stdout.startswith(b"bind: EACCES\n")
        event = next(guard.events())
        assert (event.call, event.verdict, event.host) == ("bind", "deny", None)
        assert event.requested_host == unix_name[kind]
        done = guard.run([victim("listen"), "tcp4", "-", "0"], stdout=-1)
        assert done.stdout.startswith(b"listen: 0\n")


def test_allow_rule_for_unix_is_named(victim, unix_name):
    """`allow unix` is what the event of a unix socket names as its rule."""
    with Guard("allow unix") as guard:
        printed, event = listen_once(guard, victim, "unix", unix_name["path"], "0")
    assert (printed, event.rule) == ("listen: 0", "allow unix")


def test_unnamed_unix_socket(victim):
    """A unix socket without a name gets the kernel's EINVAL, and no event opens."""
    with Guard("deny 1") as guard:
        printed, event = listen_once(guard, victim, "unix", "-", "0")
    assert printed == "listen: EINVAL"
    assert (event.family, event.requested_host, event.errno) == ("unix", "", "EINVAL")
    assert not event.first


@pytest.mark.parametrize("kind", ["path", "abstract"])
@pytest.mark.parametrize(
    ("policy", "unix", "keeps"),
    [(None, "perform", True), ("deny 1", "continue", True), ("deny 1", "perform", 0)],
)
def test_peer_credentials_of_a_unix_listener(
    victim, unix_name, kind, policy, unix, keeps
):
    """SO_PEERCRED names the target, unless the guard has performed the call."""
    command = [victim("listen"), "unix", unix_name[kind], "0", "hold"]
    with (
        Guard(policy, unix=unix) as guard,
        guard.popen(command, stdin=-1, stdout=-1) as process,
    ):
        assert process.stdout.readline() == b"listen: 0\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(unix_name[kind].replace("@", "\0"))
            packed = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, gid = struct.unpack("3i", packed)
        assert pid == (process.pid if keeps else os.getpid())
        assert (uid, gid) == (os.getuid(), os.getgid())
        assert [one.host for one in guard.listeners()] == [unix_name[kind]]


@pytest.mark.parametrize("policy", ["deny 1", None], ids=["performed", "continued"])
def test_unix_listener_is_first_once(victim, unix_name, policy):
    """`first` is right for unix sockets too, performed or continued."""
    with Guard(policy) as guard:
        command = [victim("listen"), "unix", unix_name["path"], "0", "times=2"]
        guard.run(command, stdout=-1)
        assert [one.first for one in guard.events()] == [True, False]


# ---- other families ----


@pytest.fixture
def mptcp() -> None:
    """Skip where the kernel has no MPTCP."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP).close()
    except OSError as error:
        pytest.skip(f"needs a kernel with MPTCP: {error}")


@pytest.mark.parametrize("rule", ["deny {}", "deny tcp:{}", "allow tcp:1"])
def test_mptcp_is_tcp(victim, free_port, mptcp, rule):
    """MPTCP sockets are judged by the rules for TCP, and reported as mptcp."""
    port = free_port()
    with Guard(rule.format(port)) as guard:
        printed, event = listen_once(guard, victim, "mptcp", "127.0.0.1", str(port))
    assert printed == "listen: EACCES"
    assert (event.protocol, event.requested_port) == ("mptcp", port)


def test_mptcp_port_opens(victim, free_port, mptcp):
    """An allowed MPTCP socket listens, bound or not, and its event has the port."""
    port = free_port()
    with Guard("deny 1") as guard:
        command = [victim("listen"), "mptcp", "127.0.0.1", str(port), "hold"]
        with guard.popen(command, stdin=-1, stdout=-1) as process:
            assert process.stdout.readline() == b"listen: 0\n"
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            assert [one.port for one in guard.listeners()] == [port]
        done = guard.run([victim("listen"), "mptcp", "-", "0"], stdout=-1)
        first, second = guard.events()
    assert (first.protocol, first.port, second.requested_port) == ("mptcp", port, 0)
    result, unbound = done.stdout.decode().splitlines()
    assert (result, unbound) == ("listen: 0", f"port: {second.port}")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("deny 1", "0"), (None, "0"), ("deny vsock", "EACCES"), ("deny any", "0")],
)
def test_vsock(victim, free_port, policy, expected):
    """A vsock socket is observed, with its port; only a rule for vsock denies it."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError as error:
        pytest.skip(f"needs a kernel with vsock: {error}")
    port = free_port()
    with Guard(policy) as guard:
        printed, event = listen_once(guard, victim, "vsock", "any", str(port))
    assert printed == f"listen: {expected}"
    assert (event.family, event.requested_port) == ("vsock", port)
    assert event.port == (None if expected == "EACCES" else port)


# ---- inherited ----


@pytest.mark.parametrize(
    ("rule", "expected"), [("deny {}", "EACCES"), ("allow {}", "0")]
)
def test_socket_bound_outside(victim, free_port, rule, expected):
    """A socket that was bound outside and inherited is judged at its `listen`."""
    port = free_port()
    with socket.socket() as one, Guard(rule.format(port)) as guard:
        one.bind(("127.0.0.1", port))
        number = one.fileno()
        command = [victim("listen"), "fd", str(number), "0"]
        done = guard.run(command, stdout=-1, pass_fds=[number])
        (event,) = guard.events()
        listens = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert done.stdout.startswith(f"listen: {expected}\n".encode())
    assert event.requested_port == port
    assert (event.first, bool(listens)) == (expected == "0", expected == "0")


def test_socket_that_listens_already(victim):
    """A `listen` on an inherited socket that listens already is not its first."""
    with socket.create_server(("127.0.0.1", 0)) as one, Guard("deny 1") as guard:
        number = one.fileno()
        command = [victim("listen"), "fd", str(number), "0"]
        guard.run(command, stdout=-1, pass_fds=[number])
        (event,) = guard.events()
        assert (event.port, event.first) == (one.getsockname()[1], False)
        assert event.errno is None


def test_denial_leaves_an_inherited_listener_alone(victim):
    """A denied `listen` on a socket that listens already does not close it."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port, number = one.getsockname()[1], one.fileno()
        with Guard(f"deny {port}") as guard:
            command = [victim("listen"), "fd", str(number), "0"]
            done = guard.run(command, stdout=-1, pass_fds=[number])
        assert done.stdout.startswith(b"listen: EACCES\n")
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_network_namespace_of_the_socket(victim, free_port):
    """A target in a network namespace of its own is judged by its own socket."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for unshare --net")
    unshare, port = need("unshare", "util-linux"), free_port()
    with socket.create_server(("127.0.0.1", port)), Guard(f"deny {port + 1}") as guard:
        # The port is taken out here, and free in there.
        command = [unshare, "--net", victim("listen"), "tcp4", "0.0.0.0", str(port)]
        done = guard.run(command, stdout=-1, stderr=subprocess.STDOUT)
        (event,) = guard.events()
    assert done.stdout == f"listen: 0\nport: {port}\n".encode()
    assert (event.verdict, event.errno, event.port) == ("allow", None, port)
