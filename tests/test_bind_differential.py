"""A guard's `bind` is the kernel's: odd inputs give the same with and without."""

from __future__ import annotations

import subprocess

import pytest

from portseccomp import ALLOW, Guard

# The victim's sections; together they are more than a thousand inputs.
SECTIONS = [
    "length",
    "family",
    "address",
    "pointer",
    "descriptor",
    "again",
    "trace",
    "connected",
]
GUARDS = {
    "can-deny": lambda: Guard("deny 1"),
    "can-not-deny": lambda: Guard(None),
    "hook": lambda: Guard("ask any", hook=lambda request: ALLOW),
    "hook-asked-about-unix": lambda: Guard("ask unix", hook=lambda request: ALLOW),
    "moves-elsewhere": lambda: Guard("move 1 -> 2"),
}


@pytest.fixture(scope="module")
def runs(victim, tmp_path_factory):
    """Run the victim once under each guard, and once without."""
    place = str(tmp_path_factory.mktemp("odd"))
    # Below the range of ports that the kernel chooses, so that it is ours.
    command = [victim("bindodd"), "20471", "20472"]
    known: dict[str | None, list[str]] = {}

    def run(name: str | None) -> list[str]:
        if name not in known:
            options = {"stdout": subprocess.PIPE, "cwd": place, "timeout": 100}
            if name is None:
                done = subprocess.run(command, **options)
            else:
                with GUARDS[name]() as guard:
                    done = guard.run(command, **options)
            assert done.returncode == 0
            known[name] = done.stdout.decode(errors="replace").splitlines()
        return known[name]

    return run


def test_there_are_a_thousand_inputs(runs):
    """More than a thousand inputs are tried, and more than ten errnos are met."""
    lines = runs(None)
    assert len(lines) > 1000
    assert {line.split()[0] for line in lines} == set(SECTIONS)
    words = {word for line in lines for word in line.partition(":")[2].split()}
    errnos = {word for word in words if word[0] == "E" and word.isupper()}
    assert {"EINVAL", "EFAULT", "EBADF", "ENOTSOCK", "EADDRINUSE"} <= errnos
    assert {"EADDRNOTAVAIL", "EAFNOSUPPORT", "ENODEV"} <= errnos


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("section", SECTIONS)
def test_same_errno_and_same_address(runs, guard, section):
    """Under a guard each odd bind gives the kernel's errno and address."""
    outside = [one for one in runs(None) if one.startswith(f"{section} ")]
    inside = [one for one in runs(guard) if one.startswith(f"{section} ")]
    assert inside == outside
