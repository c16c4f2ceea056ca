"""A soak: millions of requests of all kinds; what a guard holds has to stay level.

    soak.py [REQUESTS | SECONDSs]        (PORTSECCOMP_SOAK; 10,000,000)

The work goes in spells. After each, all work rests, and descriptors, threads and
resident memory are measured: the first spells are the warm-up, in which every
buffer fills. From then on descriptors and threads have to be where they were, and
memory must not grow with the work.

What is free is given back before memory is measured (malloc_trim): glibc keeps an
arena for each of up to 8 threads a CPU, and threads of guards come and go.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from portseccomp import Event, Guard, Policy

WARM_UP = 0.25  # of all spells
SPELLS = 24  # fewer, of two seconds each, in a short soak
LIMIT = 60.0  # seconds; only a hang takes as long
# What memory may grow by after the warm-up, however long the work: the buffers of
# two guards (4,096 events are 1,850 KiB), should threads of theirs still be on
# their way out. A small Python object leaked for each request would be 50,000 KiB
# a million; each guard's own 10 KiB, 10,000 KiB in a thousand guards.
MOST_KIB = 4000
# A supervisor keeps two handles for each of a few callers.
MOST_HANDLES = 32

VICTIM = Path(__file__).parent / "victims" / "toil.c"
PYTHON_TARGET = """
import socket, sys
for _ in range(50):
    with socket.socket() as one, socket.socket(type=socket.SOCK_DGRAM) as other:
        one.listen()
        try:
            other.bind(("127.0.0.1", int(sys.argv[1])))
        except PermissionError:
            continue
        sys.exit(1)
"""


def find_ports(count: int) -> list[int]:
    """Ports that nobody has, nor gets from the kernel."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10000, 30000)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found


def give_back() -> None:
    """Free what is garbage, and give what is free back to the kernel."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        pass  # musl keeps little


class Level:
    """What this process holds at one moment."""

    def __init__(self) -> None:
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.threads = len(os.listdir("/proc/self/task"))
        with open("/proc/self/status") as status:
            line = next(one for one in status if one.startswith("VmRSS"))
        self.kib = int(line.split()[1])


class Soak:
    """The work, and what it adds up to."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.ports = find_ports(3)
        self.lock = threading.Lock()
        self.requests = self.events = self.lost = self.guards = self.targets = 0
        self.wrong: list[object] = []
        self.stop = threading.Event()
        denied, moved, asked = self.ports
        rules = [f"deny {denied}", f"move {moved} -> loopback:ephemeral"]
        self.policy = Policy([*rules, f"ask udp:{asked}"], default="allow")
        self.seen = 0
        self.long_lived = Guard(self.policy, hook=self.hook, on_event=self.count)

    @staticmethod
    def hook(request) -> bool:
        return False

    @staticmethod
    async def coroutine_hook(request) -> bool:
        await asyncio.sleep(0)
        return False

    def count(self, event: Event) -> None:
        self.seen += 1

    def toil(self, turns: int, how: str) -> list[str]:
        return [self.program, str(turns), how, *map(str, self.ports)]

    # ---- kinds of work; each a piece of a second or less ----

    def hammer(self) -> None:
        """Calls from one process."""
        self.run(self.long_lived, self.toil(200, "stay"))

    def fork(self) -> None:
        """Calls from processes that start and die."""
        self.run(self.long_lived, self.toil(50, "fork"))

    def run(self, guard: Guard, command: list[str]) -> None:
        done = guard.run(command, capture_output=True, timeout=LIMIT)
        with self.lock:
            self.targets += 1
            if done.returncode:
                self.wrong.append(done)

    def call(self) -> None:
        """Calls from threads of this process."""
        for _ in range(20):
            self.long_lived.call(self.listen)

    def listen(self) -> None:
        with socket.socket() as one, socket.socket(type=socket.SOCK_DGRAM) as other:
            one.listen()
            try:
                other.bind(("127.0.0.1", self.ports[0]))
            except PermissionError:
                return
        self.wrong.append("a denied bind from a thread")

    def python(self) -> None:
        """A Python target."""
        command = [sys.executable, "-S", "-c", PYTHON_TARGET, str(self.ports[0])]
        self.run(self.long_lived, command)

    def ask_the_guard(self) -> None:
        """What an owner asks of its guard."""
        self.long_lived.stats()
        self.long_lived.listeners()
        stream = self.long_lived.events()
        self.long_lived.call(self.listen)
        next(stream)

    def open_and_iterate(self) -> None:
        """A guard of its own, whose events are iterated over."""
        with Guard(self.policy, hook=self.hook) as guard:
            process = guard.popen(self.toil(2, "fork"), stdout=subprocess.DEVNULL)
            seen = sum(1 for _ in guard.events())
            self.finish(guard, process, seen)

    def open_and_iterate_async(self) -> None:
        """The same in an event loop, with a coroutine hook."""

        async def main() -> None:
            with Guard(self.policy, hook=self.coroutine_hook) as guard:
                process = guard.popen(self.toil(2, "stay"), stdout=subprocess.DEVNULL)
                seen = 0
                async for _ in guard.events():
                    seen += 1
                self.finish(guard, process, seen)

        asyncio.run(main())

    def open_and_be_called(self) -> None:
        """A guard with on_event, and a coroutine hook on a loop of its own."""
        seen = 0

        def count(event: Event) -> None:
            nonlocal seen
            seen += 1

        hook = self.coroutine_hook
        with Guard(self.policy, hook=hook, on_event=count, event_buffer=64) as guard:
            process = guard.popen(self.toil(2, "fork"), stdout=subprocess.DEVNULL)
            if not guard.wait(LIMIT):
                self.wrong.append("wait() took too long")
            self.finish(guard, process, seen)

    def finish(self, guard: Guard, process: subprocess.Popen, seen: int) -> None:
        if process.wait(LIMIT):
            self.wrong.append(process)
        stats = guard.stats()
        # Binds of TCP sockets that are not moved make no event.
        made = stats.moved + stats.denied + stats.allowed
        if not made - stats.requests // 50 <= seen + stats.events_lost <= made:
            self.wrong.append((seen, stats))
        with self.lock:
            self.guards += 1
            self.targets += 1
            self.requests += stats.requests
            self.events += seen
            self.lost += stats.events_lost

    def open_and_drop(self) -> None:
        """A guard that is closed under a target that goes on."""
        with Guard(self.policy, hook=lambda request: False) as guard:
            process = guard.popen(self.toil(100000, "stay"), stdout=subprocess.DEVNULL)
            while guard.stats().requests < 500:
                time.sleep(0.001)
        stats = guard.stats()
        if process.wait(LIMIT):
            self.wrong.append(process)
        with self.lock:
            self.guards += 1
            self.targets += 1
            self.requests += stats.requests
            self.lost += stats.events_lost

    # ---- spells ----

    def work(self, kinds: list[Callable[[], None]]) -> None:
        try:
            while not self.stop.is_set():
                random.choice(kinds)()
        except BaseException as error:
            self.wrong.append(error)
            self.stop.set()
            raise

    def total(self) -> int:
        return self.requests + self.long_lived.stats().requests

    def spell(self, enough: Callable[[], bool]) -> Level:
        """Work for a while, rest, and look."""
        self.stop.clear()
        lanes = [
            [self.hammer],
            [self.fork, self.hammer],
            [self.call, self.python, self.ask_the_guard],
            [self.open_and_iterate, self.open_and_be_called, self.open_and_drop],
            [self.open_and_iterate_async, self.open_and_drop],
        ]
        threads = [threading.Thread(target=self.work, args=[one]) for one in lanes]
        for one in threads:
            one.start()
        while not enough() and not self.stop.wait(0.02):
            pass
        self.stop.set()
        for one in threads:
            one.join()
        self.long_lived.listeners()
        # Threads of closed guards end in their own time.
        give_back()
        level = Level()
        for _ in range(20):
            time.sleep(0.01)
            before, level = level, Level()
            if before.threads == level.threads:
                break
        return level


def check(levels: list[Level]) -> list[str]:
    """What is not level from the warm-up on."""
    found: list[str] = []
    warm = int(len(levels) * WARM_UP)
    if warm == 0:
        return found  # it has been ended early
    base = levels[warm - 1]
    for level in levels[warm:]:
        if level.descriptors > base.descriptors + MOST_HANDLES:
            found.append(f"descriptors: {base.descriptors}, then {level.descriptors}")
        if level.threads > base.threads + 2:
            found.append(f"threads: {base.threads}, then {level.threads}")
    third = max((len(levels) - warm) // 3, 1)
    first = statistics.median_low([one.kib for one in levels[warm : warm + third]])
    last = statistics.median_low([one.kib for one in levels[-third:]])
    if last - first > MOST_KIB:
        found.append(f"memory: {first} KiB, then {last} KiB")
    return found


def main() -> int:
    amount = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PORTSECCOMP_SOAK")
    amount = (amount or "10000000").replace("_", "").replace(",", "")
    seconds = float(amount[:-1]) if amount.endswith("s") else None
    requests = None if seconds else int(amount)

    program = str(Path(tempfile.mkdtemp()) / "toil")
    command = [os.environ.get("CC", "cc"), "-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall"]
    subprocess.run([*command, "-o", program, str(VICTIM)], check=True)

    soak = Soak(program)
    start = time.monotonic()
    spells = max(8, min(SPELLS, int(seconds / 2))) if seconds else SPELLS
    levels: list[Level] = []
    totals: list[int] = []
    print("    time    requests  guards  targets   events     lost  fds thr     KiB")
    for i in range(1, spells + 1):
        if seconds:
            end = start + seconds * i / spells
            levels.append(soak.spell(lambda end=end: time.monotonic() > end))
        else:
            goal = requests * i // spells
            levels.append(soak.spell(lambda goal=goal: soak.total() >= goal))
        totals.append(soak.total())
        level, stats = levels[-1], soak.long_lived.stats()
        print(
            f"{time.monotonic() - start:7.1f}s {totals[-1]:11,} {soak.guards:7,} "
            f"{soak.targets:8,} {soak.events + soak.seen:8,} "
            f"{soak.lost + stats.events_lost:8,} {level.descriptors:4} "
            f"{level.threads:3} {level.kib:7,}",
            flush=True,
        )
        if soak.wrong:
            break
    soak.long_lived.close()
    os.unlink(program)
    os.rmdir(os.path.dirname(program))
    wrong = [f"wrong: {one!r}" for one in soak.wrong]
    wrong += check(levels)
    for one in wrong:
        print(one)
    warm = max(int(len(levels) * WARM_UP), 1)
    grown = levels[-1].kib - levels[warm - 1].kib
    millions = max((totals[-1] - totals[warm - 1]) / 1e6, 1e-6)
    print(
        f"soak: {'failed' if wrong else 'level'} after {totals[-1]:,} requests in "
        f"{time.monotonic() - start:.0f} s; memory {grown:+,} KiB from the warm-up "
        f"on, {grown / millions:+,.0f} KiB a million"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
