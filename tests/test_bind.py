"""What a guard does to `bind`: UDP is decided there, TCP only remembered."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import select
import socket
import subprocess
import threading
from contextlib import ExitStack

import pytest
from conftest import accepts, need, python

import portseccomp
from portseccomp import ALLOW, DENY, Guard, Policy

LIMIT = 20.0
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h
V6ONLY = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
NO_PORT = (socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)

# With the first a guard performs each call; the second can never deny.
POLICIES = pytest.mark.parametrize(
    "policy", ["deny 1", None], ids=["can-deny", "can-not-deny"]
)
BOTH = pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])


def code(function, *args) -> str:
    """Call; "0" or the errno's name."""
    try:
        function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "0"


def make(kind: int, host: str, *options: tuple[int, int, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    one = socket.socket(family, kind)
    for option in options:
        one.setsockopt(*option)
    return one


def udp(host: str, port: int, *options: tuple[int, int, int]) -> tuple[str, int]:
    """Bind a UDP socket; the result, and the port that it has then."""
    with make(UDP, host, *options) as one:
        return code(one.bind, (host, port)), one.getsockname()[1]


def tcp(host: str, port: int, *options: tuple[int, int, int]) -> tuple[str, str, int]:
    """Bind a TCP socket and listen; both results, and the port."""
    with make(TCP, host, *options) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound = code(one.bind, (host, port))
        return bound, code(one.listen), one.getsockname()[1]


def disconnect(one: socket.socket) -> None:
    """connect() to AF_UNSPEC, which Python has no words for."""
    none = b"\0" * 16
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(one.fileno(), none, len(none)) == 0


# ---- UDP ----


@pytest.mark.parametrize(
    ("host", "rule", "expected"),
    [
        ("127.0.0.1", "deny {}", "EACCES"),
        ("127.0.0.1", "deny udp:{}", "EACCES"),
        ("127.0.0.1", "deny udp:{} with EPERM", "EPERM"),
        ("127.0.0.1", "deny {} with EADDRINUSE", "EADDRINUSE"),
        ("127.0.0.1", "deny ipv6:{}", "0"),
        ("127.0.0.1", "deny loopback:{}", "EACCES"),
        ("127.0.0.1", "deny wildcard:{}", "0"),
        ("127.0.0.1", "deny 10.0.0.0/8:{}", "0"),
        ("127.0.0.1", "allow udp:{}", "0"),
        ("127.0.0.1", "allow tcp:{}", "EACCES"),
        ("127.0.0.1", "allow ipv4:udp:127.0.0.0/8:{}", "0"),
        ("0.0.0.0", "allow loopback:any", "EACCES"),
        ("0.0.0.0", "deny wildcard:any", "EACCES"),
        ("::1", "deny {}", "EACCES"),
        ("::1", "deny ipv6:udp:{}", "EACCES"),
        ("::1", "deny ipv4:{}", "0"),
        ("::1", "allow loopback:{}", "0"),
        ("::1", "allow [::1]:{}", "0"),
        ("::", "deny ipv6:{}", "EACCES"),
        ("::", "deny ipv4:{}", "EACCES"),
        ("::", "allow ipv6:{}", "EACCES"),
        ("::", "allow ipv4:{}", "EACCES"),
        ("::", "allow {}", "0"),
        ("::", "deny [::]:{}", "EACCES"),
        ("::", "deny 0.0.0.0:{}", "EACCES"),
        ("::only", "deny ipv6:{}", "EACCES"),
        ("::only", "deny ipv4:{}", "0"),
        ("::only", "allow ipv6:{}", "0"),
        ("::only", "allow ipv4:{}", "EACCES"),
        ("::ffff:127.0.0.1", "deny ipv4:{}", "EACCES"),
        ("::ffff:127.0.0.1", "deny 127.0.0.1:{}", "EACCES"),
        ("::ffff:127.0.0.1", "deny ipv6:{}", "0"),
        ("::ffff:127.0.0.1", "allow ipv6:{}", "EACCES"),
        ("::ffff:127.0.0.1", "allow loopback:{}", "0"),
        ("::ffff:0.0.0.0", "deny wildcard:{}", "EACCES"),
        ("::ffff:0.0.0.0", "deny ipv6:{}", "0"),
    ],
)
def test_udp_is_decided_at_bind(free_port, host, rule, expected):
    """A rule decides a UDP bind by family, address and port; denied: not bound."""
    port = free_port()
    options = [V6ONLY] if host == "::only" else []
    host = host.removesuffix("only")
    with Guard(rule.format(port)) as guard:
        result, actual = guard.call(udp, host, port, *options)
        (event,) = guard.events()
    assert (result, actual) == (expected, port if expected == "0" else 0)
    assert event.verdict == ("allow" if expected == "0" else "deny")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "224.0.0.251"])
@POLICIES
def test_event_of_an_allowed_udp_bind(free_port, host, policy):
    """The event of an allowed bind has every field, both sides, backlog null."""
    port = free_port()
    with Guard(policy) as guard:
        assert guard.call(udp, host, port) == ("0", port)
        (event,) = guard.events()
    fields = json.loads(event.to_json())
    assert fields.pop("time").endswith("Z")
    assert 0 < fields.pop("latency_us") < 1e7
    assert fields.pop("pid") == os.getpid()
    assert fields.pop("tid") != os.getpid()  # call() has a thread of its own
    assert fields.pop("comm")
    assert fields == {
        "call": "bind",
        "family": "ipv6" if ":" in host else "ipv4",
        "protocol": "udp",
        "requested_host": host,
        "requested_port": port,
        "host": host,
        "port": port,
        "backlog": None,
        "verdict": "allow",
        "errno": None,
        "first": True,
        "rule": "default",
    }


def test_event_of_a_denied_udp_bind(free_port):
    """The event of a denied bind tells what was asked, and that nothing is open."""
    port = free_port()
    rule = f"deny udp:{port} with EPERM"
    with Guard(rule) as guard:
        assert guard.call(udp, "127.0.0.1", port) == ("EPERM", 0)
        (event,) = guard.events()
        assert guard.listeners() == []
    assert (event.call, event.backlog, event.first) == ("bind", None, False)
    assert (event.requested_host, event.requested_port) == ("127.0.0.1", port)
    assert (event.host, event.port) == (None, None)
    assert (event.verdict, event.errno, event.rule) == ("deny", "EPERM", rule)
    assert not event.is_open


def test_v4_mapped_event_is_of_the_ipv4_address(free_port):
    """A v4-mapped address is told as the IPv4 address that it is."""
    port = free_port()
    with Guard("deny 1") as guard:
        assert guard.call(udp, "::ffff:127.0.0.1", port) == ("0", port)
        (event,) = guard.events()
    assert (event.family, event.requested_host, event.host) == (
        "ipv4",
        "127.0.0.1",
        "127.0.0.1",
    )


@pytest.mark.parametrize("kind", ["function", "coroutine"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (ALLOW, "0"),
        (DENY, "EPERM"),
        (True, "0"),
        (False, "EPERM"),
        (portseccomp.deny("EADDRNOTAVAIL"), "EADDRNOTAVAIL"),
    ],
    ids=["allow", "deny", "true", "false", "errno"],
)
def test_hook_decides_udp(free_port, kind, answer, expected):
    """A hook is asked about a UDP bind, sees the request, and decides."""
    port, seen = free_port(), []

    def hook(request):
        seen.append(
            (
                request.call,
                request.family,
                request.protocol,
                request.host,
                request.port,
                request.backlog,
            )
        )
        return answer

    async def coroutine(request):
        return hook(request)

    policy = Policy(default="ask", errno="EPERM")
    with Guard(policy, hook=hook if kind == "function" else coroutine) as guard:
        result, actual = guard.call(udp, "127.0.0.1", port)
        (event,) = guard.events()
    assert (result, actual) == (expected, port if expected == "0" else 0)
    assert seen == [("bind", "ipv4", "udp", "127.0.0.1", port, None)]
    assert event.rule == "hook"


@POLICIES
def test_a_bind_that_fails_by_itself_gives_the_kernels_errno(free_port, policy):
    """An allowed bind to a taken or foreign address: the kernel's errno, allow."""
    port = free_port()
    with make(UDP, "127.0.0.1") as holder, Guard(policy) as guard:
        holder.bind(("127.0.0.1", port))
        assert guard.call(udp, "127.0.0.1", port) == ("EADDRINUSE", 0)
        assert guard.call(udp, "192.0.2.1", port) == ("EADDRNOTAVAIL", 0)
        events = list(guard.events())
    assert [(one.verdict, one.errno, one.first) for one in events] == [
        ("allow", "EADDRINUSE", False),
        ("allow", "EADDRNOTAVAIL", False),
    ]
    assert {one.host for one in events} == {None}


def test_udp_lite_is_udp(free_port):
    """A UDP-Lite socket is judged as UDP, and named udplite."""
    port = free_port()

    def attempt() -> str:
        try:
            one = socket.socket(socket.AF_INET, UDP, 136)
        except OSError:
            return "none"
        with one:
            return code(one.bind, ("127.0.0.1", port))

    with Guard(f"deny udp:{port}") as guard:
        result = guard.call(attempt)
        if result == "none":
            pytest.skip("needs a kernel with UDP-Lite")
        (event,) = guard.events()
    assert (result, event.protocol) == ("EACCES", "udplite")


@POLICIES
def test_closing_and_rebinding_never_finds_the_port_busy(free_port, policy):
    """A UDP port is free again as soon as the target has closed it, 1,000 times."""
    port = free_port()

    def churn() -> set[tuple[str, int]]:
        return {udp("127.0.0.1", port) for _ in range(1000)}

    with Guard(policy) as guard:
        assert guard.call(churn) == {("0", port)}
        assert guard.stats().requests == 1000


def test_udp_can_talk_under_a_guard(free_port):
    """What was bound under a guard receives what is sent to it."""
    port = free_port()

    def talk() -> bytes:
        with make(UDP, "127.0.0.1") as one, make(UDP, "127.0.0.1") as client:
            one.bind(("127.0.0.1", port))
            client.sendto(b"hello", ("127.0.0.1", port))
            assert select.select([one], [], [], LIMIT)[0]
            data, peer = one.recvfrom(100)
            one.sendto(data + b" back", peer)
            assert select.select([client], [], [], LIMIT)[0]
            return client.recv(100)

    with Guard(f"allow udp:{port}") as guard:
        assert guard.call(talk) == b"hello back"


def test_denied_udp_socket_can_be_bound_elsewhere(free_port):
    """After a denial the same socket can be bound to a port that is allowed."""
    denied, allowed = free_port(), free_port()

    def attempt() -> list[str]:
        with make(UDP, "127.0.0.1") as one:
            places = [("127.0.0.1", denied), ("127.0.0.1", allowed)]
            return [code(one.bind, place) for place in places]

    with Guard(f"deny {denied}") as guard:
        assert guard.call(attempt) == ["EACCES", "0"]


def test_asyncio_datagram_server(free_port):
    """An asyncio datagram server works, and a denied one fails to start."""
    port, denied = free_port(), free_port()

    async def serve(port: int) -> bytes:
        loop = asyncio.get_running_loop()
        got = loop.create_future()

        class Protocol(asyncio.DatagramProtocol):
            def datagram_received(self, data, address) -> None:
                got.set_result(data)

        server, _ = await loop.create_datagram_endpoint(
            Protocol, local_addr=("127.0.0.1", port)
        )
        client, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=("127.0.0.1", port)
        )
        try:
            client.sendto(b"ping")
            return await asyncio.wait_for(got, LIMIT)
        finally:
            client.close()
            server.close()

    with Guard(f"deny {denied}") as guard:
        assert guard.call(asyncio.run, serve(port)) == b"ping"
        with pytest.raises(PermissionError):
            guard.call(asyncio.run, serve(denied))


# ---- TCP ----


@pytest.mark.parametrize(
    "policy",
    [Policy(default="deny"), "deny any", "deny 1-65535", "deny ephemeral"],
    ids=["default", "any", "numbers", "ephemeral"],
)
def test_tcp_bind_is_never_denied(free_port, policy):
    """Client sockets can bind and connect under any policy; no event tells of it."""
    ports = [0, free_port()]

    def connect(address) -> list[str]:
        results = []
        for port in ports:
            with make(TCP, "127.0.0.1") as one:
                results.append(code(one.bind, ("127.0.0.1", port)))
                results.append(code(one.connect, address))
        return results

    with socket.create_server(("127.0.0.1", 0)) as server, Guard(policy) as guard:
        assert guard.call(connect, server.getsockname()) == ["0"] * 4
        assert guard.stats().denied == 0
        assert list(guard.events()) == []


def test_hook_is_not_asked_about_a_tcp_bind(free_port):
    """A hook is asked about a TCP port once, at listen."""
    port, asked = free_port(), []

    def hook(request) -> bool:
        asked.append((request.call, request.port))
        return True

    with Guard(hook=hook) as guard:
        assert guard.call(tcp, "127.0.0.1", port) == ("0", "0", port)
        assert guard.call(tcp, "127.0.0.1", 0)[:2] == ("0", "0")
    assert asked == [("listen", port), ("listen", 0)]


@pytest.mark.parametrize(
    "rules",
    [["deny tcp:8080"], ["deny tcp:any"], ["deny tcp:1-65535", "deny vsock"]],
)
def test_tcp_rules_do_not_show_bind(free_port, rules):
    """Under a policy about TCP only a bind is recorded, but is nobody's business."""
    with Guard(rules) as guard:
        assert guard.call(udp, "127.0.0.1", free_port())[0] == "0"
        with make(TCP, "127.0.0.1") as one:
            guard.call(one.bind, ("127.0.0.1", 0))
        assert guard.stats()[:6] == (0,) * 6
        assert not any(count for _, count in guard.stats().histogram)


# ---- ephemeral ----


@BOTH
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
@pytest.mark.parametrize("options", [[], [NO_PORT]], ids=["", "no-port"])
@pytest.mark.parametrize(
    ("rules", "default", "expected"),
    [
        (["allow ephemeral"], None, "0"),
        (["deny ephemeral"], None, "EACCES"),
        (["deny 1-65535"], None, "0"),
        (["allow 1-65535"], None, "EACCES"),
        (["deny any"], None, "EACCES"),
        (["allow any"], None, "0"),
        (["allow ephemeral", "deny any"], "deny", "0"),
        (["deny ephemeral", "allow any"], "deny", "EACCES"),
    ],
)
def test_port_0_is_ephemeral(kind, host, options, rules, default, expected):
    """A socket bound to port 0 is ephemeral: UDP at bind, TCP when it listens."""
    with Guard(Policy(rules, default=default)) as guard:
        if kind == UDP:
            result, port = guard.call(udp, host, 0, *options)
        else:
            bound, result, port = guard.call(tcp, host, 0, *options)
            assert bound == "0"
        (event,) = guard.events()
    assert result == expected
    assert (event.requested_host, event.requested_port) == (host, 0)
    if expected == "0":
        # With the option a UDP socket gets its port when it sends.
        assert (port > 0) == (kind == TCP or not options)
        assert event.port == (port or None)
    else:
        assert (event.host, event.port) == (None, None)


@BOTH
def test_deny_ephemeral_spares_chosen_ports(free_port, kind):
    """`deny ephemeral` does not hit a port that was chosen."""
    port = free_port()
    with Guard("deny ephemeral") as guard:
        if kind == UDP:
            assert guard.call(udp, "127.0.0.1", port) == ("0", port)
        else:
            assert guard.call(tcp, "127.0.0.1", port) == ("0", "0", port)


def test_hook_sees_port_0(free_port):
    """A hook is asked about port 0, and the event tells the real port."""
    asked = []

    def hook(request) -> bool:
        asked.append((request.protocol, request.port))
        return True

    with Guard("ask any", hook=hook) as guard:
        ports = [guard.call(udp, "127.0.0.1", 0)[1]]
        ports.append(guard.call(tcp, "127.0.0.1", 0)[2])
        events = list(guard.events())
    assert asked == [("udp", 0), ("tcp", 0)]
    assert [one.port for one in events] == ports


def test_no_port_udp_bind_opens_nothing():
    """With IP_BIND_ADDRESS_NO_PORT a bind to port 0 opens no port, and says so."""
    with Guard("deny 1") as guard:
        with make(UDP, "127.0.0.1", NO_PORT) as one:
            guard.call(one.bind, ("127.0.0.1", 0))
            assert guard.listeners() == []
        (event,) = guard.events()
    assert (event.requested_port, event.first, event.is_open) == (0, False, False)


def bind_and_drop(number: int) -> None:
    """Bind sockets to port 0, as clients do, and close them."""
    for _ in range(number):
        with make(TCP, "127.0.0.1") as one:
            one.bind(("127.0.0.1", 0))


@pytest.mark.parametrize(
    "rule", ["deny ephemeral", "deny loopback:ephemeral", "allow 1-65535"]
)
def test_forgotten_ephemeral_sockets_stay_denied(rule):
    """After 20,000 others an ephemeral socket is denied still: memory is bounded."""
    with Guard(rule) as guard, make(TCP, "127.0.0.1") as one:

        def attempt() -> str:
            one.bind(("127.0.0.1", 0))
            bind_and_drop(20_000)
            return code(one.listen)

        assert guard.call(attempt) == "EACCES"
        assert not accepts(*one.getsockname())


@pytest.mark.parametrize(
    "rule", ["deny ephemeral", "allow {}", "allow tcp:{}", "allow loopback:1-65535"]
)
def test_chosen_ports_stay_open_after_many_ephemeral_sockets(free_port, rule):
    """20,000 client sockets later a server's chosen port is allowed still."""
    port = free_port()
    with Guard(rule.format(port)) as guard:

        def attempt() -> tuple[str, str, int]:
            bind_and_drop(20_000)
            return tcp("127.0.0.1", port)

        assert guard.call(attempt) == ("0", "0", port)


# Binds as many sockets as it is told to, and closes them.
MANY = """
import socket, sys
for _ in range(int(sys.argv[1])):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
"""


def test_nobody_makes_the_guard_forget_others_sockets(free_port):
    """20 sockets are known still after another process has bound 6,000."""
    ports = [free_port() for _ in range(20)]
    # Sockets of which nothing is known would be denied.
    policy = Policy([f"allow loopback:{one}" for one in ports], default="deny")
    with Guard(policy) as guard, ExitStack() as stack:
        socks = [stack.enter_context(make(TCP, "127.0.0.1")) for _ in ports]

        def serve() -> list[str]:
            for one, port in zip(socks, ports, strict=True):
                one.bind(("127.0.0.1", port))
            subprocess.run(python(MANY, "6000"), check=True, timeout=LIMIT)
            return [code(one.listen) for one in socks]

        assert guard.call(serve) == ["0"] * 20


def test_memory_for_sockets_is_bounded():
    """20,000 sockets that stay bound to port 0 cost the guard under 4 MiB."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with Guard("deny ephemeral") as guard:
        guard.call(bind_and_drop, 2000)
        before = resident()
        guard.call(bind_and_drop, 20_000)
        assert resident() - before < 4 << 20


@pytest.mark.parametrize(
    ("rules", "default", "expected"),
    [
        (["allow ephemeral"], None, "EACCES"),
        (["deny ephemeral"], None, "0"),
        (["allow ephemeral", "deny {}"], "allow", "EACCES"),
    ],
)
def test_rebound_socket_is_judged_by_its_new_port(free_port, rules, default, expected):
    """Bound to port 0, disconnected, bound to a chosen port: that one counts."""
    port = free_port()

    def attempt(address) -> tuple[str, str]:
        with make(TCP, "127.0.0.1") as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
            one.connect(address)
            disconnect(one)
            return code(one.bind, ("127.0.0.1", port)), code(one.listen)

    policy = Policy([one.format(port) for one in rules], default=default)
    with socket.create_server(("127.0.0.1", 0)) as server, Guard(policy) as guard:
        assert guard.call(attempt, server.getsockname()) == ("0", expected)
        (event,) = guard.events()
    assert event.requested_port == port


def test_socket_that_was_bound_before_the_guard(free_port):
    """A socket that somebody else has bound is judged by the port that it has."""
    with make(TCP, "127.0.0.1") as one, Guard("deny 1-65535") as guard:
        one.bind(("127.0.0.1", 0))
        assert guard.call(code, one.listen) == "EACCES"


# ---- families without ports ----

UNIX_RULES = pytest.mark.parametrize(
    "policy", ["deny 1", None, "allow 1", "ask unix"], ids=str
)


@UNIX_RULES
@pytest.mark.parametrize("where", ["relative", "absolute", "abstract", "automatic"])
@pytest.mark.parametrize("kind", [TCP, UDP], ids=["stream", "datagram"])
def test_unix_binds_are_the_targets_own(tmp_path, policy, where, kind):
    """A unix bind works as without a guard: path, owner, mode and directory."""
    name = {
        "relative": "one.sock",
        "absolute": str(tmp_path / "one.sock"),
        "abstract": f"\0portseccomp-{os.getpid()}",
        "automatic": "",
    }[where]
    source = (
        "import os, socket, sys\n"
        "os.umask(0o027)\n"
        "one = socket.socket(socket.AF_UNIX, int(sys.argv[1]))\n"
        "one.bind(sys.argv[2].replace('@', '\\0'))\n"
        "name = one.getsockname()\n"
        "print(name if isinstance(name, str) else '@' + name[1:].decode('latin-1'))\n"
    )
    command = python(source, str(int(kind)), name.replace("\0", "@"))
    hook = (lambda request: ALLOW) if policy == "ask unix" else None
    with Guard(policy, hook=hook) as guard:
        done = guard.run(command, stdout=-1, stderr=-2, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    if where == "automatic":
        assert done.stdout.startswith(b"@")
        return
    assert done.stdout.decode().rstrip("\n") == name.replace("\0", "@")
    if where != "abstract":
        found = os.stat(tmp_path / "one.sock")
        assert found.st_mode & 0o777 == 0o750
        assert found.st_uid == os.getuid()


def test_deny_unix_denies_binds(tmp_path):
    """`deny unix` denies a unix bind, makes no file, and tells the path."""
    path = str(tmp_path / "one.sock")

    def attempt() -> str:
        with socket.socket(socket.AF_UNIX) as one:
            return code(one.bind, path)

    with Guard("deny unix with EPERM") as guard:
        assert guard.call(attempt) == "EPERM"
        (event,) = guard.events()
    assert (event.call, event.family, event.requested_host) == ("bind", "unix", path)
    assert event.verdict == "deny"
    assert not os.path.exists(path)


NETLINK = """
import os, socket
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one:
    one.bind((0, 0))
    print(one.getsockname()[0] == os.getpid())
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as two:
        two.bind((0, 0))
        print(two.getsockname()[0] not in (0, os.getpid()))
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one:
    one.bind((0, 1))
    print(one.getsockname() == (os.getpid(), 1))
print(bool(socket.getaddrinfo("localhost", 80)))
"""


@POLICIES
def test_netlink_binds(policy):
    """Netlink sockets get the target's own pid, and getaddrinfo works."""
    with Guard(policy) as guard:
        done = guard.run(python(NETLINK), stdout=-1, stderr=-2)
        assert list(guard.events()) == []
    assert done.stdout.split() == [b"True"] * 4


@POLICIES
def test_ip_works(policy):
    """`ip`, which speaks netlink, prints what it prints without a guard."""
    command = [need("ip", "iproute2"), "-o", "link", "show", "lo"]
    outside = subprocess.run(command, stdout=-1).stdout
    with Guard(policy) as guard:
        assert guard.run(command, stdout=-1).stdout == outside != b""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@POLICIES
def test_packet_sockets(policy):
    """A packet socket of root can be bound to a device, without an event."""

    def attempt() -> tuple[str, int]:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as one:
            one.bind(("lo", 3))
            return one.getsockname()[:2]

    outside = attempt()
    with Guard(policy) as guard:
        assert guard.call(attempt) == outside == ("lo", 3)
        assert list(guard.events()) == []


# ---- readiness ----

SERVER = """
import socket, sys
one = socket.socket(type=socket.SOCK_DGRAM)
one.bind(("127.0.0.1", int(sys.argv[1])))
sys.stdin.read(1)
one.close()
print("closed", flush=True)
sys.stdin.read(1)
"""


@POLICIES
@pytest.mark.parametrize("selector", ["udp:any", "any", "udp:{}", "loopback:any"])
def test_wait_listening_and_listeners_know_udp(free_port, policy, selector):
    """wait_listening returns when a UDP port is open; listeners() until it closes."""
    port = free_port()
    with (
        Guard(policy) as guard,
        guard.popen(
            python(SERVER, str(port)), stdin=-1, stdout=-1, bufsize=0
        ) as process,
    ):
        event = guard.wait_listening(selector.format(port), timeout=LIMIT)
        assert (event.call, event.protocol, event.port) == ("bind", "udp", port)
        assert (event.pid, event.first) == (process.pid, True)
        # It is open: a second socket finds it taken.
        assert udp("127.0.0.1", port) == ("EADDRINUSE", 0)
        assert [(one.pid, one.port) for one in guard.listeners()] == [
            (process.pid, port)
        ]
        assert guard.wait_listening(port, timeout=0) == event
        with pytest.raises(portseccomp.PolicyError, match="a selector is a string"):
            guard.wait_listening(("udp", port))
        with pytest.raises(portseccomp.ListenTimeout):
            guard.wait_listening("tcp:any", timeout=0.05)
        process.stdin.write(b"x")
        assert process.stdout.readline() == b"closed\n"
        assert guard.listeners() == []
        process.stdin.write(b"x")


def test_wait_listening_from_another_thread(free_port):
    """A thread that waits for a UDP port continues when it opens."""
    port, found = free_port(), []
    with Guard("allow udp:any") as guard, make(UDP, "127.0.0.1") as one:
        waiter = threading.Thread(
            target=lambda: found.append(guard.wait_listening("udp:any", timeout=LIMIT))
        )
        waiter.start()
        guard.call(one.bind, ("127.0.0.1", port))
        waiter.join(LIMIT)
    assert [event.port for event in found] == [port]


def test_denied_udp_is_not_waited_for(free_port):
    """A denied bind ends no wait: nothing is open."""
    port = free_port()
    with Guard(f"deny udp:{port}") as guard:
        done = guard.run(python(SERVER, str(port)), stdin=-3, stdout=-1, stderr=-3)
        assert done.returncode == 1
        with pytest.raises(portseccomp.TargetExited):
            guard.wait_listening("udp:any", timeout=LIMIT)


def test_counters_of_binds(free_port):
    """stats() counts UDP binds as it counts listens."""
    port, denied = free_port(), free_port()
    with Guard(f"deny {denied}") as guard:
        for _ in range(3):
            guard.call(udp, "127.0.0.1", port)
        guard.call(udp, "127.0.0.1", denied)
        stats = guard.stats()
    assert (stats.requests, stats.allowed, stats.denied) == (4, 3, 1)
    assert (stats.continued, stats.failed, stats.events_lost) == (0, 0, 0)


def test_all_events_are_there_after_the_end(free_port):
    """3,000 binds of a target that has ended: events() gives 3,000 events."""
    source = (
        "import socket\n"
        "for _ in range(3000):\n"
        "    with socket.socket(type=socket.SOCK_DGRAM) as one:\n"
        "        one.bind(('127.0.0.1', 0))\n"
    )
    with Guard(None, event_buffer=1 << 13) as guard:
        guard.run(python(source), check=True)
        assert len(list(guard.events())) == 3000


# ---- hostile memory ----


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.filterwarnings("ignore:portseccomp can't apply the policy")
@pytest.mark.parametrize("number", [1, 8, 100])
def test_addresses_in_memory_that_never_answers(victim, number):
    """Binds whose address can't be read for ever don't keep others waiting."""
    guard = Guard("deny 1")
    served, results = threading.Event(), []

    def serve() -> None:
        results.append(guard.call(udp, "127.0.0.1", 0)[0])
        results.append(guard.call(tcp, "127.0.0.1", 0)[:2])
        served.set()

    with guard.popen(
        [victim("bindfault"), str(number)], stdin=-1, stdout=-1
    ) as process:
        waiter = threading.Thread(target=serve, daemon=True)
        closer = threading.Thread(target=guard.close, daemon=True)
        try:
            line = process.stdout.readline()
            if line != b"stuck\n":
                pytest.skip("needs a kernel with userfaultfd")
            waiter.start()
            assert served.wait(LIMIT)
            if number == 1:
                assert results == ["0", ("0", "0")]
            closer.start()
            closer.join(LIMIT)
            assert not closer.is_alive()
        finally:
            process.kill()
            process.wait(LIMIT)
            guard.close()
            if waiter.ident:
                waiter.join(LIMIT)


def test_names_with_newlines_do_not_confuse_listeners(free_port):
    """Somebody's unix socket with a newline in its name changes no answer."""
    port = free_port()
    with (
        socket.socket(socket.AF_UNIX) as other,
        Guard("deny 1") as guard,
        make(UDP, "127.0.0.1") as one,
    ):
        other.bind(f"\0portseccomp-{os.getpid()}\n1\n\x0b2 3\x1c")
        other.listen()
        guard.call(one.bind, ("127.0.0.1", port))
        assert [event.port for event in guard.listeners()] == [port]
        one.close()
        assert guard.listeners() == []
