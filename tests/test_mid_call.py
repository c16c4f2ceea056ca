"""What can happen to a caller, and to what it points to, while its call waits.

PORTSECCOMP_ATTACKS sets how often each attack is tried (100,000).
"""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import time
from collections import Counter
from contextlib import ExitStack

import pytest
from conftest import accepts, need_feature, need_locked_names, python
from test_bind import code
from test_races import (
    LIMIT,
    TRIES,
    check_books,
    holds_open,
    numbers,
    read_line,
    watched,
)

import portseccomp.launcher
from portseccomp import Event, Guard, Stats

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: userfaultfd(2)")

# How often, as a share of TRIES; and with a hook, which takes 5 to 20 ms.
ATTACKS = {
    "exec": (200, 1000),
    "close": (50, 2000),
    "memory": (50, 2000),
    "stop": (100, 4000),
    "leader": (500, 20000),
    "group": (5000, 20000),
}
# The calls of one try, in those attacks that kill nobody.
CALLS = {"close": 1, "memory": 1, "stop": 4, "leader": 16}


# Before Linux 6.9 a thread can be gone before it is reached: denied, and told.
@pytest.mark.filterwarnings("ignore:portseccomp can't apply the policy")
@pytest.mark.parametrize("policy", ["deny any", "allow {}", "hook"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_in_mid_call(victim, free_port, attack, policy):
    """No exec, signal, exit, lost descriptor or memory opens a denied port."""
    allowed, forbidden = free_port(), free_port()
    tries = max(TRIES // ATTACKS[attack][policy == "hook"], 1)
    seen: Counter[tuple] = Counter()

    def hook(request) -> bool:
        time.sleep(random.uniform(0.005, 0.02))
        return request.port == allowed

    def count(event: Event) -> None:
        seen[event.requested_port, event.verdict] += 1

    command = [victim("midcall"), attack, *map(str, (allowed, forbidden, tries))]
    options = {"hook": hook} if policy == "hook" else {"policy": policy.format(allowed)}
    with (
        Guard(**options, on_event=count, event_buffer=1 << 17) as guard,
        watched(victim, forbidden) as outside,
        guard.popen(command, stdin=-1, stdout=-1, bufsize=0) as process,
    ):
        result = numbers(process.stdout)
        assert not accepts("127.0.0.1", forbidden)
        wanted = set() if policy == "deny any" else {("tcp", allowed)}
        assert holds_open(process.pid) <= wanted
        process.stdin.close()
        assert process.wait(LIMIT) == 0
        # A hook that was asked for one that is dead by now still has to answer.
        assert guard.wait(LIMIT)
    assert outside["seen"] == 0
    stats = guard.stats()
    assert stats.hook_errors == stats.hook_timeouts == stats.continued == 0

    # Nothing is lost, nothing is told twice.
    binds = tries + 1 if attack == "close" else 2
    check_books(stats, seen.total(), binds + result["faults"])
    if attack in CALLS:
        assert stats.allowed + stats.denied == CALLS[attack] * tries + binds
    else:
        assert stats.vanished > 0 or tries < 100

    # Each call got what the policy says.
    if policy != "deny any":
        assert (result["wrong"], result["first wrong"]) == (0, 0)
    if attack == "exec":
        # The socket that the other thread has is met by none of the calls.
        assert seen[forbidden, "deny"] == seen[forbidden, "allow"] == 0
    # A hook takes longer than a caller lives, or than an attack waits.
    if policy != "hook" or attack in ("stop", "leader"):
        assert policy == "deny any" or seen[allowed, "allow"] > 0
        assert attack == "exec" or seen[forbidden, "deny"] > 0


@pytest.mark.parametrize("how", ["restart", "interrupt"])
@pytest.mark.parametrize("program", ["storm", "bindstorm"])
def test_signals_while_a_hook_decides(victim, free_port, program, how):
    """Signals at 2 kHz, caught while a hook takes 5 to 20 ms, change no result."""
    allowed, forbidden = free_port(), free_port()
    # Else a call starts anew with each signal, and never ends.
    need_feature("WAIT_KILLABLE_RECV")
    # Where signals have to be slow, so that calls end, there are few in a call.
    times = max(TRIES // 5000, 5)

    def hook(request) -> bool:
        time.sleep(random.uniform(0.005, 0.02))
        return request.port == allowed

    command = [victim(program), str(allowed), str(forbidden), str(times), "2000", how]
    events = 0

    def count(event: Event) -> None:
        nonlocal events
        events += event.rule == "hook"

    with Guard(hook=hook, on_event=count) as guard, watched(victim, forbidden) as out:
        done = guard.run(command, stdout=subprocess.PIPE, timeout=LIMIT)
    wrong, _, alarms = done.stdout.decode().splitlines()
    assert wrong.split()[1] == "0"
    assert (alarms, out["seen"]) == ("alarms: many", 0)
    stats = guard.stats()
    # A listen that was interrupted is not made again by the program.
    if (program, how) != ("storm", "interrupt"):
        assert stats.asked >= 2 * times
    assert (events, stats.events_lost) == (stats.asked, 0)


def test_interrupted_while_a_hook_decides(victim, free_port, monkeypatch):
    """Binds that signals interrupt in the hook, and that are made again, give 0.

    As before Linux 5.19. What was asked before is answered to nobody, and keeps
    no port from whoever has closed that socket by then.
    """
    monkeypatch.setattr(portseccomp.launcher._core, "WAIT_KILLABLE", 0)
    allowed, forbidden = free_port(), free_port()
    times = max(TRIES // 500, 20)  # fewer see few alarms

    def hook(request) -> bool:
        time.sleep(random.choice((0, 0, 0, 0, 0.1)))
        return request.port == allowed

    ports = [str(allowed), str(forbidden)]
    command = [victim("bindstorm"), *ports, str(times), "200", "restart"]
    with Guard(hook=hook) as guard:
        done = guard.run(command, stdout=subprocess.PIPE, timeout=LIMIT)
        stats = guard.stats()
    wrong, _, alarms = done.stdout.decode().splitlines()
    assert (wrong, alarms) == ("wrong: 0 0", "alarms: many")
    # Calls were interrupted while the hook decided: the test tests.
    assert stats.asked > 2 * times


# ---- calls that are stuck ----


def hammer(guard: Guard, victim, times: int) -> int:
    """Let another process listen; how often it was denied."""
    command = [victim("hammer"), str(times)]
    done = guard.run(command, stdout=subprocess.PIPE, timeout=LIMIT)
    return int(done.stdout.removeprefix(b"wrong: "))


def attackers(stack: ExitStack, guard: Guard, command: list[str], count: int) -> list:
    """Start processes whose calls get stuck; they end with the stack."""
    started = []
    for _ in range(count):
        process = guard.popen(command, stdin=-1, stdout=-1, bufsize=0)
        stack.enter_context(process)
        stack.callback(process.kill)
        assert read_line(process.stdout) == "stuck\n"
        started.append(process)
    return started


def wait_for(condition) -> None:
    """Wait until something holds, within the limit."""
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def is_settled(stats: Stats) -> bool:
    """Whether no round is under way."""
    return stats.requests <= stats.allowed + stats.denied + stats.vanished


@root
@pytest.mark.parametrize("policy", ["deny any", "allow tcp:any"])
@pytest.mark.parametrize("attack", ["lockhold", "bindfault"])
def test_forty_stuck_threads_of_one_process(victim, attack, policy):
    """Forty calls that block their reader keep nobody else's from an answer."""
    reasons: Counter[str | None] = Counter()

    def count(event: Event) -> None:
        reasons[event.reason] += 1

    with ExitStack() as stack, Guard(policy, on_event=count) as guard:
        (one,) = attackers(stack, guard, [victim(attack), "40"], 1)
        wait_for(lambda: guard.stats().failed >= 37 or guard.stats().denied == 40)
        if guard.stats().failed < 37:
            need_locked_names()
        wait_for(lambda: guard.stats().takeovers >= 1)
        denied = 1000 if policy == "deny any" else 0
        assert hammer(guard, victim, 1000) == denied
        assert guard.stats().takeovers < 500
        one.kill()
        assert guard.wait(LIMIT)
        wait_for(lambda: is_settled(guard.stats()))
    stats = guard.stats()
    # A round that is stuck is a request as soon as it is more than a bind.
    assert 1037 <= stats.requests <= 1040
    check_books(stats, reasons.total())
    told = {reason: count for reason, count in reasons.items() if reason}
    assert any("stuck" in one for one in told)
    # One holds the socket; two more may be stuck, or have waited for it in vain.
    assert 37 <= sum(told.values()) <= 39
    # Three that were stuck may have been decided, when their caller was gone.
    assert 1000 <= reasons[None] <= 1003


@root
@pytest.mark.parametrize("policy", ["deny tcp:1", "allow tcp:any"])
@pytest.mark.parametrize("attack", ["lockhold", "bindfault"])
def test_sixteen_processes_that_each_block_one_round(victim, attack, policy):
    """While all rounds are blocked others are denied, not hung; then it goes on."""
    events: Counter[str | None] = Counter()

    def count(event: Event) -> None:
        events[event.verdict] += 1

    # A rule about UDP: else its binds are nobody's business.
    rules = [policy, "deny udp:1"] if policy.startswith("deny") else policy
    with ExitStack() as stack, Guard(rules, on_event=count) as guard:
        processes = attackers(stack, guard, [victim(attack), "1"], 16)
        wait_for(lambda: guard.stats().takeovers >= 16)
        # All are stuck by now: on a slow machine some takeovers are of others.
        wait_for(lambda: hammer(guard, victim, 1) == 1)
        before = guard.stats()
        assert hammer(guard, victim, 200) == 200
        stats = guard.stats()
        assert stats.denied - before.denied == stats.failed - before.failed == 200
        # It recovers as soon as there is one less.
        processes[0].kill()
        processes[0].wait()
        wait_for(lambda: hammer(guard, victim, 1) == 0)
        # Not at once: a thread that is slow to leave holds the only place.
        wait_for(lambda: hammer(guard, victim, 200) == 0)
        for one in processes:
            one.kill()
        assert guard.wait(LIMIT)
        assert hammer(guard, victim, 200) == 0
    stats = guard.stats()
    check_books(stats, events.total())
    assert stats.events_lost == 0


@root
def test_guard_closes_while_all_rounds_are_blocked(victim):
    """close() waits for none of sixteen threads that hostile processes block."""
    with ExitStack() as stack:
        with Guard("deny udp:1") as guard:
            attackers(stack, guard, [victim("lockhold"), "1"], 16)
            wait_for(lambda: guard.stats().takeovers >= 16)
            started = time.monotonic()
        assert time.monotonic() - started < LIMIT / 4


def lingering() -> int:
    """How many threads of this process wait in close(2) of a TCP socket."""
    found = 0
    for name in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{name}/wchan") as file:
                found += file.read() in ("wait_woken", "sk_stream_wait_close")
        except OSError:
            pass  # it has ended
    return found


@root
def test_sockets_that_linger_after_their_owners_have_been_killed(victim):
    """Sixteen dead processes keep no round, though their sockets would linger."""
    need_locked_names()
    with ExitStack() as stack, Guard("deny udp:1") as guard:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        command = [victim("linger"), str(server.getsockname()[1])]
        processes = attackers(stack, guard, command, 16)
        wait_for(lambda: guard.stats().takeovers == 16)
        for one in processes:
            one.kill()
            one.wait()
        # The peers still have not read anything.
        wait_for(lambda: is_settled(guard.stats()))
        assert hammer(guard, victim, 200) == 0
        assert lingering() == 0


# Children that are killed in a `listen` that the hook decides; their sockets have more
# to send than their peer has read, and close for years.
LINGERING = """
import os, signal, socket, struct, sys
for _ in range(int(sys.argv[2])):
    if (pid := os.fork()) == 0:
        one = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        years = struct.pack("=ii", 1, 1 << 28)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, years)
        one.setblocking(False)
        try:
            while True:
                one.send(bytes(65536))
        except BlockingIOError:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        one.listen()
    os.waitpid(pid, 0)
"""


def test_sockets_that_linger_after_their_owners_died_in_a_hook(victim):
    """Twenty children that die while the hook decides keep no thread of ours."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        command = python(LINGERING, str(server.getsockname()[1]), "20")
        with Guard(hook=lambda request: time.sleep(0.05) or True) as guard:
            assert guard.run(command, timeout=LIMIT).returncode == 0
            wait_for(lambda: is_settled(guard.stats()))
            assert guard.stats().vanished == 20
            assert lingering() == 0
            assert hammer(guard, victim, 3) == 0


@pytest.mark.parametrize(
    ("state", "linger", "rule", "expected", "kept"),
    [
        ("new", (1, 30), "deny 1", "0", True),
        ("new", (1, 30), "allow 1", "EACCES", True),
        ("connected", (0, 30), "deny 1", "EINVAL", True),
        ("connected", (1, 0), "deny 1", "EINVAL", True),
        # Closing the last copy would wait for the peer, in the supervisor.
        ("connected", (1, 30), "deny 1", "EINVAL", False),
    ],
)
def test_linger_is_left_alone(state, linger, rule, expected, kept):
    """SO_LINGER stays as the target set it, unless it is the guard who would wait."""

    def attempt() -> tuple[str, bool]:
        with socket.socket() as one:
            if state == "connected":
                one.connect(server.getsockname())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, wanted)
            before = one.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
            result = code(one.listen)
            after = one.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
            return result, before == after

    wanted = struct.pack("=ii", *linger)
    with socket.create_server(("127.0.0.1", 0)) as server, Guard(rule) as guard:
        assert guard.call(attempt) == (expected, kept)


# Its first target blocks a supervisor thread, its second one calls in steps.
SUPERVISOR = """
import sys, time
from portseccomp import Guard
guard = Guard("deny udp:1")
first = guard.popen(sys.argv[1:3], stdin=-1, stdout=-1, bufsize=0)
first.stdout.readline()
while guard.stats().takeovers == 0:
    time.sleep(0.005)
print(first.pid, flush=True)
guard.popen([sys.argv[3], "tcp4", "-", "0", "times=2", "step"], stdin=0)
time.sleep(1000)
"""


@root
@pytest.mark.parametrize("attack", ["lockhold", "bindfault"])
def test_supervisor_killed_while_a_target_blocks_it(victim, attack):
    """A killed supervisor's targets get ENOSYS at last, and open nothing."""
    command = python(SUPERVISOR, victim(attack), "1", victim("listen"))
    with subprocess.Popen(command, stdin=-1, stdout=-1, bufsize=0) as process:
        number = int(read_line(process.stdout))
        assert read_line(process.stdout) == "ready\n"
        process.kill()
        process.stdin.write(b"xx")
        # A thread that waits for a socket's lock outlives its process, and the
        # listener with it, until the lock is given back.
        os.kill(number, 9)
        printed = [read_line(process.stdout) for _ in range(3)]
    assert printed == ["listen: ENOSYS\n"] * 2 + ["port: 0\n"]
