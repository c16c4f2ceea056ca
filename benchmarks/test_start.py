"""Starting a target, and importing the package."""

import os
import subprocess
import sys
import time
from statistics import median

import pytest

from portseccomp import Guard

TURNS = 300
NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"


def spent(start) -> float:
    """Seconds to start /bin/true, its end not included."""
    begun = time.perf_counter()
    process = start(["/bin/true"])
    taken = time.perf_counter() - begun
    process.wait()
    return taken


@pytest.mark.benchmark(group="start")
def test_start_target(benchmark, note):
    """Seconds for Guard.popen, in turns with subprocess.Popen."""
    plain: list[float] = []
    guarded: list[float] = []
    with Guard("deny 1") as guard:

        def turn() -> None:
            plain.append(spent(subprocess.Popen))
            guarded.append(spent(guard.popen))

        benchmark.pedantic(turn, rounds=TURNS, iterations=1, warmup_rounds=20)
    ratio = median(guarded) / median(plain)
    benchmark.extra_info["ratio"] = ratio
    note(
        f"starting a target: {ratio:.2f} x subprocess.Popen (bar 1.05), "
        f"{median(plain) * 1e6:.0f} us plain"
    )


@pytest.mark.benchmark(group="start")
def test_open_guard(benchmark):
    """Seconds to open and close a guard."""

    def turn() -> None:
        Guard("deny 1").close()

    benchmark.pedantic(turn, rounds=100, iterations=1, warmup_rounds=5)


@pytest.mark.benchmark(group="start")
def test_import(benchmark, note):
    """Seconds for an interpreter that imports portseccomp, in turns with a bare one."""
    bare: list[float] = []
    importing: list[float] = []
    using: list[float] = []
    without: list[float] = []

    # As users have it: with the compiled modules kept.
    environment = {k: v for k, v in os.environ.items() if k != NO_BYTECODE}

    def python(code: str) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        return time.perf_counter() - begun

    def turn() -> None:
        bare.append(python("pass"))
        importing.append(python("import portseccomp"))
        using.append(python("from portseccomp import Guard; import subprocess"))
        without.append(python("import subprocess"))

    benchmark.pedantic(turn, rounds=20, iterations=1, warmup_rounds=2)
    more = (median(importing) - median(bare)) * 1000
    benchmark.extra_info["more_ms"] = more
    first_use = (median(using) - median(without)) * 1000
    note(
        f"import portseccomp: {more:.1f} ms over a bare interpreter (bar 15); "
        f"its Guard: {first_use:.1f} ms over one that imports subprocess"
    )
