"""A pytest plugin: start real servers in tests, and know when they listen.

    def test_greeting(guarded_server):
        server = guarded_server(["python3", "server.py"])
        assert urllib.request.urlopen(server.url).read() == b"hello\\n"

Nothing happens in tests that don't use its fixtures: the core is imported when
the first server starts. docs/testing.md is the how-to.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import pytest

if TYPE_CHECKING:
    import subprocess

    from portseccomp.events import Event
    from portseccomp.guard import Guard
    from portseccomp.policy import PolicyLike

__all__ = ["GuardedServer", "ServerFactory"]

Command: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"

# Away from the ports that others use, and out of reach of other machines. UDP
# clients bind the wildcard's port 0 as well: on loopback they would reach nobody.
_MOVES = (
    "move tcp:wildcard:any -> loopback:ephemeral",
    "move wildcard:1-65535 -> loopback:ephemeral",
    "move 1-65535 -> ephemeral",
)

_MARK = "PORTSECCOMP_SERVER"  # in the environment of all that a server starts
_SETTLE = 0.25  # seconds in which a server's children may end by themselves
_KILL_LIMIT = 5.0  # seconds after which a killed process counts as left
_SHOWN = 65536  # characters of output in a report: the last ones
_SHOWN_EVENTS = 20

_servers = pytest.StashKey["list[GuardedServer]"]()


def _filters(pid: int | str) -> int:
    """How many seccomp filters a process has; -1 for one that has ended."""
    filters = -1
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith(("State:\tZ", "State:\tX")):
                    return -1
                if line.startswith("Seccomp_filters:"):
                    filters = int(line.split()[1])
    except (OSError, ValueError):
        pass
    return filters


def _status_text(status: int | None) -> str:
    if status is None:
        return "it still ran"
    if status < 0:
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"
    return f"exit status {status}"


def _label(args: Any) -> str:
    """A command in one line that is not too long."""
    if isinstance(args, (str, bytes, os.PathLike)):
        args = [args]
    text = " ".join(" ".join(os.fsdecode(one) for one in args).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


class GuardedServer:
    """A server that runs under a guard, and listens.

    `process`: its subprocess.Popen. `guard`: its portseccomp.Guard, which also
    tells of further ports (`guard.wait_listening`, `guard.listeners`). `event`:
    the portseccomp.Event of the port that was waited for; its
    `requested_host` and `requested_port` are what the server asked for.
    """

    process: subprocess.Popen[Any]
    guard: Guard
    event: Event

    def __init__(
        self,
        guard: Guard,
        process: subprocess.Popen[Any],
        output: IO[bytes],
        *,
        mark: str,
        grace: float,
    ) -> None:
        self.guard = guard
        self.process = process
        self._file = output
        self._output: str | None = None
        self._ended_as: int | None = None
        self._label = _label(process.args)
        self._mark = f"{_MARK}={mark}".encode()
        self._grace = grace

    # ---- where it is ----

    @property
    def host(self) -> str:
        """The address to connect to: loopback for a server on the wildcard.

        The path, for a unix socket.
        """
        host = self.event.host or ""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)

    @property
    def port(self) -> int:
        """The port that is open. Raises ValueError for a unix socket."""
        if self.event.port is None:
            raise ValueError(f"{self} has no port: it listens on {self.host}")
        return self.event.port

    @property
    def address(self) -> tuple[str, int]:
        """(host, port), as socket.create_connection takes it."""
        return self.host, self.port

    @property
    def url(self) -> str:
        """http://host:port, with an IPv6 address in brackets."""
        host = self.host.replace("%", "%25")
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def __repr__(self) -> str:
        return f"<GuardedServer {self._label}>"

    def output(self) -> str:
        """Return what it has written so far, stdout and stderr as they came.

        What was given another place (`stdout=`, `stderr=`) is not in it.
        """
        if self._output is not None:
            return self._output
        # By position: the file's own offset is shared with the server.
        fd = self._file.fileno()
        text = os.pread(fd, os.fstat(fd).st_size, 0)
        return text.decode(errors="replace")

    def _section(self) -> tuple[str, str]:
        status = self.process.poll() if self._output is None else self._ended_as
        end = "" if status is None else f" ({_status_text(status)})"
        text = self.output()
        if len(text) > _SHOWN:
            text = f"... {len(text) - _SHOWN} characters before\n{text[-_SHOWN:]}"
        return f"portseccomp: output of {self._label}{end}", text or "(none)"

    # ---- the end ----

    def stop(self) -> None:
        """End the server and all that it has started, and close its guard.

        SIGTERM first: to the server, and, where it has ended, to what is left
        of it; SIGKILL to all after the grace. Fails the test when something is
        left even then. Done at the end of the fixture's scope by itself; a
        second time it does nothing. Raises HookError where a hook failed.
        """
        __tracebackhide__ = True
        if self._output is not None:
            return
        problem = self._stop()
        if problem:
            pytest.fail(problem)

    def _stop(self) -> str | None:
        """End it; return what went wrong."""
        import subprocess

        self._ended_as = self.process.poll()  # by itself, when there is a status
        try:
            limit = time.monotonic() + self._grace
            self.process.terminate()
            try:
                self.process.wait(self._grace)
            except subprocess.TimeoutExpired:
                pass
            else:
                settle = 0 if self._ended_as is not None else _SETTLE
                if not self._wait(min(settle, self._grace)):
                    self._signal(signal.SIGTERM)
                    self._wait(max(limit - time.monotonic(), 0))
            return self._kill()
        finally:
            self._output = self.output()
            self._file.close()
            for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:
                        pass  # what was not yet written has no reader
            self.guard.close()

    def _kill(self) -> str | None:
        import subprocess

        from portseccomp.guard import tells_end_unreaped

        limit = time.monotonic() + _KILL_LIMIT
        ended = self._wait(0)
        while not ended and time.monotonic() < limit:
            if self.process.poll() is None:
                self.process.kill()
            self._signal(signal.SIGKILL)
            ended = self._wait(0.1)
        try:
            self.process.wait(max(limit - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            ended = False
        if ended:
            return None
        left = self._left()
        if not left and not tells_end_unreaped():
            return None  # ended, but nobody has reaped it
        names = ", ".join(str(pid) for pid in left)
        return (
            f"guarded_server: something that {self._label} has started is left after "
            + (f"SIGKILL: process {names}" if left else "the test, and can't be found")
        )

    def _wait(self, seconds: float) -> bool:
        """Wait until no process of the tree is left; False for a time-out."""
        from portseccomp.errors import GuardError

        try:
            return self.guard.wait(seconds)
        except GuardError:  # the test has closed it
            limit = time.monotonic() + seconds
            while self._left():
                if time.monotonic() >= limit:
                    return False
                time.sleep(0.02)
            return True

    def _left(self) -> list[int]:
        """The processes of the tree, as far as they can be told from others."""
        own = _filters("self")
        numbers = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return [pid for pid in numbers if self._started(pid, own)]

    def _started(self, pid: int, own: int) -> bool:
        """Whether a process is of the tree: by session, descriptor or environment.

        A daemon has left the session; nginx and others, which show their state
        in the process list, have overwritten their environment.
        """
        if pid == os.getpid() or _filters(pid) <= own:
            return False  # all guarded ones have a filter more than we have
        try:
            if os.getsid(pid) == self.process.pid:
                return True
            output = os.fstat(self._file.fileno())
            for fd in os.listdir(f"/proc/{pid}/fd"):
                try:
                    if os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), output):
                        return True
                except FileNotFoundError:
                    pass
            with open(f"/proc/{pid}/environ", "rb") as file:
                return self._mark in file.read().split(b"\0")
        except OSError:
            return False  # it has ended, or belongs to somebody else

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._left():
            try:
                fd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                # Asked again: by now the number could be another's.
                if self._started(pid, _filters("self")):
                    signal.pidfd_send_signal(fd, number)
            except OSError:
                pass
            finally:
                os.close(fd)


class ServerFactory:
    """What the fixtures give: call it to start a server."""

    def __init__(self, servers: list[GuardedServer]) -> None:
        self._servers = servers

    def __call__(
        self,
        args: Command,
        *,
        selector: str = "tcp:any",
        timeout: float = 30.0,
        policy: PolicyLike = None,
        move: bool = True,
        grace: float = 5.0,
        **popen_kwargs: Any,
    ) -> GuardedServer:
        """Start a server, and return when it listens on what `selector` selects.

        `selector`: which port to wait for, "udp:any" or "tcp:8080" for example;
        a number is the one that the server asks for, or the one it gets.
        `timeout`: seconds until it must listen. `policy`: the guard's. Without
        one, `move` says what happens: True moves each port to one that is free,
        and the wildcard address to loopback; False leaves them. `grace`: seconds
        between SIGTERM and SIGKILL at the end. All else is subprocess.Popen's.
        By default stdin is empty, stdout and stderr are kept for `output()`, and
        the server has a session of its own. Its environment gets
        PYTHONUNBUFFERED=1, unless that is set, and PORTSECCOMP_SERVER.

        Fails the test when the server ends before it listens, or is too late.
        Raises OSError where it can't be started, PolicyError for a wrong policy
        or selector, KernelError where the kernel refuses a guard.
        """
        __tracebackhide__ = True
        import subprocess
        import tempfile

        from portseccomp.errors import ListenTimeout, TargetExited
        from portseccomp.guard import Guard

        mark = os.urandom(8).hex()
        env = popen_kwargs.pop("env", None)
        env = {"PYTHONUNBUFFERED": "1", **(os.environ if env is None else env)}
        env[_MARK] = mark
        with ExitStack() as undo:
            guard = Guard(_MOVES if policy is None and move else policy)
            undo.callback(guard.close)
            output = undo.enter_context(tempfile.TemporaryFile(buffering=0))
            _append_only(output)
            options = {
                "stdin": subprocess.DEVNULL,
                "stdout": output,
                "stderr": output,
                "start_new_session": True,
                **popen_kwargs,
            }
            if options.get("close_fds", True):
                # By it a daemon is known that has left everything else.
                passed = options.get("pass_fds", ())
                options["pass_fds"] = (*passed, output.fileno())
            process = guard.popen(args, env=env, **options)
            undo.pop_all()  # the server's stop() does it

        server = GuardedServer(guard, process, output, mark=mark, grace=grace)
        try:
            server.event = guard.wait_listening(selector, timeout)
        except TargetExited:
            process.wait(_KILL_LIMIT)  # it has ended: no wait
            status = _status_text(process.returncode)
            why = f"ended before it listened on {selector}: {status}"
        except ListenTimeout:
            status = _status_text(process.poll())
            why = f"did not listen on {selector} within {timeout:g} s: {status}"
        except BaseException:
            server._stop()
            raise
        else:
            self._servers.append(server)
            return server
        lines = [f"guarded_server: {server._label} {why}"]
        problem = server._stop()
        if problem:
            lines.append(problem)
        lines += [*_calls(guard), "Its output:", server._section()[1]]
        pytest.fail("\n".join(lines))


def _append_only(file: IO[bytes]) -> None:
    """Let nobody overwrite what others wrote, whoever opens it again."""
    import fcntl

    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_APPEND)


def _calls(guard: Guard) -> list[str]:
    """What a server whose guard is closed did with ports, a line for each."""
    events = list(guard.events())
    lines = [
        f"  {one.call} {one.protocol} {one.requested_host} port {one.requested_port}: "
        f"{one.verdict}{f' {one.errno}' if one.errno else ''} (rule: {one.rule})"
        for one in events[-_SHOWN_EVENTS:]
    ]
    return ["Its calls:", *lines] if lines else []


def _stop_all(servers: list[GuardedServer]) -> None:
    """Stop all, the last first, whatever happens to one of them."""
    __tracebackhide__ = True
    problems: list[str] = []
    failure: BaseException | None = None
    for server in reversed(servers):
        try:
            if server._output is None:
                problems += filter(None, [server._stop()])
        except BaseException as error:
            failure = failure or error
    if failure is not None:
        raise failure
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture
def guarded_server(request: pytest.FixtureRequest) -> Iterator[ServerFactory]:
    """Start servers under a guard: `server = guarded_server(["cmd", "arg"])`.

    Returns when the server listens: `server.address`, `server.url`. Hard-coded
    ports are moved out of the way. All are ended at the end of the test, and
    their output is shown when it fails.
    """
    servers = request.node.stash.setdefault(_servers, [])
    yield ServerFactory(servers)
    _stop_all(servers)


@pytest.fixture(scope="session")
def guarded_server_factory(request: pytest.FixtureRequest) -> Iterator[ServerFactory]:
    """Start servers that several tests share: `guarded_server` for any scope.

    They run until the session's end, or until their `stop()`. The output is
    shown with each test that uses them and fails.
    """
    servers = request.session.stash.setdefault(_servers, [])
    yield ServerFactory(servers)
    _stop_all(servers)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the output of a failed test's servers."""
    report = yield
    servers = item.stash.get(_servers, [])
    if report.failed:
        if "guarded_server_factory" in getattr(item, "fixturenames", ()):
            servers = item.session.stash.get(_servers, []) + servers
        report.sections.extend(one._section() for one in servers)
    if report.when == "teardown" and _servers in item.stash:
        del item.stash[_servers]
    return report
