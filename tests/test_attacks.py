"""Hostile targets: races against the check, and calls that libc does not make.

PORTSECCOMP_ATTACKS sets how often the swap attack is tried (100,000).
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess

import pytest

from portseccomp import Guard, Policy

TRIES = int(os.environ.get("PORTSECCOMP_ATTACKS", "100000"))
# Races that need a socket of their own for each try: two threads at one time.
FEWER = max(TRIES // 100, 2)

x86_64 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="needs an x86-64 machine"
)


def race(guard: Guard | None, command: list[str]) -> dict[str, int]:
    """Run an attack; return what it counted."""
    run = subprocess.run if guard is None else guard.run
    done = run(command, stdout=subprocess.PIPE, timeout=280)
    text = done.stdout.decode()
    assert done.returncode == 0, text
    return {
        key: int(value) for key, value in (x.split(": ") for x in text.splitlines())
    }


def swap(victim, free_port, decoy: str, tries: int) -> None:
    """Try to swap a forbidden socket in, and fail if that wins."""
    allowed, forbidden = free_port(), free_port()
    with Guard(f"deny tcp:{forbidden}", event_buffer=16) as guard:
        command = [victim("race"), decoy, str(allowed), str(forbidden), str(tries)]
        result = race(guard, command)
        stats = guard.stats()
    assert (result["tries"], result["wins"]) == (tries, 0)
    assert (stats.requests, stats.continued) == (tries, 0)
    # It was a race: both descriptors were met.
    assert 0 < stats.denied < tries
    assert (result["good"] > 0) == (decoy != "swap-file")


@pytest.mark.parametrize("decoy", ["swap", "swap-unix", "swap-file"])
def test_swapping_the_descriptor_never_wins(victim, free_port, decoy):
    """No dup2 onto the descriptor makes a forbidden socket listen."""
    swap(victim, free_port, decoy, TRIES)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_million_swaps_never_win(victim, free_port):
    """A forbidden socket does not listen after a million tries to swap it in."""
    swap(victim, free_port, "swap", 1_000_000)


@pytest.mark.parametrize("attack", ["swap", "swap-unix", "bind"])
def test_the_same_attack_wins_where_the_kernel_continues(victim, free_port, attack):
    """The attack is a real one: a supervisor that answers CONTINUE falls to it."""
    allowed, forbidden = str(free_port()), str(free_port())
    attacker = [victim("race"), attack, allowed, forbidden, "200000"]
    result = race(None, [victim("continuer"), forbidden, *attacker])
    assert result["wins"] == 1


def need_vsock() -> None:
    """Skip where this kernel has no vsock."""
    try:
        socket.socket(socket.AF_VSOCK).close()
    except OSError as error:
        pytest.skip(f"needs a kernel with vsock: {error}")


@pytest.mark.parametrize(
    ("attack", "rule"),
    [("bind", "deny {}"), ("vsock", "deny vsock:{}"), ("v6only", "deny ipv4:any")],
)
def test_changing_the_socket_never_wins(victim, attack, rule):
    """No bind, and no V6ONLY, beside the call opens a forbidden place."""
    if attack == "vsock":
        need_vsock()
    # Not one that the kernel could choose for a socket that listens unbound.
    forbidden = 22222
    # One of these was won once in 200 tries.
    tries = FEWER * 3 if attack == "vsock" else FEWER
    with Guard(rule.format(forbidden), event_buffer=16) as guard:
        command = [victim("race"), attack, "0", str(forbidden), str(tries)]
        result = race(guard, command)
        stats = guard.stats()
    assert (result["tries"], result["wins"]) == (tries, 0)
    # Some calls came before the change, some after: a tenth does in any case.
    assert tries // 20 <= stats.denied <= tries - tries // 20


@pytest.mark.parametrize(
    ("policy", "expected"), [("deny 1", "ENOSYS"), ("ask 1", "ENOSYS"), (None, None)]
)
def test_io_uring(victim, policy, expected):
    """io_uring_setup gives ENOSYS where the policy can deny, else what it gives."""
    command = [victim("rawcall"), "io_uring"]
    outside = subprocess.run(command, stdout=subprocess.PIPE).stdout
    hook = (lambda request: True) if policy == "ask 1" else None
    with Guard(policy, hook=hook) as guard:
        inside = guard.run(command, stdout=subprocess.PIPE).stdout
    if expected is None:
        assert inside == outside
    else:
        assert inside == f"io_uring_setup: {expected}\n".encode()


@x86_64
@pytest.mark.parametrize(
    "policy", ["deny tcp:1", Policy("allow tcp:1", default="allow")]
)
def test_x32_call_fails(victim, free_port, policy):
    """A `listen` by its x32 number fails with ENOSYS, and nothing opens."""
    with Guard(policy) as guard:
        command = [victim("rawcall"), "x32", str(free_port())]
        done = guard.run(command, stdout=subprocess.PIPE)
        assert guard.stats().requests == 0
    assert done.stdout == b"listen: ENOSYS\n"


def i386_works(command: list[str]) -> bool:
    """Whether a 64-bit program can make i386 calls on this kernel."""
    done = subprocess.run(command, stdout=subprocess.PIPE)
    return done.returncode == 0 and done.stdout.startswith(b"listen: 0\n")


@x86_64
@pytest.mark.parametrize("how", ["int80", "socketcall"])
@pytest.mark.parametrize("verdict", ["allow", "deny"])
def test_i386_calls_are_judged(victim, free_port, how, verdict):
    """A `listen` by int 0x80, or by socketcall, is judged as any other."""
    port = free_port()
    command = [victim("rawcall"), how, str(port)]
    if not i386_works(command):
        pytest.skip("needs a kernel with 32-bit calls (CONFIG_IA32_EMULATION)")
    with Guard(f"{verdict} {port}") as guard:
        done = guard.run(command, stdout=subprocess.PIPE)
        event, *rest = guard.events()
    expected = "0" if verdict == "allow" else "EACCES"
    assert done.stdout.decode().splitlines()[0] == f"listen: {expected}"
    assert (event.call, event.requested_port, event.verdict) == (
        "listen",
        port,
        verdict,
    )
    assert event.backlog == 8
    if how == "socketcall":  # its second call has no arguments to read
        assert done.stdout.endswith(b"nowhere: EFAULT\n")
        assert [one.errno for one in rest] == ["EFAULT"]


@x86_64
def test_i386_call_under_a_policy_that_can_not_deny(victim, free_port):
    """socketcall works, and is seen, under a policy that allows everything."""
    command = [victim("rawcall"), "socketcall", str(free_port())]
    if not i386_works(command):
        pytest.skip("needs a kernel with 32-bit calls (CONFIG_IA32_EMULATION)")
    with Guard(None) as guard:
        done = guard.run(command, stdout=subprocess.PIPE)
        assert len(list(guard.events())) == 2
    assert done.stdout == b"listen: 0\nnowhere: EFAULT\n"
