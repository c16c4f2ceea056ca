"""Programs that embed a guard and come to an end: forked, ended, looked at after.

    nursery.py CLAMOUR CASE ROUNDS [RULE...]

One round: fork a program from this warm interpreter; it opens a guard and
starts tests/victims/clamour.c; kill it at a random moment, or let it end as
CASE says; wait until all of its targets have seen ENOSYS many times; look from
here, outside of the guard, whether a port is open that must not be. Prints what
was found as JSON.

A port that has opened for however short stays open: the victims never close the
sockets. So one look at the end of a round sees all of it.
"""

from __future__ import annotations

import atexit
import collections
import ctypes
import errno
import json
import mmap
import multiprocessing
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from portseccomp import Guard

LIMIT = 20.0  # seconds; only a hang takes as long
TIMES = 5  # calls that have to give ENOSYS
WORKERS = 3
RECORDS, RECORD = 1024, 128  # where they are, and how long: clamour.c
FIELDS = ("pid", "since", "longest", "calls", "refused", "wrong", "error", "dead")

# Words of the shared memory, before the records.
PHASE, HOOKS, IN_HOOK, SURVIVORS = 0, 1, 2, 16
BEFORE, OPENING, STARTING, RUNNING, CALLING, HOOK, CLOSING, CLOSED = range(8)
PHASES = ["before", "opening", "starting", "running", "calling", "hook", "closing"]
PHASES.append("closed")

# Seconds in which the kill comes after the phase has begun.
SPREAD = {OPENING: 0.002, STARTING: 0.003, CALLING: 0.003, HOOK: 0.001, CLOSING: 0.001}

shared = mmap.mmap(-1, 4096)
path = ""
ports: tuple[int, int] = (0, 0)
rules: list[str] = []
clamour = ""


def word(index: int) -> int:
    return struct.unpack_from("=Q", shared, 8 * index)[0]


def put(index: int, value: int) -> None:
    struct.pack_into("=Q", shared, 8 * index, value)


def records() -> list[dict[str, int]]:
    """What the victims say of their calls."""
    found = []
    for i in range(WORKERS):
        values = struct.unpack_from("=9Q", shared, RECORDS + i * RECORD)
        found.append(dict(zip((*FIELDS, "done"), values, strict=True)))
    return found


# ---- the embedding program ----


def live_on(index: int) -> None:
    """Be a child that outlives the embedding program."""
    put(SURVIVORS + index, os.getpid())
    while True:
        time.sleep(1000)


def live_on_elsewhere(where: str, index: int) -> None:
    """live_on() in a process that multiprocessing started afresh."""
    global shared
    with open(where, "r+b") as file:
        shared = mmap.mmap(file.fileno(), 4096)
    live_on(index)


def fork(index: int) -> None:
    if (pid := os.fork()) == 0:
        live_on(index)
    put(SURVIVORS + index, pid)


def fork_twice(index: int) -> None:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        fork(index)
        os._exit(0)
    os.waitpid(pid, 0)


def forkpty(index: int) -> None:
    pid, _ = os.forkpty()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # its terminal ends
        live_on(index)
    wait_for(lambda: word(SURVIVORS + index))


def libc_fork(index: int) -> None:
    """As an extension does, past Python's handlers."""
    if (pid := ctypes.PyDLL(None).fork()) == 0:
        live_on(index)
    put(SURVIVORS + index, pid)


def clone(libc: ctypes.PyDLL) -> int:
    """A fork past libc's handlers too."""
    number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    # A child that is asked to give way to a thread that it does not have waits for
    # ever. Nobody asks so soon after this thread has had its own turn.
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.5)
    time.sleep(0.01)
    pid = libc.syscall(number, signal.SIGCHLD, 0, 0, 0, 0)
    if pid:
        sys.setswitchinterval(usual)
    return pid


def raw_fork(index: int) -> None:
    """A child that goes on without any of libc's handlers."""
    libc = ctypes.PyDLL(None)
    pid = clone(libc)
    if pid == 0:
        while True:
            libc.pause()
    put(SURVIVORS + index, pid)


def raw_fork_and_exec(index: int) -> None:
    """As programs do that know what they do."""
    libc = ctypes.PyDLL(None)
    arguments = (ctypes.c_char_p * 3)(b"sleep", b"1000", None)
    pid = clone(libc)
    if pid == 0:
        libc.execv(b"/bin/sleep", arguments)
    put(SURVIVORS + index, pid)


def with_multiprocessing(method: str, index: int) -> None:
    context = multiprocessing.get_context(method)
    context.Process(target=live_on_elsewhere, args=[path, index]).start()
    wait_for(lambda: word(SURVIVORS + index))


def with_popen(index: int, **options: object) -> None:
    process = subprocess.Popen(["sleep", "1000"], **options)
    put(SURVIVORS + index, process.pid)
    process.returncode = 0  # it is not ours to wait for


def pass_fds(index: int) -> None:
    """All descriptors that are not the guard's own."""
    read, write = os.pipe()
    with_popen(index, pass_fds=[read, write])


def preexec(index: int) -> None:
    with_popen(index, preexec_fn=os.setsid)


def spawned(index: int) -> None:
    arguments = ["sleep", "1000"]
    put(SURVIVORS + index, os.posix_spawn("/bin/sleep", arguments, os.environ))


CHILDREN = {
    "fork": fork,
    "fork-twice": fork_twice,
    "forkpty": forkpty,
    "libc-fork": libc_fork,
    "raw-fork": raw_fork,
    "raw-fork-and-exec": raw_fork_and_exec,
    "mp-fork": lambda index: with_multiprocessing("fork", index),
    "mp-forkserver": lambda index: with_multiprocessing("forkserver", index),
    "mp-spawn": lambda index: with_multiprocessing("spawn", index),
    "popen-open-fds": lambda index: with_popen(index, close_fds=False),
    "popen-pass-fds": pass_fds,
    "popen-preexec": preexec,
    "posix-spawn": spawned,
}


def hook(request) -> bool:
    """Refuse, some time later."""
    put(HOOKS, word(HOOKS) + 1)
    put(IN_HOOK, 1)
    time.sleep(random.random() * 0.002)
    put(IN_HOOK, 0)
    return False


def make_guard(**options) -> Guard:
    denied, asked = ports
    mine = rules or [f"deny {denied}", f"ask {asked}"]
    return Guard(mine, **{"hook": hook, "hook_timeout": 60.0, **options})


def start(guard: Guard) -> None:
    command = [clamour, path, str(ports[0]), str(ports[1]), str(TIMES)]
    guard.popen(command).returncode = 0  # the nursery waits for it


def called() -> bool:
    """Whether each of the targets has called."""
    return all(one["calls"] for one in records())


def wait_for(condition, limit: float = LIMIT) -> bool:
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.00005)
    return True


def sleep_for_ever() -> None:
    while True:
        time.sleep(1000)


def embed(case: str, goal: int) -> None:
    """Open a guard, start targets, and stay, or close: the usual program."""
    how, _, child = case.partition(":")
    make = CHILDREN.get(child, lambda index: None)
    if how == "before":
        for i in range(2):
            make(i)
    put(PHASE, OPENING)
    guard = make_guard()
    put(PHASE, STARTING)
    start(guard)
    if how in ("after", "closed"):
        for i in range(2):
            make(i)
    put(PHASE, RUNNING)
    if goal == CLOSING or how == "closed":
        wait_for(called)
        time.sleep(random.random() * 0.003)
        put(PHASE, CLOSING)
        guard.close()
        put(PHASE, CLOSED)
    sleep_for_ever()


def embed_while(case: str, goal: int) -> None:
    """Fork while other threads open and close guards; then as usual."""
    make = CHILDREN[case.partition(":")[2]]
    stop = threading.Event()

    def open_and_close() -> None:
        while not stop.is_set():
            with make_guard() as other:
                other.call(int)

    def open_mine() -> None:
        # No popen yet: one that runs beside a fork hangs, guard or none, as
        # the forked child keeps the pipe on which Popen waits.
        mine.append(make_guard())

    mine: list[Guard] = []
    threads = [threading.Thread(target=open_and_close, daemon=True) for _ in range(2)]
    threads.append(threading.Thread(target=open_mine, daemon=True))
    for one in threads:
        one.start()
    for i in range(6):
        time.sleep(random.random() * 0.001)
        make(i)
    stop.set()
    for one in threads:
        one.join()
    start(mine[0])
    put(PHASE, RUNNING)
    sleep_for_ever()


def running(**options) -> Guard:
    """A guard whose targets have called."""
    put(PHASE, OPENING)
    guard = make_guard(**options)
    put(PHASE, STARTING)
    start(guard)
    put(PHASE, RUNNING)
    wait_for(called)
    time.sleep(random.random() * 0.003)
    return guard


def end_by_return() -> None:
    kept.append(running())
    sys.exit(0)


def end_in_hook() -> None:
    """The interpreter ends while a hook hangs."""
    entered = threading.Event()

    def hang(request) -> bool:
        entered.set()
        for one in records():  # it is never answered: not one to wait for
            put((RECORDS // 8) + 16 * 2 + 3, max(one["calls"], 1))
        sleep_for_ever()
        return True

    kept.append(running(hook=hang))
    entered.wait()
    sys.exit(0)


def end_by_os_exit() -> None:
    kept.append(running())
    os._exit(0)


def end_by_exec() -> None:
    kept.append(running())
    os.execv("/bin/sleep", ["sleep", "1000"])


def end_by_exec_in_hook() -> None:
    def become(request) -> bool:
        wait_for(lambda: all(one["calls"] for one in records()[:2]))
        os.execv("/bin/sleep", ["sleep", "1000"])

    kept.append(running(hook=become))
    sleep_for_ever()


def end_by_exit_in_hook() -> None:
    def leave(request) -> bool:
        wait_for(lambda: all(one["calls"] for one in records()[:2]))
        os._exit(0)

    kept.append(running(hook=leave))
    sleep_for_ever()


def end_in_daemon_thread() -> None:
    """The guard lives in a daemon thread, and the main thread ends."""
    ready = threading.Event()

    def body() -> None:
        kept.append(running())
        ready.set()
        sleep_for_ever()

    threading.Thread(target=body, daemon=True).start()
    ready.wait()
    sys.exit(0)


def end_in_atexit() -> None:
    """The guard is opened when the interpreter ends, and never closed."""

    def late() -> None:
        try:
            kept.append(running())
        except RuntimeError as error:  # Python 3.12 starts no threads then
            assert "interpreter shutdown" in str(error), error

    atexit.register(late)
    sys.exit(0)


def end_with_atexit_close() -> None:
    """The guard is closed when the interpreter ends."""
    kept.append(running())
    atexit.register(kept[0].close)
    sys.exit(0)


def sys_exit_in_hook() -> None:
    """SystemExit in a hook refuses the call, and ends nothing."""

    def leave(request) -> bool:
        sys.exit(3)

    guard = running(hook=leave)
    errors = guard.stats().hook_errors
    assert errors > 0
    kept.append(guard)
    sleep_for_ever()


def fork_in_hook() -> None:
    """The first hook forks children that live on."""
    made = iter(range(2))

    def multiply(request) -> bool:
        for index in made:
            fork(index)
        return False

    kept.append(running(hook=multiply))
    sleep_for_ever()


kept: list[Guard] = []
ENDS = {
    "return": end_by_return,
    "return-hook": end_in_hook,
    "return-daemon-thread": end_in_daemon_thread,
    "return-atexit": end_in_atexit,
    "return-atexit-close": end_with_atexit_close,
    "os-exit": end_by_os_exit,
    "os-exit-in-hook": end_by_exit_in_hook,
    "exec": end_by_exec,
    "exec-in-hook": end_by_exec_in_hook,
    "sys-exit-in-hook": sys_exit_in_hook,
    "fork-in-hook": fork_in_hook,
}
SIGNALS = {"sigterm": signal.SIGTERM, "sigint": signal.SIGINT, "stop": signal.SIGSTOP}
# They end by themselves, or become something else.
BY_THEMSELVES = {name for name in ENDS if name.startswith(("return", "os-exit"))}
BECOMING = {"exec", "exec-in-hook"}


# ---- outside ----


def open_ports(wanted: tuple[int, int]) -> list[str]:
    """Which of the ports are open: sock_diag(7), and connect(2) for TCP."""
    found = []
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    for name, protocol, states in (("tcp", 6, 1 << 10), ("udp", 17, 0xFFF)):
        with socket.socket(socket.AF_NETLINK, kind, 4) as netlink:
            netlink.settimeout(LIMIT)
            body = struct.pack("=BBBxI48x", socket.AF_INET, protocol, 0, states)
            netlink.send(struct.pack("=IHHII", 72, 20, 0x301, 1, 0) + body)
            done = False
            while not done:
                data = netlink.recv(1 << 16)
                while len(data) >= 16 and not done:
                    length, kind_of = struct.unpack_from("=IH", data)
                    assert kind_of != 2, "sock_diag refused"
                    done = kind_of == 3
                    if not done:
                        port = int.from_bytes(data[20:22], "big")
                        found += [f"{name} {port}"] if port in wanted else []
                    data = data[(length + 3) & ~3 :]
    for port in wanted:
        with socket.socket() as one:
            one.settimeout(2)
            if one.connect_ex(("127.0.0.1", port)) != errno.ECONNREFUSED:
                found.append(f"connect {port}")
    return found


def reap() -> bool:
    """Wait for who has ended; whether there is anybody else."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def is_there(pid: int) -> bool:
    """Whether a process of that number is there, and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def has_become(program: str, pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/exe").endswith(program)
    except OSError:
        return False  # in the middle of it


def settled() -> bool:
    """Whether all targets have seen ENOSYS; those that have not, never will."""
    if not reap():
        return True
    found = records()
    return all(one["pid"] and one["done"] for one in found)


class Findings:
    """What all rounds together have shown."""

    def __init__(self) -> None:
        self.phases: collections.Counter[str] = collections.Counter()
        self.counts: collections.Counter[str] = collections.Counter()
        self.open: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.hung: list[object] = []
        self.longest = 0.0

    def add(self, one: dict[str, int]) -> None:
        """Add what one target has seen."""
        self.counts["targets"] += 1
        for key in ("calls", "refused", "wrong"):
            self.counts[key] += one[key]
        if one["wrong"]:
            self.errors[errno.errorcode.get(one["error"], "0")] += 1
        self.longest = max(self.longest, one["longest"] / 1e9)

    def print(self) -> None:
        print(
            json.dumps(
                {
                    **dict.fromkeys(("targets", "calls", "refused", "wrong"), 0),
                    **self.counts,
                    "phases": self.phases,
                    "open": self.open,
                    "errors": self.errors,
                    "hung": self.hung,
                    "longest": round(self.longest, 4),
                }
            )
        )


def stop_and_go_on(child: int, findings: Findings) -> None:
    """Stop the supervisor for a while: calls wait, and then go on."""
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    # All are in a call soon, and none of these ends.
    wait_for(lambda: all(one["since"] for one in records()))
    before = records()
    time.sleep(0.02)
    after = records()
    findings.counts["waiting"] += sum(
        one["since"] > 0 and one == other
        for one, other in zip(before, after, strict=True)
    )
    os.kill(child, signal.SIGCONT)
    findings.counts["went on"] += wait_for(
        lambda: all(
            one["calls"] > other["calls"] + 2
            for one, other in zip(records(), after, strict=True)
        )
    )


def end_the_program(child: int, case: str, goal: int, findings: Findings) -> None:
    """Kill it at its moment, or wait until it has ended."""
    if case in BY_THEMSELVES:
        # WNOWAIT: it is waited for below, whatever it was.
        ended = wait_for(
            lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        )
        if not ended:
            findings.hung.append(f"the program, in {PHASES[word(PHASE)]}")
            os.kill(child, signal.SIGKILL)
        return
    if case in BECOMING:
        if not wait_for(lambda: has_become("sleep", child)):
            findings.hung.append(f"exec, in {PHASES[word(PHASE)]}")
            os.kill(child, signal.SIGKILL)
        return
    wait_for(lambda: word(PHASE) >= min(goal, RUNNING))
    if goal >= CALLING:
        wait_for(called)
    if goal == HOOK:
        wait_for(lambda: word(IN_HOOK))
    if goal == CLOSING:
        wait_for(lambda: word(PHASE) >= CLOSING)
    if case.startswith("closed"):
        wait_for(lambda: word(PHASE) == CLOSED)
        return
    time.sleep(random.random() * SPREAD[goal])
    if case == "stop":
        stop_and_go_on(child, findings)
    os.kill(child, SIGNALS.get(case, signal.SIGKILL) if case != "stop" else 9)


def play(case: str, goal: int, findings: Findings) -> None:
    """One round."""
    shared[:] = bytes(4096)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        random.seed()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if case in ENDS:
            ENDS[case]()
        (embed_while if case.startswith("while:") else embed)(case, goal)
    try:
        os.setpgid(child, child)
    except OSError:
        pass  # it has done so, and more
    try:
        end_the_program(child, case, goal, findings)
        look(child, case, findings)
    finally:
        survivors = [word(SURVIVORS + i) for i in range(16)]
        for pid in (-child, *survivors, *(one["pid"] for one in records())):
            try:
                if pid:
                    os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    if not wait_for(lambda: not reap()):
        findings.hung.append("a process that was killed")


def look(child: int, case: str, findings: Findings) -> None:
    """What the targets have seen, and what is open, after the program's end."""
    if case not in BECOMING and not case.startswith("closed"):
        status = os.waitpid(child, 0)[1]
        findings.counts[f"status {os.waitstatus_to_exitcode(status)}"] += 1
    phase = word(PHASE)
    name = "hook" if phase == RUNNING and word(IN_HOOK) else PHASES[phase]
    if name == "running" and called():
        name = "calling"
    findings.phases[name] += 1

    children = [pid for i in range(16) if (pid := word(SURVIVORS + i))]
    if case.endswith(":raw-fork"):  # they keep the listener
        time.sleep(0.05)
        findings.counts["waiting"] += sum(one["done"] == 0 for one in records())
        findings.counts["survivors"] += sum(map(is_there, children))
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        children = []
    if not wait_for(settled, LIMIT / 2):
        findings.hung.append(records())
    for place in open_ports(ports):
        findings.open[place.split()[0]] += 1
    findings.counts["survivors"] += sum(map(is_there, children))
    for one in records():
        if one["pid"]:
            findings.add(one)


def find_ports() -> tuple[int, int]:
    """Two ports that nobody has, nor gets from the kernel."""
    found: list[int] = []
    while len(found) < 2:
        port = random.randrange(10000, 30000)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found[0], found[1]


def main() -> None:
    global path, ports, shared, clamour
    clamour, case, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    ports = find_ports()
    rules.extend(one.format(*ports) for one in sys.argv[4:])
    with make_guard() as guard:  # warm: all is imported
        guard.run(["true"])
    findings = Findings()
    descriptor, path = tempfile.mkstemp()
    os.truncate(descriptor, 4096)
    shared = mmap.mmap(descriptor, 4096)
    for i in range(rounds):
        goal = list(SPREAD)[i % len(SPREAD)] if case == "none" else CALLING
        play(case, goal, findings)
    os.unlink(path)
    findings.print()


if __name__ == "__main__":
    main()
