"""The pytest plugin: real inner test runs, real servers, and what they leave."""

from __future__ import annotations

import os
import signal
import time
import tomllib
from pathlib import Path

import pytest
from conftest import need

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
PORT = 18080  # hard-coded in the servers; nobody needs it to be free
LIMIT = 60  # seconds; only a hang takes so long

# Each answers every connection with its pid.
SERVER = f"""
import os, socket, sys
family = socket.AF_INET6 if "ipv6" in sys.argv else socket.AF_INET
with socket.socket(family) as server:
    server.bind(("", {PORT}))
    print("asks for", {PORT})
    print("the other stream", file=sys.stderr)
    server.listen()
    while True:
        client, _ = server.accept()
        with client:
            client.sendall(str(os.getpid()).encode())
"""

UDP_SERVER = f"""
import socket
with socket.socket(type=socket.SOCK_DGRAM) as server:
    server.bind(("", {PORT}))
    while True:
        data, sender = server.recvfrom(100)
        server.sendto(data.upper(), sender)
"""

# What leaves processes behind: each writes their pids into a file first.
LEAVING = """
import os, signal, socket, sys, time
way, path = sys.argv[1:]

def note():
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{os.getpid()}\\n".encode())
    os.close(fd)

def fork():
    # The child notes its pid before the parent goes on.
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        return done
    os.close(done)
    os.read(ready, 1)
    os.close(ready)
    return None

def stay(done):
    note()
    os.close(done)
    time.sleep(60)
    os._exit(0)

server = socket.socket()
server.bind(("", 18080))
if way == "workers":  # they ignore SIGTERM, in sessions of their own
    for _ in range(3):
        done = fork()
        if done is not None:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            stay(done)
elif way == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif way in ("daemon", "hidden"):
    done = fork()
    if done is None:
        if way == "daemon":
            os._exit(0)
    else:
        os.setsid()
        again = fork()
        if again is None:
            os._exit(0)  # the daemon has noted its pid
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if way == "daemon":
            signal.signal(signal.SIGTERM, lambda *_: (note(), os._exit(0)))
            server.listen()
            stay(again)
        note()
        os.closerange(3, 256)
        os.execve("/bin/sleep", ["sleep", "60"], {})
note()
server.listen()
time.sleep(60)
"""

HEAD = """
import pathlib, socket, sys, time
import pytest

SOURCE = pathlib.Path("server.py").read_text()

def ask(server):
    with socket.create_connection(server.address, timeout=10) as one:
        return one.recv(100).decode()
"""


@pytest.fixture
def inner(pytester, monkeypatch):
    """Run tests in a pytest of its own that has our plugin, and pytest-xdist."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makefile(".py", server=SERVER, udp=UDP_SERVER, leaving=LEAVING)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")

    def run(tests: str, *options: str):
        pytester.makepyfile(test_inner=HEAD + tests)
        return pytester.runpytest_subprocess(
            "-p", "portseccomp.pytest_plugin", *options, timeout=LIMIT
        )

    return run


def runs(pid: int) -> bool:
    """Whether a process exists, and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "State:\tZ" not in status


def test_server_is_reached(inner):
    """The fixture returns a server that accepts, and says where and what it is."""
    inner("""
def test_it(guarded_server):
    server = guarded_server([sys.executable, "server.py"])
    assert ask(server) == str(server.process.pid)
    assert server.address == (server.host, server.port) == ("127.0.0.1", server.port)
    assert server.url == f"http://127.0.0.1:{server.port}"
    assert server.port != 18080
    assert (server.event.requested_host, server.event.requested_port) == (
        "0.0.0.0", 18080)
    assert [one.port for one in server.guard.listeners()] == [server.port]
    server.stop()
    assert server.output() == "asks for 18080\\nthe other stream\\n"
    assert server.process.returncode == -15
""").assert_outcomes(passed=1)


def test_ipv6(inner):
    """An IPv6 server on the wildcard is on ::1, in brackets in the URL."""
    inner("""
def test_it(guarded_server):
    server = guarded_server([sys.executable, "server.py", "ipv6"])
    assert ask(server) == str(server.process.pid)
    assert server.address == ("::1", server.port)
    assert server.url == f"http://[::1]:{server.port}"
""").assert_outcomes(passed=1)


def test_two_servers_of_one_port(inner):
    """Two servers that hard-code the same port run side by side in one test."""
    inner("""
def test_it(guarded_server):
    one = guarded_server([sys.executable, "server.py"])
    other = guarded_server([sys.executable, "server.py"])
    assert [ask(one), ask(other)] == [str(x.process.pid) for x in (one, other)]
""").assert_outcomes(passed=1)


def test_ports_stay(inner, free_port):
    """With move=False, or a policy of the test's own, the port is the asked one."""
    port = free_port()
    inner(f"""
COMMAND = [sys.executable, "-m", "http.server", "{port}"]

@pytest.mark.parametrize("options", [
    {{"move": False}},
    {{"policy": "allow tcp:{port}"}},
    {{"policy": "move tcp:{port} -> 127.0.0.1:{port}"}},
])
def test_it(guarded_server, options):
    server = guarded_server(COMMAND, **options)
    assert server.address == ("127.0.0.1", {port})
    socket.create_connection(server.address, timeout=10).close()
""").assert_outcomes(passed=3)


def test_udp(inner):
    """A UDP server is waited for and moved as a TCP server is."""
    inner("""
def test_it(guarded_server):
    servers = [guarded_server([sys.executable, "udp.py"], selector="udp:any")
               for _ in range(2)]
    for server in servers:
        assert server.event.requested_port == 18080
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"hello", server.address)
            assert client.recv(100) == b"HELLO"
""").assert_outcomes(passed=1)


def test_port_that_is_waited_for(inner):
    """The selector may name the port that the server asks for."""
    inner("""
def test_it(guarded_server):
    server = guarded_server([sys.executable, "server.py"], selector="tcp:18080")
    assert ask(server) == str(server.process.pid)
""").assert_outcomes(passed=1)


def test_unix_socket(inner):
    """A unix socket can be waited for; it has a path, and no port."""
    inner("""
CODE = "import socket; s = socket.socket(1); s.bind('here'); s.listen(); s.accept()"

def test_it(guarded_server):
    server = guarded_server([sys.executable, "-c", CODE], selector="unix")
    assert server.host == "here"
    with pytest.raises(ValueError, match="no port"):
        server.port
""").assert_outcomes(passed=1)


def test_popen_options(inner):
    """subprocess.Popen's options hold: cwd, env, stdin and stdout of one's own."""
    inner("""
import os, subprocess

CODE = '''import os, socket
s = socket.socket()
s.bind(("", 18080))
print(os.getcwd(), os.environ["WORD"], input(), flush=True)
os.write(2, b"error")
s.listen()
s.accept()'''

def test_it(guarded_server, tmp_path):
    ready, send = os.pipe()
    os.write(send, b"line\\n")
    os.close(send)
    server = guarded_server([sys.executable, "-c", CODE], cwd=tmp_path, text=True,
                            env={"WORD": "word"}, stdin=ready, stdout=subprocess.PIPE)
    os.close(ready)
    assert server.process.stdout.readline() == f"{tmp_path} word line\\n"
    assert server.output() == "error"
""").assert_outcomes(passed=1)


def test_xdist(inner, pytester):
    """Under pytest-xdist, four workers hard-code one port at the same time."""
    pytest.importorskip("xdist", reason="needs pytest-xdist: pip install pytest-xdist")
    pytester.mkdir("meet")
    inner(
        """
import os

@pytest.mark.parametrize("number", range(4))
def test_it(guarded_server, number):
    server = guarded_server([sys.executable, "server.py"])
    open(f"meet/{os.getpid()}", "w").close()
    deadline = time.monotonic() + 30
    while len(os.listdir("meet")) < 4:  # all four listen before any goes on
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert server.event.requested_port == 18080
    assert ask(server) == str(server.process.pid)
""",
        *("-p", "xdist", "-n", "4"),
    ).assert_outcomes(passed=4)


def test_output_of_a_failed_test(inner):
    """A test that fails shows what each of its servers wrote; one that passes not."""
    result = inner("""
def start(guarded_server, word):
    code = f"import sys; print('{word}'); print('{word}2', file=sys.stderr)"
    guarded_server([sys.executable, "-c", code + "\\n" + SOURCE])

def test_passes(guarded_server):
    start(guarded_server, "silent")

def test_fails(guarded_server):
    start(guarded_server, "first")
    start(guarded_server, "second")
    assert False
""")
    result.assert_outcomes(passed=1, failed=1)
    text = result.stdout.str()
    assert text.count("- portseccomp: output of ") == 2
    for word in ("first", "first2", "second", "second2", f"asks for {PORT}"):
        assert f"\n{word}\n" in text
    assert "\nsilent\n" not in text


def test_output_of_a_failed_setup(inner):
    """A fixture that fails after it has started a server shows its output as well."""
    result = inner("""
@pytest.fixture
def ready(guarded_server):
    guarded_server([sys.executable, "server.py"])
    raise RuntimeError("no")

def test_it(ready):
    pass
""")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*portseccomp: output of*", f"asks for {PORT}"])


def test_output_under_xdist(inner):
    """The output of a worker's failed test reaches the report."""
    pytest.importorskip("xdist", reason="needs pytest-xdist: pip install pytest-xdist")
    result = inner(
        """
def test_it(guarded_server):
    guarded_server([sys.executable, "server.py"])
    assert False
""",
        *("-p", "xdist", "-n", "1"),
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*portseccomp: output of*", f"asks for {PORT}"])


def test_long_output_is_cut(inner):
    """Of a server that writes without end the report shows the last part."""
    result = inner("""
def test_it(guarded_server):
    code = "print('first', 'x' * 100000, 'last')\\n" + SOURCE
    server = guarded_server([sys.executable, "-c", code])
    assert "first" in server.output()
    assert False
""")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "characters before" in text
    assert "xxx last\n" in text
    assert "first xxx" not in text


def test_crash_is_told(inner):
    """The report says how a server ended that ended by itself."""
    result = inner("""
def test_it(guarded_server):
    server = guarded_server([sys.executable, "server.py"])
    server.process.kill()
    server.process.wait()
    ask(server)
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*portseccomp: output of*(killed by SIGKILL)*"])


def test_server_that_ends(inner):
    """A server that ends before it listens fails the test: status, calls, output."""
    result = inner("""
CODE = '''import socket, sys
print("nothing to serve")
try:
    with socket.socket() as one:
        one.bind(("", 18080))
        one.listen()
except PermissionError as error:
    sys.exit(3)'''

def test_it(guarded_server):
    guarded_server([sys.executable, "-c", CODE], policy="deny tcp:18080")
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*guarded_server: *ended before it listened on tcp:any: exit status 3",
            "*listen tcp 0.0.0.0 port 18080: deny EACCES (rule: deny tcp:18080)",
            "*Its output:",
            "*nothing to serve",
        ]
    )
    assert "pytest_plugin.py" not in result.stdout.str()  # the test's own line


def test_server_that_never_listens(inner, pytester):
    """A server that doesn't listen in time fails the test, and is ended."""
    began = time.monotonic()
    result = inner("""
CODE = '''import os, time
print("thinking", os.getpid(), flush=True)
open("pid", "w").write(str(os.getpid()))
time.sleep(50)'''

def test_it(guarded_server):
    guarded_server([sys.executable, "-c", CODE], timeout=1)
""")
    assert time.monotonic() - began < 30
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*did not listen on tcp:any within 1 s: it still ran",
            "*Its output:",
            "*thinking *",
        ]
    )
    assert not runs(int((pytester.path / "pid").read_text()))


def test_server_that_cannot_start(inner):
    """A program that isn't there, and a wrong selector, raise their own errors."""
    inner("""
import portseccomp

def test_program(guarded_server):
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        guarded_server(["no-such-program"])

def test_selector(guarded_server):
    with pytest.raises(portseccomp.PolicyError, match="tcq"):
        guarded_server([sys.executable, "server.py"], selector="tcq:any")
""").assert_outcomes(passed=2)


# The daemon notes its pid again when it is asked to end.
@pytest.mark.parametrize(
    ("way", "count"), [("workers", 4), ("stubborn", 1), ("daemon", 2)]
)
def test_nothing_is_left(inner, pytester, way, count):
    """Workers, a server that ignores SIGTERM, and a daemon are ended all the same."""
    inner(f"""
def test_it(guarded_server):
    guarded_server([sys.executable, "leaving.py", "{way}", "pids"], grace=0.5)
""").assert_outcomes(passed=1)
    pids = [int(one) for one in (pytester.path / "pids").read_text().split()]
    assert len(pids) == count
    assert [pid for pid in pids if runs(pid)] == []


def test_nginx_as_daemon(inner, pytester):
    """nginx, a daemon without session, environment and output, serves and is ended."""
    nginx = need("nginx", "nginx-light")
    (pytester.path / "nginx.conf").write_text("""
daemon on; worker_processes 2; pid pids; error_log errors; events {}
http { access_log off; server { listen 80; listen [::]:80; return 200 "hello"; } }
""")
    inner(f"""
import os, urllib.request

def test_it(guarded_server):
    command = ["{nginx}", "-p", os.getcwd(), "-c", "nginx.conf", "-e", "errors"]
    server = guarded_server(command)
    assert server.event.requested_port == 80
    assert urllib.request.urlopen(server.url, timeout=10).read() == b"hello"
    assert server.process.wait(10) == 0
    pathlib.Path("kept").write_text(pathlib.Path("pids").read_text())
""").assert_outcomes(passed=1)
    assert not runs(int((pytester.path / "kept").read_text()))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
def test_privileged_port(inner):
    """A server without the right to port 80 is moved all the same, and serves."""
    redis = need("redis-server", "redis-server")
    inner(f"""
def test_it(guarded_server):
    command = ["{redis}", "--port", "80", "--save", ""]
    server = guarded_server(command, selector="tcp:80", user=65534, cwd="/")
    with socket.create_connection(server.address, timeout=10) as one:
        one.sendall(b"PING\\r\\n")
        assert one.recv(100) == b"+PONG\\r\\n"
""").assert_outcomes(passed=1)


def test_orderly_end(inner, pytester):
    """A server has its grace: what it does on SIGTERM it does to the end."""
    inner("""
CODE = '''import signal, socket, sys, time
def end(number, frame):
    time.sleep(0.3)
    open("ended", "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, end)
with socket.socket() as one:
    one.bind(("", 18080))
    one.listen()
    signal.pause()'''

def test_it(guarded_server):
    guarded_server([sys.executable, "-c", CODE])
""").assert_outcomes(passed=1)
    assert (pytester.path / "ended").exists()


def test_what_cannot_be_found_is_told(inner, pytester):
    """What hides from us fails the test, clearly; other servers are still ended."""
    result = inner("""
def test_it(guarded_server):
    guarded_server([sys.executable, "leaving.py", "stubborn", "first"], grace=0.5)
    guarded_server([sys.executable, "leaving.py", "hidden", "pids"], grace=0.5)
""")
    hidden = int((pytester.path / "pids").read_text().split()[0])
    try:
        assert runs(hidden)
        result.assert_outcomes(passed=1, errors=1)
        result.stdout.fnmatch_lines(
            ["guarded_server: something that * has started is left after the test*"]
        )
        assert not runs(int((pytester.path / "first").read_text()))
    finally:
        os.kill(hidden, signal.SIGKILL)


def test_guard_closed_by_the_test(inner, pytester):
    """A test that closes the guard itself leaves nothing behind either."""
    inner("""
def test_it(guarded_server):
    server = guarded_server([sys.executable, "leaving.py", "workers", "pids"],
                            grace=0.5)
    server.guard.close()
""").assert_outcomes(passed=1)
    pids = [int(one) for one in (pytester.path / "pids").read_text().split()]
    assert [pid for pid in pids if runs(pid)] == []


def test_shared_server(inner):
    """A session's server serves all tests; those that fail show its output."""
    result = inner("""
@pytest.fixture(scope="module")
def server(guarded_server_factory):
    one = guarded_server_factory([sys.executable, "server.py"])
    yield one
    one.stop()
    assert one.process.returncode == -15

seen = []

@pytest.mark.parametrize("number", range(2))
def test_it(server, number):
    seen.append(ask(server))
    assert len(set(seen)) == 1

def test_fails(server):
    assert False

def test_fails_too():
    assert False
""")
    result.assert_outcomes(passed=2, failed=2)
    assert result.stdout.str().count("- portseccomp: output of ") == 1


def test_off_unless_used(inner, pytester):
    """A run that uses no fixture of the plugin imports nothing of the core."""
    pytester.makeconftest("""
import sys

def ours():
    return sorted(name for name in sys.modules if name.startswith("portseccomp"))

def pytest_sessionfinish():
    print("\\nimported:", *ours())
""")
    result = inner("def test_it(): pass", "-s")
    result.assert_outcomes(passed=1)
    imported = "imported: portseccomp portseccomp._version portseccomp.pytest_plugin"
    assert imported in result.stdout.lines


def test_registered(inner, pytester, monkeypatch):
    """Installed, the plugin is there by itself, and `-p no:portseccomp` drops it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entries = project["entry-points"]["pytest11"]
    info = pytester.mkdir("portseccomp-0.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: portseccomp\n")
    lines = [f"{name} = {module}\n" for name, module in entries.items()]
    (info / "entry_points.txt").write_text("".join(["[pytest11]\n", *lines]))
    monkeypatch.setenv("PYTHONPATH", f"{pytester.path}:{ROOT}")
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")

    for options, found in ((), True), (("-p", "no:portseccomp"), False):
        result = pytester.runpytest_subprocess("--fixtures", *options, timeout=LIMIT)
        assert ("guarded_server --" in result.stdout.str()) is found


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "4")])
def test_example(inner, pytester, options):
    """The example's tests pass, one after the other and in parallel."""
    if options:
        pytest.importorskip("xdist", reason="needs pytest-xdist: pip install it")
    for path in (ROOT / "examples" / "pytest").glob("*.py"):
        (pytester.path / path.name).write_text(path.read_text())
    command = ["-p", "portseccomp.pytest_plugin", "test_server.py", *options]
    result = pytester.runpytest_subprocess(*command, timeout=LIMIT)
    result.assert_outcomes(passed=5)
