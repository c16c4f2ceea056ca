# SPDX-License-Identifier: MIT
"""What the core does where the kernel, or a profile, refuses it something.

This kernel has it all, so a launcher (victims/refuse.c) refuses single calls to
the supervisor, with the errno of an older kernel or of a container's profile.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import need, python
from embedder import (
    LIMIT,
    Embedder,
    EmbedderError,
    Outside,
    accepts,
    open_ports,
)
from test_races import TRIES

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, for a mount namespace of its own"
)

TIMES = 50  # calls of each kind in one batch
SWAPS = max(TRIES // 5, 1)
BINDS = max(TRIES // 50, 200)  # under a storm of signals


COPY = "the socket could not be copied from its thread: "
MEMORY = "the caller's memory could not be read: "
EPERM = "Operation not permitted (EPERM)"
ENOSYS = "Function not implemented (ENOSYS)"
ESRCH = "No such process (ESRCH)"

THREAD = "pidfd_thread=EINVAL"  # Linux 6.8
OLD = (THREAD, "set_flags=EINVAL", "killable=EINVAL")  # Linux 5.18

# What is refused, and why then no socket can be copied: from anyone, or from
# threads that are no group leader.
WORLDS = {
    "whole": ((), None, None),
    "5.18": (OLD, None, None),
    "no-pidfd-thread": ((THREAD,), None, None),
    "no-killable": (("killable=EINVAL",), None, None),
    "no-sync": (("set_flags=EINVAL",), None, None),
    "no-sock-diag": (("netlink=EACCES",), None, None),
    "no-kcmp": (("kcmp=EPERM",), None, None),
    "no-thread-no-kcmp": ((THREAD, "kcmp=EPERM"), None, COPY + EPERM),
    "no-thread-kcmp-unbuilt": ((THREAD, "kcmp=ENOSYS"), None, COPY + ENOSYS),
    "docker": (("pidfd_getfd=EPERM",), COPY + EPERM, COPY + EPERM),
    "5.5": (("pidfd_getfd=ENOSYS",), COPY + ENOSYS, COPY + ENOSYS),
    "no-pidfd": (("pidfd_open=EPERM",), COPY + EPERM, COPY + EPERM),
    "5.2": (("pidfd_open=ENOSYS",), COPY + ENOSYS, COPY + ENOSYS),
    "no-proc": (("proc",), None, None),
    "empty-proc": (("hidden",), None, None),
    "no-proc-no-thread": (("proc", THREAD), None, COPY + ESRCH),
}


def launcher(victim, *refused: str) -> tuple[str, ...]:
    """The start of a command that is refused those things."""
    names = {
        "proc": "umount -l /proc",
        "hidden": "mount -t tmpfs none /proc",
    }
    command: list[str] = []
    for name in (one for one in refused if one in names):
        if os.geteuid() != 0:
            pytest.skip("needs root, for a mount namespace of its own")
        script = f'{names[name]} && exec "$@"'
        command += [need("unshare", "util-linux"), "-m", "sh", "-c", script, "sh"]
    if calls := [one for one in refused if one not in names]:
        command += [victim("refuse"), *calls, "--"]
    return tuple(command)


def reasons(program: Embedder) -> set[str | None]:
    return {one.get("reason") for one in program("events()")}


def check_batch(
    program: Embedder, target: int, ports: tuple[int, int], reason: str | None
) -> None:
    """One batch of calls: what the target and the outside see of them."""
    yes, no = {"EACCES" if reason else "0": TIMES}, {"EACCES": TIMES}
    result = program(f"step({target})")
    opened = {one for one in open_ports() if one[1] in ports}
    assert result == {
        "tcp": yes,
        "tcp-denied": no,
        "udp": yes,
        "udp-denied": no,
        "bind": {"EACCES" if reason else "0": 2},
        "opened": 0,
    }
    assert opened == (set() if reason else {("tcp", ports[0]), ("udp", ports[0])})
    assert accepts(ports[0]) == (reason is None)


@pytest.mark.parametrize("world", WORLDS)
def test_what_is_denied_stays_closed_and_the_rest_works(victim, free_port, world):
    """Where sockets can be copied all is as ever; elsewhere all is denied, and why."""
    refused, *reasons_of = WORLDS[world]
    with (
        Embedder(
            [f"deny {(denied := free_port())}"], through=launcher(victim, *refused)
        ) as program,
        Outside(denied),
    ):
        for target, caller in enumerate(["leader", "thread"]):
            reason, ports = reasons_of[target], (free_port(), denied)
            command = [victim("tally"), *map(str, ports), str(TIMES), caller]
            program(f"start(*{command})")
            before = program("guard.stats()._asdict()")
            check_batch(program, target, ports, reason)
            check_batch(program, target, ports, reason)
            after = program("guard.stats()._asdict()")
            calls = 2 * (4 * TIMES + 2)
            assert after["requests"] - before["requests"] == calls
            assert after["failed"] - before["failed"] == (calls if reason else 0)
            events = program("events()")[-calls:]
            assert {one.get("reason") for one in events} == {reason}
            if reason:
                assert {one["rule"] for one in events} == {"error"}
            else:
                waited = f"guard.wait_listening('tcp:{ports[0]}', 10).port"
                assert program(waited) == ports[0]
            # Of the target that goes on: the denied ports are free again.
            assert program(f"end({target})") == 0
        assert program("guard.wait(20)") is True


@pytest.mark.parametrize(
    "world", ["whole", "5.18", "docker", "5.2", "no-thread-no-kcmp"]
)
def test_a_policy_that_can_not_deny_lets_calls_go_on(victim, free_port, world):
    """Where nothing can be denied a refused copy is no harm: continued, and told."""
    refused, *reasons_of = WORLDS[world]
    with Embedder(None, through=launcher(victim, *refused)) as program:
        for target, caller in enumerate(["leader", "thread"]):
            reason, ports = reasons_of[target], (free_port(), free_port())
            command = [victim("tally"), *map(str, ports), str(TIMES), caller]
            program(f"start(*{command})")
            # What the tests above look for is seen where it is open.
            assert program(f"step({target})")["opened"] == 2 * TIMES
            assert {("tcp", ports[1]), ("udp", ports[1])} <= open_ports()
            assert accepts(ports[1])
            events = program("events()")[-4 * TIMES :]
            assert {one.get("reason") for one in events} == {reason}
            assert {one["errno"] for one in events} == {None}
            if reason:
                verdicts = {(one["verdict"], one["host"]) for one in events}
                assert verdicts == {("continue", None)}
            assert program(f"end({target})") == 0
        assert program("guard.wait(20)") is True


def test_memory_that_can_not_be_read(victim, free_port):
    """Without process_vm_readv all binds are denied."""
    through = launcher(victim, "process_vm_readv=EPERM")
    allowed, denied = free_port(), free_port()
    command = [victim("tally"), str(allowed), str(denied), str(TIMES)]
    no = {"EACCES": TIMES}
    with Embedder([f"deny {denied}"], through=through) as program, Outside(denied):
        program(f"start(*{command})")
        result = program("step(0)")
        assert (result["udp"], result["udp-denied"]) == (no, no)
        assert result["bind"] == {"EACCES": 2}
        # TCP sockets listened unbound, which is allowed: on neither of these.
        assert not {allowed, denied} & {one[1] for one in open_ports()}
        failed = [one for one in program("events()") if one["call"] == "bind"]
        assert {one["reason"] for one in failed} == {MEMORY + EPERM}


# ---- threads with descriptor tables of their own ----


def apart(victim, free_port, *refused: str) -> tuple[set[str], set[int], set]:
    """Listen from 20 such threads: the results, what opened, the reasons."""
    port, other = free_port(), free_port()
    results, opened = set(), set()
    through = launcher(victim, *refused)
    with Embedder([f"deny tcp:{free_port()}"], through=through) as program:
        program(f"start({victim('apart')!r}, '{port}', '{other}')")
        program("tell(0)")
        for _ in range(20):
            results.add(program("hear(0)"))
            now = {one[1] for one in open_ports()}
            opened |= {name for name in (port, other) if name in now}
            program("tell(0)")
        program("hear(0)")
        found = reasons(program)
    names = {port: "own", other: "leader's"}
    return results, {names[one] for one in opened}, found


def test_thread_with_a_table_of_its_own(victim, free_port):
    """PIDFD_THREAD reads the thread's own socket."""
    assert apart(victim, free_port) == ({"listen: 0"}, {"own"}, {None})


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        ((), "Invalid cross-device link (EXDEV)"),
        (("kcmp=EPERM",), EPERM),
        (("kcmp=ENOSYS",), ENOSYS),
        (("proc",), ESRCH),
    ],
    ids=["kcmp", "no-kcmp", "kcmp-unbuilt", "no-proc"],
)
def test_thread_with_a_table_of_its_own_is_denied(victim, free_port, refused, why):
    """Through the leader a wrong socket would be read: denied, nothing opens."""
    seen = apart(victim, free_port, THREAD, *refused)
    assert seen == ({"listen: EACCES"}, set(), {COPY + why})


def test_the_leaders_socket_is_read_where_kcmp_lies(victim, free_port):
    """The test above tests: with kcmp made to say "the same", the wrong one opens."""
    seen = apart(victim, free_port, THREAD, "kcmp=0")
    assert seen == ({"listen: 0"}, {"leader's"}, {None})


# ---- races and signals ----


@pytest.mark.parametrize("refused", [OLD, ("proc", THREAD)], ids=["5.18", "no-proc"])
def test_swaps_never_win_through_the_leader(victim, free_port, refused):
    """20,000 dup2 swaps open nothing where pidfds are the leader's."""
    allowed, forbidden = free_port(), free_port()
    command = [victim("race"), "swap", str(allowed), str(forbidden), str(SWAPS)]
    through = launcher(victim, *refused)
    with Embedder([f"deny tcp:{forbidden}"], through=through) as program:
        with Outside(forbidden):
            done = f"guard.run({command}, capture_output=True).stdout.decode()"
            text = program(done)
        assert f"tries: {SWAPS}\nwins: 0\n" in text
        stats = program("guard.stats()._asdict()")
    assert (stats["requests"], stats["continued"]) == (SWAPS, 0)
    assert 0 < stats["denied"] < SWAPS


@pytest.mark.parametrize(
    ("call", "how", "refused"),
    [
        ("listen", "restart", ("killable=EINVAL",)),
        ("listen", "interrupt", OLD),
        ("bind", "restart", ("killable=EINVAL",)),
        ("bind", "restart", OLD),
        ("bind", "interrupt", OLD),
    ],
    ids=["listen", "listen-interrupt-5.18", "bind", "bind-5.18", "bind-interrupt-5.18"],
)
def test_signal_storm(victim, free_port, call, how, refused):
    """Signals interrupt calls that are decided, and make no result wrong."""
    allowed, denied = free_port(), free_port()
    storm = victim("storm" if call == "listen" else "bindstorm")
    command = [storm, str(allowed), str(denied), "2000", "10000", how]
    through = launcher(victim, *refused)
    with Embedder([f"deny {denied}"], through=through, event_buffer=16) as program:
        with Outside(denied):
            done = f"guard.run({command}, capture_output=True).stdout.decode()"
            text = program(done)
        # Calls were interrupted while they were handled: the test tests.
        assert program("guard.stats().vanished") > 0
    wrong, interrupted, alarms = text.splitlines()
    assert wrong in ("wrong: 0", "wrong: 0 0")
    assert alarms == "alarms: many"
    if how == "restart":
        assert interrupted == "interrupted: 0"


@pytest.mark.parametrize("how", ["restart", "interrupt"])
def test_signals_while_rounds_stall(victim, free_port, how):
    """The round of a call that was interrupted keeps no port from the next call.

    It goes on in a thread that stalls, while another has taken over the lead.
    """
    allowed, denied = free_port(), free_port()
    preload = [os.environ.get("LD_PRELOAD", ""), victim("stall", "-shared", "-fPIC")]
    through = ("env", f"LD_PRELOAD={' '.join(preload).strip()}")
    through += launcher(victim, "killable=EINVAL")
    command = [victim("bindstorm"), str(allowed), str(denied), str(BINDS), "10000", how]
    with Embedder([f"deny {denied}"], through=through, event_buffer=16) as program:
        done = f"guard.run({command}, capture_output=True).stdout.decode()"
        wrong, _, alarms = program(done).splitlines()
        # Others took over: the test tests.
        assert program("guard.stats().takeovers") > 0
    assert (wrong, alarms) == ("wrong: 0 0", "alarms: many")


# ---- what people are told ----

PROBES = {
    "docker": ("no", "pidfd_getfd", COPY + EPERM, 1),
    "5.5": ("no", "pidfd_getfd", COPY + ENOSYS, 1),
    "no-pidfd": ("no", "pidfd_getfd", COPY + EPERM, 1),
    "no-pidfd-thread": ("no", "PIDFD_THREAD", "Linux 6.9", 0),
    "no-killable": ("no", "WAIT_KILLABLE_RECV", "Linux 5.19", 0),
    "no-sync": ("no", "synchronous wake-up", "Linux 6.6", 0),
    "whole": ("yes", "pidfd_getfd", "a socket was copied", 0),
}


@pytest.fixture(scope="module")
def whole_probe() -> list[str]:
    """What probe says here, where nothing is refused."""
    command = [sys.executable, "-m", "portseccomp", "probe"]
    return subprocess.run(command, stdout=-1, text=True).stdout.splitlines()


@pytest.mark.parametrize("world", PROBES)
def test_probe_says_what_is_missing(victim, whole_probe, world):
    """`portseccomp probe` says "no" to what is refused, and to nothing else."""
    word, name, detail, status = PROBES[world]
    command = [sys.executable, "-m", "portseccomp", "probe"]
    through = launcher(victim, *WORLDS[world][0])
    done = subprocess.run([*through, *command], stdout=-1, stderr=-1, text=True)
    assert done.returncode == status
    lines = done.stdout.splitlines()
    assert f"  {word:<3}  {name:<27} {detail}" in lines
    verdict = "no guard can work here" if status else "a guard works here"
    assert lines[-1] == verdict
    gone = {name, "PIDFD_THREAD"} if world == "no-pidfd" else {name}
    for line in whole_probe[1:-1]:
        assert line in lines or line[7:34].strip() in gone
    if word == "no":
        place = lines.index(f"  no   {name:<27} {detail}")
        assert lines[place + 1].startswith("       without it: ")


def test_probe_without_a_listener(victim):
    """Where a profile refuses seccomp(2), probe and Guard say so."""
    through = launcher(victim, "seccomp=EPERM")
    command = [sys.executable, "-m", "portseccomp", "probe"]
    done = subprocess.run([*through, *command], stdout=-1, text=True)
    assert done.returncode == 1
    assert "  no   seccomp listener            can't install" in done.stdout
    assert done.stdout.endswith("no guard can work here\n")
    with pytest.raises(EmbedderError, match="profile") as caught:
        Embedder(["deny 1"], through=through)
    assert caught.value.kind == "KernelError"


@pytest.mark.parametrize("denies", [True, False])
def test_run_warns_once(victim, free_port, denies):
    """`portseccomp run` says once that, and why, the policy can't be applied."""
    port = free_port()
    rules = ["--deny", str(port)] if denies else []
    command = [*launcher(victim, "pidfd_getfd=EPERM"), sys.executable]
    command += ["-m", "portseccomp", "run", *rules, "--", victim("listen"), "tcp4"]
    command += ["-", "0", "times=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    expected = "listen: EACCES" if denies else "listen: 0"
    assert done.stdout.splitlines()[:3] == [expected] * 3
    assert done.stderr.count("can't apply the policy here: " + COPY + EPERM) == 1
    assert ("are denied" if denies else "are continued unseen") in done.stderr


# ---- the end of a tree ----

# A target that ends at once, and a daemon of it that lives until somebody has
# reaped it: so the end of the tree comes as late as before Linux 6.12.
LINGERING = """
import os, time
parent = os.getpid()
if os.fork():
    os._exit(7)
while True:
    try:
        os.kill(parent, 0)
    except ProcessLookupError:
        break
    time.sleep(0.01)
"""
UNAME_2_6 = 0x0020000  # personality(2): what setarch --uname-2.6 sets


def old_release() -> tuple[str, ...]:
    """A launcher whose program is told that this is Linux 2.6."""
    return (need("setarch", "util-linux"), "--uname-2.6")


def test_wait_reaps_where_the_end_comes_late(victim):
    """guard.wait reaps targets on old kernels, and so sees the end."""
    command = python(LINGERING)
    with Embedder(["deny 1"], through=old_release()) as program:
        program(f"start(*{command})")
        assert program("guard.wait(20)") is True
        assert program("_targets[0].returncode") == 7
    # Here it need not, and does not: the test tests.
    with Embedder(["deny 1"]) as program:
        program(f"start(*{command})")
        assert program("guard.wait(1)") is False
        assert program("_targets[0].returncode") is None


def test_wait_listening_reaps_where_the_end_comes_late(victim):
    """wait_listening sees on old kernels that no guarded process is left."""
    with Embedder(["deny 1"], through=old_release()) as program:
        program(f"start(*{python(LINGERING)})")
        with pytest.raises(EmbedderError) as caught:
            program("guard.wait_listening(timeout=20)")
    assert caught.value.kind == "TargetExited"


@pytest.mark.parametrize("wait", [[], ["--wait"]])
def test_run_ends_where_the_end_comes_late(wait):
    """`run` and `run --wait` end with the target's own status on old kernels."""
    command = [*old_release(), sys.executable, "-m", "portseccomp", "run"]
    command += ["--deny", "1", *wait, "--", *python(LINGERING)]
    assert subprocess.run(command, timeout=LIMIT).returncode == 7


def test_events_end_where_the_end_comes_late():
    """Events end on old kernels when no guarded process is left."""
    with Embedder(["deny 1"], through=old_release()) as program:
        program(f"start(*{python(LINGERING)})")
        assert program("list(guard.events())", limit=3) == []


# ---- rights that the supervisor has and the target has not ----

# In a network namespace of its own, whose privileged ports end at START, bind PORT
# without any capability. PROC is where /proc can be seen.
BIND_UNPRIVILEGED = """
import ctypes, os, socket, struct, sys
proc, start, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000 | 0x40000000) == 0  # CLONE_NEWUSER, CLONE_NEWNET
for name, text in (("self/setgroups", "deny"), ("self/uid_map", "0 0 1"),
                   ("sys/net/ipv4/ip_unprivileged_port_start", start)):
    with open(f"{proc}/{name}", "w") as file:
        file.write(text)
assert libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) == 0
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    one.bind(("127.0.0.1", port))
    print("bound")
except PermissionError:
    print("refused")
"""


def bind_unprivileged(through: tuple[str, ...], *arguments: str) -> str:
    """What that prints under a guard, and must print without one."""
    command = python(BIND_UNPRIVILEGED, *arguments)
    alone = [command[0], "-c", BIND_UNPRIVILEGED, "/proc", *arguments[1:]]
    assert subprocess.run(alone, stdout=-1, text=True).stdout == "refused\n"
    with Embedder(["deny 7"], through=through) as program:
        done = f"guard.run({command}, capture_output=True).stdout.decode()"
        return program(done)


@needs_root
@pytest.mark.parametrize("world", ["whole", "no-netns"])
def test_no_privileged_port_where_the_namespace_is_not_told(victim, world, request):
    """Where SIOCGSKNS is refused the supervisor's right is not lent to the target."""
    refused = ("get_netns=EPERM",) if world == "no-netns" else ()
    through = launcher(victim, *refused)
    assert bind_unprivileged(through, "/proc", "1024", "80") == "refused\n"


@needs_root
@pytest.mark.parametrize("world", ["whole", "hidden"])
def test_no_privileged_port_where_the_threshold_is_not_told(tmp_path, world):
    """Without /proc a namespace's own threshold holds all the same."""
    if world == "whole":
        assert bind_unprivileged((), "/proc", "2000", "1500") == "refused\n"
        return
    script = (
        'mount --bind /proc "$1" && mount -t tmpfs none /proc && shift && exec "$@"'
    )
    through = (need("unshare", "util-linux"), "-m", "sh", "-c", script, "sh")
    through = (*through, str(tmp_path))
    assert bind_unprivileged(through, str(tmp_path), "2000", "1500") == "refused\n"


@needs_root
def test_probe_without_proc(victim):
    """`portseccomp probe` says what works where /proc can't be seen."""
    command = [*launcher(victim, "proc"), sys.executable, "-m", "portseccomp", "probe"]
    done = subprocess.run(command, stdout=-1, stderr=-1, text=True)
    assert done.returncode == 0
    assert done.stdout.endswith("a guard works here\n")


def test_probe_without_kcmp(victim):
    """Where threads can't be copied from at all probe says that."""
    command = [*launcher(victim, THREAD, "kcmp=EPERM"), sys.executable]
    command += ["-m", "portseccomp", "probe"]
    done = subprocess.run(command, stdout=-1, stderr=-1, text=True)
    assert "  no   kcmp " in done.stdout
