"""Targets that are killed in the middle of their calls, thousands of them."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time

import pytest

from portseccomp import Guard, Policy, Stats

KILLS = int(os.environ.get("PORTSECCOMP_TARGET_KILLS", "10000"))
LIMIT = 30.0  # seconds; only a hang takes as long


def resident_kib() -> int:
    """Memory of this process, in KiB."""
    with open("/proc/self/status") as status:
        return next(int(one.split()[1]) for one in status if one.startswith("VmRSS"))


def decided(stats: Stats) -> int:
    """Requests that were answered. The callers of the others had gone by then."""
    return stats.allowed + stats.denied + stats.moved + stats.continued


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_targets_killed_in_their_calls(victim, free_port):
    """10,000 callers killed, some while a hook decides: nothing leaks, sums add up."""
    denied, asked = free_port(), free_port()
    seen = 0

    def hook(request) -> bool:
        time.sleep(random.random() * 0.001)
        return random.random() < 0.5

    def count(event) -> None:
        nonlocal seen
        seen += 1

    def kill(times: int) -> dict[str, int]:
        command = [victim("mortal"), str(times), "1", str(denied), str(asked)]
        lines = [
            line
            for one in [guard.popen(command, stdout=-1, text=True) for _ in range(2)]
            for line in one.communicate(timeout=240)[0].splitlines()
        ]
        found: dict[str, int] = {}
        for key, value in (line.split(": ") for line in lines):
            found[key] = found.get(key, 0) + int(value)
        return found

    rules = [f"deny udp:{denied}", "deny ipv6:tcp:any", f"ask udp:{asked}"]
    with Guard(Policy(rules, errno="EPERM"), hook=hook, on_event=count) as guard:
        kill(500)  # so that every buffer is full
        before = resident_kib()
        descriptors = len(os.listdir("/proc/self/fd"))
        threads = threading.active_count()
        found = kill(KILLS // 2)
        assert found["killed"] == KILLS // 2 * 2
        assert found["in a call"] > 0

        def settled() -> bool:
            stats = guard.stats()
            return seen + stats.events_lost == decided(stats)

        end = time.monotonic() + LIMIT
        while not settled() and time.monotonic() < end:
            time.sleep(0.01)
        stats = guard.stats()
        assert seen + stats.events_lost == decided(stats)
        # Counted, and no more: those that went away before they were decided.
        assert 0 <= stats.requests - decided(stats) <= stats.vanished
        assert stats.vanished > 0 < stats.asked
        assert stats.hook_errors == stats.hook_timeouts == stats.failed == 0
        # It goes on, and a supervisor keeps handles of a few callers.
        done = guard.run([victim("hammer"), "1000"], stdout=subprocess.PIPE)
        assert done.stdout == b"wrong: 0\n"
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 16
        assert threading.active_count() <= threads + 2
        if "asan" not in os.environ.get("LD_PRELOAD", ""):  # it keeps what is freed
            assert resident_kib() - before < 4_000
        print(found, stats[:12], resident_kib() - before)  # with -rP
