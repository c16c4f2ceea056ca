"""`move`: a port opens elsewhere than the program asked, and it never notices."""

from __future__ import annotations

import ctypes
import errno
import http.client
import json
import select
import socket
import subprocess
import sys

import pytest
from conftest import accepts, need, python

import portseccomp
from portseccomp import ALLOW, Guard, HookError, Policy

LIMIT = 20.0
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h

# Another loopback address, an address that is not loopback, and no address.
ELSEWHERE = "127.9.8.7"


def code(function, *args) -> str:
    """Call; "0" or the errno's name."""
    try:
        function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "0"


def opened(kind: int, host: str, port: int, *options: tuple[int, int, int]):
    """Open a port as a server does; what it sees of it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as one:
        if kind == TCP:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for option in options:
            one.setsockopt(*option)
        result = code(one.bind, (host, port))
        if result == "0" and kind == TCP:
            result = code(one.listen)
        return result, one.getsockname()[:2]


def disconnect(one: socket.socket) -> None:
    """connect() to AF_UNSPEC, which Python has no words for."""
    none = b"\0" * 16
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(one.fileno(), none, len(none)) == 0


def outer_address() -> str:
    """An IPv4 address of this machine that is not loopback."""
    with socket.socket(type=UDP) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("needs a network address beside loopback")
        address = probe.getsockname()[0]
    if address.startswith("127.") or address == "0.0.0.0":
        pytest.skip("needs a network address beside loopback")
    return address


BOTH = pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])


@BOTH
@pytest.mark.parametrize(
    ("host", "target", "place"),
    [
        ("127.0.0.1", "{new}", ("127.0.0.1", "new")),
        ("127.0.0.1", ELSEWHERE, (ELSEWHERE, "old")),
        ("0.0.0.0", ELSEWHERE, (ELSEWHERE, "old")),
        ("127.0.0.1", ELSEWHERE + ":{new}", (ELSEWHERE, "new")),
        ("127.0.0.1", "ephemeral", ("127.0.0.1", "any")),
        ("127.0.0.1", ELSEWHERE + ":ephemeral", (ELSEWHERE, "any")),
        ("0.0.0.0", "loopback", ("127.0.0.1", "old")),
        ("0.0.0.0", "loopback:{new}", ("127.0.0.1", "new")),
        ("0.0.0.0", "loopback:ephemeral", ("127.0.0.1", "any")),
        ("127.0.0.1", "0.0.0.0", ("0.0.0.0", "old")),
        ("::1", "{new}", ("::1", "new")),
        ("::", "[::1]", ("::1", "old")),
        ("::", "[::1]:{new}", ("::1", "new")),
        ("::1", "ephemeral", ("::1", "any")),
        ("::", "loopback", ("::1", "old")),
        ("::ffff:127.0.0.1", "{new}", ("::ffff:127.0.0.1", "new")),
        ("::ffff:127.0.0.1", ELSEWHERE, ("::ffff:" + ELSEWHERE, "old")),
        ("::ffff:0.0.0.0", "loopback", ("::ffff:127.0.0.1", "old")),
        ("::", ELSEWHERE, ("::ffff:" + ELSEWHERE, "old")),
    ],
)
def test_move_to(free_port, kind, host, target, place):
    """A moved socket opens at the target; what the target leaves out stays."""
    old, new = free_port(), free_port()
    rule = f"move {old} -> {target.format(new=new)}"
    with Guard(rule) as guard:
        result, seen = guard.call(opened, kind, host, old)
        events = list(guard.events())
    assert result == "0"
    assert seen[0] == place[0]
    if place[1] == "any":
        assert seen[1] not in (0, old, new)
    else:
        assert seen[1] == {"old": old, "new": new}[place[1]]
    # One event of the bind, and for TCP one of the listen, with both sides.
    assert [one.call for one in events] == (
        ["bind", "listen"] if kind == TCP else ["bind"]
    )
    asked = host.removeprefix("::ffff:")
    is_open = seen[0].removeprefix("::ffff:")
    for event in events:
        assert (event.requested_host, event.requested_port) == (asked, old)
        assert (event.host, event.port) == (is_open, seen[1])
        assert (event.verdict, event.errno, event.rule) == ("move", None, rule)
    assert [one.first for one in events] == [kind == UDP, True][-len(events) :]


@BOTH
def test_other_ports_are_not_moved(free_port, kind):
    """What no move rule selects opens where it was asked for."""
    port = free_port()
    with Guard(f"move {free_port()} -> ephemeral") as guard:
        assert guard.call(opened, kind, "127.0.0.1", port) == (
            "0",
            ("127.0.0.1", port),
        )
        assert {one.verdict for one in guard.events()} == {"allow"}


@BOTH
def test_moved_where_the_port_is_taken(free_port, kind):
    """A move to a taken port gives the program EADDRINUSE, verdict move."""
    old, new = free_port(), free_port()
    with socket.socket(type=kind) as holder, Guard(f"move {old} -> {new}") as guard:
        holder.bind(("127.0.0.1", new))
        result, seen = guard.call(opened, kind, "127.0.0.1", old)
        (event,) = guard.events()
    assert (result, seen[1]) == ("EADDRINUSE", 0)
    assert (event.verdict, event.errno) == ("move", "EADDRINUSE")
    assert (event.host, event.port, event.requested_port) == (None, None, old)
    assert event.first is False


@BOTH
def test_moved_socket_is_judged_once(free_port, kind):
    """A socket that was moved is judged by what it asked for, not by its target."""
    old, new = free_port(), free_port()
    rules = [f"move {old} -> {new}", f"deny {new}"]
    with Guard(rules) as guard:
        assert guard.call(opened, kind, "127.0.0.1", old) == ("0", ("127.0.0.1", new))
        # By itself the new port stays denied.
        assert guard.call(opened, kind, "127.0.0.1", new)[0] == "EACCES"


def test_moved_socket_may_listen_under_an_allow_list(free_port):
    """Under default deny a moved socket listens, and nothing else."""
    old, new = free_port(), free_port()
    policy = Policy([f"move {old} -> {new}"], default="deny")
    with Guard(policy) as guard:
        assert guard.call(opened, TCP, "127.0.0.1", old)[0] == "0"
        assert guard.call(opened, TCP, "127.0.0.1", new)[0] == "EACCES"
        assert guard.call(opened, UDP, "127.0.0.1", old)[0] == "0"
        assert guard.call(opened, UDP, "127.0.0.1", free_port())[0] == "EACCES"


def test_the_first_rule_wins_over_a_move(free_port):
    """A rule before a move holds: the first that matches."""
    port = free_port()
    with Guard([f"deny {port}", f"move {port} -> ephemeral"]) as guard:
        assert guard.call(opened, TCP, "127.0.0.1", port)[0] == "EACCES"
        assert guard.call(opened, UDP, "127.0.0.1", port)[0] == "EACCES"


def test_move_of_one_protocol_only(free_port):
    """`move udp:` leaves TCP alone, and `move tcp:` UDP."""
    old, new = free_port(), free_port()
    for moved, other, word in ((UDP, TCP, "udp"), (TCP, UDP, "tcp")):
        with Guard(f"move {word}:{old} -> {new}") as guard:
            assert guard.call(opened, moved, "127.0.0.1", old)[1][1] == new
            assert guard.call(opened, other, "127.0.0.1", old)[1][1] == old


def test_moved_socket_that_listens_twice(free_port):
    """The second listen of a moved socket works, and is not its first."""
    old, new = free_port(), free_port()

    def serve() -> list[str]:
        with socket.socket() as one:
            return [
                code(one.bind, ("127.0.0.1", old)),
                code(one.listen, 1),
                code(one.listen, 100),
            ]

    with Guard(f"move {old} -> {new}") as guard:
        assert guard.call(serve) == ["0", "0", "0"]
        events = list(guard.events())
    assert [(one.call, one.first) for one in events] == [
        ("bind", False),
        ("listen", True),
        ("listen", False),
    ]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize(
    ("target", "host", "port"),
    [
        ("{new}", None, "new"),
        ("loopback", "loopback", "any"),
        ("loopback:{new}", "loopback", "new"),
        ("ephemeral", None, "any"),
    ],
)
def test_listen_without_bind_is_moved(free_port, family, target, host, port):
    """A TCP socket that listens unbound asks for `ephemeral`, and is moved then."""
    new = free_port()

    def listen() -> tuple[str, str, int]:
        with socket.socket(family) as one:
            return code(one.listen), *one.getsockname()[:2]

    rule = f"move ephemeral -> {target.format(new=new)}"
    with Guard(rule) as guard:
        result, seen_host, seen_port = guard.call(listen)
        (event,) = guard.events()
    six = family == socket.AF_INET6
    wildcard, loopback = ("::", "::1") if six else ("0.0.0.0", "127.0.0.1")
    assert (result, seen_host) == ("0", loopback if host else wildcard)
    assert seen_port == new if port == "new" else seen_port > 0
    assert (event.call, event.verdict, event.rule) == ("listen", "move", rule)
    assert (event.requested_host, event.requested_port) == (wildcard, 0)
    assert (event.host, event.port, event.first) == (seen_host, seen_port, True)


@BOTH
def test_port_0_is_moved_as_ephemeral(free_port, kind):
    """`move ephemeral -> PORT` moves a bind to port 0."""
    new = free_port()
    with Guard(f"move ephemeral -> {new}") as guard:
        assert guard.call(opened, kind, "127.0.0.1", 0) == ("0", ("127.0.0.1", new))
        for event in guard.events():
            assert (event.requested_port, event.port) == (0, new)


def test_dual_stack_moved_by_port_stays_dual_stack(free_port):
    """[::] moved to another port is still open on both; V6ONLY stays V6ONLY."""
    old, new = free_port(), free_port()

    def serve(only: int) -> tuple[bool, bool]:
        with socket.socket(socket.AF_INET6) as one:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("::", old))
            one.listen()
            return accepts("127.0.0.1", new), accepts("::1", new)

    with Guard(f"move {old} -> {new}") as guard:
        assert guard.call(serve, 0) == (True, True)
        assert guard.call(serve, 1) == (False, True)


def get(host: str, port: int) -> int:
    """The status of a request for the root page."""
    connection = http.client.HTTPConnection(host, port, timeout=LIMIT)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_wildcard_to_loopback_pins_a_server(free_port, host, tmp_path):
    """`move wildcard:any -> loopback` pins http.server to loopback."""
    outer, port = outer_address(), free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", host]
    loopback = "::1" if ":" in host else "127.0.0.1"
    with (
        Guard("move wildcard:any -> loopback") as guard,
        guard.popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process,
    ):
        event = guard.wait_listening("tcp:any", timeout=LIMIT)
        try:
            assert (event.requested_host, event.requested_port) == (host, port)
            assert (event.host, event.port) == (loopback, port)
            assert get(loopback, port) == 200
            assert not accepts(outer, port)
        finally:
            process.kill()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_wildcard_to_loopback_pins_udp(free_port, host):
    """The same rule pins a UDP socket: what is sent from outside doesn't arrive."""
    outer, port = outer_address(), free_port()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    loopback = "::1" if ":" in host else "127.0.0.1"

    def serve() -> tuple[str, bytes]:
        with socket.socket(family, UDP) as one, socket.socket(type=UDP) as far:
            one.bind((host, port))
            code(far.sendto, b"outside", (outer, port))
            with socket.socket(family, UDP) as near:
                near.sendto(b"inside", (loopback, port))
            assert select.select([one], [], [], LIMIT)[0]
            return one.getsockname()[0], one.recv(100)

    with Guard("move wildcard:any -> loopback") as guard:
        assert guard.call(serve) == (loopback, b"inside")


def test_two_servers_with_the_same_port_side_by_side(free_port, tmp_path):
    """`move PORT -> ephemeral` runs two copies of a server that hard-codes its port."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with Guard(f"move {port} -> ephemeral") as guard:
        processes, events = [], []
        try:
            for _ in range(2):
                processes.append(
                    guard.popen(
                        command,
                        cwd=tmp_path,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                )
            for event in guard.events():
                if event.call == "listen":
                    events.append(event)
                if len(events) == 2:
                    break
            assert {one.pid for one in events} == {one.pid for one in processes}
            assert [one.requested_port for one in events] == [port, port]
            assert len({one.port for one in events} | {port}) == 3
            assert [get("127.0.0.1", one.port) for one in events] == [200, 200]
            assert not accepts("127.0.0.1", port)
            assert {one.port for one in guard.listeners()} == {
                one.port for one in events
            }
        finally:
            for process in processes:
                process.kill()
                process.wait()


def test_a_real_server_is_moved(free_port, tmp_path):
    """socat with a hard-coded UDP port answers at the port it was moved to."""
    old, new = free_port(), free_port()
    command = [need("socat", "socat"), f"UDP4-RECVFROM:{old},fork", "EXEC:cat"]
    with (
        Guard(f"move {old} -> loopback:{new}") as guard,
        guard.popen(command) as process,
    ):
        try:
            event = guard.wait_listening(f"udp:{new}", timeout=LIMIT)
            assert (event.host, event.port) == ("127.0.0.1", new)
            with socket.socket(type=UDP) as client:
                client.sendto(b"hello", ("127.0.0.1", new))
                assert select.select([client], [], [], LIMIT)[0]
                assert client.recvfrom(100) == (b"hello", ("127.0.0.1", new))
        finally:
            process.kill()


# ---- hooks ----


@BOTH
@pytest.mark.parametrize(
    ("host", "target", "place"),
    [
        ("127.0.0.1", {"port": "new"}, ("127.0.0.1", "new")),
        ("127.0.0.1", {"host": ELSEWHERE}, (ELSEWHERE, "old")),
        ("127.0.0.1", {"host": ELSEWHERE, "port": "new"}, (ELSEWHERE, "new")),
        ("0.0.0.0", {"host": "loopback"}, ("127.0.0.1", "old")),
        ("::", {"host": "::1", "port": "new"}, ("::1", "new")),
        ("::1", {"port": "new"}, ("::1", "new")),
        ("127.0.0.1", {"port": 0}, ("127.0.0.1", "any")),
    ],
)
def test_hook_moves(free_port, kind, host, target, place):
    """A hook's move(...) moves UDP at bind, and a TCP socket that listens unbound."""
    old, new = free_port(), free_port()
    if target.get("host") == "loopback":
        target = {**target, "host": "127.0.0.1"}
    if target.get("port") == "new":
        target = {**target, "port": new}
    if kind == TCP:
        if "port" not in target:
            place = (place[0], "any")

        def call() -> tuple[str, tuple[str, int]]:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family) as one:
                if "host" not in target:
                    # An address without a port: what is left is the choice.
                    one.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                    one.bind((host, 0))
                return code(one.listen), one.getsockname()[:2]
    else:

        def call() -> tuple[str, tuple[str, int]]:
            return opened(UDP, host, old)

    with Guard(hook=lambda request: portseccomp.move(**target)) as guard:
        result, seen = guard.call(call)
        (event,) = guard.events()
    assert (result, seen[0]) == ("0", place[0])
    wanted = {"old": old, "new": new}.get(place[1])
    assert seen[1] == wanted if wanted else seen[1] not in (0, old)
    assert (event.verdict, event.rule) == ("move", "hook")
    assert (event.host, event.port, event.first) == (*seen, True)


def test_hook_moves_only_what_is_not_bound(free_port):
    """A bound TCP socket can't be moved at listen: denied, and the hook is told."""
    port = free_port()
    guard = Guard(f"ask {port}", hook=lambda request: portseccomp.move(port=port + 1))
    try:
        assert guard.call(opened, TCP, "127.0.0.1", port)[0] == "EACCES"
        (event,) = guard.events()
        assert (event.call, event.verdict, event.errno) == ("listen", "deny", "EACCES")
        assert not accepts("127.0.0.1", port)
    finally:
        with pytest.raises(HookError, match="bound"):
            guard.close()


@pytest.mark.parametrize(
    ("host", "only", "target"),
    [
        ("127.0.0.1", 0, "::1"),
        ("0.0.0.0", 0, "::1"),
        ("::1", 0, "127.0.0.1"),
        ("::", 1, "127.0.0.1"),
        ("::ffff:127.0.0.1", 0, "::1"),
    ],
)
def test_hook_that_moves_to_another_family(free_port, host, only, target):
    """A move to another family denies; the event's rule is "error", with a reason."""
    port = free_port()
    options = [(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)] if only else []
    policy = Policy(default="ask", errno="EPERM")
    with Guard(policy, hook=lambda request: portseccomp.move(host=target)) as guard:
        result, seen = guard.call(opened, UDP, host, port, *options)
        (event,) = guard.events()
        assert guard.stats().failed == 1
    assert (result, seen[1]) == ("EPERM", 0)
    assert (event.call, event.verdict, event.rule) == ("bind", "deny", "error")
    assert "another family" in event.reason
    assert (event.errno, event.host, event.port) == ("EPERM", None, None)
    asked = host.removeprefix("::ffff:")
    assert (event.requested_host, event.requested_port) == (asked, port)
    assert json.loads(event.to_json())["reason"] == event.reason


def test_hook_that_moves_some(free_port):
    """A coroutine hook moves one UDP port and allows the other."""
    moved, stays, new = free_port(), free_port(), free_port()

    async def hook(request) -> portseccomp.Verdict:
        return portseccomp.move(port=new) if request.port == moved else ALLOW

    with Guard("ask udp", hook=hook) as guard:
        assert guard.call(opened, UDP, "127.0.0.1", moved)[1][1] == new
        assert guard.call(opened, UDP, "127.0.0.1", stays)[1][1] == stays


# ---- what is not moved, and what stays as it is ----


@BOTH
@pytest.mark.parametrize(
    ("host", "only", "target"),
    [
        ("127.0.0.1", 0, "[::1]"),
        ("0.0.0.0", 0, "[::1]:{new}"),
        ("::1", 0, "127.0.0.1"),
        ("::", 1, "127.0.0.1"),
        ("::ffff:127.0.0.1", 0, "[::1]"),
    ],
)
def test_move_to_an_address_is_for_its_family(free_port, kind, host, only, target):
    """A move to an address of one family leaves sockets of the other alone."""
    old, new = free_port(), free_port()
    options = [(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)] if only else []
    with Guard(f"move {old} -> {target.format(new=new)}") as guard:
        result, seen = guard.call(opened, kind, host, old, *options)
        events = list(guard.events())
    assert (result, seen) == ("0", (host, old))
    assert {one.verdict for one in events} == {"allow"}


@BOTH
def test_no_port_option_and_a_move_to_ephemeral(free_port, kind):
    """IP_BIND_ADDRESS_NO_PORT does not put off the port of a move."""
    old, denied = free_port(), free_port()
    option = (socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    with Guard([f"move {old} -> ephemeral", f"deny {denied}"]) as guard:
        result, seen = guard.call(opened, kind, "127.0.0.1", old, option)
        events = list(guard.events())
    assert (result, seen[0]) == ("0", "127.0.0.1")
    assert seen[1] not in (0, old)
    assert {(one.verdict, one.port) for one in events} == {("move", seen[1])}


def test_no_port_option_and_a_move_at_listen(free_port):
    """The same at `listen`, which then has to choose the port."""
    option = (socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    with Guard("move ephemeral -> loopback") as guard:
        result, seen = guard.call(opened, TCP, "0.0.0.0", 0, option)
    assert (result, seen[0]) == ("0", "127.0.0.1")
    assert seen[1] > 0


def test_json_of_a_moved_event(free_port):
    """A moved event's JSON has both sides, requested and real."""
    old, new = free_port(), free_port()
    with Guard(f"move {old} -> {new}") as guard:
        guard.call(opened, UDP, "0.0.0.0", old)
        (event,) = guard.events()
    fields = json.loads(event.to_json())
    assert list(fields)[:3] == ["time", "call", "pid"]
    assert {
        key: fields[key]
        for key in fields.keys() - {"time", "pid", "tid", "comm", "latency_us"}
    } == {
        "call": "bind",
        "family": "ipv4",
        "protocol": "udp",
        "requested_host": "0.0.0.0",
        "requested_port": old,
        "host": "0.0.0.0",
        "port": new,
        "backlog": None,
        "verdict": "move",
        "errno": None,
        "first": True,
        "rule": f"move {old} -> {new}",
    }


def test_moved_calls_are_counted(free_port):
    """stats().moved counts the moved bind and the listen that follows."""
    old, new = free_port(), free_port()
    with Guard(f"move {old} -> {new}") as guard:
        guard.call(opened, TCP, "127.0.0.1", old)
        guard.call(opened, UDP, "127.0.0.1", old)
        stats = guard.stats()
    assert (stats.requests, stats.moved, stats.denied, stats.failed) == (3, 3, 0, 0)


def test_moved_ports_are_listed_until_they_close(free_port):
    """wait_listening finds a moved port by both ports; listeners() until it closes."""
    old, new = free_port(), free_port()
    source = (
        "import socket, sys\n"
        "a = socket.socket(type=socket.SOCK_DGRAM); b = socket.socket()\n"
        "for one in (a, b): one.bind(('127.0.0.1', int(sys.argv[1])))\n"
        "b.listen(); input(); a.close(); b.close(); print('closed', flush=True)\n"
        "input()\n"
    )
    with (
        Guard(f"move {old} -> {new}") as guard,
        guard.popen(
            python(source, str(old)), stdin=-1, stdout=-1, bufsize=0
        ) as process,
    ):
        for selector in (f"tcp:{old}", f"tcp:{new}", f"udp:{old}", f"udp:{new}"):
            assert guard.wait_listening(selector, timeout=LIMIT).port == new
        found = {(one.protocol, one.port) for one in guard.listeners()}
        assert found == {("tcp", new), ("udp", new)}
        process.stdin.write(b"\n")
        assert process.stdout.readline() == b"closed\n"
        assert guard.listeners() == []
        process.stdin.write(b"\n")


def test_disconnected_after_a_move_is_judged_anew(free_port):
    """A moved socket that gives its port up by a disconnect is judged again."""
    old, denied = free_port(), free_port()

    def serve() -> tuple[str, str]:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as one:
            one.bind(("127.0.0.1", old))
            one.connect(server.getsockname())
            disconnect(one)
            return code(one.bind, ("127.0.0.1", denied)), code(one.listen)

    with Guard([f"move {old} -> ephemeral", f"deny {denied}"]) as guard:
        assert guard.call(serve) == ("0", "EACCES")
    assert not accepts("127.0.0.1", denied)
