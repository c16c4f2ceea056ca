"""Embedding programs that are killed, stopped, or end: closed, never open, no hang.

tests/nursery.py plays the rounds: each forks a program with a guard, whose
targets (tests/victims/clamour.c) call listen and bind as fast as they can, and
ends it. PORTSECCOMP_KILLS sets how many are killed (1,000).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("PORTSECCOMP_KILLS", "1000"))
NURSERY = str(Path(__file__).parent / "nursery.py")
WORKERS = 3  # processes of a target
ROUNDS = 10

# How a child of the embedding program that outlives it was made, and when.
SURVIVORS = [
    *("before:fork", "before:libc-fork"),
    *("while:fork", "while:libc-fork", "while:popen-open-fds", "while:popen-preexec"),
    *("after:fork", "after:fork-twice", "after:forkpty", "after:libc-fork"),
    *("after:mp-fork", "after:mp-forkserver", "after:mp-spawn"),
    *("after:popen-open-fds", "after:popen-pass-fds", "after:popen-preexec"),
    *("after:posix-spawn", "after:raw-fork-and-exec", "closed:fork"),
]

# How the embedding program ends otherwise, and the status that it ends with.
ENDS = {
    "sigterm": -15,
    "sigint": -2,
    "os-exit": 0,
    "os-exit-in-hook": 0,
    "return": 0,
    "return-hook": 0,
    "return-daemon-thread": 0,
    "return-atexit": 0,
    "return-atexit-close": 0,
    "exec": None,  # it is something else from then on
    "exec-in-hook": None,
    "sys-exit-in-hook": -9,  # ends nothing; it is killed later
    "fork-in-hook": -9,
}


def nursery(victim, case: str, rounds: int, *rules: str) -> subprocess.Popen[str]:
    # Python 3.12 warns of any fork in a process with threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", NURSERY]
    command += [victim("clamour"), case, str(rounds), *rules]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")
    return json.loads(out)


def play(victim, case: str, rounds: int, *rules: str) -> dict:
    with nursery(victim, case, rounds, *rules) as process:
        return finish(process)


def check(found: dict) -> None:
    """No call hung, none gave a wrong result, and nothing has opened."""
    assert found["hung"] == []
    assert (found["wrong"], found["errors"]) == (0, {})
    assert found["open"] == {}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_supervisor_killed_at_any_moment(victim):
    """1,000 supervisors killed: later calls fail at once, and nothing opens."""
    lanes = [nursery(victim, "none", KILLS // 2) for _ in range(2)]
    phases: dict[str, int] = {}
    for lane in lanes:
        with lane:
            found = finish(lane)
        check(found)
        assert found["status -9"] == KILLS // 2
        assert found["targets"] > 0 < found["refused"]
        for key, value in found["phases"].items():
            phases[key] = phases.get(key, 0) + value
    print(phases)  # with -rP
    assert sum(phases.values()) == KILLS // 2 * 2
    # Wherever it was then; which one it was is chance.
    assert {"opening", "starting", "calling", "hook", "closing"} <= phases.keys()


def test_the_nursery_sees_what_opens(victim):
    """Where rules allow the same calls, their ports are open at the look after."""
    found = play(victim, "sigterm", 3, "allow {0}", "allow {1}", "allow ephemeral")
    # Two that listen, one of UDP; two that accept connections.
    assert found["open"] == {"tcp": 6, "udp": 3, "connect": 6}
    assert found["wrong"] > 0


@pytest.mark.parametrize("case", SURVIVORS)
def test_children_that_outlive_a_killed_supervisor(victim, case):
    """Children of a killed supervisor that live on keep none of its listeners."""
    fresh = case in ("after:mp-spawn", "after:mp-forkserver")  # a start takes 0.1 s
    rounds = 3 if fresh else ROUNDS
    found = play(victim, case, rounds)
    check(found)
    assert found["targets"] == WORKERS * rounds
    # They were there when the targets had seen that their supervisor is not.
    assert found["survivors"] == (6 if case.startswith("while") else 2) * rounds


def test_a_raw_fork_keeps_calls_waiting(victim):
    """A clone(2) past libc, and without exec, holds calls; they fail at its end."""
    found = play(victim, "after:raw-fork", ROUNDS)
    check(found)
    assert found["survivors"] == 2 * ROUNDS
    assert found["waiting"] == WORKERS * ROUNDS


def test_supervisor_stopped_and_continued(victim):
    """While the supervisor is stopped calls wait; then they go on."""
    found = play(victim, "stop", ROUNDS)
    check(found)
    assert found["went on"] == ROUNDS
    assert found["waiting"] == WORKERS * ROUNDS


@pytest.mark.parametrize("case", ENDS)
def test_embedding_program_that_ends(victim, case):
    """However a program ends, its targets' calls fail at once, and nothing opens."""
    found = play(victim, case, ROUNDS)
    check(found)
    if ENDS[case] is not None:
        assert found[f"status {ENDS[case]}"] == ROUNDS
    if case != "return-atexit" or sys.version_info < (3, 12):
        assert found["targets"] == WORKERS * ROUNDS
    if case == "fork-in-hook":
        assert found["survivors"] == 2 * ROUNDS
