"""Events: the record of each finished request, kept until it is read."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from portseccomp import _core, _process
from portseccomp._types import EventFields
from portseccomp.verdict import errno_name

if TYPE_CHECKING:
    import asyncio

_CALLS: Final = ("none", "listen", "bind")
_OUTCOMES: Final = ("allow", "deny", "move", "continue")

# enum psc_failure (csrc/event.h)
_FAILURES: Final = (
    "",
    "the socket could not be copied from its thread",
    "the socket could not be read",
    "the caller's memory could not be read",
    "the socket was moved while it was decided",
    "the hook was too late",
    "too many requests wait for the hook",
    "the guard was closed in between",
    "the kernel sent a call that the filter does not name",
    "too many calls are stuck, in memory or sockets that a process blocks",
    "the socket can't be moved there: it is of another family, or bound already",
)

# Failures that say something about the machine, not about one call.
_ENVIRONMENT_FAILURES: Final = (1, 2, 3)


class Event:
    """One finished request.

    `time`: when it was received (RFC 3339, UTC). `call`: "listen" or "bind".
    `pid`, `tid`, `comm`: who called. `family`, `protocol`: of the socket.
    `requested_host`, `requested_port`: what the rules saw; port 0 is
    ephemeral. `host`, `port`: what is open now; None when denied. `backlog`:
    None for bind. `verdict`: "allow", "deny", "move" or "continue". `errno`:
    the name of the error that the caller got, None for none. `first`: whether
    the call opened the port. `rule`: the rule's text, "hook", "default", or
    "error" where portseccomp could not apply the policy; `reason` then says
    why. `latency_us`: from receiving to just before answering.
    """

    __slots__ = (
        "time",
        "call",
        "pid",
        "tid",
        "comm",
        "family",
        "protocol",
        "requested_host",
        "requested_port",
        "host",
        "port",
        "backlog",
        "verdict",
        "errno",
        "first",
        "rule",
        "latency_us",
        "reason",
        "_inode",
        "_place",
    )

    time: str
    call: str
    pid: int
    tid: int
    comm: str
    family: str | None
    protocol: str | None
    requested_host: str | None
    requested_port: int | None
    host: str | None
    port: int | None
    backlog: int | None
    verdict: str
    errno: str | None
    first: bool
    rule: str
    latency_us: float
    reason: str | None
    _inode: int
    _place: tuple[int, int, bool]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name; `reason` only where there is one."""
        fields = {name: getattr(self, name) for name in self.__slots__[:17]}
        if self.reason is not None:
            fields["reason"] = self.reason
        return fields

    def to_json(self) -> str:
        """Return the event as one line of JSON."""
        import json

        return json.dumps(self.to_dict())

    @property
    def is_open(self) -> bool:
        """Whether the call left a port open: a TCP port opens at `listen`."""
        if self.errno is not None or self.host is None or self.verdict == "deny":
            return False
        return self.call == "listen" or self.protocol in ("udp", "udplite")

    def __repr__(self) -> str:
        host = _process.printable(str(self.requested_host))
        place = f"{host} port {self.requested_port}"
        return (
            f"<Event {self.verdict} {self.call} {self.family}:{self.protocol} "
            f"{place} by {_process.printable(self.comm)}[{self.pid}]>"
        )


def _format_time(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    day = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{day}.{rest // 1000:06d}Z"


def make_event(fields: EventFields, rules: tuple[str, ...]) -> Event:
    """Make an Event of what the core says."""
    (
        time_ns, call, pid, tid, comm, known, family, af, protocol, kind,
        dual_stack, requested_host, requested_port, is_open, host, port,
        backlog, outcome, error, first, rule, latency_ns, inode, failure,
        failure_error,
    ) = fields  # fmt: skip
    event = Event()
    event.time = _format_time(time_ns)
    event.call = _CALLS[call]
    event.pid = pid
    event.tid = tid
    event.comm = os.fsdecode(comm)
    event.family = _process.family_name(family, af) if known else None
    event.protocol = _process.protocol_name(af, protocol, kind) if known else None
    event.requested_host = requested_host
    event.requested_port = requested_port
    event.host = host if is_open else None
    event.port = port if is_open else None
    event.backlog = backlog if event.call == "listen" else None
    event.verdict = _OUTCOMES[outcome]
    event.errno = errno_name(error) if error else None
    event.first = first
    event.latency_us = latency_ns / 1000
    event.reason = None
    if rule >= 0:
        event.rule = rules[rule]
    elif rule == _core.RULE_HOOK:
        event.rule = "hook"
    elif rule == _core.RULE_FAILURE:
        event.rule = "error"
        event.reason = _FAILURES[failure]
        if failure_error:
            event.reason += f": {os.strerror(failure_error)}"
            event.reason += f" ({errno_name(failure_error)})"
    else:
        event.rule = "default"
    event._inode = inode
    event._place = (family, protocol, dual_stack)
    return event


def is_environment_failure(fields: EventFields) -> bool:
    """Whether an event tells of a machine that refuses what we need."""
    return fields[23] in _ENVIRONMENT_FAILURES


class EventLog:
    """The events of one guard, in order, and whoever waits for more.

    Bounded: the oldest give way, and count as lost where nobody has read them.
    `told`: somebody is told of each of them elsewhere. `end`: the number that the
    next event will have; it counts those that have arrived.
    """

    def __init__(self, capacity: int, *, told: bool = False) -> None:
        self.changed = threading.Condition()
        self.lost = 0
        self._told = told
        self._read = 0  # number of the first event that nobody has read
        self._kept: deque[Event] = deque(maxlen=capacity)
        self.end = 0
        self._finished: Callable[[], bool] = lambda: False
        self._wakers: set[Callable[[], None]] = set()

    def finish_when(self, finished: Callable[[], bool]) -> None:
        """Set what says that no more events will come."""
        self._finished = finished

    def append(self, events: list[Event]) -> None:
        """Add events, and wake who waits; also without events: to look again."""
        with self.changed:
            try:
                for event in events:
                    end = self.end + 1
                    self._kept.append(event)
                    self.end = end
                start = self.start
                if not self._told and self._read < start:
                    lost = self.lost + start - self._read
                    self.lost, self._read = lost, start
                self.changed.notify_all()
                for wake in self._wakers:
                    wake()
            except MemoryError:
                if not events:
                    raise
                # What has not arrived is not counted by `end`. Who waits is woken
                # by the call without events that comes next.

    def take(self, number: int) -> tuple[Event | None, int]:
        """Return the event with that number, or the oldest after it."""
        with self.changed:
            oldest = self.start
            number = max(number, oldest)
            if number == self.end:
                return None, number
            self._read = max(self._read, number + 1)
            return self._kept[number - oldest], number + 1

    @property
    def start(self) -> int:
        """The number of the oldest event that is kept."""
        return self.end - len(self._kept)

    @property
    def finished(self) -> bool:
        """Whether no more events will come."""
        return self._finished()

    def add_waker(self, wake: Callable[[], None]) -> None:
        """Call `wake` at each change, from the thread that makes it."""
        with self.changed:
            self._wakers.add(wake)

    def remove_waker(self, wake: Callable[[], None]) -> None:
        """Undo add_waker."""
        with self.changed:
            self._wakers.discard(wake)


class EventStream(Iterator[Event], AsyncIterator[Event]):
    """What `Guard.events()` returns: for `for` and for `async for`.

    It starts with the oldest event that the guard still keeps, waits for the
    next one, and ends when the guard is closed, or when a target was started
    and no guarded process is left.
    """

    def __init__(
        self,
        log: EventLog,
        attend: Callable[[bool], None],
        nap_time: float | None = None,
        reap: Callable[[], None] = lambda: None,
    ) -> None:
        self._log = log
        self._attend = attend
        self._nap_time = nap_time
        self._reap = reap
        self._next = log.start

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        event = self._take()
        if event is not None:
            return event
        self._attend(True)
        try:
            with self._log.changed:
                while True:
                    # In this order: what finishes has been appended before.
                    finished = self._log.finished
                    event = self._take()
                    if event is not None:
                        return event
                    if finished:
                        raise StopIteration
                    self._nap(self._log.changed.wait)
        finally:
            self._attend(False)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        import asyncio

        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            _call_soon(loop, changed.set)

        event = self._take()
        if event is not None:
            return event
        self._log.add_waker(wake)
        self._attend(True)
        try:
            while True:
                changed.clear()
                with self._log.changed:
                    finished = self._log.finished
                    event = self._take()
                if event is not None:
                    return event
                if finished:
                    raise StopAsyncIteration
                if self._nap_time is None:
                    await changed.wait()
                    continue
                try:
                    async with asyncio.timeout(self._nap_time):
                        await changed.wait()
                except TimeoutError:
                    self._reap()
        finally:
            self._attend(False)
            self._log.remove_waker(wake)

    def _nap(self, wait: Callable[[float | None], object]) -> None:
        wait(self._nap_time)
        if self._nap_time is not None:
            self._reap()

    def _take(self) -> Event | None:
        event, self._next = self._log.take(self._next)
        return event


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        pass  # that loop is closed: nobody waits there
