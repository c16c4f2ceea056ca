# SPDX-License-Identifier: MIT
"""Run portseccomp's tests on other kernels, booted in QEMU: docs/kernels.md.

test_kernels.py                          all kernels
test_kernels.py 5.10 6.1                 some
test_kernels.py 6.1 -- tests/test_listen.py -k rebind
                                         with other arguments for pytest
test_kernels.py 6.1 --command 'uname -a' something else in the guest
test_kernels.py 6.1 --shell              a shell there; `exit` ends it

The tests run on the machine's own files, which stay as they are, by the Python
that runs this script; for another machine (aarch64) a small Debian is unpacked,
and the core is built in the guest.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
from dataclasses import dataclass, field

import check_tools
import guest
from guest import GuestError, Job, Kernel

TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

KERNELS = (
    Kernel("5.10", ("bullseye-security",)),
    Kernel("6.1", ("bookworm", "bookworm-security")),
    Kernel("6.12", ("trixie", "trixie-security"), whole=True),
    Kernel("7", ("trixie-backports",), whole=True),
    Kernel("6.1-arm64", ("bookworm", "bookworm-security"), "aarch64"),
)

# Tests that ask the kernel nothing, or nothing that others don't ask sooner: an
# emulated machine is 10 to 20 times slower.
LEFT_OUT = {
    "test_cli.py": "the command line: many starts of Python",
    "test_examples.py": "the command line and the plugin, as a user meets them",
    "test_grammar.py": "rules, read without a kernel",
    "test_hooks_under_load.py": "Python's hooks, by the clock",
    "test_kernels_script.py": "this script",
    "test_matching.py": "rules, matched without a kernel",
    "test_packaging.py": "builds packages",
    "test_policy.py": "policies, mostly without a kernel",
    "test_pytest_plugin.py": "runs pytest in pytest",
    "test_scale.py": "how much a hundred thousand calls take",
    "test_security_docs.py": "what documents say",
    "test_servers.py": "other people's servers, in Java, Go and others",
    "test_soak.py": "a long run of the same",
    "test_verdict.py": "what a hook can answer, without a kernel",
}
# Left out where the kernel lacks what these refuse, one thing at a time.
LEFT_OUT_OLD = {"test_fallbacks.py": "plays an old kernel on a new one"}
ALWAYS = ("-p", "pytest_timeout", "-p", "xdist.plugin", "--timeout=300")
PYTEST = ("-m", "not slow", "-n", "2")
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
    # tries of each race: 100,000 on the machine itself
    "PORTSECCOMP_ATTACKS": os.environ.get("PORTSECCOMP_ATTACKS", "2000"),
    # of tests with many cases the first, one in the middle, and the last
    "PORTSECCOMP_CASES": os.environ.get("PORTSECCOMP_CASES", "3"),
    # Plugins that are not used take seconds to import, and each test more time.
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}

# What the tests need on a machine that is not this one.
FOREIGN_SUITE = "bookworm"
FOREIGN_PACKAGES = (
    *("gcc", "libc6-dev", "make", "python3-dev"),
    *("iproute2", "libcap2-bin", "procps"),
)
FOREIGN_PYTHON = ("pytest", "pytest-timeout", "pytest-xdist", "Cython", "setuptools")
FOREIGN_TREE = "/portseccomp"


# ---- what runs in a guest ----


def exports(more: dict[str, str]) -> str:
    """The shell's lines that set the environment."""
    return "".join(
        f"export {key}={shlex.quote(value)}\n"
        for key, value in {**ENVIRONMENT, **more}.items()
    )


def pytest_line(python: str, arguments: list[str], whole: bool = True) -> str:
    """The command that runs the tests: those that are asked for, or the default."""
    if not arguments:
        left_out = [*LEFT_OUT, *(() if whole else LEFT_OUT_OLD)]
        arguments = [*PYTEST, *(f"--ignore=tests/{one}" for one in left_out), "tests"]
    return shlex.join([python, "-m", "pytest", *ALWAYS, *arguments])


def tests_script(place: Place, arguments: list[str], whole: bool) -> str:
    """The shell's lines that run the C core's tests, then pytest."""
    return (
        f"uname -srm\n{shlex.quote(place.python)} -m portseccomp probe\n"
        f"{shlex.quote(place.runner)}; status=$?\n"
        f"{pytest_line(place.python, arguments, whole)} || status=$?\n"
        "exit $status\n"
    )


@dataclass
class Place:
    """Where the tests are in a guest, and what it shows of this machine."""

    tree: str
    python: str
    runner: str  # of the C core's tests
    shares: dict[str, str]
    environment: dict[str, str] = field(default_factory=dict)
    prepare: str = ""  # for the shell, in the tree
    out: str | None = None


def native() -> Place:
    """The files of this machine."""
    runner = os.path.join(TREE, "build/c/core-tests")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if not glob.glob(f"{TREE}/portseccomp/_core*{suffix}"):
        raise GuestError("portseccomp is not built here: make build")
    make = ["make", "--silent", "-C", f"{TREE}/csrc", runner]
    if subprocess.run(make).returncode:
        raise GuestError("the C core's tests could not be built")
    environment = {
        # For programs that tests start elsewhere, should it not be installed.
        "PYTHONPATH": TREE,
        # For `portseccomp`, and the `python` that belongs to it.
        "PATH": f"{os.path.dirname(sys.executable)}:{ENVIRONMENT['PATH']}",
    }
    return Place(TREE, sys.executable, runner, {"/": "/"}, environment)


# Built in the guest, by its own compiler: no cross compiler has to match the
# guest's libc. That takes minutes, so what was built is kept.
BUILD = """
python3 setup.py --quiet build_ext --inplace || exit
make --silent -C csrc build=/run/out/c /run/out/c/core-tests || exit
rm -rf /run/out/c/core /run/out/c/tests
cp portseccomp/_core*$(uname -m)*.so /run/out/ && touch /run/out/done
"""


def compile_python() -> None:
    """Leave compiled modules in the tree, as pytest wants them.

    In a guest nothing that is written stays: each start of Python would compile
    the same again.
    """
    environment = {**os.environ, "PYTHONPATH": TREE, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-m", "compileall", "-q", f"{TREE}/portseccomp"]
    subprocess.run(command, env=environment)
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-m", "pytest", *ALWAYS, "--collect-only", "-q", "tests"]
    subprocess.run(command, env=environment, cwd=TREE, stdout=subprocess.DEVNULL)


def foreign(kernel: Kernel) -> Place:
    """A small Debian for another machine, and the core built there."""
    machine, tree = kernel.machine, FOREIGN_TREE
    root = guest.foreign_root(FOREIGN_SUITE, machine, FOREIGN_PACKAGES)
    install_python(root, machine)
    place = Place(
        tree,
        "python3",
        "/run/out/c/core-tests",
        {"/": root, tree: TREE},
        {"PYTHONPATH": f"/opt/site:{tree}"},
        "cp /run/out/_core*.so portseccomp/\n",
        os.path.join(guest.CACHE, "built", f"{machine}-{sources()}"),
    )
    if not os.path.exists(f"{place.out}/done"):
        print(f"building for {machine} in the guest, which takes minutes", flush=True)
        os.makedirs(place.out, exist_ok=True)
        script = f"{exports(place.environment)}cd {tree}{BUILD}"
        if guest.run(kernel, Job(script, place.shares, place.out, timeout=1800)):
            raise GuestError(f"could not be built for {machine}")
    return place


def sources() -> str:
    """A name for what the core is built from."""
    digest = hashlib.sha256()
    for pattern in ("csrc/*", "portseccomp/*.p[xy][xd]", "setup.py", "tests/c/*"):
        for path in sorted(glob.glob(os.path.join(TREE, pattern))):
            with open(path, "rb") as file:
                digest.update(file.read())
    return digest.hexdigest()[:16]


def install_python(root: str, machine: str) -> None:
    """Put pytest and what builds the core into a foreign root."""
    site = f"{root}/opt/site"
    done = f"{site}/{'+'.join(FOREIGN_PYTHON)}"
    if os.path.exists(done):
        return
    with open(f"{TREE}/pyproject.toml", "rb") as file:
        wanted = tomllib.load(file)["project"]["optional-dependencies"]["test"]
    wanted = [one for one in wanted if re.match(r"[\w-]+", one)[0] in FOREIGN_PYTHON]
    version = next(x for x in os.listdir(f"{root}/usr/bin") if x.startswith("python3."))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", site]
    command += ["--only-binary", ":all:", "--platform", f"manylinux2014_{machine}"]
    command += ["--python-version", version.removeprefix("python").split("-")[0]]
    command += ["--upgrade", *wanted]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
        raise GuestError(installed.stderr)
    with open(done, "w"):
        pass


# ---- what came out ----

CORE = re.compile(r"(\d+ passed, \d+ failed)")
PYTEST_END = re.compile(r"=+ (.*\b(?:passed|failed|skipped|error).*) in ([\d.]+)s.*=+")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Result:
    """What one kernel's run gave."""

    def __init__(self, name: str) -> None:
        self.name, self.status, self.seconds = name, 1, 0.0
        self.release = self.core = self.tests = "-"

    def read(self, line: str) -> None:
        """Show a line of the guest, and keep what tells the result."""
        print(line, flush=True)
        plain = COLOUR.sub("", line)
        if plain.startswith("Linux ") and self.release == "-":
            self.release = plain.split()[1]
        elif found := CORE.fullmatch(plain):
            self.core = found[1]
        elif found := PYTEST_END.fullmatch(plain):
            self.tests = found[1]

    def row(self) -> tuple[str, ...]:
        """The cells of the closing table."""
        verdict = "ok" if self.status == 0 else "FAILED"
        minutes = f"{self.seconds / 60:.1f} min"
        return self.name, self.release, verdict, self.core, self.tests, minutes


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns, as wide as they have to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def run(kernel: Kernel, options: argparse.Namespace) -> Result:
    """Boot one kernel and do there what was asked for."""
    result, start = Result(kernel.name), time.monotonic()
    print(f"---- {kernel.name} ----", flush=True)
    try:
        kernel.fetch()
        compile_python()
        own = kernel.machine == platform.machine()
        place = native() if own else foreign(kernel)
        script = exports(place.environment) + f"cd {shlex.quote(place.tree)}\n"
        script += place.prepare
        if options.shell:
            script += "exec bash -i\n"
        elif options.command:
            script += options.command + "\n"
        else:
            script += tests_script(place, options.pytest, kernel.whole)
        limit = options.minutes * 60
        job = Job(script, place.shares, place.out, options.shell, limit)
        result.status = guest.run(kernel, job, result.read)
    except GuestError as error:
        print(f"{kernel.name}: {error}", file=sys.stderr)
    result.seconds = time.monotonic() - start
    return result


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    arguments: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, arguments = words[:at], words[at + 1 :]
    parser = argparse.ArgumentParser(
        description="Run the tests on other kernels, booted in QEMU.",
        epilog="What follows -- goes to pytest, in place of the default.",
    )
    known = {one.name: one for one in KERNELS}
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=", ".join(known))
    parser.add_argument("--command", help="run this instead of the tests")
    parser.add_argument("--shell", action="store_true", help="run a shell instead")
    parser.add_argument(
        "--minutes", type=float, default=30, help="limit for each kernel (%(default)s)"
    )
    options = parser.parse_args(words)
    if unknown := set(options.kernels) - known.keys():
        parser.error(f"no kernel {' '.join(unknown)}: there are {', '.join(known)}")
    options.kernels = [known[name] for name in options.kernels or known]
    options.pytest = arguments
    return options


def main(words: list[str]) -> int:
    """Do what the command line says; return the exit status."""
    options = parse(words)
    # As control-C does: QEMU is not left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    missing = [x for x in check_tools.read_packages()["kernels"] if not x.is_there()]
    if missing:
        print(f"needs QEMU: {check_tools.install_line(missing)}", file=sys.stderr)
        return 1
    results = [run(kernel, options) for kernel in options.kernels]
    if not (options.shell or options.command):
        print()
        print(table([one.row() for one in results]))
    return max(one.status for one in results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
