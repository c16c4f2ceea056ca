# SPDX-License-Identifier: MIT
"""Build the fuzz targets, and run each of them for a while.

run.py [--seconds N] [--keep] [TARGET...]

Starts from tests/fuzz/corpus/TARGET; what is found on the way goes to
build/fuzz/TARGET. With --keep, what adds coverage is put into tests/fuzz/corpus
afterwards, and what no longer does is dropped there.

The exit status is 1 when a target has found something, 2 when there is no
clang with libFuzzer.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
BUILT = TOP / "build" / "c" / "fuzz" / "targets"
FOUND = TOP / "build" / "fuzz"
TARGETS = ("address", "filter", "round", "rules")
CLANG = os.environ.get("FUZZ_CC", "clang")
# Longer inputs are no other inputs, only slower.
LIMITS = ("-max_len=400", "-timeout=10", "-rss_limit_mb=2048")


def has_fuzzer() -> bool:
    """Whether a program with libFuzzer and the sanitizers can be linked."""
    FOUND.mkdir(parents=True, exist_ok=True)
    source = b"int LLVMFuzzerTestOneInput(const char *b, long n)" + (
        b"{ return b == 0 && n < 0; }"
    )
    flags = "-fsanitize=fuzzer,address,undefined -x c - -o"
    command = [*shlex.split(CLANG), *flags.split(), str(FOUND / "probe")]
    try:
        return (
            subprocess.run(command, input=source, capture_output=True).returncode == 0
        )
    except FileNotFoundError:
        return False


def packages() -> str:
    """Return the names of the packages that fuzzing needs."""
    command = [sys.executable, TOP / "scripts" / "check_tools.py", "--packages", "fuzz"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def numbers(log: str) -> tuple[int, int, int]:
    """Return executions, counters reached, and all counters there are."""
    done = re.findall(r"number_of_executed_units: (\d+)", log)
    reached = re.findall(r"cov: (\d+)", log)
    counters = re.findall(r"\((\d+) inline 8-bit counters\)", log)
    return tuple(int(one[-1]) if one else 0 for one in (done, reached, counters))


def fuzz(target: str, seconds: int) -> bool:
    """Run one target; tell what it did, and whether all was well."""
    place, seeds = FOUND / target, HERE / "corpus" / target
    (place / "corpus").mkdir(parents=True, exist_ok=True)
    for old in place.glob("*-*"):
        old.unlink()
    program = BUILT / target
    command = [program, f"-max_total_time={seconds}", "-print_final_stats=1"]
    command += [*LIMITS, f"-artifact_prefix={place}/", place / "corpus", seeds]
    log = place / "log"
    started = time.monotonic()
    with log.open("wb") as file:
        done = subprocess.run(command, stdout=file, stderr=file)
    took = max(time.monotonic() - started, 0.1)

    text = log.read_text(errors="replace")
    executions, reached, counters = numbers(text)
    print(
        f"fuzz {target}: {executions} executions in {took:.0f} s "
        f"({executions / took:.0f}/s), {reached} of {counters} edges",
        flush=True,
    )
    if done.returncode == 0 and executions > 0:
        return True
    keep = ("does not hold", "ERROR", "runtime error", "    #", "SUMMARY")
    shown = [line for line in text.splitlines() if any(one in line for one in keep)]
    print("\n".join(shown[:30] or text.splitlines()[-20:]))
    for artifact in sorted(place.glob("*-*")):
        print(f"fuzz {target}: reproduce: {program} {artifact}")
    return False


def keep(target: str) -> None:
    """Put the smallest set of inputs with all the coverage into the corpus."""
    seeds, merged = HERE / "corpus" / target, FOUND / target / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    # By edges, not by how often they are taken: or there are thousands.
    command = [BUILT / target, "-merge=1", "-use_counters=0", *LIMITS, merged, seeds]
    command += [FOUND / target / "corpus"]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(seeds)
    shutil.copytree(merged, seeds)


def main() -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("targets", nargs="*", metavar="TARGET", default=[])
    arguments = parser.parse_args()
    targets = arguments.targets or TARGETS
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"no such target: {' '.join(unknown)}")

    if not has_fuzzer():
        print(
            f"fuzz: {CLANG} can't link libFuzzer: apt-get install {packages()} "
            "(or FUZZ_CC=another clang)",
            file=sys.stderr,
        )
        return 2
    command = ["make", "--silent", "-C", TOP / "csrc", "fuzz", f"FUZZ_CC={CLANG}"]
    if subprocess.run(command).returncode:
        return 1
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        good = list(pool.map(lambda one: fuzz(one, arguments.seconds), targets))
    if arguments.keep and all(good):
        for target in targets:
            keep(target)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
