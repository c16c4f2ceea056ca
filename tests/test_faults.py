"""What goes wrong: killed targets, dead supervisors, failing hooks, no descriptors."""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

import pytest
from conftest import python

import portseccomp
from portseccomp import ALLOW, DENY, Guard, GuardError, HookError, Policy

STORM = str(min(int(os.environ.get("PORTSECCOMP_ATTACKS", "100000")), 10000))
LIMIT = 20.0  # seconds; only a hang takes as long


def listen_on(port: int) -> str:
    """Listen on a loopback port for a moment; return what `listen` said."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", port))
        try:
            one.listen()
        except OSError as error:
            return errno.errorcode[error.errno]
    return "0"


def read_line(file) -> bytes:
    """Read a line that comes within the limit."""
    assert select.select([file], [], [], LIMIT)[0], "nothing came"
    return file.readline()


# ---- targets that go away ----


def test_target_killed_while_its_call_is_decided(victim):
    """A target that is killed in mid-call, 300 times, leaves nothing behind."""
    entered = threading.Semaphore(0)
    # One for each call: the hook of a killed one may be slow to wake.
    gates = [threading.Event() for _ in range(301)]
    numbers = itertools.count()

    def hook(request) -> bool:
        gate = gates[next(numbers)]
        entered.release()
        return gate.wait(LIMIT)

    command = [victim("listen"), "tcp4", "-", "0"]
    with Guard(hook=hook, hook_timeout=60) as guard:
        before = threads = 0
        for i in range(300):
            with guard.popen(command, stdout=subprocess.DEVNULL) as process:
                assert entered.acquire(timeout=LIMIT)
                process.kill()
                assert process.wait(LIMIT) == -signal.SIGKILL
            gates[i].set()
            if i == 100:
                before = len(os.listdir("/proc/self/fd"))
                threads = threading.active_count()
        gates[300].set()
        assert guard.run(command, stdout=-1).stdout.startswith(b"listen: 0\n")
        assert guard.stats().asked == 301
        assert guard.stats().vanished == 300
        assert guard.listeners() == []
        # A supervisor keeps handles of a few callers.
        assert len(os.listdir("/proc/self/fd")) <= before + 16
        assert threading.active_count() <= threads + 2


def storm(victim, free_port, how: str) -> list[str]:
    """Make 20,000 calls under SIGALRM at 5 kHz; what went wrong."""
    allowed, denied = free_port(), free_port()
    with Guard(f"deny {denied}") as guard:
        command = [victim("storm"), str(allowed), str(denied), STORM, "5000", how]
        return guard.run(command, stdout=-1).stdout.decode().splitlines()


def test_signal_storm(victim, free_port):
    """Signals at 5 kHz make none of 20,000 calls give a wrong result."""
    expected = ["wrong: 0", "interrupted: 0", "alarms: many"]
    assert storm(victim, free_port, "restart") == expected


def test_signal_storm_without_restart(victim, free_port):
    """Handlers without SA_RESTART may see EINTR, but never a wrong verdict.

    Before the supervisor has received a call, every kernel lets any signal
    interrupt it; WAIT_KILLABLE_RECV protects only what was received.
    """
    wrong, _, alarms = storm(victim, free_port, "interrupt")
    assert (wrong, alarms) == ("wrong: 0", "alarms: many")


# ---- supervisors that go away ----

# A guard whose hook hangs; its target reports to standard output.
SUPERVISOR = """
import os, sys, threading, multiprocessing, time
from portseccomp import Guard

def hook(request):
    os.write(1, b"asked\\n")
    threading.Event().wait()

def live_on():
    os.read(0, 1)

if __name__ == "__main__":
    guard = Guard(hook=hook, hook_timeout=60)
    guard.popen([sys.argv[2], "tcp4", "-", "0", "times=3"], stdin=-3)
    if sys.argv[1] == "fork" and os.fork() == 0:
        live_on()
        os._exit(0)
    if sys.argv[1] == "libc-fork":  # as an extension does, past Python's handlers
        import ctypes
        if ctypes.CDLL(None).fork() == 0:
            live_on()
            os._exit(0)
    if sys.argv[1] == "multiprocessing":
        context = multiprocessing.get_context("fork")
        context.Process(target=live_on).start()
    if sys.argv[1] == "popen":
        import subprocess
        subprocess.Popen(["cat"], stdout=-3)
    os.write(1, b"set up\\n")
    threading.Event().wait()
"""


@pytest.mark.parametrize(
    "survivor", ["none", "fork", "libc-fork", "multiprocessing", "popen"]
)
def test_supervisor_killed_while_a_hook_hangs(victim, survivor):
    """When the supervisor is killed, pending and later calls fail with ENOSYS."""
    command = python(SUPERVISOR, survivor, victim("listen"))
    with subprocess.Popen(command, stdin=-1, stdout=-1, bufsize=0) as process:
        assert {read_line(process.stdout) for _ in range(2)} == {
            b"asked\n",
            b"set up\n",
        }
        process.kill()
        printed = [read_line(process.stdout) for _ in range(4)]
    assert printed[:3] == [b"listen: ENOSYS\n"] * 3
    assert printed[3] == b"port: 0\n"


def test_closed_guard_leaves_targets_closed(victim):
    """After close() the calls of targets that live on fail with ENOSYS."""
    with Guard("deny 1") as guard:
        command = [victim("listen"), "tcp4", "-", "0", "times=2", "step"]
        process = guard.popen(command, stdin=-1, stdout=-1, bufsize=0)
        with process:
            assert read_line(process.stdout) == b"ready\n"
            process.stdin.write(b"x")
            assert read_line(process.stdout) == b"listen: 0\n"
            guard.close()
            process.stdin.write(b"x")
            assert read_line(process.stdout) == b"listen: ENOSYS\n"


def test_close_while_a_call_is_decided(victim):
    """close() denies the call that a hook still decides, and does not wait for it."""
    entered, release = threading.Event(), threading.Event()

    def hook(request) -> bool:
        entered.set()
        return release.wait(LIMIT)

    guard = Guard(hook=hook, hook_timeout=60)
    with guard.popen(
        [victim("listen"), "tcp4", "-", "0", "times=2"], stdout=-1, bufsize=0
    ) as process:
        assert entered.wait(LIMIT)
        guard.close()
        assert read_line(process.stdout) in (b"listen: EACCES\n", b"listen: ENOSYS\n")
        assert read_line(process.stdout) == b"listen: ENOSYS\n"
        release.set()


# ---- hooks ----


def hook_raises(request) -> bool:
    raise LookupError("no idea")


async def coroutine_raises(request) -> bool:
    raise LookupError("no idea")


async def coroutine_move(request) -> object:
    return portseccomp.move(port=1)


@pytest.mark.parametrize(
    ("hook", "message", "cause"),
    [
        (hook_raises, "LookupError", LookupError),
        (lambda request: None, "returned None", None),
        (lambda request: 1, "returned 1", None),
        (lambda request: "allow", "returned 'allow'", None),
        (lambda request: portseccomp.move(port=1), "move", None),
        (coroutine_raises, "LookupError", LookupError),
        (coroutine_move, "move", None),
        (lambda: True, "TypeError", TypeError),
    ],
    ids=[
        "raises",
        "none",
        "one",
        "word",
        "move",
        "coroutine-raises",
        "coroutine-move",
        "arguments",
    ],
)
def test_failing_hook_denies(free_port, hook, message, cause):
    """A hook that fails denies, is counted, and is raised when the guard closes."""
    guard = Guard(Policy(default="ask", errno="EPERM"), hook=hook)
    try:
        assert guard.call(listen_on, free_port()) == "EPERM"
        assert guard.call(listen_on, free_port()) == "EPERM"
        assert guard.stats().hook_errors == 2
        first, _ = guard.events()
        assert (first.verdict, first.errno, first.rule) == ("deny", "EPERM", "hook")
    finally:
        with pytest.raises(HookError, match=message) as caught:
            guard.close()
    assert caught.value.count == 2
    if cause is None:
        assert caught.value.__cause__ is None
    else:
        assert isinstance(caught.value.__cause__, cause)
    guard.close()  # raised once


@pytest.mark.parametrize("late", ["answers", "answers late", "never"])
@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_hook_that_misses_its_deadline(free_port, late, kind):
    """A hook past hook_timeout denies, is counted, and is raised at close()."""
    hook_timeout = 60.0 if late == "answers" else 0.05
    release = threading.Event()

    def function(request) -> portseccomp.Verdict:
        if late != "answers":
            release.wait(LIMIT)
        return ALLOW

    async def coroutine(request) -> portseccomp.Verdict:
        while late != "answers" and not release.is_set():
            await asyncio.sleep(0.01)
        return ALLOW

    hook = function if kind == "function" else coroutine
    guard = Guard(hook=hook, hook_timeout=hook_timeout)
    try:
        result = guard.call(listen_on, free_port())
        stats = guard.stats()
        if late == "answers late":
            release.set()
        if late == "answers":
            assert (result, stats.hook_timeouts) == ("0", 0)
            guard.close()
            return
        assert (result, stats.hook_timeouts, stats.denied) == ("EACCES", 1, 1)
        (event,) = guard.events()
        assert (event.verdict, event.rule) == ("deny", "error")
        assert "too late" in event.reason
        with pytest.raises(HookError, match="deadline"):
            guard.close()
    finally:
        release.set()
        try:
            guard.close()
        except HookError:
            pass


def test_rules_go_on_while_a_hook_hangs(free_port):
    """While a hook hangs, calls that a rule decides are answered at once."""
    asked, denied, allowed = free_port(), free_port(), free_port()
    entered, release = threading.Event(), threading.Event()

    def hook(request) -> bool:
        entered.set()
        return release.wait(LIMIT)

    policy = Policy(
        [f"ask {asked}", f"deny {denied}", f"allow {allowed}"], default="allow"
    )
    results = []
    with Guard(policy, hook=hook, hook_timeout=60) as guard:
        waiting = threading.Thread(
            target=lambda: results.append(guard.call(listen_on, asked))
        )
        waiting.start()
        assert entered.wait(LIMIT)
        for _ in range(50):
            assert guard.call(listen_on, denied) == "EACCES"
            assert guard.call(listen_on, allowed) == "0"
        assert results == []
        release.set()
        waiting.join(LIMIT)
    assert results == ["0"]


def test_more_questions_than_hooks_can_run(free_port):
    """Questions beyond the hooks that run at one time queue, and each is answered."""
    entered, release = threading.Semaphore(0), threading.Event()
    denied = free_port()
    ports = [free_port() for _ in range(40)]
    refused = set(ports[::3])

    def hook(request) -> bool:
        entered.release()
        release.wait(LIMIT)
        return request.port not in refused

    results: dict[int, str] = {}
    policy = Policy([f"deny {denied}"], default="ask")
    with Guard(policy, hook=hook, hook_timeout=60) as guard:

        def ask(port: int) -> None:
            results[port] = guard.call(listen_on, port)

        threads = [threading.Thread(target=ask, args=[port]) for port in ports]
        for one in threads:
            one.start()
        for _ in range(10):  # hooks run side by side
            assert entered.acquire(timeout=LIMIT)
        assert guard.call(listen_on, denied) == "EACCES"
        assert results == {}
        release.set()
        for one in threads:
            one.join(LIMIT)
        assert guard.stats().asked == 40
    assert results == {port: "EACCES" if port in refused else "0" for port in ports}


def test_coroutine_hook_on_a_loop_of_its_own(free_port):
    """A coroutine hook runs where no event loop runs, and decides."""
    refused = free_port()

    async def hook(request) -> portseccomp.Verdict:
        await asyncio.sleep(0.001)
        if request.port == refused:
            return portseccomp.deny("EPERM")
        return ALLOW

    with Guard(hook=hook) as guard:
        assert guard.call(listen_on, refused) == "EPERM"
        assert guard.call(listen_on, free_port()) == "0"


def test_coroutine_hook_on_the_owners_loop(free_port):
    """A coroutine hook runs on the event loop in which the guard was made."""

    async def main() -> None:
        loops = []

        async def hook(request) -> portseccomp.Verdict:
            loops.append(asyncio.get_running_loop())
            await asyncio.sleep(0)
            return DENY

        with Guard(hook=hook) as guard:
            port = free_port()
            assert await asyncio.to_thread(guard.call, listen_on, port) == "EACCES"
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(asyncio.wait_for(main(), LIMIT))


def test_hook_sees_the_request(victim, free_port):
    """The hook sees who calls, what for, and what /proc tells of the caller."""
    port, seen = free_port(), {}
    program = victim("listen")

    def hook(request) -> bool:
        names = "call pid tid family protocol host port backlog comm exe cmdline cwd"
        names += " uid gid cgroup"
        seen.update({name: getattr(request, name) for name in names.split()})
        return True

    command = [program, "tcp4", "127.0.0.1", str(port), "backlog=9"]
    with Guard(hook=hook) as guard:
        process = guard.popen(command, stdout=subprocess.DEVNULL, cwd="/")
        assert process.wait(LIMIT) == 0
    assert seen.pop("cgroup").startswith("/")
    assert seen == {
        "call": "listen",
        "pid": process.pid,
        "tid": process.pid,
        "family": "ipv4",
        "protocol": "tcp",
        "host": "127.0.0.1",
        "port": port,
        "backlog": 9,
        "comm": "listen",
        "exe": os.path.realpath(program),
        "cmdline": command,
        "cwd": "/",
        "uid": os.getuid(),
        "gid": os.getgid(),
    }


def test_request_of_a_caller_that_went_away(victim):
    """/proc attributes of a caller that was killed raise ProcessLookupError."""
    entered, release, raised = threading.Event(), threading.Event(), []

    def hook(request) -> bool:
        entered.set()
        release.wait(LIMIT)
        try:
            raised.append(request.cmdline)
        except ProcessLookupError as error:
            raised.append(type(error))
        return True

    with Guard(hook=hook, hook_timeout=60) as guard:
        with guard.popen([victim("listen"), "tcp4", "-", "0"]) as process:
            assert entered.wait(LIMIT)
            process.kill()
        release.set()
        assert guard.wait(LIMIT)
    assert raised == [ProcessLookupError]


def test_hook_may_use_the_guard(free_port):
    """A hook can ask its guard for counters, listeners and events."""
    answers = []
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))

        def hook(request) -> bool:
            answers.append((guard.stats().asked, [x.port for x in guard.listeners()]))
            return True

        with Guard(hook=hook) as guard:
            guard.call(held.listen)
            assert guard.call(listen_on, free_port()) == "0"
        assert answers == [(1, []), (2, [held.getsockname()[1]])]


def test_on_event_that_raises(free_port):
    """on_event that raises changes no decision, and is raised when the guard closes."""
    port = free_port()

    def fail(event) -> None:
        raise LookupError(event.requested_port)

    guard = Guard(f"deny {port}", on_event=fail)
    assert guard.call(listen_on, port) == "EACCES"
    assert guard.call(listen_on, free_port()) == "0"
    with pytest.raises(HookError, match="on_event") as caught:
        guard.close()
    assert caught.value.count == 2
    assert isinstance(caught.value.__cause__, LookupError)


def test_failing_hook_does_not_hide_the_bodys_exception(free_port):
    """An exception in the `with` body stays, with the hook's failure as a note."""
    with pytest.raises(ZeroDivisionError) as caught, Guard(hook=hook_raises) as guard:
        assert guard.call(listen_on, free_port()) == "EACCES"
        raise ZeroDivisionError
    assert any("LookupError" in note for note in caught.value.__notes__)


class SlowlyTold(Guard):
    """A guard on a machine that is busy with something else."""

    def _deliver(self, batch):
        if batch:
            time.sleep(0.1)
        return super()._deliver(batch)


def test_many_events_at_the_end(monkeypatch):
    """A guard without on_event closes well, however long its last events take."""
    monkeypatch.setattr("portseccomp.supervisor._LAST_EVENTS", 0.4)

    def call_often() -> None:
        with socket.socket() as one:
            for _ in range(2000):
                with pytest.raises(PermissionError):
                    one.listen()

    with SlowlyTold("deny any") as guard:
        guard.call(call_often)
    assert sum(1 for _ in guard.events()) == 2000


# ---- the embedding program ----

EXITS = {
    "open": "Guard('deny 1')",
    "policy": "g = Guard('deny 1'); g.run(['true'])",
    "target": "g = Guard('deny 1'); g.popen(['sleep', '3'])",
    "hook": """
entered = threading.Event()
def hook(request):
    entered.set()
    threading.Event().wait()
g = Guard(hook=hook, hook_timeout=60)
p = g.popen([sys.argv[1], 'tcp4', '-', '0'])
entered.wait()
""",
    "sleeping-hook": """
entered = threading.Event()
def hook(request):
    entered.set()
    time.sleep(60)
g = Guard(hook=hook, hook_timeout=60)
p = g.popen([sys.argv[1], 'tcp4', '-', '0'])
entered.wait()
""",
    "coroutine": """
import asyncio
entered = threading.Event()
async def hook(request):
    entered.set()
    await asyncio.sleep(60)
g = Guard(hook=hook, hook_timeout=60)
p = g.popen([sys.argv[1], 'tcp4', '-', '0'])
entered.wait()
""",
    "reader": """
g = Guard(None)
p = g.popen(['sleep', '3'])
threading.Thread(target=lambda: list(g.events()), daemon=True).start()
""",
    "on_event": """
g = Guard(None, on_event=lambda event: time.sleep(60))
g.run([sys.argv[1], 'tcp4', '-', '0'])
""",
    "busy": """
g = Guard(None)
p = g.popen([sys.argv[2], '1000000000'])
next(g.events())
import atexit; atexit.register(p.kill)
""",
}


@pytest.mark.parametrize("how", EXITS)
def test_interpreter_exits_with_an_open_guard(victim, how):
    """A program that forgets to close its guard exits at once, and says nothing."""
    start = "import sys, threading, time\nfrom portseccomp import Guard\n"
    command = python(start + EXITS[how], victim("listen"), victim("hammer"))
    # Through a pipe of our own: targets that live on hold stdout open.
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()
        assert process.stderr.read() == b""


def test_dropped_guard_warns():
    """A guard that is dropped unclosed warns, and its descriptors are closed."""
    guard = Guard("deny 1")
    with pytest.warns(ResourceWarning, match="unclosed guard"):
        del guard
        gc.collect()


FORKED = """
import os, sys
from portseccomp import Guard, GuardError
with Guard("deny 1") as guard:
    guard.run(["true"])
    before = len(os.listdir("/proc/self/fd"))
    pid = os.fork()
    if pid == 0:
        for use in (lambda: guard.popen(["true"]), lambda: guard.call(int),
                    lambda: guard.listeners(), lambda: guard.wait()):
            try:
                use()
            except GuardError as error:
                print("fork" in str(error), flush=True)
        guard.close()
        with Guard("deny 1") as own:  # a new one works
            print(own.run(["true"]).returncode, flush=True)
        os._exit(0)
    print(os.waitpid(pid, 0)[1], flush=True)
    print(guard.run(["true"]).returncode, guard.call(int), flush=True)
"""


def test_guard_in_a_forked_child():
    """In a forked child the guard raises GuardError; the parent's goes on."""
    # Python 3.12 warns of any fork in a process with threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    expected = ["True"] * 4 + ["0", "0", "0 0"]
    assert (done.stdout.splitlines(), done.stderr) == (expected, "")


NO_DESCRIPTORS = """
import os, resource, subprocess, sys, warnings
from portseccomp import Guard
warnings.simplefilter("ignore")
with Guard("deny 1") as guard:
    command = [sys.argv[1], "tcp4", "-", "0", "times=3", "step"]
    process = guard.popen(command, stdin=-1, stdout=-1, bufsize=0)
    process.stdout.readline()
    def step():
        process.stdin.write(b"x")
        return process.stdout.readline().decode().strip()
    print(step())
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limit[1]))
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    print(step())
    for one in taken:
        os.close(one)
    print(step())
    process.stdin.close()
    process.stdout.close()
    process.wait()
    reasons = [event.reason for event in guard.events()]
    print([reason and "EMFILE" in reason for reason in reasons])
    print(guard.stats().failed)
"""


def test_no_descriptors_left_in_the_supervisor(victim):
    """Out of descriptors, the guard denies and says why; then it goes on."""
    done = subprocess.run(
        python(NO_DESCRIPTORS, victim("listen")),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    expected = ["listen: 0", "listen: EACCES", "listen: 0", "[None, True, None]", "1"]
    assert (done.stdout.splitlines(), done.stderr) == (expected, "")


NESTED = """
import errno
from portseccomp import Guard, KernelError
try:
    Guard("deny 1")
except KernelError as error:
    print(errno.errorcode[error.errno], isinstance(error, OSError), str(error))
"""


@pytest.mark.parametrize("policy", ["deny 1", None])
def test_guard_inside_a_guard(policy):
    """A guard inside a guard is refused: KernelError, EBUSY, and a hint."""
    with Guard(policy) as guard:
        done = guard.run(python(NESTED), capture_output=True, text=True)
        with pytest.raises(portseccomp.KernelError) as caught:
            guard.call(Guard, "deny 1")
    assert done.stdout.startswith("EBUSY True ")
    assert "a guard can't run inside a guard" in done.stdout
    assert done.stderr == ""
    assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"policy": "ask 1"}, portseccomp.PolicyError),
        ({"policy": "nonsense"}, portseccomp.PolicyError),
        ({"hook": 3}, TypeError),
        ({"hook_timeout": 0}, ValueError),
        ({"hook_timeout": -1.0}, ValueError),
        ({"unix": "ask"}, ValueError),
        ({"event_buffer": 0}, ValueError),
    ],
)
def test_wrong_arguments_start_nothing(options, error):
    """A wrong argument raises before anything starts, and leaves nothing."""
    before = threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error):
            Guard(**options)
        gc.collect()
    assert threading.active_count() == before


def test_guard_error_for_use_after_close():
    """GuardError is what any use of a closed guard raises."""
    with Guard(None) as guard:
        pass
    with pytest.raises(GuardError):
        guard.run(["true"])
