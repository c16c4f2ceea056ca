"""Real servers under a guard: what they open is seen, and what is denied is shut.

Each server is started for real, and talked to over loopback. tests/servers has
those that no package brings.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import accepts, need

from portseccomp import Event, Guard, PortseccompError

SERVERS = Path(__file__).parent / "servers"
HOSTS = ("127.0.0.1", "::1")
LIMIT = 60  # seconds for anything that a server does: only a hang takes so long


class Server:
    """A running server: its process, its guard, and what it has written."""

    def __init__(self, guard: Guard, process: subprocess.Popen, log) -> None:
        self.guard = guard
        self.process = process
        self.pid = process.pid
        self._log = log

    def wait_listening(self, selector: str) -> Event:
        return self.guard.wait_listening(selector, timeout=LIMIT)

    def output(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")


@contextmanager
def serving(guard: Guard, command: list[str], **options) -> Iterator[Server]:
    """Run a server; kill it and all that it started, and wait for them, at the end."""
    with tempfile.TemporaryFile() as log:
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", log)
        process = guard.popen(command, stderr=log, start_new_session=True, **options)
        server = Server(guard, process, log)
        try:
            yield server
        except (AssertionError, OSError, PortseccompError) as error:
            error.add_note(f"{command[0]} wrote:\n{server.output()}")
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert guard.wait(timeout=LIMIT), "guarded processes are left"


@contextmanager
def watched(policy) -> Iterator[tuple[Guard, list[Event]]]:
    """A guard, and its events: all of them once the guard is closed."""
    events: list[Event] = []
    with Guard(policy, on_event=events.append) as guard:
        yield guard, events


def run_denied(policy, command: list[str], port: int | None = None, **options):
    """Run a server whose `listen` is denied to its end.

    Returns its exit status, what it wrote, and the events. At each denial,
    and at the end, nothing answers on `port`.
    """
    events: list[Event] = []
    answers: list[bool] = []

    def look(event: Event) -> None:
        events.append(event)
        if port is not None:
            answers.extend(accepts(host, port) for host in HOSTS)

    with (
        Guard(policy, on_event=look) as guard,
        serving(guard, command, **options) as server,
    ):
        status = server.process.wait(LIMIT)
        output = server.output()
    if port is not None:
        assert_refused(port)
    assert not any(answers)
    return status, output, events


def assert_refused(port: int) -> None:
    for host in HOSTS:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=LIMIT).close()


def http_get(host: str, port: int) -> str:
    """What a server answers, once it said 200."""
    connection = http.client.HTTPConnection(host, port, timeout=LIMIT)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        body = response.read().decode()
        assert response.status == 200, body
        return body
    finally:
        connection.close()


def ask_tcp(host: str, port: int, question: bytes = b"") -> bytes:
    with socket.create_connection((host, port), timeout=LIMIT) as one:
        return ask(one, question)


def ask_unix(path: str, question: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(LIMIT)
        one.connect(path)
        return ask(one, question)


def ask(connection: socket.socket, question: bytes) -> bytes:
    """Ask, and read one answer; sent at once, as small ones are."""
    connection.sendall(question)
    return connection.recv(4096)


def places(events: list[Event]) -> list[tuple]:
    """Family, protocol, address and port of what events have opened."""
    return sorted((one.family, one.protocol, one.host, one.port) for one in events)


def tcp(*ports: int) -> list[tuple]:
    return [("ipv4", "tcp", "127.0.0.1", port) for port in sorted(ports)]


# ---- servers of Python's standard library ----


def python_server(name: str, *args: object) -> list[str]:
    return [sys.executable, str(SERVERS / name), *map(str, args)]


def http_server(*args: object) -> list[str]:
    return [sys.executable, "-m", "http.server", *map(str, args)]


@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", "ipv4"), ("::1", "ipv6")], ids=["v4", "v6"]
)
def test_http_server_serves_where_it_may(host, family, free_port, tmp_path):
    """python -m http.server serves on its allowed port, and one event tells of it."""
    port = free_port()
    (tmp_path / "index.html").write_text("hello")
    command = http_server("--bind", host, "--directory", tmp_path, port)
    with (
        watched(f"allow loopback:{port}") as (guard, events),
        serving(guard, command) as server,
    ):
        event = server.wait_listening(f"tcp:{port}")
        assert http_get(host, port) == "hello"
        assert [one.port for one in guard.listeners()] == [port]
    assert events == [event]
    assert (event.family, event.protocol, event.host) == (family, "tcp", host)
    assert (event.pid, event.tid, event.port) == (server.pid, server.pid, port)
    assert (event.verdict, event.errno, event.first) == ("allow", None, True)
    assert event.comm == Path(sys.executable).name[:15]


def test_http_server_fails_where_it_may_not(free_port):
    """python -m http.server ends with PermissionError on a port that is not allowed."""
    port, other = free_port(), free_port()
    command = http_server("--bind", "127.0.0.1", port)
    status, output, events = run_denied(f"allow loopback:{other}", command, port)
    assert status == 1
    assert "PermissionError: [Errno 13] Permission denied" in output
    assert [(one.verdict, one.errno, one.rule) for one in events] == [
        ("deny", "EACCES", "default")
    ]
    assert (events[0].requested_host, events[0].requested_port) == ("127.0.0.1", port)
    assert (events[0].host, events[0].port) == (None, None)


def test_dual_stack_server_does_not_pass_by_an_ipv4_rule(free_port):
    """http.server's IPv6 wildcard socket is open on IPv4, so an IPv4 rule denies it."""
    port = free_port()
    command = http_server("--bind", "::", port)
    status, output, events = run_denied(f"deny ipv4:{port}", command, port)
    assert status == 1
    assert "Permission denied" in output
    assert [(one.family, one.verdict) for one in events] == [("ipv6", "deny")]


def test_ephemeral_port_is_told(tmp_path):
    """A server that takes whatever port is free is found where it is."""
    command = http_server("--bind", "127.0.0.1", "--directory", tmp_path, 0)
    with (
        watched(None) as (guard, _),
        serving(guard, command) as server,
    ):
        event = server.wait_listening("tcp:any")
        assert event.port
        assert "Directory listing" in http_get("127.0.0.1", event.port)


def test_asyncio_server_listens_on_both_loopbacks(free_port):
    """An asyncio server with two hosts is two events, and answers on both."""
    port = free_port()
    with (
        watched(f"allow loopback:{port}") as (guard, events),
        serving(guard, python_server("asyncio_server.py", port)) as server,
    ):
        server.wait_listening(f"ipv4:{port}")
        server.wait_listening(f"ipv6:{port}")
        for host in HOSTS:
            assert ask_tcp(host, port) == str(server.pid).encode()
    assert places(events) == [*tcp(port), ("ipv6", "tcp", "::1", port)]
    assert all(one.pid == server.pid and one.first for one in events)


def test_asyncio_server_denied(free_port):
    """An asyncio server that may listen on one loopback of two ends, and both close."""
    port = free_port()
    command = python_server("asyncio_server.py", port)
    status, output, events = run_denied(f"deny [::1]:{port}", command)
    assert status == 1
    assert "Permission denied" in output
    assert [one.family for one in events if one.verdict == "deny"] == ["ipv6"]
    assert_refused(port)


def test_server_made_on_a_thread(free_port):
    """A ThreadingHTTPServer that a thread makes is seen with that thread's id."""
    port = free_port()
    command = python_server("threading_server.py", "127.0.0.1", port)
    with (
        watched(f"allow tcp:{port}") as (guard, events),
        serving(guard, command) as server,
    ):
        server.wait_listening(f"tcp:{port}")
        assert http_get("127.0.0.1", port) == str(server.pid)
    assert places(events) == tcp(port)
    assert events[0].pid == server.pid != events[0].tid


def test_server_made_on_a_thread_denied(free_port):
    """A thread's `listen` is denied as its process's is."""
    port = free_port()
    command = python_server("threading_server.py", "127.0.0.1", port)
    status, output, events = run_denied(f"deny {port} with EPERM", command, port)
    assert status == 0  # a thread's exception does not end a Python program otherwise
    assert "PermissionError: [Errno 1] Operation not permitted" in output
    assert [(one.verdict, one.errno) for one in events] == [("deny", "EPERM")]
    assert events[0].pid != events[0].tid


@pytest.mark.parametrize("who", ["parent", "children"])
def test_prefork_server(who, free_port):
    """Processes that share a socket open it once, whichever of them listens on it."""
    port = free_port()
    with (
        watched(f"allow loopback:{port}") as (guard, events),
        serving(guard, python_server("prefork.py", who, "127.0.0.1", port)) as server,
    ):
        server.wait_listening(f"tcp:{port}")
        answered = {int(ask_tcp("127.0.0.1", port)) for _ in range(3)}
        assert server.process.wait(LIMIT) == 0
    listeners = [one.pid for one in events]
    assert len(answered) == 3 and server.pid not in answered
    if who == "parent":
        assert listeners == [server.pid]
    else:
        assert sorted(listeners) == sorted(answered)
    assert places(events) == tcp(port) * len(events)
    assert [one.first for one in events] == [True] + [False] * (len(events) - 1)


def test_prefork_server_denied(free_port):
    """Each process that shares a socket is denied to listen on it."""
    port = free_port()
    command = python_server("prefork.py", "children", "127.0.0.1", port)
    status, output, events = run_denied(f"deny {port}", command, port)
    assert status == 1
    assert output.count("Permission denied") == 3
    assert len({one.pid for one in events if one.verdict == "deny"}) == 3


@pytest.mark.parametrize("allowed", [True, False])
def test_server_that_goes_on_after_a_denial(allowed, free_port):
    """A denied socket that its program keeps accepts nobody; an allowed one does."""
    port = free_port()
    policy = f"{'allow' if allowed else 'deny'} {port}"
    with (
        Guard(policy) as guard,
        serving(
            guard,
            python_server("stubborn.py", "127.0.0.1", port),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as server,
        server.process.stdin,
        server.process.stdout,
    ):
        said = server.process.stdout.readline().decode().strip()
        assert said == ("listens" if allowed else "EACCES")
        assert accepts("127.0.0.1", port) is allowed
        if not allowed:
            assert_refused(port)


# ---- nginx ----


def nginx(place: Path, port: int) -> list[str]:
    """nginx with one worker and three sockets, all of whose files are in `place`."""
    # Debian keeps it where a user's PATH does not lead.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    program = shutil.which("nginx", path=path) or need("nginx", "nginx-light")
    bodies = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{one}_temp_path {place}/{one};" for one in bodies)
    (place / "conf").write_text(
        f"""
        daemon off;
        worker_processes 1;
        pid {place}/pid;
        error_log stderr;
        events {{ }}
        http {{
            access_log off;
            {temporary}
            server {{
                listen 127.0.0.1:{port};
                listen [::1]:{port};
                listen unix:{place}/sock;
                return 200 "$server_addr";
            }}
        }}
        """
    )
    return [program, "-e", "stderr", "-p", str(place), "-c", str(place / "conf")]


def test_nginx_listens_twice_on_each_socket(free_port, tmp_path):
    """nginx listens twice on each of its sockets, and only the first time opens it."""
    port, sock = free_port(), f"{tmp_path}/sock"
    with (
        watched([f"allow loopback:{port}", "allow unix"]) as (guard, events),
        serving(guard, nginx(tmp_path, port)) as server,
    ):
        for selector in (f"ipv4:{port}", f"ipv6:{port}", "unix"):
            server.wait_listening(selector)
        for host in HOSTS:
            assert http_get(host, port) == host
        answer = ask_unix(sock, b"GET / HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert len(guard.listeners()) == 3
    wanted = [("ipv4", "127.0.0.1", port), ("ipv6", "::1", port), ("unix", sock, None)]
    for place in wanted:
        of_one = [one for one in events if (one.family, one.host, one.port) == place]
        assert [one.first for one in of_one] == [True, False]
    assert len(events) == 6
    assert {(one.comm, one.pid) for one in events} == {("nginx", server.pid)}


@pytest.mark.parametrize(
    ("selector", "where"),
    [
        ("ipv4", "listen() to 127.0.0.1"),
        ("ipv6", "listen() to [::1]"),
        ("unix", "bind() to unix:"),
    ],
)
def test_nginx_denied(selector, where, free_port, tmp_path):
    """nginx that may not listen on one socket says on which, and exits with 1."""
    port = free_port()
    command = nginx(tmp_path, port)
    status, output, events = run_denied(f"deny {selector}", command)
    assert status == 1
    assert where in output
    assert "failed (13: Permission denied)" in output
    assert {one.family for one in events if one.verdict == "deny"} == {selector}
    assert_refused(port)


# ---- redis ----


def redis(place: Path, port: int) -> list[str]:
    program = need("redis-server", "redis-server")
    options = {
        "port": port,
        "unixsocket": place / "sock",
        "dir": place,
        "save": "",
        "appendonly": "no",
        "daemonize": "no",
    }
    command = [program, "--bind", *HOSTS]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return command


def test_redis_answers_on_all_its_sockets(free_port, tmp_path):
    """redis opens IPv4, IPv6 and a unix socket, and answers PING on each."""
    port, sock = free_port(), f"{tmp_path}/sock"
    with (
        watched([f"allow loopback:{port}", "allow unix"]) as (guard, events),
        serving(guard, redis(tmp_path, port)) as server,
    ):
        for selector in (f"ipv4:{port}", f"ipv6:{port}", "unix"):
            server.wait_listening(selector)
        for host in HOSTS:
            assert ask_tcp(host, port, b"PING\r\n") == b"+PONG\r\n"
        assert ask_unix(sock, b"PING\r\n") == b"+PONG\r\n"
    assert {one.host for one in events} == {*HOSTS, sock}
    assert len(events) == 3
    assert {(one.comm, one.pid) for one in events} == {("redis-server", server.pid)}
    assert all(one.first and one.verdict == "allow" for one in events)


def test_redis_denied(free_port, tmp_path):
    """redis that may not listen on its port says so, and exits with 1."""
    port = free_port()
    command = redis(tmp_path, port)
    status, output, events = run_denied(f"deny {port}", command, port)
    assert status == 1
    assert "listen: Permission denied" in output
    assert {one.verdict for one in events} == {"deny"}
    assert {one.requested_port for one in events} == {port}


def test_redis_denied_on_its_unix_socket(free_port, tmp_path):
    """redis that may not listen on its unix socket exits with 1, its ports closed."""
    port = free_port()
    status, output, events = run_denied("deny unix", redis(tmp_path, port))
    assert status == 1
    assert "Unix socket: bind: Permission denied" in output
    denied = [one.requested_host for one in events if one.verdict == "deny"]
    assert denied == [f"{tmp_path}/sock"]
    assert_refused(port)


# ---- Go ----


@pytest.fixture(scope="module")
def go_server(tmp_path_factory) -> str:
    """The compiled main.go."""
    go = need("go", "golang-go")
    place = tmp_path_factory.mktemp("go")
    own = {"GOCACHE": place / "cache", "GOPATH": place / "path", "GOFLAGS": ""}
    own |= {"GO111MODULE": "off", "GOTOOLCHAIN": "local"}
    done = subprocess.run(
        [go, "build", "-o", str(place / "server"), str(SERVERS / "main.go")],
        env=os.environ | {name: str(value) for name, value in own.items()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return str(place / "server")


@pytest.mark.timeout(300)  # newer versions of Go compile their library first
def test_go_listens_from_any_thread(go_server, free_port):
    """A Go program's listeners are seen, whichever of its threads makes them."""
    ports = [free_port() for _ in range(4)]
    command = [go_server, *(f"127.0.0.1:{port}" for port in ports)]
    with (
        watched([f"allow loopback:{port}" for port in ports]) as (guard, events),
        serving(guard, command) as server,
    ):
        for port in ports:
            server.wait_listening(f"tcp:{port}")
            assert http_get("127.0.0.1", port) == str(server.pid)
    assert {one.pid for one in events} == {server.pid}
    threads = {one.port: one.tid for one in events}
    assert set(threads) == set(ports)
    assert threads[ports[0]] == server.pid  # the first thread
    assert len(set(threads.values())) == len(ports)
    # Go 1.24 and newer asks for MPTCP where the kernel has it.
    assert {one.protocol for one in events} <= {"tcp", "mptcp"}


@pytest.mark.timeout(300)
def test_go_mptcp(go_server, free_port):
    """A Go program's MPTCP listener is judged by the rules for TCP, and told apart."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
    except OSError as error:
        pytest.skip(f"needs a kernel with MPTCP: {error.strerror}")
    port, denied = free_port(), free_port()
    with (
        watched(f"allow tcp:loopback:{port}") as (guard, events),
        serving(guard, [go_server, "mptcp", f"127.0.0.1:{port}"]) as server,
    ):
        server.wait_listening(f"tcp:{port}")
        assert http_get("127.0.0.1", port) == str(server.pid)
    assert places(events) == [("ipv4", "mptcp", "127.0.0.1", port)]

    command = [go_server, "mptcp", f"127.0.0.1:{denied}"]
    status, output, events = run_denied(f"deny tcp:{denied}", command, denied)
    assert status == 2
    assert "listen: permission denied" in output
    assert [(one.protocol, one.verdict) for one in events] == [("mptcp", "deny")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("which", [0, 1], ids=["first-thread", "other-thread"])
def test_go_denied(which, go_server, free_port):
    """A Go program panics where one of its threads may not listen."""
    ports = [free_port(), free_port()]
    command = [go_server, *(f"127.0.0.1:{port}" for port in ports)]
    status, output, events = run_denied(f"deny {ports[which]}", command, ports[which])
    assert status == 2
    wanted = f"listen tcp 127.0.0.1:{ports[which]}: listen: permission denied"
    assert wanted in output
    denied = [one for one in events if one.verdict == "deny"]
    assert [one.requested_port for one in denied] == [ports[which]]
    assert (denied[0].tid == denied[0].pid) is (which == 0)


# ---- Node ----


def node(mode: str, port: int) -> list[str]:
    program = need("node", "nodejs")
    return [program, str(SERVERS / "server.js"), mode, "127.0.0.1", str(port)]


@pytest.mark.parametrize("mode", ["plain", "worker"])
def test_node_serves(mode, free_port):
    """A Node program serves, also from a worker thread, which the event names."""
    port = free_port()
    with (
        watched(f"allow loopback:{port}") as (guard, events),
        serving(guard, node(mode, port)) as server,
    ):
        server.wait_listening(f"tcp:{port}")
        assert http_get("127.0.0.1", port) == str(server.pid)
    assert places(events) == tcp(port)
    assert events[0].pid == server.pid
    assert (events[0].tid == server.pid) is (mode == "plain")


@pytest.mark.parametrize("schedule", ["rr", "none"])
def test_node_cluster(schedule, free_port):
    """In a Node cluster whoever listens is seen, and the port opens just once.

    Round robin: the primary listens. Otherwise each worker does, on a socket
    that the primary bound and sent.
    """
    port = free_port()
    environment = os.environ | {"NODE_CLUSTER_SCHED_POLICY": schedule}
    with (
        watched(f"allow loopback:{port}") as (guard, events),
        serving(guard, node("cluster", port), env=environment) as server,
    ):
        server.wait_listening(f"tcp:{port}")
        assert int(http_get("127.0.0.1", port)) != server.pid
    assert places(events) == tcp(port) * len(events)
    assert [one.first for one in events] == [True] + [False] * (len(events) - 1)
    if schedule == "rr":
        assert [one.pid for one in events] == [server.pid]
    else:
        assert server.pid not in {one.pid for one in events}


@pytest.mark.parametrize("mode", ["plain", "worker", "cluster"])
def test_node_denied(mode, free_port):
    """A Node program that may not listen ends with `listen EACCES`."""
    port = free_port()
    status, output, events = run_denied(f"deny {port}", node(mode, port), port)
    assert status == 1
    assert "EACCES" in output and f"127.0.0.1:{port}" in output
    assert {one.verdict for one in events} == {"deny"}
    assert {one.requested_port for one in events} == {port}


# ---- Java ----


def java(host: str, port: int) -> list[str]:
    program = need("java", "default-jdk-headless")
    need("javac", "default-jdk-headless")  # a program in source needs the compiler
    quick = ["-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]
    return [program, *quick, str(SERVERS / "Server.java"), host, str(port)]


@pytest.mark.parametrize("host", HOSTS, ids=["v4", "v6"])
def test_java_never_listens_from_the_first_thread(host, free_port):
    """A Java program is seen with the thread that listens, and its IPv4 as IPv4."""
    port = free_port()
    with (
        watched(f"allow tcp:{host.join('[]') if ':' in host else host}:{port}") as (
            guard,
            events,
        ),
        serving(guard, java(host, port)) as server,
    ):
        server.wait_listening(f"tcp:{port}")
        assert http_get(host, port) == str(server.pid)
    family = "ipv6" if ":" in host else "ipv4"
    assert places(events) == [(family, "tcp", host, port)]
    assert events[0].pid == server.pid != events[0].tid


@pytest.mark.parametrize(
    ("errno", "told"),
    [
        ("EACCES", "java.net.BindException: Permission denied"),
        ("EPERM", "java.net.SocketException: Operation not permitted"),
    ],
)
def test_java_denied(errno, told, free_port):
    """A Java program that may not listen ends with the exception for the errno."""
    port = free_port()
    command = java("127.0.0.1", port)
    policy = f"deny ipv4:{port} with {errno}"
    status, output, events = run_denied(policy, command, port)
    assert status == 1
    assert told in output
    assert [(one.errno, one.requested_port) for one in events] == [(errno, port)]
