"""A thousand guarded processes beside one."""

import subprocess
from statistics import median

import pytest

from portseccomp import Guard

CALLS = 200_000
MANY = 1000


def storm_seconds(floor: str, processes: int) -> float:
    """How long so many processes take for CALLS calls together."""
    with Guard("deny 1") as guard:
        command = [floor, f"storm={processes}", str(CALLS // processes)]
        done = guard.run(command, stdout=subprocess.PIPE, text=True, check=True)
        assert guard.stats().requests == CALLS
    return int(done.stdout) / 1e9


@pytest.mark.benchmark(group="scale")
def test_thousand_processes(benchmark, floor, note):
    """Seconds for 200,000 calls by a thousand processes, all at once."""
    one: list[float] = []
    many: list[float] = []

    def turn() -> None:
        one.append(storm_seconds(floor, 1))
        many.append(storm_seconds(floor, MANY))

    turn()
    one.clear()
    many.clear()
    benchmark.pedantic(turn, rounds=3, iterations=1)
    ratio = median(one) / median(many)
    benchmark.extra_info["throughput_ratio"] = ratio
    note(f"throughput of {MANY} processes: {ratio:.2f} x that of one (bar 0.9)")
