"""What a guard does to `listen`: verdicts, errnos, and the record of each call."""

from __future__ import annotations

import datetime
import errno
import json
import os
import re
import select
import socket
import subprocess

import pytest

import portseccomp
from portseccomp import Guard, Policy

KEYS = [
    "time",
    "call",
    "pid",
    "tid",
    "comm",
    "family",
    "protocol",
    "requested_host",
    "requested_port",
    "host",
    "port",
    "backlog",
    "verdict",
    "errno",
    "first",
    "rule",
    "latency_us",
]

# With the first a guard performs each call; the second can never deny.
POLICIES = pytest.mark.parametrize(
    "policy",
    ["deny tcp:1", Policy("allow tcp:1", default="allow")],
    ids=["can-deny", "can-not-deny"],
)

ON = (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def output(process: subprocess.CompletedProcess[bytes]) -> list[str]:
    return process.stdout.decode().splitlines()


def bound(port: int) -> socket.socket:
    one = socket.socket()
    one.setsockopt(*ON)
    one.bind(("127.0.0.1", port))
    return one


def test_allowed_port_opens(victim, free_port):
    """An allowed `listen` gives 0, and connections are accepted from outside."""
    port = free_port()
    command = [victim("listen"), "tcp4", "127.0.0.1", str(port), "hold"]
    with (
        Guard(f"allow {port}") as guard,
        guard.popen(command, stdin=-1, stdout=-1) as process,
    ):
        assert process.stdout.readline() == b"listen: 0\n"
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


@pytest.mark.parametrize(
    ("rule", "default", "expected"),
    [
        ("deny {}", "EACCES", "EACCES"),
        ("deny {} with EPERM", "EACCES", "EPERM"),
        ("deny {} with EADDRINUSE", "EACCES", "EADDRINUSE"),
        ("deny {}", "EADDRNOTAVAIL", "EADDRNOTAVAIL"),
        ("deny {} with EPERM", "ENETDOWN", "EPERM"),
        ("allow 1", "EPERM", "EPERM"),
    ],
)
def test_denied_port_gives_the_errno_of_the_policy(
    victim, free_port, rule, default, expected
):
    """A denial gives the rule's errno, else the policy's, else EACCES."""
    port = free_port()
    policy = Policy(rule.format(port), errno=default)
    command = [victim("listen"), "tcp4", "127.0.0.1", str(port), "hold"]
    with (
        Guard(policy) as guard,
        guard.popen(command, stdin=-1, stdout=-1) as process,
    ):
        assert process.stdout.readline() == f"listen: {expected}\n".encode()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_listen_without_bind_is_ephemeral(victim):
    """`listen` without `bind` asks for port 0, and its event tells the real port."""
    with Guard("deny 1-65535") as guard:
        done = guard.run([victim("listen"), "tcp4", "-", "0"], stdout=-1)
        (event,) = guard.events()
    result, port = output(done)
    assert result == "listen: 0"
    assert (event.requested_host, event.requested_port) == ("0.0.0.0", 0)
    assert event.port == int(port.split()[1]) > 0


def test_deny_ephemeral_hits_listen_without_bind(victim):
    """`deny ephemeral` denies `listen` without `bind`, and leaves it unbound."""
    with Guard("deny ephemeral") as guard:
        done = guard.run([victim("listen"), "tcp4", "-", "0"], stdout=-1)
        (event,) = guard.events()
    assert output(done) == ["listen: EACCES", "port: 0"]
    assert (event.requested_port, event.port, event.rule) == (0, None, "deny ephemeral")


def test_deny_ephemeral_spares_a_chosen_port(victim, free_port):
    """`deny ephemeral` does not touch a port that the program chose."""
    port = free_port()
    with Guard("deny ephemeral") as guard:
        command = [victim("listen"), "tcp4", "127.0.0.1", str(port)]
        assert output(guard.run(command, stdout=-1))[0] == "listen: 0"


def test_event_of_an_allowed_call(victim, free_port):
    """The event of an allowed call has every field, and each is right."""
    port = free_port()
    command = [victim("listen"), "tcp4", "127.0.0.1", str(port), "backlog=77"]
    before = datetime.datetime.now(datetime.UTC)
    with Guard([f"allow tcp:{port}"]) as guard:
        process = guard.popen(command, stdout=subprocess.DEVNULL)
        process.wait(20)
        (event,) = guard.events()
    after = datetime.datetime.now(datetime.UTC)
    fields = event.to_dict()
    when = fields.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", when)
    slack = datetime.timedelta(milliseconds=1)
    assert before - slack <= datetime.datetime.fromisoformat(when) <= after + slack
    assert 0 < fields.pop("latency_us") < 1e7
    assert fields == {
        "call": "listen",
        "pid": process.pid,
        "tid": process.pid,
        "comm": "listen",
        "family": "ipv4",
        "protocol": "tcp",
        "requested_host": "127.0.0.1",
        "requested_port": port,
        "host": "127.0.0.1",
        "port": port,
        "backlog": 77,
        "verdict": "allow",
        "errno": None,
        "first": True,
        "rule": f"allow tcp:{port}",
    }


def test_event_of_a_denied_call(victim, free_port):
    """The event of a denied call tells what was asked, and that nothing is open."""
    port = free_port()
    rule = f"deny {port} with EPERM"
    with Guard(rule) as guard:
        process = guard.popen(
            [victim("listen"), "tcp6only", "::1", str(port), "backlog=-1"],
            stdout=subprocess.DEVNULL,
        )
        process.wait(20)
        (event,) = guard.events()
    fields = event.to_dict()
    assert fields.pop("time").endswith("Z")
    assert fields.pop("latency_us") > 0
    assert fields == {
        "call": "listen",
        "pid": process.pid,
        "tid": process.pid,
        "comm": "listen",
        "family": "ipv6",
        "protocol": "tcp",
        "requested_host": "::1",
        "requested_port": port,
        "host": None,
        "port": None,
        "backlog": -1,
        "verdict": "deny",
        "errno": "EPERM",
        "first": False,
        "rule": rule,
    }


@pytest.mark.parametrize("policy", ["deny ephemeral", None])
def test_json_has_exactly_the_documented_keys(victim, policy):
    """An event's JSON is one line, with the documented keys in their order."""
    with Guard(policy) as guard:
        guard.run([victim("listen"), "tcp4", "-", "0"], stdout=-1)
        (event,) = guard.events()
    line = event.to_json()
    assert "\n" not in line
    assert list(json.loads(line)) == KEYS
    assert all(getattr(event, key) == value for key, value in json.loads(line).items())


def test_rule_of_an_event_may_be_default(victim, free_port):
    """Where no rule matches, the event's rule is "default"."""
    port = free_port()
    with Guard(f"deny {port}") as guard:
        guard.run([victim("listen"), "tcp4", "-", "0"], stdout=-1)
        (event,) = guard.events()
    assert (event.verdict, event.rule) == ("allow", "default")


@POLICIES
def test_first_is_true_once_for_each_socket(victim, free_port, policy):
    """`first` is true for a socket's first `listen`, false for its next ones."""
    command = [victim("listen"), "tcp4", "127.0.0.1", str(free_port()), "times=3"]
    with Guard(policy) as guard:
        done = guard.run(command, stdout=-1)
        firsts = [one.first for one in guard.events()]
    assert output(done)[:3] == ["listen: 0"] * 3
    assert firsts == [True, False, False]


@POLICIES
def test_listening_twice_on_several_sockets(free_port, policy):
    """A server that listens twice on each socket, as nginx does, opens each once."""
    ports = [free_port() for _ in range(5)]

    def serve() -> list[socket.socket]:
        sockets = [bound(port) for port in ports]
        for backlog in (1, 511):
            for one in sockets:
                one.listen(backlog)
        return sockets

    with Guard(policy) as guard:
        sockets = guard.call(serve)
        opened = sorted(one.port for one in guard.listeners())
        for one in sockets:
            one.close()
        firsts = [one.port for one in guard.events() if one.first]
        assert guard.stats().requests == 10
    assert opened == sorted(ports)
    assert firsts == ports


@POLICIES
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fd", "99", "0"], "EBADF"),
        (["fd", "-1", "0"], "EBADF"),
        (["fd", "0", "0"], "ENOTSOCK"),
        (["udp4", "127.0.0.1", "0"], "EOPNOTSUPP"),
        (["udp4", "-", "0"], "EOPNOTSUPP"),
        (["unix", "-", "0"], "EINVAL"),
        (["tcp4", "-", "0", "backlog=-5"], "0"),
        (["tcp4", "-", "0", "backlog=0"], "0"),
    ],
    ids=lambda one: "-".join(one) if isinstance(one, list) else one,
)
def test_a_call_that_fails_by_itself_gives_the_kernels_errno(
    victim, policy, arguments, expected
):
    """An allowed call that fails anyway gives what it gives outside a guard."""
    command = [victim("listen"), *arguments]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    outside = output(subprocess.run(command, **options))
    with Guard(policy) as guard:
        inside = output(guard.run(command, **options))
        (event,) = guard.events()
    assert inside[0] == outside[0] == f"listen: {expected}"
    assert event.verdict in ("allow", "continue")
    if event.verdict == "allow":
        assert event.errno == (None if expected == "0" else expected)


@pytest.mark.parametrize("arguments", [["fd", "99", "0"], ["fd", "0", "0"]])
def test_what_is_no_socket_is_allowed_and_fails(victim, arguments):
    """A closed descriptor or a file is answered with its errno, never continued."""
    with Guard("deny 1") as guard:
        guard.run([victim("listen"), *arguments], stdin=subprocess.DEVNULL, stdout=-1)
        (event,) = guard.events()
    assert event.verdict == "allow"
    assert event.errno == ("EBADF" if arguments[1] == "99" else "ENOTSOCK")
    assert (event.family, event.host, event.first) == (None, None, False)


@POLICIES
def test_listen_on_an_unbound_udp_socket_opens_no_port(victim, policy):
    """A `listen` that the kernel refuses leaves an unbound UDP socket unbound."""
    with Guard(policy) as guard:
        done = guard.run([victim("listen"), "udp4", "-", "0"], stdout=-1)
    assert output(done) == ["listen: EOPNOTSUPP", "port: 0"]


@POLICIES
def test_address_in_use_is_the_kernels(free_port, policy):
    """An allowed `listen` on a port that is taken gives EADDRINUSE, verdict allow."""
    port = free_port()
    with bound(port) as holder, Guard(policy) as guard:

        def attempt() -> int | None:
            with bound(port) as late:
                holder.listen()  # both are bound by now; this one opens
                try:
                    late.listen()
                except OSError as error:
                    return error.errno
            return None

        assert guard.call(attempt) == errno.EADDRINUSE
        last = list(guard.events())[-1]
        assert (last.verdict, last.errno, last.port) == ("allow", "EADDRINUSE", None)


@POLICIES
def test_listen_on_a_connected_socket_is_the_kernels(policy):
    """`listen` on a connected socket gives EINVAL, as without a guard."""
    with socket.create_server(("127.0.0.1", 0)) as server, Guard(policy) as guard:

        def attempt() -> int | None:
            with socket.create_connection(server.getsockname()) as one:
                try:
                    one.listen()
                except OSError as error:
                    return error.errno
            return None

        assert guard.call(attempt) == errno.EINVAL


@POLICIES
def test_quick_close_and_rebind(victim, free_port, policy):
    """A port is free again as soon as the target has closed it, 500 times."""
    with Guard(policy) as guard:
        done = guard.run([victim("churn"), str(free_port()), "500"], stdout=-1)
        assert guard.stats().requests == 500
    assert output(done) == ["wrong: 0 0"]


def test_other_calls_are_untouched(free_port):
    """Everything but `listen` works under a policy that denies every port."""
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> bytes:
            with (
                bound(port),  # binding opens nothing
                socket.socket(type=socket.SOCK_DGRAM) as udp,
                socket.create_connection(server.getsockname(), timeout=5) as client,
            ):
                accepted, _ = server.accept()
                with accepted:
                    accepted.sendall(b"tcp ")
                    first = client.recv(8)
                udp.bind(("127.0.0.1", 0))
                udp.sendto(b"udp", udp.getsockname())
                assert select.select([udp], [], [], 5)[0]
                return first + udp.recv(8)

        with Guard("deny tcp:any") as guard:
            assert guard.call(talk) == b"tcp udp"
            assert guard.call(os.getpid) == os.getpid()
            assert guard.stats().requests == 0


def test_shut_down_listener_can_listen_again(free_port):
    """A listening socket that was shut down and listens again opens anew."""
    port = free_port()

    def listen_again() -> None:
        with bound(port) as one:
            one.listen()
            one.shutdown(socket.SHUT_RDWR)
            one.listen()

    with Guard("deny 1") as guard:
        guard.call(listen_again)
        assert [one.first for one in guard.events()] == [True, True]


def test_run_is_subprocess_run_under_a_guard(victim, free_port):
    """portseccomp.run() returns what subprocess.run does, and tells each event."""
    port = free_port()
    seen = []
    done = portseccomp.run(
        [victim("listen"), "tcp4", "127.0.0.1", str(port)],
        f"deny {port}",
        on_event=seen.append,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, f"listen: EACCES\nport: {port}\n")
    assert [(one.port, one.requested_port) for one in seen] == [(None, port)]


def test_counters_tell_what_happened(victim, free_port):
    """stats() counts requests, allowed and denied calls, and their latencies."""
    port = free_port()
    with Guard(f"deny tcp:{port}") as guard:
        guard.run([victim("listen"), "tcp4", "-", "0", "times=5"], stdout=-1)
        where = ["tcp4", "127.0.0.1", str(port)]
        guard.run([victim("listen"), *where, "times=3"], stdout=-1)
        stats = guard.stats()
    assert (stats.requests, stats.allowed, stats.denied) == (8, 5, 3)
    assert (stats.moved, stats.continued, stats.failed, stats.vanished) == (0, 0, 0, 0)
    assert sum(count for _, count in stats.histogram) == 8
    assert stats.p50_us <= stats.p99_us
    assert guard.stats().requests == 8  # also after the close
