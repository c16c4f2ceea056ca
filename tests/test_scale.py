"""Many processes, many requests, and more events than anybody reads."""

from __future__ import annotations

import os
import subprocess
import threading

from portseccomp import Guard, HookError

LIMIT = 60.0  # seconds; only a hang takes as long
CROWD = 1000


def test_a_thousand_listening_processes(victim):
    """A thousand processes listen under one guard; each is seen, each is listed."""
    with (
        Guard("deny 1") as guard,
        guard.popen([victim("crowd"), str(CROWD)], stdin=-1, stdout=-1) as process,
    ):
        assert process.stdout.readline() == f"listening: {CROWD}\n".encode()
        opened = guard.listeners()
        assert len({one.port for one in opened}) == CROWD
        assert len({one.pid for one in opened}) == CROWD
        process.stdin.close()
        seen = list(guard.events())
        assert process.wait(LIMIT) == 0
        assert {one.port for one in seen} == {one.port for one in opened}
        assert guard.stats().events_lost == 0
        assert guard.listeners() == []


def resident_kib() -> int:
    """Memory of this process, in KiB."""
    with open("/proc/self/status") as status:
        return next(int(one.split()[1]) for one in status if one.startswith("VmRSS"))


def test_resources_stay_level(victim):
    """100,000 requests leave descriptors, threads and memory where they were."""
    with Guard("deny 1") as guard:
        # Long enough for every buffer to be full.
        assert guard.run([victim("hammer"), "20000"]).returncode == 0
        guard.listeners()
        before = resident_kib()
        descriptors = len(os.listdir("/proc/self/fd"))
        threads = threading.active_count()
        done = guard.run([victim("hammer"), "100000"], stdout=-1)
        guard.listeners()
        assert done.stdout == b"wrong: 0\n"
        assert guard.stats().requests == 120_000
        # A supervisor keeps handles of a few callers.
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 8
        assert threading.active_count() <= threads
        # 100,000 events of 200 bytes would be 20,000.
        assert resident_kib() - before < 4_000


def test_what_does_not_fit_is_counted(victim, free_port):
    """When nobody takes events, they are counted as lost, and decisions go on."""
    release, entered = threading.Event(), threading.Event()
    seen = []

    def stall(event) -> None:
        entered.set()
        release.wait(LIMIT)
        seen.append(event)

    port = free_port()
    where = ["tcp4", "127.0.0.1", str(port)]
    with Guard(f"deny tcp:{port}", on_event=stall, event_buffer=64) as guard:
        done = guard.run([victim("hammer"), "5000"], stdout=subprocess.PIPE)
        assert done.stdout == b"wrong: 0\n"
        denied = guard.run([victim("listen"), *where], stdout=subprocess.PIPE)
        assert denied.stdout.startswith(b"listen: EACCES\n")
        assert entered.wait(LIMIT)
        stats = guard.stats()
        assert stats.requests == 5001
        assert 4000 < stats.events_lost < 5001
        release.set()
    assert len(seen) + guard.stats().events_lost == 5001


def test_a_late_reader_counts_what_it_missed(victim):
    """A reader that comes too late gets the newest events, the rest count as lost."""
    with Guard("deny 1", event_buffer=64) as guard:
        guard.run([victim("hammer"), "1000"], stdout=subprocess.DEVNULL)
        stream = guard.events()
        first = next(stream)
        guard.run([victim("hammer"), "1000"], stdout=subprocess.DEVNULL)
        guard.listeners()
        rest = list(stream)
        assert first.errno is None
        assert 0 < len(rest) <= 64
        assert guard.stats().events_lost > 0
        assert guard.stats().requests == 2000


def test_a_hundred_targets_at_one_time(victim, free_port):
    """A hundred hammering processes get right answers, each of them."""
    with Guard("deny 1") as guard:
        command = [victim("hammer"), "200"]
        processes = [guard.popen(command, stdout=-1) for _ in range(100)]
        printed = {one.communicate(timeout=LIMIT)[0] for one in processes}
        assert guard.stats().requests == 20_000
    assert printed == {b"wrong: 0\n"}


def test_on_event_failing_a_thousand_times_keeps_one(victim):
    """Failures of on_event are counted; only the first is kept and raised."""

    def fail(event) -> None:
        raise RuntimeError(event.port)

    guard = Guard("deny 1", on_event=fail)
    guard.run([victim("hammer"), "1000"], stdout=subprocess.DEVNULL)
    try:
        guard.close()
    except HookError as error:
        assert error.count == 1000
        assert isinstance(error.__cause__, RuntimeError)
    else:
        raise AssertionError("close() raised nothing")
