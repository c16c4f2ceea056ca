"""What all tests share: victims, helpers, and the checks around each test.

Tests run against the real kernel. A test that needs root, a package or a
kernel feature asks for it with `need`; with PORTSECCOMP_NO_SKIP=1, as in CI,
a skip is a failure. PORTSECCOMP_CASES=N runs N cases of each test at most, for
machines that are slow.
"""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from embedder import quiet_port

import portseccomp

HERE = Path(__file__).parent
NO_SKIP = os.environ.get("PORTSECCOMP_NO_SKIP") == "1"
CASES = int(os.environ.get("PORTSECCOMP_CASES", "0"))


def spread(items: list, most: int) -> list:
    """As many of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return items
    step = (len(items) - 1) / max(most - 1, 1)
    return [items[round(i * step)] for i in range(most)]


def pytest_collection_modifyitems(config, items):
    """With PORTSECCOMP_CASES leave out most cases of tests that have many."""
    if not CASES:
        return
    tests: dict[tuple, list] = {}
    for item in items:
        key = (item.path, getattr(item, "originalname", None) or item.name)
        tests.setdefault(key, []).append(item)
    kept = {one for cases in tests.values() for one in spread(cases, CASES)}
    config.hook.pytest_deselected(items=[one for one in items if one not in kept])
    items[:] = [one for one in items if one in kept]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With PORTSECCOMP_NO_SKIP=1 a skip is a failure that says what is missing."""
    report = yield
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr[2]}"
    return report


def pytest_collection_finish():
    """Leave out of each test's garbage collection what is there before all tests."""
    gc.collect()
    gc.freeze()


def open_descriptors() -> dict[int, str]:
    """The descriptors of this process, and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass  # the listing's own
    return found


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Each test leaves as many descriptors and threads as it found."""
    before = open_descriptors()
    threads = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while True:
        gc.collect()
        left = {k: v for k, v in open_descriptors().items() if before.get(k) != v}
        extra = [one for one in threading.enumerate() if one not in threads]
        if not (left or extra) or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    assert not left, f"descriptors left open: {left}"
    assert not extra, f"threads left running: {extra}"


def has_socket(family: int, protocol: int) -> bool:
    """Whether this kernel has such a socket; not being allowed one is not having it."""
    try:
        socket.socket(family, socket.SOCK_STREAM, protocol).close()
    except OSError:
        return False
    return True


# What few kernels have is not asked of any.
collect_ignore = [] if has_socket(43, 0) else ["test_smc.py"]


def need(program: str, package: str) -> str:
    """Return the path of a program, or skip with the line that installs it."""
    # Debian keeps servers where a user's PATH does not lead.
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"needs {program}: apt-get install {package}")
    return path


def feature_named(name: str) -> portseccomp.Feature:
    """What there is, by its name in `portseccomp probe`."""
    return next(one for one in portseccomp.probe().features if one.name == name)


def need_locked_names() -> None:
    """Skip where getsockname(2) does not wait for a socket's lock."""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (5, 16):
        pytest.skip("needs Linux 5.16, whose getsockname waits for a socket's lock")


def need_feature(name: str) -> None:
    """Skip where the kernel lacks something, by its name in `portseccomp probe`."""
    feature = feature_named(name)
    if not feature.available:
        pytest.skip(f"needs a kernel with {name} ({feature.detail})")


@pytest.fixture(scope="session")
def victim(tmp_path_factory) -> Callable[..., str]:
    """Compile tests/victims/NAME.c and return the program's path."""
    place = tmp_path_factory.mktemp("victims")
    built: dict[tuple[str, ...], str] = {}

    def build(name: str, *flags: str) -> str:
        key = (name, *flags)
        if key not in built:
            program = str(place / "-".join([name, *(f.strip("-") for f in flags)]))
            compiler = os.environ.get("CC", "cc")
            source = str(HERE / "victims" / f"{name}.c")
            command = [compiler, "-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall"]
            command += ["-pthread", *flags, "-o", program, source]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
            built[key] = program
        return built[key]

    return build


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return a port that nothing uses, and that nobody gets by chance meanwhile."""
    return quiet_port


def accepts(host: str, port: int) -> bool:
    """Whether a connection to host and port is accepted: the outside view."""
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def python(source: str, *args: str) -> list[str]:
    """The command that runs a piece of Python."""
    return [sys.executable, "-c", source, *args]
