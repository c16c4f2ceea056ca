# SPDX-License-Identifier: MIT
"""Run the suite with an extension that is built with ASan, LSan and UBSan.

test_sanitized.py [--all] [PYTEST-ARGUMENT...]

Everything happens in a copy of the tree, build/sanitized. gcc's runtime is
preloaded into every process that the tests start, their targets too: Python
would come first in them otherwise. Reports go to files, so that none is lost
in a target that nobody listens to; a file that names our own code is a failure.
Leaks are looked for where a Python ends, and only those with a frame of ours
count: CPython leaves some behind, too. Other programs' leaks are not ours; to look
for them took most of the time, and stops where there is no /proc.

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
MADE = ("*.so", "*.o", "__pycache__", "_core.c", "build", "dist", "*.egg-info", ".*")
OURS = re.compile(r"\bpsc_\w+|__pyx_\w+|/_core\.\w+|csrc/\w+\.[ch]")
# Nothing is wrong with a process because of this line: a thread of it just ended.
HARMLESS = re.compile(r"==\d+==Running thread \d+ was not suspended\..*")

# Compiled into a library, which comes before ASan's: from the environment they are
# read by way of /proc, and some tests take that away.
ASAN_OPTIONS = (
    "verify_asan_link_order=0",
    "abort_on_error=1",
    f"log_path={LOGS}/asan",
    "detect_leaks=1",
    "leak_check_at_exit=0",  # but by AT_EXIT
    # It guesses where threads have their own data, and falls over a wrong guess.
    "intercept_tls_get_addr=0",
)

# Python imports it at its start. It imports nothing that a test could miss.
AT_EXIT = """
import atexit

@atexit.register
def look_for_leaks():
    import _thread, os
    try:
        _thread.start_new_thread(int, ())  # the search needs as much
    except RuntimeError:
        return
    if os.path.exists("/proc/self/task"):
        import ctypes
        getattr(ctypes.CDLL(None), "__lsan_do_recoverable_leak_check", int)()
"""
LEAK = "import ctypes; malloc = ctypes.CDLL(None).malloc; [malloc(99) for _ in 'four']"


def copy_tree() -> None:
    """Bring the copy up to date; what did not change keeps its time."""
    for old in [one for one in PLACE.rglob("*") if one.is_file()]:
        name = old.relative_to(PLACE)
        built = "build" in name.parts or name.match("_core*.so")
        if not (built or (TOP / name).exists()):
            old.unlink()
    skip = shutil.ignore_patterns(*MADE)
    shutil.copytree(TOP, PLACE, ignore=skip, dirs_exist_ok=True)
    (PLACE / "sitecustomize.py").write_text(AT_EXIT)


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


def build_options() -> None:
    """Build the library that tells ASan its options."""
    text = ":".join(ASAN_OPTIONS)
    source = f'const char *__asan_default_options(void) {{ return "{text}"; }}\n'
    command = [*compiler(), "-shared", "-fPIC", "-x", "c", "-"]
    command += ["-o", f"{PLACE}/build/options.so"]
    subprocess.run(command, input=source, text=True, check=True)


def compiler() -> list[str]:
    """The compiler that the extension is built with."""
    return shlex.split(os.environ.get("CC", "cc"))


def runtime() -> str:
    """That compiler's library of the sanitizer."""
    command = [*compiler(), "-print-file-name=libasan.so"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        sys.exit(f"test_sanitized: {compiler()[0]} has no libasan.so; gcc has: CC=gcc")
    return str(path.resolve())


def environment() -> dict[str, str]:
    """The environment of pytest, and of whatever the tests start."""
    return os.environ | {
        "LD_PRELOAD": f"{PLACE}/build/options.so {runtime()}",
        "PYTHONPATH": str(PLACE),
        # Python's own allocator would hide what its blocks are used for.
        "PYTHONMALLOC": "malloc",
        "UBSAN_OPTIONS": f"print_stacktrace=1:halt_on_error=1:log_path={LOGS}/ubsan",
    }


def check_leaks_are_found() -> None:
    """Look at the reports of a program that leaks, so that none means none."""
    subprocess.run([sys.executable, "-c", LEAK], env=environment(), check=True)
    reports = list(LOGS.iterdir())
    if not any("detected memory leaks" in one.read_text() for one in reports):
        sys.exit("test_sanitized: a leak was not found")
    for one in reports:
        one.unlink()


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
    fatal = "LeakSanitizer has encountered a fatal error" in report
    return not fatal and bool(HARMLESS.sub("", report).strip())


def main(args: list[str]) -> int:
    """Copy, build, run, and look at the reports; return the exit status."""
    everything = args[:1] == ["--all"]
    PLACE.mkdir(parents=True, exist_ok=True)
    copy_tree()
    build()
    build_options()
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir()
    LOGS.chmod(0o1777)  # targets run as other users, too
    check_leaks_are_found()

    command = [sys.executable, "-m", "pytest", "-q", "-o", "timeout=600"]
    command += left_out({"never"} if everything else {"never", "long"})
    command += args[1:] if everything else args
    beside = ["--cache-clear", "-n", str(os.cpu_count() or 1)]
    status = subprocess.run([*command, *beside], cwd=PLACE, env=environment())
    if status.returncode == 1:
        # Tests that run side by side can take each other's ports.
        print("what failed once more, alone:", flush=True)
        again = [*command, "--last-failed", "--last-failed-no-failures=none"]
        status = subprocess.run(again, cwd=PLACE, env=environment())

    reports = {one: one.read_text(errors="replace") for one in LOGS.iterdir()}
    findings = {one: text for one, text in reports.items() if is_finding(text)}
    unfinished = sum("fatal error" in text for text in reports.values())
    for path, text in findings.items():
        print(f"\n{path}:\n{text[:6000]}")
    print(
        f"sanitizers: {len(findings)} findings; {len(reports)} reports in {LOGS}, "
        f"{unfinished} processes not searched for leaks"
    )
    return 1 if findings or status.returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
