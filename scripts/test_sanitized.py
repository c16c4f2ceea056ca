# SPDX-License-Identifier: MIT
"""Run the suite with an extension that is built with ASan, LSan and UBSan.

test_sanitized.py [--all] [PYTEST-ARGUMENT...]

Everything happens in a copy of the tree, build/sanitized. gcc's runtime is
preloaded into every process that the tests start, their targets too: Python
would come first in them otherwise. Reports go to files, so that none is lost
in a target that nobody listens to; a file that names our own code is a failure.
LeakSanitizer runs in all of them as well, and only leaks with a frame of ours
count: CPython, gcc and tail leave some behind too.

tests/sanitized.txt says what is left out, and why.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PLACE = TOP / "build" / "sanitized"
LOGS = PLACE / "reports"
COPIED = (
    *("benchmarks", "csrc", "docs", "examples", "portseccomp", "scripts", "tests"),
    *("CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md"),
    *("pyproject.toml", "setup.py"),
)
OURS = re.compile(r"\bpsc_\w+|__pyx_\w+|/_core\.\w+|csrc/\w+\.[ch]")


def copy_tree() -> None:
    """Bring the copy up to date; what did not change keeps its time."""
    skip = shutil.ignore_patterns("*.so", "__pycache__", "_core.c", "build", ".*")
    for name in COPIED:
        here, there = TOP / name, PLACE / name
        if here.is_dir():
            for old in [one for one in there.rglob("*") if one.is_file()]:
                gone = not (here / old.relative_to(there)).exists()
                if gone and not old.match("_core*.so"):
                    old.unlink()
            shutil.copytree(here, there, ignore=skip, dirs_exist_ok=True)
        elif here.exists():
            shutil.copy2(here, there)


def build() -> Path:
    """Build the extension into the copy; return it."""
    environment = os.environ | {
        "PORTSECCOMP_SANITIZE": "address,undefined",
        "CFLAGS": "-fno-sanitize-recover=all",
    }
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=PLACE, env=environment, check=True)
    (extension,) = (PLACE / "portseccomp").glob("_core*.so")
    if b"__asan_report_load" not in extension.read_bytes():
        sys.exit(f"test_sanitized: {extension} has no sanitizer in it")
    return extension


def runtime() -> str:
    """The sanitizer's library, of the compiler that the extension is built with."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    command = [*compiler, "-print-file-name=libasan.so"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        sys.exit(f"test_sanitized: {compiler[0]} has no libasan.so; gcc has: CC=gcc")
    return str(path.resolve())


def environment() -> dict[str, str]:
    """The environment of pytest, and of whatever the tests start."""
    return os.environ | {
        "LD_PRELOAD": runtime(),
        "PYTHONPATH": str(PLACE),
        # Python's own allocator would hide what its blocks are used for.
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": f"detect_leaks=1:abort_on_error=1:log_path={LOGS}/asan",
        # A leak must not change what a process returns: gcc leaks, too.
        "LSAN_OPTIONS": "exitcode=0",
        "UBSAN_OPTIONS": f"print_stacktrace=1:halt_on_error=1:log_path={LOGS}/ubsan",
    }


def left_out(sections: set[str]) -> list[str]:
    """Return pytest's options for what tests/sanitized.txt leaves out."""
    found, current = [], ""
    for line in (TOP / "tests" / "sanitized.txt").read_text().splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif line and not line.startswith("#") and current in sections:
            found += ["--deselect", line.split(None, 1)[0]]
    return found


def is_finding(report: str) -> bool:
    """Whether a report is about us: any error, but of leaks only our own."""
    if "detected memory leaks" in report:
        return bool(OURS.search(report))
    # A process that is traced, or half gone, can't be searched for leaks.
    return "LeakSanitizer has encountered a fatal error" not in report


def main(args: list[str]) -> int:
    """Copy, build, run, and look at the reports; return the exit status."""
    everything = args[:1] == ["--all"]
    PLACE.mkdir(parents=True, exist_ok=True)
    copy_tree()
    build()
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir()
    LOGS.chmod(0o1777)  # targets run as other users, too

    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-n", str(os.cpu_count() or 1), "-o", "timeout=600"]
    command += left_out({"never"} if everything else {"never", "long"})
    command += args[1:] if everything else args
    status = subprocess.run(command, cwd=PLACE, env=environment()).returncode

    reports = {one: one.read_text(errors="replace") for one in LOGS.iterdir()}
    findings = {one: text for one, text in reports.items() if is_finding(text)}
    unfinished = sum("fatal error" in text for text in reports.values())
    for path, text in findings.items():
        print(f"\n{path}:\n{text[:6000]}")
    print(
        f"sanitizers: {len(findings)} findings; {len(reports)} reports in {LOGS}, "
        f"{unfinished} processes not searched for leaks"
    )
    return 1 if findings or status else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
