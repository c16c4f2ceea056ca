"""A target binds privileged ports exactly where it may without a guard.

The supervisor performs the calls, and is root here: what a target may comes
from the target. Each case is run without a guard as well, and must give the
same. Network namespaces of their own keep the system's ports out of the way.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
from conftest import need
from embedder import Embedder

import portseccomp
from portseccomp import ALLOW, Guard

LIMIT = 30.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

POLICIES = {
    "can-deny": ("deny 7", None),
    "can-not-deny": (None, None),
    "hook": ("ask any", lambda request: ALLOW),
    "moves": ("move 7 -> 9", None),
}
GUARDED = pytest.mark.parametrize("policy", POLICIES)

PORTS = ["udp4=80", "udp6=80", "tcp4=80", "tcp6=80", "udp4=0", "tcp4=0"]
HIGH = ["udp4=1024", "tcp4=1024", "udp4=1023", "tcp4=1023", "tcp6=1023", "udp6=1024"]

# Steps of the victim, and what the binds to port 80 must give.
CASES = {
    "root": (["net"], "0"),
    "dropped": (["net", "drop"], "EACCES"),
    "all dropped": (["net", "all"], "EACCES"),
    "laid down": (["net", "off"], "EACCES"),
    "laid down and taken up": (["net", "off", "on"], "0"),
    "other user": (["net", "uid=65534"], "EACCES"),
    "user namespace": (["user", "net"], "0"),
    "user namespace dropped": (["user", "net", "drop"], "EACCES"),
    "user namespace all dropped": (["user", "net", "all"], "EACCES"),
    "user namespace only": (["net", "user"], "EACCES"),
    "two user namespaces": (["user", "net", "user"], "EACCES"),
    "user of a user namespace": (["uid=65534", "user", "net"], "0"),
    "its threshold is 0": (["user", "net", "start=0", "all"], "0"),
    "threshold 0": (["net", "start=0", "all"], "0"),
    "threshold 80": (["net", "start=80", "all"], "0"),
    "threshold 81": (["net", "start=81", "all"], "EACCES"),
    "its threshold is 81": (["user", "net", "start=81", "all"], "EACCES"),
    "threshold 30000": (["net", "start=30000"], "0"),
    "dropped on a thread": (["net", "thread", "drop"], "EACCES"),
    "net namespace of a thread": (["thread", "net", "drop"], "EACCES"),
}


def run(command: list[str], policy: str | None = None, **options) -> str:
    """Run a command, under the named policy if there is one; its output."""
    options = {"stdout": -1, "stderr": -2, "timeout": LIMIT, **options}
    if policy is None:
        done = subprocess.run(command, **options)
    else:
        rules, hook = POLICIES[policy]
        with Guard(rules, hook=hook) as guard:
            done = guard.run(command, **options)
            stats = guard.stats()
            assert (stats.failed, stats.hook_errors) == (0, 0)
    assert done.returncode == 0, done.stdout
    return done.stdout.decode()


@pytest.fixture(scope="module")
def public_place():
    """A directory from which every user can run programs."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        yield place


@pytest.fixture(scope="module")
def public_binder(victim, public_place):
    """The victim where every user can run it."""
    return shutil.copy(victim("bindprivilege"), public_place)


@needs_root
@GUARDED
@pytest.mark.parametrize("case", CASES)
def test_privileged_ports_are_as_without_a_guard(victim, case, policy):
    """Who may not bind port 80 may not under a guard; who may, may."""
    steps, expected = CASES[case]
    command = [victim("bindprivilege"), *steps, *PORTS, *HIGH]
    outside = run(command)
    assert run(command, policy) == outside
    results = dict(line.split(": ") for line in outside.splitlines())
    assert {results[f"{one} 80"] for one in ("udp4", "udp6", "tcp4", "tcp6")} == {
        expected
    }


@needs_root
@GUARDED
@pytest.mark.parametrize("start", [1, 1000, 1024, 2000, 30000])
def test_threshold_of_another_network_namespace(victim, policy, start):
    """ip_unprivileged_port_start counts where the socket is, not where we are."""
    ports = [1, 80, start - 1, start, start + 1, 5000]
    binds = [f"{what}={port}" for what in ("udp4", "tcp4") for port in ports if port]
    command = [victim("bindprivilege"), "net", f"start={start}", "all", *binds]
    outside = run(command)
    assert f"udp4 {start}: 0\n" in outside
    assert start == 1 or f"tcp4 {start - 1}: EACCES\n" in outside
    assert run(command, policy) == outside


@needs_root
@GUARDED
def test_the_sockets_network_namespace_decides(victim, policy):
    """A socket from the first namespace is bound there, wherever its owner is."""
    binder = victim("bindprivilege")
    # In a namespace of our own: its threshold is the usual one, its ports free.
    command = [binder, "net", "early=82", "user", "net", "start=0", "late", "udp4=82"]
    outside = run(command)
    assert outside == "late 82: EACCES\nudp4 82: 0\n"
    assert run(command, policy) == outside
    command = [binder, "net", "start=0", "early=82", "net", "all", "late", "udp4=82"]
    outside = run(command)
    assert outside == "late 82: 0\nudp4 82: EACCES\n"
    assert run(command, policy) == outside


@needs_root
@GUARDED
def test_popen_as_another_user(public_binder, policy):
    """A target that popen starts with user= has the rights of that user."""
    command = [public_binder, "udp4=83", "tcp4=83", "udp4=0", "tcp4=0"]
    options = {"user": 65534, "group": 65534, "extra_groups": []}
    outside = run(command, **options)
    assert outside.splitlines()[:2] == ["udp4 83: EACCES", "tcp4 83: EACCES"]
    assert run(command, policy, **options) == outside


@needs_root
@GUARDED
@pytest.mark.parametrize("tool", ["setpriv", "capsh"])
def test_real_tools_that_drop_the_capability(victim, policy, tool):
    """After setpriv or capsh has dropped the capability port 80 is refused."""
    command = [victim("bindprivilege"), "udp4=80", "tcp4=80", "udp6=80", "tcp4=8080"]
    netns = [need("unshare", "util-linux"), "-n"]
    up = 'ip link set lo up && exec "$@"'
    need("ip", "iproute2")
    if tool == "setpriv":
        path = need("setpriv", "util-linux")
        drop = [path, "--inh-caps=-all", "--bounding-set=-net_bind_service"]
    else:
        path = need("capsh", "libcap2-bin")
        drop = [path, "--drop=cap_net_bind_service", "--", "-c", '"$@"', "sh"]
    full = [*netns, "sh", "-c", up, "sh", *drop, *command]
    outside = run(full)
    assert outside.startswith("udp4 80: EACCES\ntcp4 80: EACCES\nudp6 80: EACCES\n")
    assert run(full, policy) == outside


@needs_root
@GUARDED
@pytest.mark.parametrize("drops", [False, True])
def test_unshare_as_people_use_it(victim, policy, drops):
    """In `unshare -Urn` uid 0 may bind port 80; without the capability it may not."""
    steps = ["drop"] if drops else []
    command = [need("unshare", "util-linux"), "-Urn", victim("bindprivilege")]
    command += [*steps, "udp4=80", "udp4=0"]
    expected = "EACCES" if drops else "0"
    # The loopback device is down there, but bind works on its address.
    outside = run(command)
    assert outside == f"udp4 80: {expected}\nudp4 0: 0\n"
    assert run(command, policy) == outside


@needs_root
@pytest.mark.parametrize("steps", [["net", "all"], ["net", "drop"], ["user", "net"]])
@pytest.mark.parametrize("what", ["udp4", "tcp4", "udp6", "tcp6"])
def test_a_move_gives_no_privilege(victim, what, steps):
    """Moved to a privileged port, a target gets what it gets for asking for it."""
    binder = victim("bindprivilege")
    asked = run([binder, *steps, f"{what}=84"]).replace(" 84:", " 8084:")
    with Guard("move 8084 -> 84") as guard:
        done = guard.run([binder, *steps, f"{what}=8084"], stdout=-1)
        event = next(iter(guard.events()))
    assert done.stdout.decode() == asked
    assert (event.verdict, event.rule) == ("move", "move 8084 -> 84")
    assert event.errno == ("EACCES" if steps[0] == "net" else None)


@needs_root
@pytest.mark.parametrize("steps", [["net", "all"], ["net"]])
def test_a_move_away_needs_no_privilege(victim, steps):
    """Moved away from a privileged port, nobody needs a privilege."""
    command = [victim("bindprivilege"), *steps, "udp4=84", "tcp4=84", "udp6=84"]
    with Guard("move 84 -> 8084") as guard:
        done = guard.run(command, stdout=-1)
    assert done.stdout == b"udp4 84: 0\ntcp4 84: 0\nudp6 84: 0\n"


@needs_root
@pytest.mark.parametrize("steps", [["net", "all"], ["net"]])
def test_a_hooks_move_gives_no_privilege(victim, steps):
    """A hook that moves to a privileged port gives no privilege either."""
    command = [victim("bindprivilege"), *steps, "udp4=8084"]
    with Guard(hook=lambda request: portseccomp.move(port=84)) as guard:
        done = guard.run(command, stdout=-1)
    expected = "EACCES" if "all" in steps else "0"
    assert done.stdout.decode() == f"udp4 8084: {expected}\n"


@needs_root
@GUARDED
def test_no_other_capability_is_lent(victim, policy):
    """A target without CAP_AUDIT_READ can't bind the audit group."""
    command = [victim("bindprivilege"), "all", "audit"]
    outside = run(command)
    if "no socket" in outside:
        pytest.skip("needs a kernel with CONFIG_AUDIT")
    assert outside == "audit: EPERM\n"
    assert run(command, policy) == outside


UNPRIVILEGED = """
import subprocess, sys
from portseccomp import Guard
policy, *command = sys.argv[1:]
with Guard(policy or None) as guard:
    done = guard.run(command, stdout=-1, stderr=-2)
sys.stdout.buffer.write(done.stdout)
"""


@needs_root
@pytest.mark.parametrize("policy", ["deny 1", ""])
@pytest.mark.parametrize(
    "steps",
    [[], ["user", "net"], ["user", "net", "drop"], ["user", "net", "all"]],
    ids="-".join,
)
def test_supervisor_without_privileges(public_binder, policy, steps):
    """Under a supervisor that is no root, targets may what they may without."""
    path = need("setpriv", "util-linux")
    user = [path, "--reuid=65534", "--regid=65534", "--clear-groups"]
    user += ["--inh-caps=-all", "--bounding-set=-all"]
    command = [public_binder, *steps, "udp4=80", "tcp4=80", "udp4=8080"]
    guard = [sys.executable, "-c", UNPRIVILEGED, policy]
    package = os.path.dirname(os.path.dirname(portseccomp.__file__))
    seen = subprocess.run(
        [*user, sys.executable, "-c", "import portseccomp"],
        cwd=package,
        capture_output=True,
    )
    if seen.returncode != 0:
        pytest.skip("needs an interpreter and a package that every user can read")
    outside = run([*user, *command])
    assert run([*user, *guard, *command], cwd=package) == outside
    expected = "0" if steps == ["user", "net"] else "EACCES"
    assert outside.startswith(f"udp4 80: {expected}\ntcp4 80: {expected}\n")


# ---- namespaces that the supervisor can't look at ----

# In user and network namespaces of its own, whose privileged ports end at 2000:
# binds what each line says ("udp 80"), keeps it until the next one, and prints
# the result. "all" lays every capability down.
LENT = """
import ctypes, errno, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000 | 0x40000000) == 0  # CLONE_NEWUSER, CLONE_NEWNET
for name, text in (("self/setgroups", "deny"), ("self/uid_map", "0 0 1"),
                   ("sys/net/ipv4/ip_unprivileged_port_start", "2000")):
    with open(f"/proc/{name}", "w") as file:
        file.write(text)
if sys.argv[1] == "all":
    assert libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) == 0
print("ready", flush=True)
for line in sys.stdin:
    kind, port = line.split()
    with socket.socket(type=socket.SOCK_STREAM if kind == "tcp" else 2) as one:
        try:
            one.bind(("127.0.0.1", int(port)))
            if kind == "tcp":
                one.listen()
            print("0", flush=True)
        except OSError as error:
            print(errno.errorcode[error.errno], flush=True)
        sys.stdin.readline()
        print("closed", flush=True)
"""
PRIVILEGED = ["udp 80", "tcp 80", "udp 1500", "tcp 1500"]


def bound_there(pid: int) -> set[str]:
    """The ports that are taken in the network namespace of a process."""
    found = set()
    for kind in ("udp", "tcp"):
        with open(f"/proc/{pid}/net/{kind}") as table:
            for line in list(table)[1:]:
                port = int(line.split()[1].rpartition(":")[2], 16)
                found.add(f"{kind} {port}")
    return found


class Borrower:
    """That target, under a guard in a process of its own."""

    def __init__(self, program: Embedder, capabilities: str) -> None:
        self.program = program
        self.number = program(
            f"start({sys.executable!r}, '-c', {LENT!r}, {capabilities!r})"
        )
        assert program(f"hear({self.number})") == "ready"
        self.pid = program(f"_targets[{self.number}].pid")

    def say(self, line: str) -> str:
        self.program(f"_targets[{self.number}].stdin.write({line.encode()!r})")
        return self.program(f"hear({self.number})")

    def bind(self, what: str) -> str:
        """Bind; the result is looked at from outside."""
        result = self.say(f"{what}\n")
        # A TCP socket may be bound where it may not listen: not so here.
        assert bound_there(self.pid) == ({what} if result == "0" else set())
        assert self.say("\n") == "closed"
        return result


@needs_root
def test_no_privileged_port_while_descriptors_run_out():
    """With 0 to 9 descriptors left to read its namespace, no port is lent."""
    got: dict[int, list[str]] = {}
    with Embedder(["deny 7"]) as program:
        one = Borrower(program, "all")
        assert [one.bind(what) for what in PRIVILEGED] == ["EACCES"] * 4
        for free in [*range(10), *reversed(range(10))]:
            program(f"fill({free})")
            assert [one.bind(what) for what in PRIVILEGED] == ["EACCES"] * 4, free
            got[free] = [one.bind("udp 2500"), one.bind("tcp 2500")]
            program("give_back()")
        assert program(f"end({one.number})") == 0
    # What it may bind it may bind as soon as there are enough: some tries above
    # ended in each of the steps between.
    assert (got[0], got[9]) == (["EACCES"] * 2, ["0"] * 2)


@needs_root
def test_own_privileged_port_while_descriptors_run_out():
    """A target that may bind port 80 is denied while its right can't be read."""
    with Embedder(["deny 7"]) as program:
        one = Borrower(program, "none")
        for free in range(10):
            program(f"fill({free})")
            results = {one.bind(what) for what in PRIVILEGED}
            program("give_back()")
            assert results <= {"0", "EACCES"}
            assert free or results == {"EACCES"}
        assert results == {"0"}
        assert [one.bind(what) for what in PRIVILEGED] == ["0"] * 4
        assert program(f"end({one.number})") == 0


@needs_root
@pytest.mark.parametrize(
    "refused",
    [
        ["get_netns=EMFILE"],
        ["get_netns=EPERM"],
        ["get_netns=ENOTTY"],
        ["netns_cookie=ENOPROTOOPT"],  # Linux 5.13
        ["netns_cookie=ENOPROTOOPT", "get_netns=EMFILE"],
        ["netns_cookie=ENOPROTOOPT", "get_netns=ENOTTY"],
    ],
    ids="-".join,
)
def test_no_privileged_port_where_the_namespace_is_refused(victim, refused):
    """Whatever keeps the supervisor from the socket's namespace, no port is lent."""
    through = (victim("refuse"), *refused, "--")
    with Embedder(["deny 7"], through=through) as program:
        one = Borrower(program, "all")
        for _ in range(20):
            assert [one.bind(what) for what in PRIVILEGED] == ["EACCES"] * 4
        assert program(f"end({one.number})") == 0


# ---- hooks ----


def effective() -> str:
    """The effective capabilities of this thread."""
    with open("/proc/thread-self/status") as file:
        return next(line for line in file if line.startswith("CapEff"))


@needs_root
@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_hook_that_moves_a_listen_to_a_privileged_port(victim, public_place, kind):
    """Whoever's thread answers lends its rights to nobody, and keeps them itself."""
    listener = shutil.copy(victim("listen"), public_place)
    # The port is privileged in the first network namespace, and its own in the other.
    ways = {(): "EACCES", (need("unshare", "util-linux"), "-Urn"): "0"}

    def function(request) -> portseccomp.Verdict:
        return portseccomp.move(port=84)

    async def coroutine(request) -> portseccomp.Verdict:
        return function(request)

    def listen(guard: Guard, through: tuple[str, ...]) -> str:
        command = [*through, listener, "tcp4", "-", "0"]
        user = {"user": 65534, "group": 65534, "extra_groups": []}
        done = guard.run(command, stdout=subprocess.PIPE, timeout=LIMIT, **user)
        return done.stdout.decode().splitlines()[0].removeprefix("listen: ")

    async def main() -> None:
        before = effective()
        hook = coroutine if kind == "coroutine" else function
        for through, expected in ways.items():
            with Guard("ask tcp:any", hook=hook) as guard:
                for _ in range(3):
                    result = await asyncio.to_thread(listen, guard, through)
                    assert (result, effective()) == (expected, before)
                assert guard.stats().asked == 3

    asyncio.run(main())


CHANGED_AND_BACK = """
import os, sys
from portseccomp import ALLOW, Guard
policy, *command = sys.argv[1:]
with Guard(policy, hook=(lambda request: ALLOW) if "ask" in policy else None) as guard:
    os.seteuid(65534)
    os.seteuid(0)
    done = guard.run(command, stdout=-1, stderr=-2, user=65534)
sys.stdout.buffer.write(done.stdout)
"""


@needs_root
@pytest.mark.parametrize("policy", ["deny 1", "ask any", "move 80 -> 81"])
def test_program_that_changes_its_user_and_back(public_binder, policy):
    """Its threads have every capability again; a target has no more than its own."""
    command = [public_binder, "udp4=80", "tcp4=80", "udp4=8080"]
    guard = [sys.executable, "-c", CHANGED_AND_BACK, policy]
    assert run([*guard, *command]) == (
        "udp4 80: EACCES\ntcp4 80: EACCES\nudp4 8080: 0\n"
    )
