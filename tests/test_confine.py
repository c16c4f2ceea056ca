"""Confinement: targets that would reach the supervisor, or stop it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest
from conftest import accepts, python

from portseccomp import Guard, probe

confinement = pytest.mark.skipif(
    not next(one for one in probe().features if one.name == "confinement").available,
    reason="needs Linux 6.12 with Landlock (ABI 6)",
)

# Each way to reach into another process, and what came of it.
REACH = """
import ctypes, errno, os, sys

libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
PTRACE_ATTACH, SYS_process_vm_writev, SYS_pidfd_getfd = 16, *map(int, sys.argv[2:])

def attempt(name, function, *args):
    ctypes.set_errno(0)
    try:
        result = function(*args)
    except OSError as error:
        ctypes.set_errno(error.errno)
        result = -1
    print(name, "failed" if result == -1 else "worked", flush=True)

class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

def write_memory():
    # To nowhere: EFAULT is for those who have the right to write.
    one = ctypes.create_string_buffer(1)
    here, there = Piece(ctypes.addressof(one), 1), Piece(1, 1)
    # The flags go by the stack, where an int would leave half of a long unset.
    libc.syscall(SYS_process_vm_writev, pid, ctypes.byref(here), 1,
                 ctypes.byref(there), 1, ctypes.c_long(0))
    return 0 if ctypes.get_errno() == errno.EFAULT else -1

attempt("signal", os.kill, pid, 0)
attempt("memory", write_memory)
attempt("proc", lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR)))
attempt("getfd", lambda: libc.syscall(SYS_pidfd_getfd, os.pidfd_open(pid), 0, 0))
if libc.ptrace(PTRACE_ATTACH, pid, 0, 0) == 0:
    os.waitpid(pid, 0x40000000)  # __WALL
    libc.ptrace(17, pid, 0, 0)
    print("ptrace worked")
else:
    print("ptrace failed")
"""
CALLS = {"x86_64": ("311", "438"), "aarch64": ("271", "438")}[os.uname().machine]
WAYS = ["signal", "memory", "proc", "getfd", "ptrace"]


def reached(guard: Guard) -> dict[str, str]:
    """What a target can do to a process outside of its tree."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as outsider:
        command = python(REACH, str(outsider.pid), *CALLS)
        done = guard.run(command, stdout=-1, timeout=30)
        outsider.communicate(b"\n")
    return dict(line.split() for line in done.stdout.decode().splitlines())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whom nothing else stops")
@confinement
def test_confined_target_reaches_nobody_outside():
    """Five ways to reach another process: all work without `confine`, none with."""
    with Guard("deny any") as guard:
        assert reached(guard) == dict.fromkeys(WAYS, "worked")
    with Guard("deny any", confine=True) as guard:
        assert reached(guard) == dict.fromkeys(WAYS, "failed")


@confinement
def test_confined_target_works_as_any_other(free_port):
    """Children, their signals and allowed ports are a confined target's own."""
    allowed, denied = free_port(), free_port()
    source = """
import os, signal, socket, subprocess, sys
child = subprocess.Popen(["sleep", "60"])
child.send_signal(signal.SIGTERM)
assert child.wait() == -signal.SIGTERM
kept = []
for port in sys.argv[1:]:
    one = socket.socket()
    one.bind(("127.0.0.1", int(port)))
    try:
        one.listen()
        print("open", flush=True)
        kept.append(one)
    except OSError as error:
        print(error.errno, flush=True)
input()
"""
    with Guard(f"allow {allowed}", confine=True) as guard:
        command = python(source, str(allowed), str(denied))
        with guard.popen(command, stdin=-1, stdout=-1, text=True) as process:
            assert process.stdout.readline() == "open\n"
            assert process.stdout.readline() == f"{errno.EACCES}\n"
            assert accepts("127.0.0.1", allowed)
            assert not accepts("127.0.0.1", denied)
            process.communicate("\n")
        assert process.returncode == 0


@confinement
def test_confined_tree_is_signalled_from_outside():
    """The supervisor's process may signal, and trace, what it has confined."""
    with Guard("deny any", confine=True) as guard:
        process = guard.popen(["sleep", "60"])
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM
        assert guard.wait(10)


@confinement
def test_a_second_tree_is_confined_too():
    """A guarded thread that replaces one that has ended is confined like it."""
    with Guard("deny any", confine=True) as guard:
        guard.run(["true"])
        assert guard.wait(10)
        assert reached(guard)["signal"] == "failed"


@confinement
def test_rest_of_the_process_is_not_confined():
    """Only guarded threads are in the domain: this one signals whom it likes."""
    with Guard("deny any", confine=True) as guard:
        assert guard.call(threading.get_ident) != threading.get_ident()
        with subprocess.Popen(["sleep", "60"]) as outsider:
            with pytest.raises(PermissionError):
                guard.call(os.kill, outsider.pid, 0)
            outsider.kill()


@confinement
def test_confine_on_the_command_line():
    """`run --confine` keeps the command from signalling portseccomp itself."""
    command = [sys.executable, "-m", "portseccomp", "run", "--confine", "--"]
    shell = ["sh", "-c", "kill -TERM $PPID; echo $?"]
    done = subprocess.run([*command, *shell], stdout=-1, stderr=-1, timeout=30)
    assert (done.returncode, done.stdout) == (0, b"1\n"), done.stderr
    assert b"not permitted" in done.stderr
