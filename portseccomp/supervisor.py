"""The threads of a guard's supervisor.

The core answers requests; it never creates a thread. This module gives it as
many as it needs: one that leads, one that stands by, another one whenever none
is left to stand by (a hook hangs), and one that carries events to Python.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from portseccomp import _core
from portseccomp._types import EventFields
from portseccomp.events import EventLog
from portseccomp.hook import Hook, HookRunner

# Hooks that may run at one time; further requests queue for them.
MAX_HOOKS = 16
# Hooks, as many that can be stuck in a system call (PSC_ROUNDS in the core), a
# leader, standbys, and one to spare.
_MAX_THREADS = MAX_HOOKS + 16 + 4

# How long the last events may take to be delivered.
_LAST_EVENTS = 2.0

# How often the dispatcher looks again if nothing rings: a safety net.
_LOOK_AGAIN = 60.0
_LOOK_SOON = 0.002


def _join(thread: threading.Thread, limit: float) -> None:
    """Wait until time.monotonic() is `limit` for a thread that has begun."""
    while True:
        try:
            thread.join(max(limit - time.monotonic(), 0))
            return
        except RuntimeError:
            # It runs, but whoever starts it has not heard so yet.
            if time.monotonic() >= limit:
                return
            time.sleep(0.001)


class Supervision:
    """Runs a core supervisor on threads, and its events through `deliver`.

    `deliver(events)` is called with each batch, possibly an empty one, on one
    thread, and adds them to `log`; `told` says that it calls on_event, which may
    hang. `hook` is None where the policy never asks.
    """

    def __init__(
        self,
        core: _core.Supervisor,
        *,
        hook: Hook | None,
        runner: HookRunner,
        deliver: Callable[[list[EventFields]], None],
        log: EventLog,
        threshold: int,
        told: bool,
    ) -> None:
        self._core = core
        self._hook = hook
        self._runner = runner
        self._deliver = deliver
        self._log = log
        self._threshold = threshold
        self._told = told
        # Reentrant: the garbage collector may close a guard from anywhere.
        self._lock = threading.RLock()
        self._threads: set[threading.Thread] = set()
        self._attention = 0
        self._stopping = False
        self._closed = False
        self._draining = threading.RLock()  # on_event may ask the guard things
        self.failure: BaseException | None = None
        self._dispatcher = threading.Thread(
            target=self._dispatch, name="portseccomp-events", daemon=True
        )

    def start(self) -> None:
        """Start a leader and a standby, and the dispatcher.

        Raises RuntimeError where a thread can't be started.
        """
        for _ in range(2):
            if not self.spawn():
                raise RuntimeError("can't start new thread")
        self._dispatcher.start()

    def spawn(self) -> bool:
        """Start one more thread for the core; False where that fails."""
        with self._lock:
            if self._stopping or len(self._threads) >= _MAX_THREADS:
                return False
            thread = threading.Thread(
                target=self._serve, name="portseccomp-supervisor", daemon=True
            )
            self._threads.add(thread)
        # Without the lock: start() waits for the thread, for ever if that finds
        # no memory to begin with.
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            with self._lock:
                self._threads.discard(thread)
            return False
        return True

    def _serve(self) -> None:
        try:
            self._core.run(self._hook, self._runner)
        except BaseException as error:
            # Without this thread nobody may be left to answer: fail closed.
            self.failure = error
            self._core.stop()
            self._core.close()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    # ---- events ----

    def attend(self, wanted: bool) -> None:
        """Ask for each event at once, or take that back; calls nest."""
        with self._lock:
            self._attention += 1 if wanted else -1
            attended = self._attention > 0
            self._core.set_threshold(1 if attended else self._threshold)
        if wanted:
            self._core.ring()

    @property
    def idle(self) -> bool:
        """Whether no target is left, and all events have been delivered."""
        return self._core.live == 0 and self._core.drained

    def _dispatch(self) -> None:
        spawned = False
        while not self._closed:
            # One that was spawned may not have arrived yet: look soon again.
            self._core.wait_events(_LOOK_SOON if spawned else _LOOK_AGAIN)
            try:
                self.drain()
            except BaseException as error:
                self.failure = error  # told at the end; events go on
                spawned = True  # what could not be done is done soon
                continue
            spawned = self._core.wants_thread and self.spawn()
            if not self._core.drained:
                self._core.ring()  # for what came meanwhile
        self._finish()

    def drain(self) -> None:
        """Deliver what there is; empty at the end, so that waiters look again.

        What comes meanwhile is left for the next time: a target may call faster
        than Python can tell.
        """
        with self._draining:
            end = self._core.pushed
            while self._core.popped < end:
                if not self._core.deliver_events(256, self._deliver, self._log):
                    break  # the next one is still being written
            self._deliver([])

    def _finish(self) -> None:
        """Deliver the last events; from now on they are counted as lost."""
        self._core.close_events()
        limit = time.monotonic() + _LAST_EVENTS
        try:
            self.drain()
            # One that a thread is about to write comes in a moment.
            while not self._core.drained and time.monotonic() < limit:
                time.sleep(0.001)
                self.drain()
        except BaseException as error:
            self.failure = error
        self._core.lose_events(self._log)

    # ---- the end ----

    def stop(self) -> None:
        """Close the listeners, and end all threads but those in a hung hook."""
        with self._lock:
            self._stopping = True
            threads = list(self._threads)
        self._core.stop()
        limit = time.monotonic() + 0.25
        for thread in threads:
            if thread is not threading.current_thread() and thread.ident:
                # Those in a hook come back when it returns, if ever.
                _join(thread, limit)
        self._core.close()
        self._closed = True
        self._core.ring()
        if self._dispatcher is threading.current_thread() or not self._dispatcher.ident:
            return  # on_event closes its guard: the rest is delivered after it
        while True:
            taken = self._core.popped
            _join(self._dispatcher, time.monotonic() + _LAST_EVENTS)
            if self._told or self._core.popped == taken:
                break  # else it is only slow: the machine is busy
        if self._dispatcher.is_alive():
            self.failure = self.failure or TimeoutError(
                "on_event was still running when the guard closed"
            )
