"""A minute of the soak; `make soak` runs ten million requests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = os.environ.get("PORTSECCOMP_SOAK_SECONDS", "60")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_minute_of_soak():
    """Requests of all kinds for a minute: nothing wrong, and nothing grows."""
    command = [sys.executable, str(Path(__file__).parent / "soak.py"), f"{SECONDS}s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    print(done.stdout)  # with -rP
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "soak: level after" in done.stdout.splitlines()[-1]


def test_the_soak_sees_a_leak():
    """A soak whose hook leaks fails, and says by how much."""
    leak = (
        "import runpy, sys; sys.argv = sys.argv[1:]; "
        "import portseccomp.events as events; make, kept = events.make_event, []; "
        "import portseccomp.guard as guard; "
        "guard.make_event = lambda *a: (kept.append(bytes(2000)), make(*a))[1]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    soak = str(Path(__file__).parent / "soak.py")
    command = [sys.executable, "-c", leak, soak, "6s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stdout
    assert "memory: " in done.stdout
