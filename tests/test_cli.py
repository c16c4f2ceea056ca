"""The command line, run as people run it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import accepts, python

from portseccomp import __version__

LIMIT = 30  # seconds; only a hang takes so long

LISTEN = """
import socket, sys
one = socket.socket()
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
one.bind((sys.argv[1], int(sys.argv[2])))
one.listen()
print("listening", flush=True)
"""


@pytest.fixture(autouse=True)
def whole_lines(monkeypatch):
    """A target writes whole lines to the stderr that it shares with portseccomp."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def cli(*args: object, **options) -> subprocess.CompletedProcess[str]:
    """Run portseccomp to its end."""
    command = [sys.executable, "-m", "portseccomp", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, **options
    )


def start(*args: object, **options) -> subprocess.Popen[str]:
    """Start portseccomp."""
    command = [sys.executable, "-m", "portseccomp", *map(str, args)]
    return subprocess.Popen(command, text=True, **options)


def events(text: str) -> list[dict]:
    """The JSON lines of an output that holds others as well."""
    return [json.loads(one) for one in text.splitlines() if one.startswith("{")]


def test_denied_server(free_port):
    """`run --deny PORT` makes a real server fail with permission denied."""
    port = free_port()
    done = cli("run", "--deny", port, "--", sys.executable, "-m", "http.server", port)
    assert done.returncode == 1
    assert "PermissionError: [Errno 13] Permission denied" in done.stderr
    line = rf"portseccomp: denied +tcp +0\.0\.0\.0:{port} +\S+\[\d+\] +"
    assert re.search(line + rf"\(EACCES by rule: deny {port}\)", done.stderr)


def test_allow_list(free_port):
    """An allow-list lets a server serve on loopback, and refuses the wildcard."""
    port = free_port()
    rule = f"loopback:{port}-{port}"
    server = [sys.executable, "-m", "http.server", str(port)]
    done = cli("run", "--allow", rule, "--json", "--", *server)
    assert done.returncode == 1
    (denied,) = events(done.stderr)
    assert (denied["verdict"], denied["rule"]) == ("deny", "default")
    assert (denied["requested_host"], denied["host"]) == ("0.0.0.0", None)

    with start(
        *("run", "--allow", rule, "--json", "--", *server, "-b", "127.0.0.1"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as process:
        allowed = json.loads(process.stderr.readline())
        assert accepts("127.0.0.1", port)
        process.terminate()
        process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGTERM
    assert (allowed["verdict"], allowed["rule"]) == ("allow", f"allow {rule}")
    assert (allowed["host"], allowed["port"]) == ("127.0.0.1", port)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["/no/such/command"], 127),
        (["/etc/passwd"], 126),
        (["/"], 126),
    ],
)
def test_exit_status(command, status):
    """The exit status is the command's own, 128+N, 126 or 127."""
    done = cli("run", "--", *command)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == (status in (126, 127))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "a command is missing"),
        (["rnu"], "rnu: no such command; there are run, watch"),
        (["run"], "which command?"),
        (["run", "--"], "which command?"),
        (["run", "--deny"], "expected one argument"),
        (["run", "--nope", "true"], "unrecognized arguments"),
        (["run", "--deny", "80x", "true"], "'80x' (column 6) is no port"),
        (["run", "--deny", "1", "--allow", "2", "true"], "are mixed"),
        (["run", "--ask", "1", "true"], "asks a hook"),
        (["run", "--hook", "nowhere:f", "true"], "No module named 'nowhere'"),
        (["run", "--hook", "./none.py:f", "true"], "there is no file ./none.py"),
        (["run", "--hook", "json:nothing", "true"], "has no function 'nothing'"),
        (["run", "--policy", "/no/file", "true"], "/no/file: No such file"),
        (["run", "--move", "80", "true"], "right is SELECTOR=TARGET"),
        (["run", "--errno", "EWHAT", "true"], "'EWHAT' is no errno name"),
        (["run", "--log", "/no/dir/log", "true"], "/no/dir/log: No such file"),
        (["explain", "--deny", "80"], "required: ENDPOINT"),
        (["explain", "nonsense"], "endpoint 'nonsense'"),
    ],
)
def test_own_failures(args, words):
    """What is portseccomp's own failure is one line on stderr, and status 125."""
    done = cli(*args)
    assert done.returncode == 125
    (line,) = done.stderr.splitlines()
    assert line.startswith("portseccomp: ")
    assert words in line
    assert done.stdout == ""


def test_nothing_starts_after_a_failure(tmp_path):
    """A wrong rule, and the command does not run."""
    made = tmp_path / "made"
    assert cli("run", "--deny", "x", "--", "touch", made).returncode == 125
    assert not made.exists()


def test_order_of_rules(free_port):
    """--allow and --deny keep the order in which they are given."""
    options = ["--allow", "loopback:80", "--deny", "80", "--default", "allow"]
    assert "allow (rule 1" in cli("explain", *options, "tcp:127.0.0.1:80").stdout
    assert "deny (rule 2" in cli("explain", *options, "tcp:0.0.0.0:80").stdout


def test_explain_line():
    """`explain` prints the endpoint, the verdict, and the rule."""
    rules = ["--allow", "loopback:any", "--deny", "wildcard:any", "--default", "deny"]
    done = cli("explain", *rules, "tcp:0.0.0.0:8080")
    assert done.stdout == "tcp:0.0.0.0:8080 -> deny (rule 2: deny wildcard:any)\n"
    assert done.returncode == 0


def test_json_goes_to_stderr_and_log_appends(free_port, tmp_path):
    """--json writes a line for each event, and --log appends the same lines."""
    log = tmp_path / "log"
    log.write_text("before\n")
    command = python(LISTEN, "127.0.0.1", str(free_port()))
    done = cli("run", "--deny", "tcp:1", "--json", "--log", log, "--", *command)
    assert done.stdout == "listening\n"
    before, *lines = log.read_text().splitlines()
    assert before == "before"
    assert lines == done.stderr.splitlines()
    assert [one["call"] for one in events(done.stderr)] == ["listen"]


def test_quiet(free_port):
    """--quiet keeps denials off stderr."""
    port = free_port()
    command = python(LISTEN, "127.0.0.1", str(port))
    loud = cli("run", "--deny", port, "--", *command)
    quiet = cli("run", "--deny", port, "--quiet", "--", *command)
    assert "portseccomp" in loud.stderr
    assert "portseccomp" not in quiet.stderr
    assert quiet.returncode == loud.returncode == 1


def test_run_is_silent_about_allowed_ports(free_port):
    """`run` prints nothing of its own where nothing is denied or moved."""
    done = cli("run", "--", *python(LISTEN, "127.0.0.1", str(free_port())))
    assert (done.returncode, done.stderr) == (0, "")


def test_move(free_port):
    """--move SELECTOR=TARGET moves a port, and `run` says so."""
    port, other = free_port(), free_port()
    command = python(LISTEN, "127.0.0.1", str(port))
    done = cli("run", "--move", f"{port}={other}", "--", *command)
    assert done.returncode == 0
    assert f"127.0.0.1:{port} -> 127.0.0.1:{other}" in done.stderr


def test_watch_on_a_terminal(free_port):
    """`watch` prints each port that opens, coloured on a terminal."""
    port = free_port()
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    with start(
        *("watch", "--", *python(LISTEN, "127.0.0.1", str(port))),
        stderr=follower,
        stdout=subprocess.DEVNULL,
        env=environment,
    ) as process:
        process.wait(LIMIT)
    os.close(follower)
    seen = b""
    while True:
        try:
            seen += os.read(leader, 4096)
        except OSError:
            break
    os.close(leader)
    text = re.sub(r"\x1b\[\d*m", "", seen.decode())
    assert seen.decode() != text
    pattern = (
        rf"\d\d:\d\d:\d\d\.\d+  open    tcp    127\.0\.0\.1:{port} +python\S*\[\d+\]"
    )
    assert re.match(pattern, text.strip())


def test_names_can_not_steer_the_terminal(tmp_path, free_port):
    """Control characters in a program's name are escaped."""
    source = (
        "import ctypes; ctypes.CDLL(None).prctl(15, b'\\x1b[2Jevil\\n', 0, 0, 0)\n"
        + LISTEN
    )
    done = cli("watch", "--", *python(source, "127.0.0.1", str(free_port())))
    assert "\x1b" not in done.stderr
    assert r"\x1b[2Jevil\n" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_hook_from_a_file_and_a_module(tmp_path, free_port):
    """--hook takes ./file.py:function, and a module in the current directory."""
    port = free_port()
    (tmp_path / "policy_of_mine.py").write_text(
        f"def decide(request):\n    return request.port != {port}\n"
    )
    for spec in ("./policy_of_mine.py:decide", "policy_of_mine:decide"):
        command = python(LISTEN, "127.0.0.1", str(port))
        done = cli("run", "--hook", spec, "--json", "--", *command, cwd=tmp_path)
        assert done.returncode == 1
        (event,) = events(done.stderr)
        assert (event["rule"], event["verdict"]) == ("hook", "deny")


def test_hook_that_fails(tmp_path, free_port):
    """What a hook raises is one line; the status is the command's."""
    (tmp_path / "bad.py").write_text("def decide(request):\n    1 / 0\n")
    command = python(LISTEN, "127.0.0.1", str(free_port()))
    options = ["--hook", "./bad.py:decide", "--ask", "tcp:any"]
    done = cli("run", *options, "--", *command, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("portseccomp: the hook raised ZeroDivisionError")


def test_policy_file(tmp_path, free_port):
    """--policy reads rules, default, errno and hook from a TOML file."""
    port = free_port()
    file = tmp_path / "policy.toml"
    file.write_text(f'errno = "EPERM"\nrules = ["deny {port}"]\n')
    command = python(LISTEN, "127.0.0.1", str(port))
    done = cli("run", "--policy", file, "--json", "--", *command)
    (event,) = events(done.stderr)
    assert (event["errno"], event["rule"]) == ("EPERM", f"deny {port}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_command(number):
    """A signal sent to portseccomp reaches the command, whose status it has."""
    source = (
        "import signal, sys\n"
        f"signal.signal({int(number)}, lambda *a: sys.exit(42))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    with start("run", "--", *python(source), stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(LIMIT) == 42


def test_signal_mask_of_the_command():
    """The command is started with the signals that we were started with."""
    source = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    outside = subprocess.run(python(source), capture_output=True, text=True)
    assert cli("run", "--", *python(source)).stdout == outside.stdout == "set()\n"


def test_what_is_ignored_stays_ignored():
    """Under nohup the command ignores SIGHUP as it does without portseccomp."""
    source = "import signal; print(signal.getsignal(signal.SIGHUP))"
    command = [sys.executable, "-m", "portseccomp", "run", "--", *python(source)]
    done = subprocess.run(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.stdout.strip() in ("Handlers.SIG_IGN", "1")


DAEMON = """
import os, socket, sys, time
if os.fork():
    os._exit(0)
os.setsid()
read, write = int(sys.argv[1]), int(sys.argv[2])
os.close(write)
os.read(read, 1)
one = socket.socket()
try:
    one.listen()
    print("opened", flush=True)
except OSError as error:
    print(error.errno, flush=True)
"""


@pytest.mark.parametrize("wait", [True, False])
def test_daemons(wait):
    """With --wait it goes on for daemons; without, their later calls fail."""
    read, write = os.pipe()
    source = "import os, sys; os.set_inheritable(int(sys.argv[1]), True)\n" + DAEMON
    fds = [str(read), str(write)]
    # A target gets only 0 to 2, so the pipe goes in as standard input.
    source = source.replace("int(sys.argv[1]), int(sys.argv[2])", "0, int(sys.argv[2])")
    source = source.replace("os.set_inheritable(int(sys.argv[1]), True)", "pass")
    source = source.replace("os.close(write)\n", "")
    options = ["--wait"] if wait else []
    with start(
        *("run", "--deny", "tcp:1", *options, "--", *python(source, *fds)),
        stdin=read,
        stdout=subprocess.PIPE,
    ) as process:
        os.close(read)
        if not wait:
            assert process.wait(LIMIT) == 0
        os.write(write, b"!")
        os.close(write)
        said = process.stdout.read()
        process.wait(LIMIT)
    assert said == ("opened\n" if wait else "38\n")  # ENOSYS


def test_closed_stderr_does_no_harm(free_port):
    """A closed stderr does not keep the command from working."""
    command = [sys.executable, "-m", "portseccomp", "watch", "--"]
    command += python(LISTEN, "127.0.0.1", str(free_port()))
    done = subprocess.run(
        ["sh", "-c", '"$@" 2>&-', "sh", *command], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "listening\n")


def test_probe():
    """`probe` says what works here, and that a guard does."""
    done = cli("probe")
    assert done.returncode == 0
    assert done.stdout.endswith("a guard works here\n")
    assert "seccomp listener" in done.stdout


def test_version_and_help():
    """--version prints the version, --help the usage; both succeed."""
    assert cli("--version").stdout == f"portseccomp {__version__}\n"
    for args in (["--help"], ["run", "--help"], ["-h"]):
        done = cli(*args)
        assert done.returncode == 0
        assert done.stdout.startswith("usage: portseccomp run")


def test_ends_with_the_command():
    """It ends as soon as the command has, whatever the command left behind."""
    begun = time.monotonic()
    done = cli("run", "--", "sh", "-c", "sleep 25 >/dev/null 2>&1 & exit 3")
    assert done.returncode == 3
    assert time.monotonic() - begun < 20
