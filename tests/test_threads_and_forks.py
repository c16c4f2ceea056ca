"""Whoever makes the call: threads, process trees, daemons, functions."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from multiprocessing import resource_tracker

import pytest
from conftest import python

from portseccomp import Guard, GuardError, ListenTimeout, TargetExited

LIMIT = 20.0  # seconds; only a hang takes as long


def lines(process: subprocess.CompletedProcess[bytes]) -> list[str]:
    return process.stdout.decode().splitlines()


def listen_on(port: int) -> str:
    """Listen on a loopback port for a moment; return what `listen` said."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", port))
        try:
            one.listen()
        except OSError as error:
            return f"listen: {error.errno}"
    return "listen: 0"


def send_result(sender, port: int) -> None:
    sender.send(listen_on(port))


# Listen on a port, in another interpreter.
LISTEN = """
import errno, socket, sys
one = socket.socket()
one.bind(("127.0.0.1", int(sys.argv[1])))
try:
    one.listen()
    print("listen: 0", flush=True)
except OSError as error:
    print("listen:", errno.errorcode[error.errno], flush=True)
"""

# ---- threads ----


@pytest.mark.parametrize("rule", ["allow {}", "deny {}"])
def test_thread_that_is_no_group_leader(victim, free_port, rule):
    """A `listen` from a secondary thread is judged; pid and tid tell it apart."""
    port = free_port()
    with Guard(rule.format(port)) as guard:
        done = guard.run([victim("thread"), "shared", str(port), "0"], stdout=-1)
        (event,) = guard.events()
    result, pid, tid = lines(done)
    assert result == ("listen: 0" if rule.startswith("allow") else "listen: EACCES")
    assert (f"pid: {event.pid}", f"tid: {event.tid}") == (pid, tid)
    assert event.pid != event.tid


def can_open_threads() -> bool:
    """Whether pidfd_open() takes PIDFD_THREAD (O_EXCL): Linux 6.9."""
    try:
        os.close(os.pidfd_open(os.getpid(), os.O_EXCL))
    except OSError as error:
        assert error.errno == errno.EINVAL
        return False
    return True


@pytest.mark.filterwarnings("ignore:portseccomp can't apply the policy")
@pytest.mark.parametrize("denied", ["port", "other"])
def test_thread_with_descriptors_of_its_own(victim, free_port, denied):
    """After unshare(CLONE_FILES) the thread's socket is judged, not its leader's."""
    port, other = free_port(), free_port()
    rule = f"deny {port if denied == 'port' else other}"
    with Guard(rule) as guard:
        command = [victim("thread"), "apart", str(port), str(other)]
        done = guard.run(command, stdout=-1)
        (event,) = guard.events()
    if not can_open_threads():  # then such a thread is denied, and never misjudged
        assert lines(done)[0] in ("bind: EACCES", "listen: EACCES")
        assert (event.requested_port, event.rule) == (None, "error")
        assert "EXDEV" in event.reason
        return
    assert event.requested_port == port
    assert lines(done)[0] == ("listen: EACCES" if denied == "port" else "listen: 0")


# ---- process trees ----


@pytest.mark.parametrize("how", ["fork", "vfork", "spawn", "exec", "setsid"])
def test_children_are_guarded_however_they_start(victim, free_port, how):
    """fork, vfork, posix_spawn, exec and setsid do not leave the guard."""
    port = str(free_port())
    command = [victim("listen"), "tcp4", "127.0.0.1", port]
    with Guard(f"deny {port}") as guard:
        process = guard.popen([victim("start"), how, *command], stdout=-1)
        out, _ = process.communicate(timeout=LIMIT)
        (event,) = guard.events()
    assert out.startswith(b"listen: EACCES\n")
    assert (event.pid == process.pid) == (how == "exec")


def test_deep_tree(victim, free_port):
    """A great-great-grandchild is guarded as its ancestors are."""
    port, start = str(free_port()), victim("start")
    command = [start, "fork", start, "vfork", start, "spawn", start, "setsid"]
    command += [victim("listen"), "tcp4", "127.0.0.1", port]
    with Guard(f"deny {port}") as guard:
        assert lines(guard.run(command, stdout=-1))[0] == "listen: EACCES"


@pytest.mark.parametrize("rule", ["allow {}", "deny {}"])
def test_daemon(victim, free_port, rule):
    """A daemon stays guarded, and wait() ends when it ends, not before."""
    port = free_port()
    with (
        Guard(rule.format(port)) as guard,
        guard.popen([victim("daemon"), str(port)], stdin=-1, stdout=-1) as process,
    ):
        result = process.stdout.readline()
        assert process.wait(LIMIT) == 0
        assert guard.wait(timeout=0.05) is False
        process.stdin.close()
        assert guard.wait(timeout=LIMIT) is True
    assert result == (
        b"listen: 0\n" if rule.startswith("allow") else b"listen: EACCES\n"
    )


# ---- guard.call ----


def test_call_returns_and_raises_what_the_function_does(free_port):
    """call() passes arguments, and returns or raises what the function does."""
    with Guard("deny 1") as guard:
        assert guard.call(divmod, 7, 2) == (3, 1)
        assert guard.call(int, "ff", base=16) == 255
        with pytest.raises(ZeroDivisionError):
            guard.call(divmod, 1, 0)
        assert guard.call(listen_on, free_port()) == "listen: 0"


def test_only_the_called_thread_is_guarded(free_port):
    """call() guards the function, not the thread or the process that calls it."""
    port = free_port()
    with Guard(f"deny {port}") as guard:
        assert guard.call(listen_on, port) == "listen: 13"
        assert listen_on(port) == "listen: 0"
        caller = guard.call(threading.get_native_id)
        assert caller != threading.get_native_id()
        (event,) = (one for one in guard.events() if one.call == "listen")
    assert event.pid == os.getpid() != event.tid


def test_threads_started_in_a_call_are_guarded(free_port):
    """Threads that a called function starts are guarded as well."""
    port, results = free_port(), []

    def start() -> None:
        threads = [
            threading.Thread(target=lambda: results.append(listen_on(port)))
            for _ in range(5)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()

    with Guard(f"deny {port}") as guard:
        guard.call(start)
    assert results == ["listen: 13"] * 5


def test_calls_can_overlap():
    """Two functions run at one time: one call does not wait for another."""
    barrier, numbers = threading.Barrier(2), []
    with Guard("deny 1") as guard:

        def meet() -> None:
            numbers.append(guard.call(barrier.wait, LIMIT))

        threads = [threading.Thread(target=meet) for _ in range(2)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(LIMIT)
    assert sorted(numbers) == [0, 1]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_multiprocessing_in_a_call(free_port, method):
    """Processes that multiprocessing starts inside call() are guarded."""
    port = free_port()

    def start() -> list[str]:
        context = multiprocessing.get_context(method)
        receiver, sender = context.Pipe(duplex=False)
        with receiver, sender:
            process = context.Process(target=send_result, args=[sender, port])
            process.start()
            result = [receiver.recv()]
            process.join()
            process.close()
        if method == "spawn":  # its helper process would outlive the call
            resource_tracker._resource_tracker._stop()
        return result

    with Guard(f"deny {port}") as guard:
        assert guard.call(start) == ["listen: 13"]
        (event,) = guard.events()
    assert event.pid != os.getpid()


def test_subprocess_in_a_call(victim, free_port):
    """A process that a called function starts by itself is guarded."""
    port = str(free_port())
    command = [victim("listen"), "tcp4", "127.0.0.1", port]
    with Guard(f"deny {port}") as guard:
        done = guard.call(subprocess.run, command, stdout=-1)
    assert lines(done)[0] == "listen: EACCES"


# ---- popen ----


def test_popen_options(victim, free_port, tmp_path):
    """popen() takes what subprocess.Popen takes, and means the same."""
    port = str(free_port())
    show = "import os; session = os.getsid(0) == os.getpid(); "
    show += "print(os.getcwd(), os.environ.get('X'), session)"
    with Guard(f"deny {port}") as guard:
        process = guard.popen(
            python(show + LISTEN, port),
            cwd=tmp_path,
            env={"X": "y"},
            start_new_session=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert isinstance(process, subprocess.Popen)
        out, _ = process.communicate(timeout=LIMIT)
    assert out.splitlines() == [f"{tmp_path} y True", "listen: EACCES"]


@pytest.mark.filterwarnings("ignore:.*preexec_fn.*:DeprecationWarning")
def test_popen_preexec_fn(victim, free_port):
    """preexec_fn runs, guarded, and the program after it is guarded too."""
    port = free_port()
    command = [victim("listen"), "tcp4", "127.0.0.1", str(port)]

    def before() -> None:
        os.write(1, listen_on(port).encode() + b"\n")

    with Guard(f"deny {port}") as guard:
        done = guard.run(command, stdout=-1, preexec_fn=before)
    assert lines(done)[:2] == ["listen: 13", "listen: EACCES"]


def test_popen_pass_fds(victim, free_port):
    """pass_fds hands descriptors to the target, the guard's own stay away."""
    show = "import os; all = map(int, os.listdir('/proc/self/fd')); "
    show += "print([n for n in all if os.path.exists(f'/proc/self/fd/{n}')][3:])"
    read, write = os.pipe()
    try:
        with Guard("deny 1") as guard:
            done = guard.run(python(show), stdout=-1, pass_fds=[write], text=True)
    finally:
        os.close(read)
        os.close(write)
    assert done.stdout == f"[{write}]\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_popen_user_and_group(victim, free_port):
    """A target that runs as another user and group is guarded as any other."""
    port, seen = free_port(), []

    def hook(request) -> bool:
        seen.append((request.uid, request.gid))
        return False

    with tempfile.TemporaryDirectory() as place, Guard(hook=hook) as guard:
        os.chmod(place, 0o755)
        program = shutil.copy(victim("listen"), place)
        done = guard.run(
            [program, "tcp4", "127.0.0.1", str(port)],
            stdout=subprocess.PIPE,
            user=65534,
            group=65533,
            extra_groups=[],
        )
    assert lines(done)[0] == "listen: EACCES"
    assert seen == [(65534, 65533)]


def test_popen_passes_on_what_popen_raises():
    """A program that is not there raises FileNotFoundError, and the guard goes on."""
    with Guard("deny 1") as guard:
        with pytest.raises(FileNotFoundError):
            guard.popen(["/nonexistent/program"])
        assert guard.run(["true"]).returncode == 0


def test_run_options(free_port):
    """run() knows input, capture_output, timeout and check, as subprocess.run does."""
    with Guard("deny 1") as guard:
        done = guard.run(["cat"], input=b"some bytes", capture_output=True)
        assert (done.stdout, done.stderr) == (b"some bytes", b"")
        with pytest.raises(subprocess.CalledProcessError):
            guard.run(["false"], check=True)
        with pytest.raises(subprocess.TimeoutExpired):
            guard.run(["sleep", "60"], timeout=0.05)


def test_signal_mask_is_the_callers():
    """A target starts with the signal mask of the thread that asked for it."""
    show = "import signal; print(sorted(signal.pthread_sigmask(0, ())))"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with Guard("deny 1") as guard:
            inside = guard.run(python(show), stdout=-1).stdout
        assert inside == subprocess.run(python(show), stdout=-1).stdout
        assert b"SIGUSR1" in inside
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_popen_from_many_threads(victim, free_port):
    """Many threads can start targets under one guard at one time."""
    ports, results = [free_port() for _ in range(16)], {}
    with Guard([f"deny {port}" for port in ports[::2]]) as guard:

        def start(port: int) -> None:
            command = [victim("listen"), "tcp4", "127.0.0.1", str(port)]
            results[port] = lines(guard.run(command, stdout=-1))[0]

        victim("listen")
        threads = [threading.Thread(target=start, args=[port]) for port in ports]
        for one in threads:
            one.start()
        for one in threads:
            one.join(LIMIT)
    assert results == {
        port: "listen: 0" if i % 2 else "listen: EACCES" for i, port in enumerate(ports)
    }


def test_many_guards(victim, free_port):
    """Thirty guards at one time: each applies its own policy, and sees its own."""
    ports = [free_port() for _ in range(30)]
    guards = [Guard(f"deny {port}") for port in ports]
    try:
        processes = {}
        for i, guard in enumerate(guards):
            for port in (ports[i], ports[i - 1]):
                where = ["tcp4", f"127.0.1.{i + 1}", str(port)]
                processes[i, port] = guard.popen([victim("listen"), *where], stdout=-1)
        printed = {
            key: one.communicate(timeout=LIMIT)[0].splitlines()[0]
            for key, one in processes.items()
        }
        for i, guard in enumerate(guards):
            seen = {one.requested_port: one.verdict for one in guard.events()}
            assert seen == {ports[i]: "deny", ports[i - 1]: "allow"}
            assert printed[i, ports[i]] == b"listen: EACCES"
            assert printed[i, ports[i - 1]] == b"listen: 0"
    finally:
        for guard in guards:
            guard.close()


# ---- waiting ----


def test_events_end_with_the_target(victim):
    """events() waits for more, and ends by itself when no process is left."""
    with Guard(None) as guard:
        command = [victim("listen"), "tcp4", "-", "0", "times=3", "hold"]
        with guard.popen(command, stdin=-1, stdout=-1) as process:
            stream, seen = guard.events(), []
            for event in stream:
                seen.append(event)
                if len(seen) == 3:
                    process.stdin.close()
    assert [one.first for one in seen] == [True, False, False]


def test_events_from_the_oldest_for_each_reader(victim):
    """Each events() starts with the oldest event that is kept."""
    with Guard(None) as guard:
        guard.run([victim("listen"), "tcp4", "-", "0", "times=2"], stdout=-1)
        assert [one.first for one in guard.events()] == [True, False]
        assert [one.first for one in guard.events()] == [True, False]


def test_async_events(victim):
    """`async for` over events() sees each event, and ends with the target."""

    async def watch() -> list[bool]:
        with Guard(None) as guard:
            command = [victim("listen"), "tcp4", "-", "0", "times=3", "hold"]
            with guard.popen(command, stdin=-1, stdout=-1) as process:
                seen = []
                async for event in guard.events():
                    seen.append(event.first)
                    if len(seen) == 3:
                        process.stdin.close()
            return seen

    assert asyncio.run(asyncio.wait_for(watch(), LIMIT)) == [True, False, False]


def test_events_end_when_the_guard_closes(victim):
    """A reader of events() that waits is let go when the guard closes."""
    ended, waiting = threading.Event(), threading.Event()
    with Guard(None) as guard:
        command = [victim("listen"), "tcp4", "-", "0", "hold"]
        process = guard.popen(command, stdin=-1, stdout=-1)

        def read() -> None:
            for _ in guard.events():
                waiting.set()
            ended.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert waiting.wait(LIMIT)
        assert not ended.is_set()
    thread.join(LIMIT)
    assert ended.is_set()
    with process:
        process.stdin.close()


def test_a_guard_is_reusable_after_its_targets_ended(victim, free_port):
    """After wait() a guard starts further targets, and guards them the same way."""
    port = str(free_port())
    command = [victim("listen"), "tcp4", "127.0.0.1", port]
    with Guard(f"deny {port}") as guard:
        for _ in range(3):
            assert lines(guard.run(command, stdout=-1))[0] == "listen: EACCES"
            assert guard.wait(timeout=LIMIT)
            assert guard.call(listen_on, int(port)) == "listen: 13"
        assert len(list(guard.events())) == 6


def test_wait_without_a_target_returns():
    """wait() returns at once while nothing was started."""
    with Guard(None) as guard:
        assert guard.wait(timeout=LIMIT) is True


def test_wait_sees_killed_targets(victim):
    """wait() ends when the last target was killed, reaped by nobody."""
    with Guard(None) as guard:
        process = guard.popen([victim("listen"), "tcp4", "-", "0", "hold"], stdin=-1)
        with process:
            assert guard.wait(timeout=0.05) is False
            process.kill()
            assert guard.wait(timeout=LIMIT) is True


def test_wait_listening_sees_what_is_open_already(victim, free_port):
    """wait_listening() returns at once when the port is open already."""
    port = free_port()
    command = [victim("listen"), "tcp4", "127.0.0.1", str(port), "hold"]
    with (
        Guard(None) as guard,
        guard.popen(command, stdin=-1, stdout=-1) as process,
    ):
        assert process.stdout.readline() == b"listen: 0\n"
        event = guard.wait_listening(f"tcp:{port}", timeout=LIMIT)
        assert (event.port, event.pid) == (port, process.pid)
        assert guard.wait_listening(timeout=LIMIT).port == port


def test_wait_listening_sees_what_opens_later(victim, free_port):
    """wait_listening() returns as soon as connections are accepted."""
    port = free_port()
    where = ["tcp4", "127.0.0.1", str(port)]
    with (
        Guard(None) as guard,
        guard.popen(
            [victim("listen"), *where, "step", "hold"], stdin=-1, stdout=-1
        ) as process,
    ):
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(ListenTimeout):
            guard.wait_listening(f"tcp:{port}", timeout=0.02)
        later = threading.Timer(0.05, os.write, [process.stdin.fileno(), b"x"])
        later.start()
        event = guard.wait_listening(f"tcp:{port}", timeout=LIMIT)
        later.join()
        socket.create_connection((event.host, event.port), timeout=5).close()


def test_wait_listening_wants_its_selector(victim, free_port):
    """wait_listening() does not take another port, family or address for its own."""
    port = free_port()
    command = [victim("listen"), "tcp4", "127.0.0.1", str(port), "hold"]
    with (
        Guard(None) as guard,
        guard.popen(command, stdin=-1, stdout=-1) as process,
    ):
        assert process.stdout.readline() == b"listen: 0\n"
        for selector in (f"{port - 1}", "ipv6:tcp:any", "unix", "wildcard:any"):
            with pytest.raises(ListenTimeout, match=selector):
                guard.wait_listening(selector, timeout=0.02)
        for selector in (f"{port}", "ipv4:any", "loopback:any", "127.0.0.1:any"):
            assert guard.wait_listening(selector, timeout=LIMIT).port == port


def test_wait_listening_does_not_take_what_is_closed(victim, free_port):
    """wait_listening() does not return a port that was closed again."""
    port = free_port()
    with Guard(None) as guard:
        guard.call(listen_on, port)
        with pytest.raises(TargetExited):
            guard.wait_listening(f"tcp:{port}", timeout=LIMIT)


@pytest.mark.parametrize("rule", [None, "deny any"])
def test_wait_listening_when_the_target_exits(victim, free_port, rule):
    """wait_listening() raises TargetExited when no process is left that could."""
    command = [victim("listen"), "tcp4", "127.0.0.1", str(free_port())]
    if rule is None:  # it would see the port open for a moment
        command = ["true"]
    with Guard(rule) as guard, guard.popen(command, stdout=-1) as process:
        with pytest.raises(TargetExited):
            guard.wait_listening("tcp:any", timeout=LIMIT)
        assert process.wait(LIMIT) == 0


def test_closed_guard_says_so():
    """A closed guard raises GuardError, and closing it again is no error."""
    guard = Guard(None)
    guard.close()
    guard.close()
    for use in (
        lambda: guard.popen(["true"]),
        lambda: guard.call(int),
        lambda: guard.listeners(),
        lambda: guard.wait(),
        lambda: guard.wait_listening(),
        guard.__enter__,
    ):
        with pytest.raises(GuardError, match="closed"):
            use()
    assert list(guard.events()) == []
