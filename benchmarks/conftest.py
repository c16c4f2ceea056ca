"""Measuring what one call costs, seen from inside the target.

The target is a small C program (floor.c) that times each of its own calls.
All cases take turns, several times, so that a machine that changes its mind
changes it for all of them; ratios are between medians of the same run.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import pytest

import portseccomp.launcher
from portseccomp import ALLOW, Guard, probe

HERE = Path(__file__).parent
TURNS = int(os.environ.get("PORTSECCOMP_BENCH_TURNS", "7"))
CALLS = int(os.environ.get("PORTSECCOMP_BENCH_CALLS", "10000"))
CPU = os.environ.get("PORTSECCOMP_BENCH_CPU")

# A hook that needs the GIL while another thread keeps it: 5 ms a call.
FEW_CALLS = 100

if CPU is not None:
    os.sched_setaffinity(0, {int(CPU)})


def percentile(samples: list[int], share: float) -> int:
    """The sample below which that share of all lies, in nanoseconds."""
    return sorted(samples)[min(int(len(samples) * share), len(samples) - 1)]


class BusyGil:
    """While it lasts, another thread runs pure Python without a pause."""

    def __enter__(self) -> None:
        self._stop = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        count = 0
        while not self._stop:
            count += 1

    def __exit__(self, *unused: object) -> None:
        self._stop = True
        self._thread.join()


@pytest.fixture(scope="session")
def floor(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiled floor.c."""
    program = str(tmp_path_factory.mktemp("floor") / "floor")
    sources = sorted(str(one) for one in (HERE.parent / "csrc").glob("*.c"))
    command = [os.environ.get("CC", "cc"), "-std=c11", "-D_GNU_SOURCE", "-O2"]
    command += ["-pthread", f"-I{HERE.parent / 'csrc'}", "-o", program]
    subprocess.run([*command, str(HERE / "floor.c"), *sources], check=True)
    return program


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split()]


class Latencies:
    """The samples of each case, in nanoseconds, all from the same run."""

    def __init__(self, floor: str) -> None:
        self._floor = floor
        self.samples: dict[str, list[int]] = {}
        cases: dict[str, Callable[[], list[int]]] = {
            "unguarded": lambda: self._alone("none"),
            "floor-continue": lambda: self._alone("continue"),
            "floor-round": lambda: self._alone("round"),
            "floor-round-no-sync": lambda: self._alone("round-async", CALLS // 5),
            "core": lambda: self._alone("supervisor"),
            "rule": lambda: self._guarded("none", "deny 1"),
            "rule-no-sync": lambda: self._without_sync("deny 1"),
            "hook": lambda: self._guarded("none", "ask any", lambda request: ALLOW),
            "rule-busy-gil": lambda: self._busy("deny 1"),
            "hook-busy-gil": lambda: self._busy("ask any", lambda request: ALLOW),
            "bind-unguarded": lambda: self._alone("bind-none"),
            "bind-floor-round": lambda: self._alone("bind-round"),
            "bind-rule": lambda: self._guarded("bind-none", "deny 1"),
            "bind-hook": lambda: self._guarded(
                "bind-none", "ask any", lambda request: ALLOW
            ),
            "bind-moved": lambda: self._guarded(
                "moved-none", "move udp:5999 -> ephemeral"
            ),
            "query-unguarded": lambda: self._alone("query-none"),
            "query-guarded": lambda: self._guarded("query-none", "deny 1"),
            "other-call": lambda: self._alone("unrelated"),
            "other-call-empty": lambda: self._alone("unrelated-empty"),
            "other-call-guarded": lambda: self._guarded("unrelated", "deny 1"),
        }
        for _ in range(TURNS):
            for name, measure in cases.items():
                self.samples.setdefault(name, []).extend(measure())

    def _alone(self, mode: str, calls: int = CALLS) -> list[int]:
        command = [self._floor, mode, str(calls)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return _numbers(done.stdout)

    def _guarded(self, mode, rule, hook=None, calls: int = CALLS) -> list[int]:
        with Guard(rule, hook=hook) as guard:
            command = [self._floor, mode, str(calls)]
            done = guard.run(command, capture_output=True, text=True, check=True)
        return _numbers(done.stdout)

    def _without_sync(self, rule) -> list[int]:
        """As on a kernel that knows no synchronous wake-up."""
        core = portseccomp.launcher._core
        known, core.SYNC_WAKE_UP = core.SYNC_WAKE_UP, 0
        try:
            return self._guarded("none", rule, calls=CALLS // 5)
        finally:
            core.SYNC_WAKE_UP = known

    def _busy(self, rule, hook=None) -> list[int]:
        with BusyGil():
            return self._guarded("none", rule, hook, FEW_CALLS if hook else CALLS)

    def p50(self, name: str) -> float:
        """The median of a case."""
        return median(self.samples[name])


@pytest.fixture(scope="session")
def latencies(floor: str) -> Latencies:
    """All latencies, measured once a session."""
    return Latencies(floor)


class SampleClock:
    """A clock for pytest-benchmark that goes by what the target measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


TABLE: list[tuple[str, float, float, str]] = []
NOTES: list[str] = []


@pytest.fixture
def note() -> Callable[[str], None]:
    """Add a line to the summary."""
    return NOTES.append


@pytest.fixture
def record(benchmark, latencies: Latencies):
    """Put a case's samples into the benchmark, and its ratio into the table."""

    def put(name: str, against: str | None = None, bar: str = "") -> None:
        samples = latencies.samples[name]
        clock = SampleClock()
        benchmark._timer = clock
        left: Iterator[int] = iter(samples)

        def one_call() -> None:
            clock.now += next(left) / 1e9

        benchmark.pedantic(one_call, rounds=len(samples), iterations=1)
        p50, p99 = latencies.p50(name), percentile(samples, 0.99)
        ratio = ""
        if against is not None:
            value = p50 / latencies.p50(against)
            ratio = f"{value:.2f} x {against}{bar and ', bar ' + bar}"
            benchmark.extra_info["ratio"] = value
            benchmark.extra_info["against"] = against
        benchmark.extra_info["p50_us"] = p50 / 1000
        benchmark.extra_info["p99_us"] = p99 / 1000
        TABLE.append((name, p50 / 1000, p99 / 1000, ratio))

    return put


def _cpu() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the figures with the conditions without which they mean nothing."""
    if not TABLE and not NOTES:
        return
    write = terminalreporter.write_line
    terminalreporter.section("what it costs")
    sync = any(one.available for one in probe().features if "wake-up" in one.name)
    write(
        f"Linux {os.uname().release}, {_cpu()}, {os.cpu_count()} CPUs, "
        f"Python {sys.version.split()[0]}"
    )
    write(
        f"synchronous wake-up {'on' if sync else 'not available'}; "
        + (f"everything pinned to CPU {CPU}" if CPU else "nothing pinned")
        + f"; {TURNS} turns of {CALLS} calls"
    )
    for line in NOTES:
        write(line)
    if not TABLE:
        return
    write("")
    write("latency of one call, seen by its caller:")
    write(f"{'case':<22}{'p50 us':>10}{'p99 us':>10}   ratio of p50")
    for name, p50, p99, ratio in TABLE:
        write(f"{name:<22}{p50:>10.2f}{p99:>10.2f}   {ratio}".rstrip())
