# SPDX-License-Identifier: MIT
"""Resources that run out, in the target and in the supervisor.

Nothing that is denied opens meanwhile, nothing hangs, what could not be decided is
told, and when there is enough again all works again.
"""

from __future__ import annotations

import json
import os
import resource
import select
import time

import pytest
from conftest import need
from embedder import (
    LIMIT,
    Embedder,
    EmbedderError,
    Outside,
    accepts,
    open_ports,
)

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to be a user who has no other process"
)

TIMES = 50  # calls of each kind in one batch
MOST_ROOM = 10  # of those, where there should be none


NO_DESCRIPTOR = (
    "the socket could not be copied from its thread: Too many open files (EMFILE)"
)

YES, NO = {"0": TIMES}, {"EACCES": TIMES}
WORKS = {
    "tcp": YES,
    "tcp-denied": NO,
    "udp": YES,
    "udp-denied": NO,
    "bind": {"0": 2},
    "opened": 0,
}
ALL_DENIED = {**WORKS, "tcp": NO, "udp": NO, "bind": {"EACCES": 2}}


def tally(victim, ports: tuple[int, int], times: int = TIMES, *options: str) -> str:
    """The expression that starts that target."""
    return f"start(*{[victim('tally'), *map(str, ports), str(times), *options]})"


def opened(ports: tuple[int, int]) -> set[tuple[str, int]]:
    return {one for one in open_ports() if one[1] in ports}


def check(program: Embedder, ports: tuple[int, int], expected: dict) -> None:
    """One batch of calls of target 0: what it and the outside see of them."""
    assert program("step(0)") == expected
    works = expected["tcp"] == YES
    assert opened(ports) == ({("tcp", ports[0]), ("udp", ports[0])} if works else set())
    assert accepts(ports[0]) == works


def check_without_descriptors(program: Embedder, ports: tuple[int, int]) -> None:
    """One batch without descriptors: calls are denied, and that is said.

    A thread of the guard that loses the lead, as on a slow machine, closes what it
    kept. Then a few calls find room, and go by the rules: a `listen` whose bind
    was denied takes a port of the kernel's choice.
    """
    before = program("guard.stats().failed")
    result, passed = program("step(0)"), 0
    for what in ("tcp", "tcp-denied", "udp", "bind"):
        let = result[what].pop("0", 0)
        result[what]["EACCES"] = result[what].get("EACCES", 0) + let
        passed += let
    assert result == ALL_DENIED
    assert opened(ports) <= {("tcp", ports[0]), ("udp", ports[0])}
    room = 4 * TIMES + 2 - (program("guard.stats().failed") - before)
    assert passed <= room <= MOST_ROOM


# ---- descriptors ----


def test_target_without_descriptors(victim, free_port):
    """A target that has no descriptor free opens what it may: the copy is not its."""
    ports = free_port(), free_port()
    with Embedder([f"deny {ports[1]}"]) as program, Outside(ports[1]):
        program(tally(victim, ports, 1, "full"))
        for _ in range(20):
            result = program("step(0)")
            assert result["opened"] == 0
            assert (result["tcp"], result["udp"]) == ({"0": 1}, {"0": 1})
            assert (result["tcp-denied"], result["udp-denied"]) == (
                {"EACCES": 1},
                {"EACCES": 1},
            )
            assert opened(ports) == {("tcp", ports[0]), ("udp", ports[0])}
        assert program("guard.stats().failed") == 0


@pytest.mark.parametrize("rules", [["deny {1}"], ["allow {0}"]], ids=["deny", "allow"])
def test_supervisor_without_descriptors(victim, free_port, rules):
    """With none free all calls are denied, and say why; with eight, all is as ever."""
    ports = free_port(), free_port()
    with (
        Embedder([one.format(*ports) for one in rules]) as program,
        Outside(ports[1]),
    ):
        program(tally(victim, ports))
        check(program, ports, WORKS)
        # Each of two threads keeps two open, and copies the socket.
        for free in (0, 8, 0, 9, 0):
            program(f"fill({free})")
            if free:
                check(program, ports, WORKS)
            else:
                check_without_descriptors(program, ports)
                with pytest.raises(EmbedderError, match="Too many open file") as caught:
                    program("start('true')")
                assert caught.value.kind == "OSError"
            # Which sockets its thread inherits can't be listed with none free.
            assert program("guard.call(int)") == 0
            program("give_back()")
        check(program, ports, WORKS)
        failed = program("guard.stats().failed")
        found = [one for one in program("events()") if one["rule"] == "error"]
        assert len(found) == failed
        assert {one["reason"] for one in found} == {NO_DESCRIPTOR}
        assert program("guard.run(['true']).returncode") == 0
        assert program("end(0)") == 0
        assert program("guard.wait(20)") is True


def test_supervisor_without_descriptors_that_can_not_deny(victim, free_port):
    """A policy that can't deny lets calls go on, unseen; nothing hangs."""
    ports = free_port(), free_port()
    with Embedder(None) as program:
        program(tally(victim, ports))
        for fill in (True, False):
            program("fill()" if fill else "give_back()")
            result = program("step(0)")
            # And so the denied port of the other tests is seen when it is open.
            assert result["opened"] == 2 * TIMES
            assert result["tcp"] == result["udp"] == YES
            assert {("tcp", ports[1]), ("udp", ports[1])} <= open_ports()
        # Two TCP binds of each batch are the kernel's to make.
        stats = program("guard.stats()._asdict()")
        assert (stats["failed"], stats["continued"]) == (4 * TIMES + 2, 4 * TIMES + 4)
        assert program("end(0)") == 0


def test_guard_started_with_few_descriptors(victim, free_port):
    """A guard opens or raises EMFILE, and leaves nothing; what opens, guards."""
    ports = free_port(), free_port()
    opens = []
    with Embedder(None, without_guard=True) as program:
        program("Guard('deny 1').close()")
        before = program("resources()")
        for free in range(8):
            program(f"fill({free})")
            try:
                program("Guard('deny 1').close()")
                opens.append(free)
            except EmbedderError as error:
                assert "Too many open files" in error.text
                assert error.kind in ("OSError", "KernelError")
            program("give_back()")
            assert program(f"resources_but({before})") is None
        # Three: for epoll, the wake-up and the listener.
        assert opens == [3, 4, 5, 6, 7]
        program("fill(3)")
        program(f"globals().update(guard=Guard('deny {ports[1]}'))")
        program("give_back()")
        program(tally(victim, ports))
        check(program, ports, WORKS)
        program("end(0)")
        program("guard.close()")


@pytest.mark.parametrize("free", [0, 1])
def test_guard_without_descriptors_raises_kernel_error(free):
    """What Guard raises where no descriptor is free is a KernelError."""
    with Embedder(None, without_guard=True) as program:
        program("Guard('deny 1').close()")
        program(f"fill({free})")
        with pytest.raises(EmbedderError) as caught:
            program("Guard('deny 1').close()")
        program("give_back()")
    assert caught.value.kind == "KernelError"


def test_a_hundred_targets_while_descriptors_run_out(victim, free_port):
    """A hundred targets that call while descriptors come and go: each call is sure."""
    denied, count, times = free_port(), 100, 10
    # Without reuse of the UDP port the targets need ports of their own.
    pairs = [(free_port(), denied) for _ in range(count)]
    # Not `deny`: where its bind failed, a TCP socket listens on another port.
    rules = [f"allow {pair[0]}" for pair in pairs]
    with Embedder(rules, event_buffer=1 << 14) as program:
        for pair in pairs:
            program(tally(victim, pair, times))
        with Outside(denied):
            results = program(f"flicker(list(range({count})))")
        assert sum(one["opened"] for one in results) == 0
        for name in ("tcp-denied", "udp-denied"):
            assert all(one[name] == {"EACCES": times} for one in results)
        calls = sum(sum(one["tcp"].values()) for one in results)
        made = sum(one["tcp"].get("0", 0) for one in results)
        refused = sum(one["tcp"].get("EACCES", 0) for one in results)
        assert made + refused == calls == count * times
        # Both were met: the test tests.
        stats = program("guard.stats()._asdict()")
        assert stats["requests"] == count * (4 * times + 2)
        assert stats["failed"] > 0
        reasons = {one.get("reason") for one in program("events()")}
        assert reasons == {None, NO_DESCRIPTOR}
        # With none free some may still get one that the supervisor itself lets go.
        program("fill()")
        failed = program("guard.stats().failed")
        with Outside(denied):
            program(f"[tell(i) for i in range({count})]")
            results = program(f"[json.loads(hear(i)) for i in range({count})]")
        assert program("guard.stats().failed") > failed
        for one in results:
            assert sum(one["tcp"].values()) == times
            assert (one["opened"], set(one["tcp-denied"])) == (0, {"EACCES"})
        # And after it all do.
        program("give_back()")
        results = program(f"[step(i) for i in range({count})]")
        assert all(one["tcp"] == one["udp"] == {"0": times} for one in results)
        assert {("tcp", pair[0]) for pair in pairs} <= open_ports()


# The target takes no capability along, and has a network namespace of its own.
UNPRIVILEGED = """
import ctypes, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000 | 0x40000000) == 0  # CLONE_NEWUSER, CLONE_NEWNET
assert libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) == 0
while sys.stdin.read(1):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.bind(("127.0.0.1", 80))
            print("bound", flush=True)
        except PermissionError:
            print("refused", flush=True)
"""


@needs_root
@pytest.mark.parametrize("free", range(7))
def test_no_privileged_port_with_few_descriptors(free):
    """However few descriptors are free, the supervisor's right is not lent."""
    with Embedder(["deny 7"]) as program:
        program(f"start(sys.executable, '-c', {UNPRIVILEGED!r})")
        program(f"fill({free})")
        result = program("step(0)")
        program("give_back()")
        assert result == "refused"
        assert program("step(0)") == "refused"


# ---- threads ----


def lonely() -> tuple[str, ...]:
    """A launcher: as a user who has no other process, and so can count them."""
    setpriv = need("setpriv", "util-linux")
    # It may still read what only root's files say.
    only = "+dac_override"
    options = ["--reuid", "54321", "--regid", "54321", "--clear-groups"]
    options += ["--inh-caps", only, "--ambient-caps", only]
    return (setpriv, *options, "--bounding-set", f"-all,{only}")


ASKING = """
release = threading.Event()
def hook(request):
    release.wait(20)
    return True
"""


@needs_root
def test_calls_are_decided_where_no_thread_can_be_started(victim, free_port):
    """With RLIMIT_NPROC reached rules decide as ever, and popen raises."""
    ports = free_port(), free_port()
    with Embedder([f"deny {ports[1]}"], through=lonely()) as program, Outside(ports[1]):
        program(tally(victim, ports, TIMES, "thread"))
        check(program, ports, WORKS)
        # Where an inherited socket is, a thread asks.
        program("globals().update(server=socket.create_server(('127.0.0.1', 0)))")
        program("limit_threads(0)")
        check(program, ports, WORKS)
        for options in ("", ", pass_fds=[server.fileno()]"):
            with pytest.raises(EmbedderError) as caught:
                program(f"guard.popen(['true']{options})")
            assert caught.value.kind == "BlockingIOError"
        with pytest.raises(EmbedderError, match="can't start new thread"):
            program("guard.call(int)")
        check(program, ports, WORKS)
        program("limit_threads(None)")
        program("server.close()")
        assert program("guard.run(['true']).returncode") == 0
        assert program("guard.call(int)") == 0
        check(program, ports, WORKS)
        assert program("guard.stats().failed") == 0


@needs_root
def test_hooks_where_no_thread_can_be_started(victim, free_port):
    """Hooks that could not be watched are not run: denied; rules go on."""
    asked = [free_port() for _ in range(4)]
    port = free_port()
    rules = [*(f"ask {one}" for one in asked), "allow any"]
    listen = victim("listen")

    def waiting(number: int) -> list[str]:
        return [listen, "tcp4", "127.0.0.1", str(number), "step", "hold", "times=2"]

    with (
        Embedder(rules, through=lonely(), hook=ASKING, hook_timeout=2.0) as program,
        Outside(*asked),
    ):
        for number in (*asked, port):
            program(f"start(*{waiting(number)})")
        program("[hear(i) for i in range(5)]")
        program("limit_threads(0)")
        program("tell(0)")  # its hook hangs; the standby leads from now on
        assert [program(f"step({i})") for i in (1, 2, 3)] == ["listen: EACCES"] * 3
        assert program("step(4)") == "listen: 0"
        assert accepts(port)
        assert program("hear(0)") == "listen: EACCES"
        assert program("guard.stats().hook_timeouts") == 4
        program("limit_threads(None)")
        program("release.set()")
        assert program("step(4)") == "listen: 0"
        assert not {("tcp", one) for one in asked} & open_ports()
        with pytest.raises(EmbedderError, match="missed its deadline"):
            program("guard.close()")


@needs_root
@pytest.mark.parametrize("more", [1, 2, 3])
def test_guard_started_with_few_threads(more):
    """Where a thread of the guard can't be started it raises, and leaves nothing."""
    with Embedder(None, without_guard=True, through=lonely()) as program:
        program("Guard('deny 1').close()")
        before = program("resources_at_rest()")
        program(f"limit_threads({more})")
        with pytest.raises(EmbedderError) as caught:
            program("Guard('deny 1').close()")
        assert program(f"resources_but({before})") is None
        assert caught.value.kind in ("GuardError", "KernelError")


@needs_root
def test_guard_started_without_threads():
    """A guard that can't start its first thread raises; four are enough."""
    with Embedder(None, without_guard=True, through=lonely()) as program:
        program("Guard('deny 1').close()")
        before = program("resources_at_rest()")
        program("limit_threads(0)")
        with pytest.raises(EmbedderError, match="can't start the guard's threads"):
            program("Guard('deny 1').close()")
        assert program(f"resources_but({before})") is None
        program("limit_threads(4)")
        # The kernel counts a thread that has ended for a while yet: its
        # credentials are put back after an RCU grace period.
        for wait in (0.1, 0.5, 2, 5, None):
            try:
                program("Guard('deny 1').close()")
                break
            except EmbedderError:
                if wait is None:
                    raise
                time.sleep(wait)
        assert program(f"resources_but({before})") is None


# ---- memory ----

MANY = 3000
# Seconds for six times as many calls, with nothing said before they are done: an
# emulated machine takes 30.
BATCH_LIMIT = 4 * LIMIT
MANY_CALLS = {
    "tcp": {"0": MANY},
    "tcp-denied": {"EACCES": MANY},
    "udp": {"0": MANY},
    "udp-denied": {"EACCES": MANY},
    "bind": {"0": 2},
    "opened": 0,
}


class Starving:
    """A program whose events don't fit into its memory, and a target that calls on.

    The target is talked to directly: the program has no memory to pass it on.
    """

    def __init__(self, victim, place, ports: tuple[int, int]) -> None:
        # One arena: or each thread of glibc's has 64 MiB in reserve.
        arena = {"MALLOC_ARENA_MAX": "1"}
        rules = [f"deny {ports[1]}"]
        self.program = Embedder(rules, environment=arena, event_buffer=1 << 17)
        for name in ("in", "out"):
            os.mkfifo(place / name)
        # For reading and writing, so that neither side waits for the other.
        self._in, self._out = (
            os.open(place / name, os.O_RDWR) for name in ("in", "out")
        )
        script = 'exec "$@" <"$0/in" >"$0/out"'
        target = [victim("tally"), *map(str, ports), str(MANY)]
        self._target = ["sh", "-c", script, str(place), *target]

    def _begin(self) -> None:
        self.program(f"start(*{self._target})")
        self.program("guard._attend(True)")  # each event at once, as for on_event
        assert self.call() == MANY_CALLS
        self.settle()

    def call(self) -> dict:
        """A batch of calls; what the target prints."""
        os.write(self._in, b"x")
        text = b""
        while not text.endswith(b"\n"):
            ready = select.select([self._out], [], [], BATCH_LIMIT)[0]
            assert ready, "it hangs"
            text += os.read(self._out, 1 << 16)
        return json.loads(text)

    def settle(self) -> None:
        """Wait until the program has nothing more to do: all its threads sleep."""
        place, quiet = f"/proc/{self.program.process.pid}/task", 0
        while quiet < 10:
            states = set()
            for task in os.listdir(place):
                with open(f"{place}/{task}/stat") as file:
                    states.add(file.read().rpartition(")")[2].split()[0])
            quiet = quiet + 1 if states == {"S"} else 0
            time.sleep(0.01)

    def starve(self, on: bool) -> None:
        """Let the program have no more memory than it has; or any."""
        pid = self.program.process.pid
        with open(f"/proc/{pid}/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.prlimit(pid, resource.RLIMIT_AS)[1]
        resource.prlimit(pid, resource.RLIMIT_AS, (size if on else hard, hard))

    def __enter__(self) -> Starving:
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *failure) -> None:
        os.close(self._in)
        os.close(self._out)
        # A thread whose start had no memory may keep its close() for ever.
        self.program.kill()


def test_decisions_without_memory(victim, free_port, tmp_path):
    """Where events don't fit into memory calls are decided all the same."""
    ports = free_port(), free_port()
    with Starving(victim, tmp_path, ports) as starving, Outside(ports[1]):
        starving.starve(True)
        assert starving.call() == MANY_CALLS
        assert opened(ports) == {("tcp", ports[0]), ("udp", ports[0])}
        starving.settle()
        starving.starve(False)
        # It was too little: the test tests.
        assert starving.program("guard.stats().events_lost") > 0
        assert starving.call() == MANY_CALLS
        assert accepts(ports[0])
        stats = starving.program("guard.stats()._asdict()")
        assert (stats["denied"], stats["failed"]) == (3 * 2 * MANY, 0)


def test_events_without_memory(victim, free_port, tmp_path):
    """Events that don't fit into memory are counted as lost, and the end is seen."""
    ports = free_port(), free_port()
    with Starving(victim, tmp_path, ports) as starving:
        starving.starve(True)
        starving.call()
        starving.settle()
        starving.starve(False)
        starving.call()
        program = starving.program
        program("_targets[0].kill()")
        ended = program("guard.wait(2)")
        pushed = program("guard._state.core.pushed")
        kept = program("guard._log.end")
        lost = program("guard.stats().events_lost")
    assert ended is True
    assert kept + lost == pushed
