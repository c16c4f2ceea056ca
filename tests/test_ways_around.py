"""Ways around a filter: each opens a port without a guard, and none under one.

A victim (tests/victims/way_*.c) makes its attack some times, keeps every socket,
and waits; what is open is asked of the kernel from outside meanwhile. Each attack
runs three times: without a guard, where it opens its port, or it would show
nothing; under policies that deny the port; and under one that allows it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from conftest import accepts, has_socket, need, need_feature, python

from portseccomp import Guard, Stats

LIMIT = 60.0  # seconds; only a hang takes as long

MPTCP = 262

x86_64 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="needs an x86-64 machine"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# How often each is tried under a guard. A plain one is a matter of milliseconds.
TRIES = {"call": 100, "uring": 100, "task": 30, "trace": 30, "filter": 50, "socket": 50}

CALLS = ["plain", "int80", "socketcall", "high", "wide"]
RINGS = ["enter", "sqpoll", "int80", "forked", "thread"]
TASKS = ["thread", "apart", "leaderless", "exec", "bare"]
TASKS += ["vfork", "files", "shared", "sibling", "clone3"]
TASKS += ["daemon", "userns", "netns", "setns", "undumpable", "rlimit"]
TRACES = ["entry", "info", "event", "exit", "restart", "midcall"]
FILTERS = ["allow", "log", "tsync", "trap", "dispatch", "listener", "strict"]
SOCKETS = ["passed", "fetched", "together", "reused", "reused-mptcp", "again"]
SOCKETS += ["moved", "accepted", "fast-open", "repair", "options"]
SOCKETS += ["addresses", "protocols", "beside"]

ATTACKS = [
    *(("task", one) for one in TASKS if one != "bare"),
    *(("socket", one) for one in SOCKETS),
    *(("filter", one) for one in FILTERS if one not in ("trap", "dispatch")),
]
# Registers and numbers of x86-64.
X86_ATTACKS = [
    *(("call", one) for one in CALLS),
    ("task", "bare"),
    *(("trace", one) for one in TRACES),
    ("filter", "trap"),
    ("filter", "dispatch"),
]
# Numbers and pages that are no call here: nothing opens, guarded or not.
NOWHERE = [("call", "x32"), ("call", "negative"), ("call", "vsyscall")]
NOWHERE += [("filter", "zero"), ("socket", "simultaneous")]
# Their last word is not the kernel's, or is about a port that may be open.
LIARS = {"zero", "simultaneous"}


class Seen(NamedTuple):
    """What an attack has said, and what was open while it waited."""

    name: str
    tries: int
    claims: int
    said: list[str]
    opened: set[str]


def table(path: str) -> Iterator[str]:
    """The endpoints of one of /proc/net's tables: of what `ss` does not know."""
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        for line in list(file)[1:]:
            host, _, number = line.split()[1].rpartition(":")
            yield f"udplite {host}:{int(number, 16)}"


def all_open() -> Iterator[str]:
    """Each open port of this network namespace, as sock_diag tells."""
    ss = need("ss", "iproute2")
    for line in subprocess.check_output([ss, "-Hantu"], text=True).splitlines():
        protocol, state, _, _, local, *_ = line.split()
        if protocol == "udp" or state == "LISTEN":
            yield f"{protocol} {local}"
    yield from table("/proc/net/udplite")
    yield from table("/proc/net/udplite6")


def udp_is_open(number: int) -> bool:
    """Whether a datagram to the port of 127.0.0.1 is not refused."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("127.0.0.1", number))
        with contextlib.suppress(ConnectionRefusedError):
            one.send(b"?")
            one.send(b"?")  # gets the answer to the first
            return True
    return False


def look(*ports: int) -> set[str]:
    """What is open at some ports, by sock_diag and by the attempt to connect."""
    found = {one for one in all_open() if int(one.rpartition(":")[2]) in ports}
    for number in ports:
        if accepts("127.0.0.1", number) or accepts("::1", number):
            found.add(f"tcp accepts:{number}")
        if udp_is_open(number):
            found.add(f"udp accepts:{number}")
    return found


def finish(process: subprocess.Popen[str], ports: tuple[int, ...]) -> Seen:
    """Read what an attack says, look at its ports while it waits, and end it."""
    said = []
    for line in process.stdout:
        said.append(line.strip())
        if said[-1] == "holding":
            break
    assert said[-1:] == ["holding"], said
    opened = look(*ports)
    process.stdin.close()
    assert process.wait(LIMIT) == 0
    figures = dict(line.split(": ") for line in said[:-1])
    name = process.args[-4]
    return Seen(name, int(figures["tries"]), int(figures["claims"]), said, opened)


def attempt(guard: Guard | None, command: list[str], *ports: int, **options) -> Seen:
    """Run an attack to its end, guarded or not."""
    popen = subprocess.Popen if guard is None else guard.popen
    pipes = {"stdin": -1, "stdout": -1, "text": True}
    with popen(command, **pipes, **options) as process:
        try:
            return finish(process, ports)
        finally:
            process.kill()


def attack(victim, way: tuple[str, str], ports: tuple[int, int], tries: int, *flags):
    """The command of an attack."""
    program, name = way
    if name == "apart":
        # Else it is denied, whatever the policy, and a warning says so.
        need_feature("PIDFD_THREAD")
    return [victim(f"way_{program}", *flags), name, *map(str, (*ports, tries))]


@pytest.fixture
def ports(free_port) -> tuple[int, int]:
    """The port of the attack, and one that the policy may allow."""
    return free_port(), free_port()


@pytest.fixture
def figures(request) -> Callable[[str, int, int], None]:
    """Keep how often an attack was tried and how often it won (JUnit shows it)."""

    def keep(policy: str, tries: int, wins: int) -> None:
        found = f"{tries} tries, {wins} won"
        request.node.user_properties.append((policy, found))

    return keep


def permitted(policy: str, port: int) -> set[str]:
    """What may be open under a policy that allows a port of loopback, if any."""
    if not policy.startswith("allow"):
        return set()
    return {
        f"{protocol} {host}:{port}"
        for protocol in ("tcp", "udp")
        for host in ("127.0.0.1", "accepts")
    }


def guarded(policy, command, ports, **options) -> tuple[Seen, Stats]:
    """Run an attack under a policy, and wait until nobody is left."""
    with Guard(policy, event_buffer=16) as guard:
        seen = attempt(guard, command, *ports, **options)
        assert guard.wait(LIMIT)
        return seen, guard.stats()


def check_denied(command, ports, figures, **options) -> list[Seen]:
    """Run an attack under policies that deny its port: nothing may open."""
    found = []
    for policy in ("deny any", f"allow loopback:{ports[1]}"):
        seen, stats = guarded(policy, command, ports, **options)
        more = seen.opened - permitted(policy, ports[1])
        assert not more, (policy, seen)
        if seen.name not in LIARS:
            assert seen.claims == 0 or policy != "deny any", (policy, seen)
        assert stats.continued == 0
        figures(policy, seen.tries, len(more))
        found.append(seen)
    return found


def check(victim, way, ports, figures, *flags) -> None:
    """Run an attack without a guard, denied, and allowed."""
    one = attack(victim, way, ports, 1, *flags)
    outside = attempt(None, one, *ports)
    assert outside.opened - permitted("allow", ports[1]), outside

    many = attack(victim, way, ports, TRIES[way[0]], *flags)
    denied = check_denied(many, ports, figures)
    if way[0] == "uring":
        assert all("setup: ENOSYS" in seen.said for seen in denied)
        return
    # A guard that allows it changes nothing: what was denied was the attack.
    inside, _ = guarded("deny 1", one, ports)
    if way[1] == "undumpable" and os.geteuid() != 0:
        assert not inside.opened  # closed, where it can't be looked into
        return
    assert (inside.opened, inside.claims > 0) == (outside.opened, True), inside


@pytest.mark.filterwarnings("ignore:portseccomp can't apply the policy here")
@pytest.mark.parametrize("way", ATTACKS, ids="-".join)
def test_no_way_around(victim, ports, figures, way):
    """What opens a port without a guard opens none that the policy denies."""
    check(victim, way, ports, figures)


@x86_64
@pytest.mark.parametrize("way", X86_ATTACKS, ids="-".join)
def test_no_way_around_on_x86(victim, ports, figures, way):
    """Nor do call numbers, entries and registers that only x86-64 has."""
    if way[1] in ("int80", "socketcall") and not has_i386(victim, ports):
        pytest.skip("needs a kernel with 32-bit calls (CONFIG_IA32_EMULATION)")
    check(victim, way, ports, figures)


def has_i386(victim, ports) -> bool:
    """Whether a 64-bit program can make i386 calls on this kernel."""
    command = attack(victim, ("call", "int80"), ports, 1)
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        return "claims: 2\n" in process.communicate(timeout=LIMIT)[0]


@x86_64
@pytest.mark.parametrize("flags", [["-m32"], ["-m32", "-static"]], ids=" ".join)
def test_no_way_around_for_a_32_bit_program(victim, ports, figures, monkeypatch, flags):
    """Nor does a program that is built for i386, whatever entry its libc takes."""
    # Where Debian has the headers if no package for all of multilib is there.
    monkeypatch.setenv("CPATH", "/usr/include/x86_64-linux-gnu")
    empty = [*flags, "-xc", "-", "-o", "/dev/null"]
    source = b"#include <sys/socket.h>\nint main(void) { return 0; }\n"
    done = subprocess.run(["cc", *empty], input=source, stderr=-1)
    if done.returncode:
        pytest.skip("needs cc -m32: apt-get install gcc-12-multilib libc6-dev-i386")
    if not has_i386(victim, ports):
        pytest.skip("needs a kernel with 32-bit calls (CONFIG_IA32_EMULATION)")
    check(victim, ("call", "plain"), ports, figures, *flags)


@pytest.mark.parametrize("way", [("uring", one) for one in RINGS], ids="-".join)
def test_no_ring(victim, ports, figures, way):
    """No ring of io_uring binds or listens, whoever makes it and whoever submits."""
    if way[1] == "int80" and platform.machine() != "x86_64":
        pytest.skip("needs an x86-64 machine")
    command = attack(victim, way, ports, 1)
    outside = attempt(None, command, *ports)
    if outside.claims == outside.tries:
        check(victim, way, ports, figures)
    else:
        # Before Linux 6.11, and where it is switched off, a ring opens nothing.
        assert not outside.opened
        for seen in check_denied(command, ports, figures):
            assert "setup: ENOSYS" in seen.said


@x86_64
@pytest.mark.parametrize("way", NOWHERE, ids="-".join)
def test_ways_that_lead_nowhere(victim, ports, figures, way):
    """Numbers and tricks that open nothing here open nothing under a guard."""
    command = attack(victim, way, ports, TRIES[way[0]])
    if way != ("call", "x32"):  # a kernel may have those
        assert not attempt(None, command, *ports).opened
    for seen in check_denied(command, ports, figures):
        assert seen.tries >= TRIES[way[0]]


@pytest.mark.parametrize("what", ["stale", "stale-mptcp"])
def test_address_of_a_connection_that_is_gone(victim, ports, figures, what):
    """A socket that was connected by loopback does not pass for one of loopback."""
    if what == "stale-mptcp" and not has_socket(socket.AF_INET, MPTCP):
        pytest.skip("needs a kernel with MPTCP")
    port = ports[0]
    command = attack(victim, ("socket", what), ports, 1)
    outside = attempt(None, command, port)
    assert f"tcp 0.0.0.0:{port}" in outside.opened
    command = attack(victim, ("socket", what), ports, TRIES["socket"])
    seen, stats = guarded("allow loopback:any", command, [port])
    assert (seen.claims, seen.opened) == (0, set()), seen
    assert stats.denied == seen.tries
    figures("allow loopback:any", seen.tries, seen.claims)


# ---- other users ----


@pytest.fixture(scope="module")
def public(victim):
    """Build a victim where every user can run it."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        yield lambda *name: shutil.copy(victim(*name), place)


@needs_root
@pytest.mark.parametrize(
    "way",
    [
        *(("task", one) for one in ("apart", "leaderless", "userns", "undumpable")),
        *(
            pytest.param(("trace", one), marks=x86_64)
            for one in ("entry", "event", "restart", "suspend")
        ),
        ("socket", "fetched"),
        ("filter", "listener"),
    ],
    ids="-".join,
)
def test_no_way_around_for_another_user(public, ports, figures, way):
    """Nor does a target that runs as another user than its supervisor."""
    options = {"user": 65534, "group": 65534, "extra_groups": ()}
    command = attack(public, way, ports, TRIES[way[0]])
    for seen in check_denied(command, ports, figures, **options):
        assert seen.tries > 0


# ---- tracers ----


@x86_64
def test_filters_can_not_be_suspended(victim, ports, figures):
    """PTRACE_O_SUSPEND_SECCOMP is refused to a tracer that is guarded itself."""
    command = attack(victim, ("trace", "suspend"), ports, 1)
    outside = attempt(None, command, *ports)
    # CAP_SYS_ADMIN and CONFIG_CHECKPOINT_RESTORE: with both it is a way.
    refused = [one for one in outside.said if one.startswith("suspend: ")]
    assert bool(outside.opened) != bool(refused)
    if os.geteuid() != 0:
        assert refused
    for seen in check_denied(command, ports, figures):
        assert [one for one in seen.said if one.startswith("suspend: ")] in (
            ["suspend: EPERM"],
            ["suspend: EINVAL"],
        )


@x86_64
@pytest.mark.parametrize(("what", "tries"), [("rewrite", 5000), ("words", 30000)])
def test_memory_rewritten_by_another_process(victim, ports, figures, what, tries):
    """What is rewritten while a call waits was read before, once."""
    command = attack(victim, ("trace", what), ports, tries)
    policy = f"allow loopback:{ports[1]}"
    seen, stats = guarded(policy, command, ports)
    assert (seen.tries, seen.claims) == (tries, 0)
    assert not seen.opened - permitted(policy, ports[1])
    # It was a race: both were met.
    assert stats.denied > 0
    assert stats.allowed > 0
    figures(policy, seen.tries, seen.claims)


@x86_64
def test_rewritten_memory_wins_where_the_kernel_continues(victim, ports):
    """The attack is a real one: a supervisor that answers CONTINUE falls to it."""
    command = attack(victim, ("trace", "rewrite"), ports, 200000)
    continuer = [victim("bindcontinuer"), str(ports[0]), *command]
    outside = attempt(None, continuer, *ports)
    assert outside.claims == 1
    assert f"udp 127.0.0.1:{ports[0]}" in outside.opened


# ---- what is said not to be covered ----


def test_udp_ports_without_a_bind_are_not_covered(free_port):
    """As the README says: a datagram that is sent opens a port, of one's choice."""
    source = textwrap.dedent(
        """
        import socket, struct, sys
        low = int(open("/proc/sys/net/ipv4/ip_local_port_range").read().split()[0])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            try:
                one.setsockopt(0, 51, struct.pack("HH", low + 7, low + 7))
            except OSError:
                pass  # before Linux 6.3 the kernel chooses
            one.sendto(b"", ("127.0.0.1", 9))
            print(one.getsockname()[1], flush=True)
            sys.stdin.read()
        """
    )
    with (
        Guard("deny any") as guard,
        guard.popen(python(source), stdin=-1, stdout=-1, text=True) as process,
    ):
        number = int(process.stdout.readline())
        assert udp_is_open(number)
        process.stdin.close()
        assert guard.stats().requests == 0


# In a network namespace of its own, so that nothing is left behind.
BY_NETLINK = {
    "mptcp": "ip mptcp endpoint add 127.0.0.1 port 4444 signal && ss -Hlnt",
    "vxlan": "ip link add v type vxlan id 1 dstport 4444 && ip link set v up; ss -Hlnu",
}


@needs_root
@pytest.mark.parametrize("what", BY_NETLINK)
def test_sockets_of_the_kernel_are_not_covered(what):
    """With CAP_NET_ADMIN, netlink makes the kernel open ports: nobody calls `bind`."""
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux")):
        need(program, package)
    if what == "mptcp" and not has_socket(socket.AF_INET, MPTCP):
        pytest.skip("needs a kernel with MPTCP")
    script = f"ip link set lo up && {BY_NETLINK[what]}"
    command = ["unshare", "-n", "sh", "-c", script]
    with Guard("deny any") as guard:
        done = guard.run(command, stdout=-1, stderr=-2, text=True)
        stats = guard.stats()
    # Where the kernel has no MPTCP, or no VXLAN, it says so.
    assert (
        ":4444 " in done.stdout
        or "not supported" in done.stdout.lower()
        or ("Unknown device type" in done.stdout)
    ), done.stdout
    assert stats.failed == 0
