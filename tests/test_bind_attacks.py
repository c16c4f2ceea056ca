"""Races against `bind`: rewritten addresses, swapped descriptors, signals.

PORTSECCOMP_ATTACKS sets how often each attack is tried (100,000).
"""

from __future__ import annotations

import os
import platform
import subprocess

import pytest

import portseccomp.launcher
from portseccomp import Guard, Policy

TRIES = int(os.environ.get("PORTSECCOMP_ATTACKS", "100000"))
# Races that need a socket of their own for each try.
FEWER = max(TRIES // 5, 1)

x86_64 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="needs an x86-64 machine"
)

# What is swapped for a UDP socket, and the rule that closes its own hole.
SWAPS = {
    "swap-tcp": [],
    "swap-unix": ["deny unix"],  # else unix binds are the kernel's to make
    "swap-netlink": [],
}


def numbers(done: subprocess.CompletedProcess[bytes]) -> dict[str, int]:
    """What an attack has counted."""
    text = done.stdout.decode()
    assert done.returncode == 0, text
    return {
        key: int(value) for key, value in (x.split(": ") for x in text.splitlines())
    }


def race(
    victim, free_port, attack: str, rules: list[str], tries: int
) -> tuple[dict[str, int], portseccomp.Stats]:
    """Run an attack under a guard; what both have counted."""
    allowed, forbidden = free_port(), free_port()
    policy = Policy([one.format(forbidden) for one in rules])
    with Guard(policy, event_buffer=16) as guard:
        command = [victim("bindrace"), attack, str(allowed), str(forbidden)]
        done = guard.run([*command, str(tries)], stdout=subprocess.PIPE, timeout=280)
        return numbers(done), guard.stats()


def check_race(victim, free_port, attack: str, tries: int) -> None:
    """Try to get the forbidden UDP port, and fail if that wins."""
    rules = [*SWAPS.get(attack, []), "deny udp:{}"]
    result, stats = race(victim, free_port, attack, rules, tries)
    assert (result["tries"], result["wins"]) == (tries, 0)
    assert (stats.requests, stats.continued) == (tries, 0)
    # It was a race: both sides of it were met.
    assert stats.denied > 0
    if attack != "swap-unix":
        assert stats.allowed > 0


@pytest.mark.parametrize("attack", ["rewrite", "both", *SWAPS])
def test_no_race_opens_a_forbidden_udp_port(victim, free_port, attack):
    """No rewriting of the address, and no dup2, gets the forbidden UDP port."""
    check_race(victim, free_port, attack, TRIES)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_million_rewrites_and_swaps_never_win(victim, free_port):
    """A million tries with both at once don't open the forbidden UDP port."""
    check_race(victim, free_port, "both", 1_000_000)


@pytest.mark.parametrize("attack", ["rewrite", "both", *SWAPS])
def test_the_same_attack_wins_where_the_kernel_continues(victim, free_port, attack):
    """The attack is a real one: a supervisor that answers CONTINUE falls to it."""
    allowed, forbidden = str(free_port()), str(free_port())
    command = [victim("bindcontinuer"), forbidden, victim("bindrace"), attack]
    command += [allowed, forbidden, "200000"]
    assert numbers(subprocess.run(command, stdout=-1, timeout=100))["wins"] == 1


@pytest.mark.parametrize(
    ("attack", "rules"),
    [
        ("v6only", ["deny ipv4:udp:any"]),
        ("locked", ["deny ipv4:udp:any"]),
        ("mapped", ["deny ipv4:udp:wildcard:any"]),
        ("v6only", ["deny ipv4:udp:any", "move ipv6:udp:{0} -> ephemeral"]),
        ("locked", ["deny ipv4:udp:any", "move ipv6:udp:{0} -> ephemeral"]),
        ("tcp-v6only", ["deny ipv4:tcp:any"]),
        ("tcp-v6only", ["deny ipv4:tcp:any", "move ipv6:tcp:{0} -> ephemeral"]),
    ],
    ids=[
        "v6only",
        "locked",
        "mapped",
        "v6only-moved",
        "locked-moved",
        "tcp",
        "tcp-moved",
    ],
)
def test_no_way_to_hear_ipv4_where_only_ipv6_is_allowed(
    victim, free_port, attack, rules
):
    """No change of V6ONLY, however it is hidden, opens what IPv4 rules deny."""
    result, stats = race(victim, free_port, attack, rules, FEWER)
    assert (result["tries"], result["wins"]) == (FEWER, 0)
    assert stats.denied + stats.allowed + stats.moved > 0
    if attack in ("v6only", "tcp-v6only"):
        # It was a race: some calls came before the change, some after.
        assert stats.allowed + stats.moved > 0


# ---- signals ----


def storm(guard: Guard, victim, ports: tuple[int, int], times: int, how: str):
    """Bind 3 * times sockets under SIGALRM at 10 kHz; what went wrong."""
    times = min(times, TRIES)
    command = [victim("bindstorm"), *map(str, ports), str(times), "10000", how]
    done = guard.run(command, stdout=-1, timeout=100)
    return done.stdout.decode().splitlines()


@pytest.fixture
def not_killable(monkeypatch):
    """Filters without WAIT_KILLABLE_RECV, as before Linux 5.19."""
    monkeypatch.setattr(portseccomp.launcher._core, "WAIT_KILLABLE", 0)


def test_signal_storm(victim, free_port):
    """Signals at 10 kHz make none of 21,000 binds give a wrong result."""
    ports = free_port(), free_port()
    with Guard(f"deny {ports[1]}", event_buffer=16) as guard:
        result = storm(guard, victim, ports, 7000, "restart")
    assert result == ["wrong: 0 0", "interrupted: 0", "alarms: many"]


def test_signal_storm_without_restart(victim, free_port):
    """A bind that gave EINTR and is made again gives the right result."""
    ports = free_port(), free_port()
    with Guard(f"deny {ports[1]}", event_buffer=16) as guard:
        wrong, _, alarms = storm(guard, victim, ports, 7000, "interrupt")
    assert (wrong, alarms) == ("wrong: 0 0", "alarms: many")


@pytest.mark.parametrize("how", ["restart", "interrupt"])
def test_signal_storm_without_wait_killable(victim, free_port, not_killable, how):
    """Where signals interrupt a bind that was made, made again it gives 0."""
    ports = free_port(), free_port()
    with Guard(f"deny {ports[1]}", event_buffer=16) as guard:
        wrong, interrupted, alarms = storm(guard, victim, ports, 8000, how)
        # Calls were interrupted while they were handled: the test tests.
        assert guard.stats().vanished > 0
    assert (wrong, alarms) == ("wrong: 0 0", "alarms: many")
    if how == "restart":
        assert interrupted == "interrupted: 0"


def test_moves_under_a_signal_storm(victim, free_port, not_killable):
    """A moved bind that is interrupted is made once, and recognised."""
    old, new = free_port(), free_port()
    # The victim looks for the port that it asked for: moved to where it is.
    rules = [f"move {old} -> 127.0.0.1", f"deny {new}"]
    with Guard(rules, event_buffer=16) as guard:
        wrong, _, alarms = storm(guard, victim, (old, new), 7000, "restart")
    assert (wrong, alarms) == ("wrong: 0 0", "alarms: many")


def test_interrupted_binds_open_once(victim, free_port, not_killable):
    """An interrupted UDP bind has one event that says `first`, not two."""
    ports, times, opened = (free_port(), free_port()), min(3000, TRIES), 0

    def count(event) -> None:
        nonlocal opened
        opened += event.is_open and event.first

    with Guard(f"deny {ports[1]}", on_event=count, event_buffer=1 << 16) as guard:
        storm(guard, victim, ports, times, "restart")
        stats = guard.stats()
    assert stats.vanished > 0
    assert guard.stats().events_lost == 0
    assert opened == times


# ---- calls that libc does not make ----


def i386_works(command: list[str]) -> bool:
    """Whether a 64-bit program can make i386 calls on this kernel."""
    done = subprocess.run(command, stdout=subprocess.PIPE)
    return done.returncode == 0 and done.stdout.startswith(b"bind: 0\n")


@x86_64
@pytest.mark.parametrize("how", ["int80", "socketcall"])
@pytest.mark.parametrize("verdict", ["allow", "deny"])
def test_i386_binds_are_judged(victim, free_port, how, verdict):
    """A UDP bind by int 0x80, or by socketcall, is judged as any other."""
    port = free_port()
    command = [victim("bindraw"), how, str(port)]
    if not i386_works(command):
        pytest.skip("needs a kernel with 32-bit calls (CONFIG_IA32_EMULATION)")
    outside = subprocess.run(command, stdout=subprocess.PIPE).stdout.decode()
    with Guard(f"{verdict} {port}") as guard:
        done = guard.run(command, stdout=subprocess.PIPE)
        event = next(iter(guard.events()))
    if verdict == "deny":
        outside = outside.replace("bind: 0\n", "bind: EACCES\n")
        outside = outside.replace(f"port: {port}\n", "port: 0\n")
    assert done.stdout.decode() == outside
    assert (event.call, event.requested_port, event.verdict) == ("bind", port, verdict)
    assert (event.protocol, event.backlog) == ("udp", None)


@x86_64
def test_x32_bind_fails(victim, free_port):
    """A bind by its x32 number fails with ENOSYS, and nothing is bound."""
    with Guard("deny 1") as guard:
        command = [victim("bindraw"), "x32", str(free_port())]
        done = guard.run(command, stdout=subprocess.PIPE)
        assert guard.stats().requests == 0
    assert done.stdout == b"bind: ENOSYS\nport: 0\n"
