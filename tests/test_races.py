"""Everything at once on one descriptor, and callers whose number is used again.

PORTSECCOMP_ATTACKS sets how often each attack is tried (100,000). Whether a
port is open is seen from outside: by sock_diag all the time, by connecting at
the end.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import accepts, feature_named

from portseccomp import Event, Guard, Policy, Stats

TRIES = int(os.environ.get("PORTSECCOMP_ATTACKS", "100000"))
LIMIT = 60  # seconds; only a hang takes as long


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Unix sockets get whatever names the races make up."""
    monkeypatch.chdir(tmp_path)


def read_line(file) -> str:
    """Read a line that comes within the limit."""
    assert select.select([file], [], [], LIMIT)[0], "nothing came"
    return file.readline().decode()


def numbers(file) -> dict[str, int]:
    """Read what a victim has counted, up to a line with a dot."""
    found = {}
    while (line := read_line(file)) not in (".\n", ""):
        key, value = line.split(": ")
        found[key] = int(value)
    return found


@contextmanager
def watched(victim, *ports: int) -> Iterator[Counter[str]]:
    """Watch ports from outside all the time; counts `looks` and `seen`."""
    seen: Counter[str] = Counter()
    command = [victim("witness"), *map(str, ports)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, bufsize=0) as witness:
        assert read_line(witness.stdout) == "ready\n"
        yield seen
        witness.stdin.close()
        seen.update(numbers(witness.stdout))


def holds_open(pid: int) -> set[tuple[str, int]]:
    """Return (protocol, port) of what a process has open, as /proc shows it."""
    held = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        held.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    found = set()
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        with open(f"/proc/{pid}/net/{protocol}") as table:
            next(table)
            for line in table:
                _, local, _, state, *rest = line.split()
                port = int(local.rpartition(":")[2], 16)
                is_open = state == "0A" if protocol[:3] == "tcp" else port
                if is_open and f"socket:[{rest[5]}]" in held:
                    found.add((protocol[:3], port))
    return found


def check_books(stats: Stats, events: int, quiet: int = 0) -> None:
    """Each request was answered and told of once, or its caller had gone."""
    answered = stats.allowed + stats.denied + stats.moved + stats.continued
    assert events + stats.events_lost + quiet == answered
    assert answered <= stats.requests <= answered + stats.vanished


# ---- one descriptor, everything at once ----


def mix(victim, free_port, rules: list[str], default: str) -> tuple[dict, Stats]:
    """Mix all swaps; what the program and the guard have counted."""
    allowed, forbidden, tries = free_port(), free_port(), TRIES // 2 * 2
    policy = Policy([one.format(allowed) for one in rules], default=default)
    events: Counter[str] = Counter()

    def count(event: Event) -> None:
        events[event.call] += 1
        events["open"] += event.is_open and event.port != allowed

    command = [victim("mix"), *map(str, (allowed, forbidden, tries))]
    with (
        Guard(policy, on_event=count, event_buffer=1 << 17) as guard,
        watched(victim, forbidden) as outside,
        guard.popen(command, stdin=-1, stdout=-1, bufsize=0) as process,
    ):
        result = numbers(process.stdout)
        assert holds_open(process.pid) <= {("tcp", allowed), ("udp", allowed)}
        assert not accepts("127.0.0.1", forbidden)
        with socket.socket() as one:
            one.connect(("127.0.0.1", allowed)) if result["listens good"] else None
        # Closing waits for on_event, but not until it has been told of 100,000.
        while events["listen"] + guard.stats().events_lost < result["listens"]:
            time.sleep(0.01)
    stats = guard.stats()
    assert (outside["seen"], events["open"]) == (0, 0)
    assert outside["looks"] > 100
    assert result["listens"] + result["binds"] == tries
    # Every call was decided, none by the kernel; two binds prepared the ground.
    assert (stats.requests, stats.continued, stats.vanished) == (tries + 2, 0, 0)
    assert stats.allowed + stats.denied == tries + 2
    assert stats.events_lost == 0
    assert events["listen"] == result["listens"]
    return result, stats


def test_everything_swapped_at_once_under_deny_any(victim, free_port):
    """100,000 calls on a descriptor that is anything open nothing: deny any."""
    result, stats = mix(victim, free_port, ["deny any", "deny unix"], "allow")
    # It was a race: calls met sockets that are denied, and other things.
    assert 0 < stats.denied < stats.requests
    assert result["listens good"] == 0


def test_everything_swapped_at_once_under_an_allow_list(victim, free_port):
    """100,000 calls on a descriptor that is anything open only what is allowed."""
    rules = ["allow tcp:{}", "allow udp:{}", "deny unix"]
    result, stats = mix(victim, free_port, rules, "deny")
    assert stats.denied > 0
    assert result["listens good"] > 0
    assert result["binds good"] > 0


@pytest.mark.parametrize(
    ("supervisor", "kind"), [("continuer", "tcp"), ("bindcontinuer", "udp")]
)
def test_the_same_mix_wins_where_the_kernel_continues(
    victim, free_port, supervisor, kind
):
    """The attack is a real one: a supervisor that answers CONTINUE falls to it."""
    allowed, forbidden = free_port(), free_port()
    command = [victim(supervisor), str(forbidden), victim("mix")]
    command += [str(allowed), str(forbidden), "50000"]
    with (
        watched(victim, forbidden) as outside,
        subprocess.Popen(command, stdin=-1, stdout=-1, bufsize=0) as process,
    ):
        assert numbers(process.stdout)["listens"] > 0
        if kind == "tcp":
            assert accepts("127.0.0.1", forbidden)
        process.stdin.close()
    assert outside["seen"] > 0


# ---- numbers that are used again ----

root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: clone3(2) with set_tid, setuid"
)
# Each takes two processes.
REUSES = max(TRIES // 200, 1)


@root
# Before Linux 6.9 a thread can be gone before it is reached: denied, and told.
@pytest.mark.filterwarnings("ignore:portseccomp can't apply the policy")
@pytest.mark.parametrize("policy", ["deny any:{1}", "allow any:{0}"])
@pytest.mark.parametrize("kind", ["tcp", "thread", "udp"])
def test_number_used_again_in_mid_call(victim, free_port, kind, policy):
    """500 callers killed in mid-call lend nothing to who gets their number."""
    allowed, forbidden = free_port(), free_port()
    seen: Counter[tuple] = Counter()

    def count(event: Event) -> None:
        leads = event.pid == event.tid
        seen[event.comm, event.requested_port, event.verdict, leads] += 1

    rule = policy.replace("any:", "" if kind == "udp" else "tcp:")
    # A thread's number is not free at once.
    tries = REUSES if kind != "thread" else REUSES // 2
    command = [victim("reuse"), kind, *map(str, (allowed, forbidden, tries))]
    with (
        Guard(rule.format(allowed, forbidden), on_event=count) as guard,
        watched(victim, forbidden) as outside,
        guard.popen(command, stdin=-1, stdout=-1, bufsize=0) as process,
    ):
        result = numbers(process.stdout)
        assert not accepts("127.0.0.1", forbidden)
        assert holds_open(process.pid) <= {("tcp", allowed), ("udp", allowed)}
    assert (outside["seen"], result["good"]) == (0, 0)
    assert result["used"] > tries * 0.5
    # Each call was taken for the caller's own, and both were met.
    unreached = {one for one in seen if one[1] is None and one[2] == "deny"}
    assert not unreached or not feature_named("PIDFD_THREAD").available
    both = {
        ("first", allowed, "allow", kind != "thread"),
        ("second", forbidden, "deny", True),
    }
    # On a slow machine the second is mostly killed before it calls.
    met = set(seen) - unreached
    assert met == both or (tries < 100 and met <= both)
    stats = guard.stats()
    # Two binds of TCP sockets are no events; an allow-list sees them.
    quiet = 2 if kind != "udp" and policy.startswith("allow") else 0
    check_books(stats, seen.total(), quiet)
    assert stats.vanished > 0 or tries < 100


@root
def test_the_same_reuse_wins_without_a_guard(victim, free_port):
    """The attack is a real one: without a guard the second process succeeds."""
    # Many tries: on a slow machine the second is mostly killed before it calls.
    command = [victim("reuse"), "tcp", *map(str, (free_port(), free_port(), 100))]
    with subprocess.Popen(command, stdin=-1, stdout=-1, bufsize=0) as process:
        assert numbers(process.stdout)["good"] > 0
        assert len(holds_open(process.pid)) == 2


@root
def test_number_used_again_by_root_lends_no_privilege(victim):
    """1,000 binds of nobody, whose number root gets in between, open no port 80."""
    seen: Counter[tuple] = Counter()

    def count(event: Event) -> None:
        seen[event.comm, event.requested_port, event.errno] += 1

    command = [victim("reuse"), "privilege", "0", "80", str(2 * REUSES)]
    with (
        Guard("deny udp:1", on_event=count) as guard,
        guard.popen(command, stdin=-1, stdout=-1, bufsize=0) as process,
    ):
        result = numbers(process.stdout)
        assert holds_open(process.pid) == set()
    assert result["used"] > 2 * REUSES * 0.9
    assert set(seen) == {("first", 80, "EACCES")}
    check_books(guard.stats(), seen.total())
    assert guard.stats().vanished > 0


@root
@pytest.mark.parametrize("kind", ["tcp", "privilege"])
def test_number_used_again_while_a_hook_decides(victim, free_port, kind):
    """A hook's late answer, and what it reads, are not for who got the number."""
    allowed, forbidden = (0, 80) if kind == "privilege" else (free_port(), free_port())
    entered, release = threading.Semaphore(0), threading.Semaphore(0)
    read: list[object] = []

    def hook(request) -> bool:
        entered.release()
        release.acquire(timeout=LIMIT)
        for name in ("comm", "uid", "cmdline"):
            try:
                read.append(getattr(request, name))
            except ProcessLookupError:
                read.append(None)
        return True

    tries = max(REUSES // 5, 1)
    rules = "ask udp:any" if kind == "privilege" else f"ask tcp:{allowed}"
    command = [victim("reuse"), kind, *map(str, (allowed, forbidden, tries)), "step"]
    with (
        Guard(rules, hook=hook, hook_timeout=LIMIT) as guard,
        guard.popen(command, stdin=-1, stdout=-1, bufsize=0) as process,
    ):
        for i in range(tries):
            assert read_line(process.stdout) == "first\n"
            assert entered.acquire(timeout=LIMIT)
            process.stdin.write(b"x")
            assert read_line(process.stdout) == "second\n"
            release.release()
            limit = time.monotonic() + LIMIT
            while guard.stats().vanished <= i and time.monotonic() < limit:
                time.sleep(0.001)
            process.stdin.write(b"x")
        result = numbers(process.stdout)
        assert (result["used"], result["good"]) == (tries, 0)
        assert holds_open(process.pid) == set()
        stats = guard.stats()
    assert (stats.asked, stats.vanished) == (tries, tries)
    assert stats.allowed == stats.hook_timeouts == 0
    # What was read before the decision, and then nothing: never of the second.
    assert read == ["first", None, None] * tries
