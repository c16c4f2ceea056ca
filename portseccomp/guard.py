"""The guard: a policy, a filter and a supervisor around a process tree."""

from __future__ import annotations

import errno
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from portseccomp import _core
from portseccomp._types import EndpointFields, EventFields
from portseccomp.errors import (
    GuardError,
    HookError,
    KernelError,
    ListenTimeout,
    PolicyError,
    TargetExited,
)
from portseccomp.events import (
    Event,
    EventLog,
    EventStream,
    is_environment_failure,
    make_event,
)
from portseccomp.grammar import parse_selector
from portseccomp.hook import Hook, HookFailures, HookRunner, load_hook
from portseccomp.launcher import Launcher
from portseccomp.policy import Policy, make_policy
from portseccomp.supervisor import MAX_HOOKS, Supervision

if TYPE_CHECKING:
    import subprocess

    from portseccomp.policy import PolicyLike

P = ParamSpec("P")
T = TypeVar("T")

# Ports that are remembered as open. More can't be told apart from sockets of
# families for which the kernel has no table.
_MOST_OPEN = 1 << 14

# How long the sockets that a target inherits may take to be looked at, in seconds,
# and how many of them may take longer.
_TRUST_TIME = 0.5
_TRUST_TRIES = 4

# How often targets that have ended are reaped on kernels that tell of the end
# of a tree only then (before Linux 6.12), in seconds.
_REAP_EVERY = 0.02


class Stats(NamedTuple):
    """What a guard has done so far.

    `requests`: intercepted calls. `allowed`, `denied`, `moved`, `continued`:
    how they were answered. `vanished`: callers that went away in between.
    `asked`: handed to the hook. `hook_errors`: the hook raised, or returned
    nonsense. `hook_timeouts`: denied at the hook's deadline. `failed`: the
    policy could not be applied (see `Event.reason`). `events_lost`: events
    that nobody read in time. `takeovers`: a supervisor thread was stuck, and
    another took over. `p50_us`, `p99_us`: latency in microseconds, None before
    the first request. `histogram`: (upper end in microseconds, count).
    """

    requests: int
    allowed: int
    denied: int
    moved: int
    continued: int
    vanished: int
    asked: int
    hook_errors: int
    hook_timeouts: int
    failed: int
    events_lost: int
    takeovers: int
    p50_us: float | None
    p99_us: float | None
    histogram: tuple[tuple[float, int], ...]


def _percentile(histogram: tuple[tuple[float, int], ...], share: float) -> float | None:
    left = share * sum(count for _, count in histogram)
    for end, count in histogram:
        left -= count
        if left <= 0:
            return end
    return None


def _inherited(args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int] | None:
    """The descriptors that a child of subprocess.Popen inherits; None: any."""
    if (
        len(args) > 1
        or kwargs.get("preexec_fn") is not None
        or not kwargs.get("close_fds", True)
    ):
        return None
    given = [kwargs.get(name) for name in ("stdin", "stdout", "stderr")]
    found = {0, 1, 2}
    for one in (*given, *kwargs.get("pass_fds", ())):
        if hasattr(one, "fileno"):
            try:
                one = one.fileno()
            except (OSError, ValueError):
                continue  # Popen will say so
        if isinstance(one, int) and one >= 0:
            found.add(one)
    return found


class _State:
    """What outlives a Guard that is dropped without close(), and closes it."""

    def __init__(
        self, core: _core.Supervisor, supervision: Supervision, runner: HookRunner
    ) -> None:
        self.core = core
        self.supervision = supervision
        self.runner = runner
        self.launcher: Launcher | None = None
        self.lock = threading.RLock()
        self.closed = False
        self.pid = os.getpid()

    def retire_launcher(self) -> None:
        with self.lock:
            launcher, self.launcher = self.launcher, None
        if launcher is not None:
            launcher.retire()

    def close(self) -> None:
        with self.lock:
            if self.closed:
                return
            self.closed = True
        _open_states.discard(self)
        if os.getpid() != self.pid:
            return
        self.retire_launcher()
        self.supervision.stop()
        self.runner.close()


_open_states: weakref.WeakSet[_State] = weakref.WeakSet()


def _forget_in_child() -> None:
    """Nothing is left to close in a forked child: the core has seen to that."""
    for state in list(_open_states):
        state.closed = True
        state.lock = threading.RLock()  # its holder is not in this process


os.register_at_fork(after_in_child=_forget_in_child)


def _round_up(number: int) -> int:
    """The next power of two, as the core's ring wants it."""
    return 1 << max(number - 1, 1).bit_length()


class Guard:
    """Guards the processes that it starts, and all that they start.

    `policy`: a Policy, a rule, or rules; None allows everything, or asks the
    hook about everything. `hook`: a function, or coroutine function, that
    takes a Request and returns ALLOW, DENY, `deny(errno)`, `move(...)` or a
    bool; called only for `ask`, on a thread of the guard (a coroutine: on the
    event loop that runs where the guard is made, else on one of its own), which
    lacks the capabilities that a bind can ask for. `hook_timeout`:
    seconds that a hook may take; then the call is denied. `on_event`: called
    with each Event, on a thread of the guard; whoever waits for the same event
    elsewhere does not wait for this call. `unix`: "perform", or "continue"
    to let the kernel run `listen` on unix sockets even where the policy can
    deny: their SO_PEERCRED then stays the target's, and a hostile target can
    get past the guard. `confine`: forbid the target to signal, and to ptrace,
    any process outside its tree, the supervisor's own among them (a Landlock
    domain; Linux 6.12). `event_buffer`: events kept until they are read.

    Close it, or use it as a context manager: what is left of the tree then
    gets ENOSYS from `listen`. Raises PolicyError for a wrong policy, KernelError
    where the kernel refuses (portseccomp.probe() tells more).
    """

    def __init__(
        self,
        policy: PolicyLike = None,
        *,
        hook: Hook | None = None,
        on_event: Callable[[Event], object] | None = None,
        hook_timeout: float = 5.0,
        unix: str = "perform",
        confine: bool = False,
        event_buffer: int = 4096,
    ) -> None:
        self._policy = make_policy(policy, hooked=hook is not None)
        if hook is None and self._policy.hook is not None:
            hook = load_hook(self._policy.hook)
        self._table = self._policy.table(unix_continue=unix == "continue")
        self._rules = tuple(one.text for one in self._policy.rules)
        self._on_event = on_event
        self._check_arguments(hook, hook_timeout, unix, event_buffer)
        self._confine = confine
        self._failures = HookFailures()
        self._log = EventLog(event_buffer, told=on_event is not None)
        self._opened: dict[object, Event] = {}
        self._look_at = 1024
        self._started: weakref.WeakSet[Any] = weakref.WeakSet()
        self._any_target = False
        self._warned = False

        capacity = _round_up(event_buffer)
        try:
            core = _core.Supervisor(
                capacity=capacity, hook_timeout=hook_timeout, max_hooks=MAX_HOOKS
            )
        except OSError as error:
            raise KernelError(
                error.errno, f"can't make a supervisor: {error.strerror}"
            ) from None
        deliver = weakref.WeakMethod(self._deliver)
        runner = HookRunner(self._failures, lambda: state.supervision.spawn())
        supervision = Supervision(
            core,
            hook=hook,
            runner=runner,
            deliver=lambda events: call(events) if (call := deliver()) else None,
            log=self._log,
            threshold=capacity // 2 + 1,
            told=on_event is not None,
        )
        self._state = state = _State(core, supervision, runner)
        self._log.finish_when(_finished(weakref.ref(self), state))
        try:
            self._launch()
            supervision.start()
        except BaseException as error:
            state.close()
            if isinstance(error, RuntimeError) and "thread" in str(error):
                raise KernelError(
                    errno.EAGAIN,
                    f"can't start the guard's threads: {os.strerror(errno.EAGAIN)} "
                    "(ulimit -u, or the cgroup's pids.max)",
                ) from None
            raise
        if on_event is not None:
            supervision.attend(True)
        _open_states.add(state)
        self._finalizer = weakref.finalize(self, state.close)

    def _check_arguments(
        self, hook: Hook | None, hook_timeout: float, unix: str, event_buffer: int
    ) -> None:
        if hook is None and self._policy.asks:
            raise PolicyError("the policy asks a hook, and there is none: give hook=")
        if hook is not None and not callable(hook):
            raise TypeError(f"hook must be a function, not {hook!r}")
        if self._on_event is not None and not callable(self._on_event):
            raise TypeError(f"on_event must be a function, not {self._on_event!r}")
        if not isinstance(hook_timeout, (int, float)):
            raise TypeError(f"hook_timeout is in seconds, not {hook_timeout!r}")
        if not isinstance(event_buffer, int):
            raise TypeError(f"event_buffer is a number, not {event_buffer!r}")
        if not 0 < hook_timeout < 1e6:
            raise ValueError(f"hook_timeout is in seconds, above 0, not {hook_timeout}")
        if unix not in ("perform", "continue"):
            raise ValueError(f"unix is 'perform' or 'continue', not {unix!r}")
        if not 1 <= event_buffer <= 1 << 24:
            raise ValueError(f"event_buffer is 1 to 16777216, not {event_buffer}")

    # ---- starting targets ----

    def _check_open(self) -> None:
        if os.getpid() != self._state.pid:
            raise GuardError("a guard can't be used in a forked child: make a new one")
        if self._state.closed:
            raise GuardError("the guard is closed")

    def _launch(self) -> Launcher:
        """Start a guarded thread whose listener the supervisor serves."""
        launcher = Launcher(
            self._state.core,
            self._table,
            bind=self._policy.needs_bind,
            confine=self._confine,
        )
        self._state.launcher = launcher
        self._features = launcher.features
        return launcher

    def _trust(self, descriptors: Iterable[int] | None) -> None:
        """Learn where the sockets are that a target inherits; None: any of ours.

        Whoever starts it has bound them. Asking a socket waits for its lock,
        which another process that has it may keep: not for long, then it is judged
        as one of which nothing is known.
        """
        if not self._table.can_deny:
            return
        core = self._state.core
        if descriptors is None:
            try:
                descriptors = map(int, os.listdir("/proc/self/fd"))
            except OSError:  # no descriptor left, no /proc
                return
        unknown = core.unknown_sockets(descriptors)
        if not unknown:
            return
        left = iter(unknown)
        given_up = False

        def ask() -> None:
            for fd in left:
                if given_up:
                    break
                core.trust_socket(fd)

        # Another thread goes on where one is stuck.
        for _ in range(_TRUST_TRIES):
            thread = threading.Thread(target=ask, name="portseccomp-trust", daemon=True)
            try:
                thread.start()
            except (RuntimeError, MemoryError):
                break
            thread.join(_TRUST_TIME)
            if not thread.is_alive():
                break
        given_up = True

    def _submit(self, function: Callable[[], T], inherited: Iterable[int] | None) -> T:
        """Run a function on the guarded thread; replace one that has ended."""
        self._check_open()
        self._trust(inherited)
        while True:
            self._check_open()
            with self._state.lock:
                launcher = self._state.launcher or self._launch()
                # From now on the end of this tree is something to wait for.
                self._any_target = launcher.used = True
            try:
                return launcher.submit(function)
            except GuardError:
                continue  # retired in between

    def popen(self, *args: Any, **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a guarded process: subprocess.Popen, with every option of it.

        The child inherits what belongs to a thread (CPU affinity, namespaces)
        from the guard's own thread, the signal mask from the caller's.
        """
        import subprocess

        if "pass_fds" in kwargs:
            kwargs["pass_fds"] = tuple(kwargs["pass_fds"])  # it is read twice
        process = self._submit(
            lambda: subprocess.Popen(*args, **kwargs), _inherited(args, kwargs)
        )
        self._started.add(process)
        return process

    def run(
        self,
        *popenargs: Any,
        input: Any = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **kwargs: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a guarded process to its end: subprocess.run, with its options."""
        import subprocess

        if input is not None:
            if kwargs.get("stdin") is not None:
                raise ValueError("give stdin or input, not both")
            kwargs["stdin"] = subprocess.PIPE
        if capture_output:
            if kwargs.get("stdout") is not None or kwargs.get("stderr") is not None:
                raise ValueError("give capture_output or stdout and stderr, not both")
            kwargs["stdout"] = kwargs["stderr"] = subprocess.PIPE

        with self.popen(*popenargs, **kwargs) as process:
            try:
                stdout, stderr = process.communicate(input, timeout=timeout)
            except subprocess.TimeoutExpired as expired:
                process.kill()
                # What it had written by then belongs to the exception.
                expired.stdout, expired.stderr = process.communicate()
                raise
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(
            process.args, process.returncode, stdout, stderr
        )
        if check:
            done.check_returncode()
        return done

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in this process, on a guarded thread of its own.

        Returns or raises what the function does. Threads that it starts are
        guarded as well.
        """
        outcome: list[T] = []
        failure: list[BaseException] = []

        def body() -> None:
            try:
                outcome.append(function(*args, **kwargs))
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=body, name="portseccomp-call", daemon=True)
        # A thread inherits the filter of the thread that starts it.
        self._submit(thread.start, None)
        thread.join()
        if failure:
            try:
                raise failure[0]
            finally:
                failure.clear()
        return outcome[0]

    # ---- what happened ----

    def _deliver(self, batch: list[EventFields]) -> None:
        events: list[Event] = []
        try:
            for fields in batch:
                events.append(make_event(fields, self._rules))
        except MemoryError:
            pass  # the others are lost
        self._log.append(events)
        try:
            for event in events:
                if event.is_open:
                    self._remember(event)
            if not self._warned and any(map(is_environment_failure, batch)):
                self._warned = True
                for event in events:
                    if event.reason:
                        self._warn(event)
                        break
        except MemoryError:
            pass  # they have arrived all the same
        if self._on_event is not None:
            for event in events:
                try:
                    self._on_event(event)
                except BaseException as error:
                    self._failures.add(
                        f"on_event raised {type(error).__name__}: {error}", error
                    )

    def _warn(self, event: Event) -> None:
        outcome = "denied" if event.verdict == "deny" else "continued unseen"
        try:
            warnings.warn(
                f"portseccomp can't apply the policy here: {event.reason}; such calls "
                f"are {outcome} (portseccomp.probe() tells more)",
                RuntimeWarning,
                stacklevel=2,
            )
        except RuntimeWarning as error:
            # Made an error by the program: its owner gets it at the end.
            self._failures.add(str(error), error)

    def _remember(self, event: Event) -> None:
        """Keep what is open, by socket; now and then let go of what is closed."""
        key = event._inode or (event.family, event.host, event.port)
        if event.first or key not in self._opened:
            self._opened[key] = event
        # A look at the kernel's tables is dear: the next one is a thousand later.
        if len(self._opened) >= self._look_at:
            self._look_at = len(self._forget_closed()) + 1024
        if len(self._opened) > _MOST_OPEN:
            self._opened.pop(next(iter(self._opened)))

    def _forget_closed(self) -> list[Event]:
        from portseccomp.listeners import still_open

        kept = still_open(list(self._opened.values()))
        wanted = {id(one) for one in kept}
        for key, event in list(self._opened.items()):
            if id(event) not in wanted:
                self._opened.pop(key, None)
        return kept

    def listeners(self) -> list[Event]:
        """Return what is open right now: for each port, the event that opened it."""
        self._check_open()
        self._state.supervision.drain()
        return self._forget_closed()

    def events(self) -> EventStream:
        """Iterate over events, with `for` or `async for`.

        Starts with the oldest that is kept, waits for more, and ends when the
        guard is closed, or a target was started and no guarded process is left.
        """
        return EventStream(self._log, self._attend, self._nap(None), self._reap)

    def _attend(self, wanted: bool) -> None:
        """Somebody waits for events, and for the end of the tree."""
        if self._state.closed:
            if wanted:
                return
        elif wanted:
            self._let_end()
        self._state.supervision.attend(wanted)

    def _let_end(self) -> None:
        """Let the guarded thread go: else the tree would never be empty."""
        with self._state.lock:
            launcher = self._state.launcher
            if launcher is not None and launcher.used:
                self._state.retire_launcher()

    def wait_listening(
        self, selector: str | int = "any", timeout: float | None = None
    ) -> Event:
        """Wait until something listens that a selector such as "tcp:8080" selects.

        A port alone may be a number.

        Returns the event that opened it: at once if it is open already, else
        as soon as the kernel accepts connections there. `timeout` is in
        seconds, None for no limit. Raises ListenTimeout, or TargetExited when
        no guarded process is left.
        """
        self._check_open()
        if isinstance(selector, int):
            selector = str(selector)
        match = _Match(selector)
        limit = None if timeout is None else time.monotonic() + timeout
        from portseccomp.listeners import still_open

        number = self._log.end
        for opened in self.listeners():
            if match(opened):
                return opened
        self._attend(True)
        try:
            with self._log.changed:
                while True:
                    # In this order: what finishes has been appended before.
                    finished = self._log.finished
                    event, number = self._log.take(number)
                    while event is not None:
                        if match(event) and still_open([event]):
                            return event
                        event, number = self._log.take(number)
                    if finished:
                        raise TargetExited(
                            f"nothing listens on {selector}, and no guarded process "
                            "is left"
                        )
                    left = None if limit is None else limit - time.monotonic()
                    if left is not None and left <= 0:
                        raise ListenTimeout(
                            f"nothing listened on {selector} within {timeout} s"
                        )
                    self._log.changed.wait(self._nap(left))
                    self._reap()
        finally:
            self._attend(False)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no guarded process is left; False when `timeout` came first.

        Processes that have ended are reaped where the kernel needs that to
        tell of the end (before Linux 6.12).
        """
        self._check_open()
        limit = None if timeout is None else time.monotonic() + timeout
        self._attend(True)
        try:
            with self._log.changed:
                while not self._log.finished and self._any_target:
                    left = None if limit is None else limit - time.monotonic()
                    if left is not None and left <= 0:
                        return False
                    self._log.changed.wait(self._nap(left))
                    self._reap()
            return True
        finally:
            self._attend(False)

    def _nap(self, left: float | None) -> float | None:
        if tells_end_unreaped():
            return left
        return _REAP_EVERY if left is None else min(left, _REAP_EVERY)

    def _reap(self) -> None:
        if not tells_end_unreaped():
            for process in list(self._started):
                process.poll()

    def stats(self) -> Stats:
        """Return counters and latencies so far; also after close()."""
        counters, buckets = self._state.core.stats()
        histogram = tuple((end / 1000, count) for end, count in buckets)
        return Stats(
            requests=counters["requests"],
            allowed=counters["allowed"],
            denied=counters["denied"],
            moved=counters["moved"],
            continued=counters["continued"],
            vanished=counters["vanished"],
            asked=counters["asked"],
            hook_errors=self._failures.count,
            hook_timeouts=counters["hook_timeouts"],
            failed=counters["failed"],
            events_lost=counters["events_lost"] + self._log.lost,
            takeovers=counters["takeovers"],
            p50_us=_percentile(histogram, 0.5),
            p99_us=_percentile(histogram, 0.99),
            histogram=histogram,
        )

    @property
    def policy(self) -> Policy:
        """The policy that the guard applies."""
        return self._policy

    # ---- the end ----

    def close(self) -> None:
        """Stop supervising; what is left of the tree gets ENOSYS from `listen`.

        Raises HookError, once, when the hook or `on_event` has failed.
        """
        error = self._close()
        if error is not None:
            raise error

    def _close(self) -> HookError | None:
        if self._state.closed:
            return None
        # Events that are on their way are delivered first, to this object.
        self._state.close()
        self._finalizer.detach()
        self._log.append([])
        late = self.stats().hook_timeouts
        if late:
            self._failures.add(f"the hook missed its deadline for {late} calls")
        failure = self._state.supervision.failure
        if failure is not None:
            self._failures.add(f"the supervisor failed: {failure}", failure)
        return self._failures.error()

    def __enter__(self) -> Guard:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        hook_error = self._close()
        if hook_error is None:
            return
        if error is None:
            raise hook_error
        # The body's own exception must not be hidden.
        error.add_note(f"portseccomp: {hook_error}")

    def __del__(self) -> None:
        state = getattr(self, "_state", None)
        if state is not None and not state.closed and os.getpid() == state.pid:
            warnings.warn(
                f"unclosed guard {self!r}", ResourceWarning, stacklevel=2, source=self
            )

    def __repr__(self) -> str:
        word = "closed" if self._state.closed else "open"
        return f"<Guard {word}, {self._policy!r}>"


class _Match:
    """Whether a selector selects what an event has opened."""

    def __init__(self, selector: str) -> None:
        parsed = parse_selector(selector)
        row = (_core.VERDICT_ALLOW, *parsed, 0, None)
        self._table = _core.Table([row], _core.VERDICT_ALLOW, 1, False)
        # `any` has ports in mind; here it means whatever listens.
        self._all = selector.strip() == "any"

    def __call__(self, event: Event) -> bool:
        if not event.is_open:
            return False
        if self._all:
            return True
        return any(
            self._table.matches(0, self._fields(event, host, port))
            for host, port in (
                (event.host, event.port),
                (event.requested_host, event.requested_port),
            )
        )

    @staticmethod
    def _fields(event: Event, host: str | None, port: int | None) -> EndpointFields:
        import ipaddress

        family, protocol, dual_stack = event._place
        packed = b""
        if event.family in ("ipv4", "ipv6") and host is not None:
            packed = ipaddress.ip_address(host.partition("%")[0]).packed
        return family, protocol, packed, port or 0, dual_stack


def _finished(guard: weakref.ref[Guard], state: _State) -> Callable[[], bool]:
    """Whether no more events will come."""

    def finished() -> bool:
        one = guard()
        if one is None or state.closed:
            return True
        return one._any_target and state.launcher is None and state.supervision.idle

    return finished


def tells_end_unreaped() -> bool:
    """Whether POLLHUP comes when a target has exited, reaped or not (6.12)."""
    major, minor, *_ = os.uname().release.split(".")
    digits = "".join(letter for letter in minor if letter.isdigit())
    return (int(major), int(digits or 0)) >= (6, 12)


def run(
    args: Any,
    policy: PolicyLike = None,
    *,
    hook: Hook | None = None,
    on_event: Callable[[Event], object] | None = None,
    **popen_kwargs: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a command under a guard to its end, as subprocess.run does.

    `policy`, `hook` and `on_event` are Guard's; all other options are
    subprocess.run's.
    """
    with Guard(policy, hook=hook, on_event=on_event) as guard:
        return guard.run(args, **popen_kwargs)
