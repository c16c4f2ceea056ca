"""Hooks that hang, keep the GIL, or call back; rings that overflow; all of it busy."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import socket
import subprocess
import sys
import threading
import time
from queue import SimpleQueue

import pytest

from portseccomp import Guard, GuardError, HookError, ListenTimeout
from portseccomp.events import EventLog, EventStream

LIMIT = 20.0  # seconds; only a hang takes as long
PORT = 21000  # nothing is open there for longer than a test
PYTHON = ctypes.PyDLL(None)  # its functions keep the GIL


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


# ---- rules while hooks hang ----


def hang(request) -> bool:
    time.sleep(1.5)
    return True


def keep_the_gil(request) -> bool:
    PYTHON.usleep(1_500_000)
    return True


def compute(request) -> bool:
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        pass
    return True


async def hang_in_a_coroutine(request) -> bool:
    await asyncio.sleep(1.5)
    return True


async def block_the_loop(request) -> bool:
    time.sleep(1.5)
    return True


async def keep_the_gil_in_a_coroutine(request) -> bool:
    PYTHON.usleep(1_500_000)
    return True


@pytest.mark.parametrize("askers", [1, 2, 40])
@pytest.mark.parametrize(
    "hook",
    [
        hang,
        keep_the_gil,
        compute,
        hang_in_a_coroutine,
        block_the_loop,
        keep_the_gil_in_a_coroutine,
    ],
)
def test_rules_and_deadlines_while_hooks_hang(victim, hook, askers):
    """However a hook hangs, rules are answered, and its call is denied in time."""
    if hook in (keep_the_gil, keep_the_gil_in_a_coroutine):
        askers = min(askers, 4)  # else it keeps it for long, one after another
    if hook is block_the_loop:
        askers = min(askers, 2)  # else nobody can end its loop for as long
    command = [victim("meanwhile"), str(askers), str(PORT)]
    guard = Guard(f"ask tcp:{PORT}-{PORT + 63}", hook=hook, hook_timeout=0.3)
    done = guard.run(command, stdout=subprocess.PIPE, timeout=60)
    stats = guard.stats()
    with pytest.raises(HookError, match="deadline"):
        guard.close()
    found = json.loads(done.stdout)
    assert found["results"] == ["EACCES"] * askers
    assert (stats.asked, stats.hook_timeouts) == (askers, askers)
    # The deadline is 0.3 s; each hook hangs for 1.5 s.
    assert found["longest asked"] < 1.4
    assert found["calls"] > 10
    assert found["longest"] < 1.4


# ---- hooks that call back ----


def stats_of(guard: Guard) -> object:
    return guard.stats().asked >= 1


def listeners_of(guard: Guard) -> object:
    # One that listens at this moment may be among them.
    return all(one.port == PORT for one in guard.listeners())


def popen_of(guard: Guard) -> object:
    return guard.popen(["true"]).wait(LIMIT) == 0


def run_of(guard: Guard) -> object:
    return guard.run(["true"]).returncode == 0


def call_of(guard: Guard) -> object:
    return guard.call(divmod, 7, 2) == (3, 1)


def call_a_rule_of(guard: Guard) -> object:
    return guard.call(listen_on, PORT + 1) == "EPERM"


def wait_of(guard: Guard) -> object:
    return guard.wait(0.05) is False


def wait_listening_of(guard: Guard) -> object:
    with pytest.raises(ListenTimeout):
        guard.wait_listening("tcp:any", timeout=0.05)
    return True


def events_of(guard: Guard) -> object:
    guard.call(listen_on, PORT + 1)  # the first event; iter() makes no more
    return next(guard.events()).errno == "EPERM"


CALLS_BACK = [
    *(stats_of, listeners_of, popen_of, run_of, call_of, call_a_rule_of),
    *(wait_of, wait_listening_of, events_of),
]
RULES = [f"ask tcp:{PORT}", f"deny tcp:{PORT + 1} with EPERM"]


def in_a_coroutine(function):
    async def hook(request):
        return function(request)

    return hook


KINDS = pytest.mark.parametrize("kind", ["function", "coroutine"])


@KINDS
@pytest.mark.parametrize("use", CALLS_BACK)
def test_hook_calls_back(use, kind):
    """Inside a hook, every method of its guard works, and returns."""
    answers = []

    def hook(request) -> bool:
        answers.append(use(guard))
        return True

    hook = in_a_coroutine(hook) if kind == "coroutine" else hook
    with Guard(RULES, hook=hook, hook_timeout=LIMIT) as guard:
        for _ in range(3):
            assert guard.call(listen_on, PORT) == "0"
    assert answers == [True] * 3


@KINDS
@pytest.mark.parametrize("method", ["wait", "events"])
def test_hook_that_waits_for_its_own_end(kind, method):
    """A hook that waits for the end of its own caller is denied at its deadline."""
    ended = threading.Event()

    def hook(request) -> bool:
        if method == "wait":
            guard.wait()
        else:
            list(guard.events())
        ended.set()
        return True

    hook = in_a_coroutine(hook) if kind == "coroutine" else hook
    guard = Guard(RULES, hook=hook, hook_timeout=0.2)
    assert guard.call(listen_on, PORT) == "EACCES"
    # Now the tree is empty, and what it waited for is there.
    assert ended.wait(LIMIT)
    with pytest.raises(HookError, match="deadline for 1 calls"):
        guard.close()


@KINDS
def test_hook_that_closes_its_guard(kind):
    """A hook can close its guard: its call is denied, and nothing hangs."""
    closed, errors = threading.Event(), []

    def hook(request) -> bool:
        try:
            guard.close()
        except BaseException as error:
            errors.append(error)
        closed.set()
        return True

    hook = in_a_coroutine(hook) if kind == "coroutine" else hook
    guard = Guard(RULES, hook=hook, hook_timeout=LIMIT)
    try:
        assert guard.call(listen_on, PORT) in ("EACCES", "ENOSYS")
        assert closed.wait(LIMIT)
        assert errors == []
        with pytest.raises(GuardError, match="closed"):
            guard.call(int)
    finally:
        guard.close()


def test_hook_that_asks_itself(victim):
    """Hooks whose calls are asked about end at a deadline, and the guard goes on."""
    depth = []

    def hook(request) -> bool:
        depth.append(request.port)
        try:
            return guard.call(listen_on, PORT) == "0"
        except GuardError:  # it is closed by now
            return False

    guard = Guard(RULES, hook=hook, hook_timeout=1.0)
    assert guard.call(listen_on, PORT) == "EACCES"
    assert guard.call(listen_on, PORT + 1) == "EPERM"
    assert guard.stats().hook_timeouts > 0
    with pytest.raises(HookError, match="deadline"):
        guard.close()
    assert len(depth) > 1


@pytest.mark.parametrize("use", CALLS_BACK[1:6])
def test_on_event_calls_back(use):
    """on_event can use its guard, as a hook can."""
    answers = []
    done = threading.Event()

    def on_event(event) -> None:
        if event.requested_port == PORT:  # some make more events
            answers.append(guard.stats().requests >= 1 and use(guard))
            if len(answers) == 3:
                done.set()

    with Guard(RULES[1:], on_event=on_event) as guard:
        for _ in range(3):
            assert guard.call(listen_on, PORT) == "0"
        assert done.wait(LIMIT)
    assert answers == [True] * 3


def test_on_event_that_closes_its_guard():
    """on_event can close its guard: nothing hangs, and calls are over."""
    outcome: SimpleQueue[BaseException | None] = SimpleQueue()

    def on_event(event) -> None:
        try:
            guard.close()
            outcome.put(None)
        except BaseException as error:
            outcome.put(error)

    guard = Guard(RULES[1:], on_event=on_event)
    guard.call(listen_on, PORT)
    assert outcome.get(timeout=LIMIT) is None
    with pytest.raises(GuardError, match="closed"):
        guard.call(int)


# ---- the end under load ----


@KINDS
def test_close_while_many_ask(victim, kind):
    """close() under a load of questions raises nothing that no hook has done."""

    def hook(request) -> bool:
        return False

    hook = in_a_coroutine(hook) if kind == "coroutine" else hook
    command = [victim("hammer"), "1000000"]
    for _ in range(20):
        guard = Guard(hook=hook, event_buffer=16)
        targets = [guard.popen(command, stdout=subprocess.DEVNULL) for _ in range(4)]
        try:
            while guard.stats().asked < 20:
                time.sleep(0.001)
            guard.close()
        finally:
            for one in targets:
                one.kill()
                one.wait(LIMIT)
        assert guard.stats().hook_errors == 0


def test_guards_closed_by_many_threads_at_one_time(victim):
    """Eight threads close one guard that is busy: one does, and nobody hangs."""
    command = [victim("hammer"), "1000000"]
    for _ in range(10):
        guard = Guard("deny 1", event_buffer=16)
        target = guard.popen(command, stdout=subprocess.DEVNULL)
        try:
            while guard.stats().requests < 20:
                time.sleep(0.001)
            threads = [threading.Thread(target=guard.close) for _ in range(8)]
            for one in threads:
                one.start()
            for one in threads:
                one.join(LIMIT)
            assert not any(one.is_alive() for one in threads)
        finally:
            target.kill()
            target.wait(LIMIT)


# ---- the ring of events ----


def check_sum(guard: Guard, requests: int, seen: int) -> None:
    stats = guard.stats()
    assert stats.requests == requests == stats.allowed + stats.denied
    assert seen + stats.events_lost == requests


@pytest.mark.parametrize("buffer", [1, 2, 3, 64])
def test_nobody_reads(victim, buffer):
    """Unread events give way: every call is decided, and what is lost is counted."""
    with Guard("deny 1", event_buffer=buffer) as guard:
        done = guard.run([victim("hammer"), "20000"], stdout=subprocess.PIPE)
        assert done.stdout == b"wrong: 0\n"
        assert guard.wait(LIMIT)
        # What is kept has not been lost, and is all that a reader finds.
        seen = len(list(guard.events()))
        assert 0 < seen <= buffer
        check_sum(guard, 20_000, seen)


@pytest.mark.parametrize("buffer", [1, 2, 64])
@pytest.mark.parametrize("how", ["counts", "raises", "blocks", "is slow"])
def test_on_event_with_a_small_buffer(victim, buffer, how):
    """Whatever on_event does, calls are decided, and events and losses add up."""
    seen = 0
    release = threading.Event()

    def on_event(event) -> None:
        nonlocal seen
        if how == "blocks":
            release.wait(LIMIT)
        elif how == "is slow":
            time.sleep(0.001)
        seen += 1
        if how == "raises":
            raise LookupError("no idea")

    guard = Guard("deny 1", on_event=on_event, event_buffer=buffer)
    done = guard.run([victim("hammer"), "5000"], stdout=subprocess.PIPE)
    assert done.stdout == b"wrong: 0\n"
    assert guard.stats().requests == 5000
    release.set()
    assert guard.wait(LIMIT)
    check_sum(guard, 5000, seen)
    if how == "raises":
        with pytest.raises(HookError, match="on_event") as caught:
            guard.close()
        assert caught.value.count == seen
    guard.close()


@pytest.mark.parametrize("calls", ["repeated", "denied"])
def test_calls_in_a_loop_hide_no_port_that_opens(calls):
    """While 5,000 calls find no room for their events, ports that open are known."""
    release = threading.Event()
    policy = f"allow tcp:{PORT}-{PORT + 2}"

    def flood() -> None:
        busy = PORT + 2 if calls == "repeated" else PORT + 3
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", busy))
            for _ in range(5000):
                with contextlib.suppress(PermissionError):
                    one.listen()
        for port in (PORT, PORT + 1):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))

    guard = Guard(policy, on_event=lambda event: release.wait(LIMIT), event_buffer=64)
    with guard, contextlib.ExitStack() as stack:
        guard.call(flood)
        lost = guard.stats().events_lost
        release.set()
        assert {one.port for one in guard.listeners()} == {PORT, PORT + 1}
    # There was no room for most of them.
    assert lost > 4000
    assert guard.stats().events_lost == lost


@pytest.mark.parametrize("ask", ["listeners", "wait_listening"])
def test_answers_while_targets_call_in_a_loop(victim, ask):
    """listeners() and wait_listening() return though there is always one event more."""
    done = threading.Event()

    def use() -> None:
        for _ in range(3):
            if ask == "listeners":
                guard.listeners()
            else:
                with contextlib.suppress(ListenTimeout):
                    guard.wait_listening("tcp:1", 0.1)
        done.set()

    def on_event(event) -> None:
        time.sleep(0.0005)  # slower than they call

    command = [victim("hammer"), "100000000"]
    with Guard("deny tcp:1", on_event=on_event, event_buffer=256) as guard:
        targets = [guard.popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
        try:
            while guard.stats().requests < 1000:
                time.sleep(0.001)
            thread = threading.Thread(target=use, daemon=True)
            thread.start()
            assert done.wait(LIMIT)
        finally:
            for one in targets:
                one.kill()
                one.wait(LIMIT)
        thread.join(LIMIT)


@pytest.mark.parametrize("capacity", [64, 4096, 1 << 20])
def test_readers_beside_the_writer(capacity):
    """A reader sees each event once and in order, while others are added."""
    count, batch, finished = 100_000, 8, threading.Event()
    log = EventLog(capacity)
    log.finish_when(finished.is_set)

    def write() -> None:
        for i in range(0, count, batch):
            log.append(list(range(i, i + batch)))  # any object is an event to it
        finished.set()
        log.append([])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        writer = threading.Thread(target=write)
        writer.start()
        seen = list(EventStream(log, lambda wanted: None))
        writer.join()
    finally:
        sys.setswitchinterval(before)
    assert seen == sorted(set(seen))
    assert len(seen) + log.lost == count


def test_on_event_that_never_returns(victim):
    """A guard whose on_event hangs closes all the same, and says so."""
    release = threading.Event()
    guard = Guard("deny 1", on_event=lambda event: release.wait(LIMIT), event_buffer=2)
    try:
        done = guard.run([victim("hammer"), "5000"], stdout=subprocess.PIPE)
        assert done.stdout == b"wrong: 0\n"
        with pytest.raises(HookError, match="on_event was still running"):
            guard.close()
    finally:
        release.set()
        guard.close()
